"""Test models, provider keys and tools with the bodies that seeds/kasal.md shows."""

from tests.support.clients import TenantClient

OPENAI_KEY = "sk-proj-0123456789abcdefWXYZ"


async def test_provider_keys_as_kasal_shows_them(acme: TenantClient, resources) -> None:
    web = acme.http
    answer = await web.post("/provider-keys", json={"name": "OpenAI API Key", "service": "openai", "key": OPENAI_KEY})
    assert answer.status_code == 201
    key = answer.json()
    assert (key["name"], key["service"], key["slug"]) == ("OpenAI API Key", "openai", "openai_api_key")
    assert (key["last_four"], key["tenant_id"]) == ("WXYZ", acme.tenant_id)
    assert "key" not in key
    assert OPENAI_KEY not in answer.text
    listed = (await web.get("/provider-keys")).json()
    assert listed == {"items": [key], "total": 1, "limit": 100, "offset": 0, "has_more": False}
    for reference in (key["id"], "OpenAI API Key", "openai_api_key"):
        assert (await web.get(f"/provider-keys/{reference}")).json() == key

    body = {"name": "Updated OpenAI Key", "key": "sk-new-key-0123456789efgh"}
    changed = await web.put(f"/provider-keys/{key['id']}", json=body)
    assert changed.status_code == 200
    assert (changed.json()["name"], changed.json()["slug"]) == ("Updated OpenAI Key", "updated_openai_key")
    assert (changed.json()["last_four"], changed.json()["service"]) == ("efgh", "openai")
    async with resources.store.tenant_transaction(acme.tenant_id) as tx:
        sealed = await tx.provider_keys.find_sealed("updated_openai_key")
    assert resources.keyring.open(sealed).decode() == "sk-new-key-0123456789efgh"
    assert b"sk-new" not in sealed
    assert (await web.get("/provider-keys/openai_api_key")).status_code == 404
    assert (await web.delete("/provider-keys/updated_openai_key")).status_code == 204
    assert (await web.get(f"/provider-keys/{key['id']}")).status_code == 404


async def test_models_as_kasal_shows_them(acme: TenantClient) -> None:
    web = acme.http
    initial_models = (await web.get("/models")).json()["items"]
    assert [(model["name"], model["provider"], model["model"]) for model in initial_models] == [
        ("smollm2", "local", "smollm2")
    ]
    assert initial_models[0]["price"] == {"input": 0.0, "output": 0.0, "cached_input": None}

    body = {
        "name": "custom-gpt-4",
        "provider": "openai",
        "model": "gpt-4",
        "api_key_name": "openai_api_key",
        "parameters": {"temperature": 0.7, "max_tokens": 2000},
    }
    refused = await web.post("/models", json=body)
    assert refused.status_code == 422
    assert refused.json()["errors"][0]["field"] == "api_key_name"
    await web.post("/provider-keys", json={"name": "OpenAI API Key", "service": "openai", "key": OPENAI_KEY})
    answer = await web.post("/models", json=body)
    assert answer.status_code == 201
    model = answer.json()
    assert {name: model[name] for name in body} == body
    assert (model["price"], model["base_url"], model["tenant_id"]) == (None, None, acme.tenant_id)
    assert (await web.get("/models/custom-gpt-4")).json() == model
    assert (await web.get(f"/models/{model['id']}")).json() == model
    assert [model["name"] for model in (await web.get("/models")).json()["items"]] == ["custom-gpt-4", "smollm2"]
    assert [model["name"] for model in (await web.get("/models?provider=openai")).json()["items"]] == ["custom-gpt-4"]


async def test_tools_as_kasal_shows_them(acme: TenantClient) -> None:
    web = acme.http
    body = {
        "name": "Custom Search Tool",
        "description": "A tool for searching specific databases",
        "tool_type": "custom",
        "configuration": {"api_endpoint": "https://api.example.com", "parameters": {}},
        "enabled": True,
    }
    answer = await web.post("/tools", json=body)
    assert answer.status_code == 201
    tool = answer.json()
    assert {name: tool[name] for name in ("name", "description", "tool_type", "enabled")} == {
        name: body[name] for name in ("name", "description", "tool_type", "enabled")
    }
    assert tool["configuration"]["api_endpoint"] == "https://api.example.com"
    assert (tool["slug"], tool["category"], tool["effects"], tool["fenced"]) == (
        *("custom_search_tool", "custom"),
        *(True, False),
    )
    assert tool["parameters"]["type"] == "object"

    listed = (await web.get("/tools")).json()
    assert listed["total"] == 7
    assert [tool_item["name"] for tool_item in listed["items"][:2]] == ["Custom Search Tool", "filesystem_read"]
    enabled = (await web.get("/tools/enabled")).json()
    assert enabled["items"] == listed["items"]
    for reference in (tool["id"], "Custom Search Tool", "custom_search_tool"):
        assert (await web.get(f"/tools/{reference}")).json() == tool

    toggled = await web.patch(f"/tools/{tool['id']}/toggle-enabled")
    assert (toggled.status_code, toggled.json()["enabled"]) == (200, False)
    assert (await web.get("/tools/enabled")).json()["total"] == 6
    assert (await web.patch(f"/tools/{tool['id']}/toggle-enabled")).json()["enabled"] is True

    schema = await web.get("/tools/configurations/Custom Search Tool/schema")
    assert schema.json() == tool["parameters"]
    custom_schema = (await web.get("/tools/configurations/custom/schema")).json()
    assert custom_schema["required"] == ["api_endpoint"]
    assert set(custom_schema["properties"]) >= {"api_endpoint", "method", "parameters", "headers", "secrets"}
