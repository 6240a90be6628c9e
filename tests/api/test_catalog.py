"""Test the registries of models, provider keys and tools: invalid input, references between them, and secrecy of keys."""

import json
import secrets
from typing import Any

import msgspec
import pytest

from domain import llms, tools
from domain.shared import ids
from domain.shared.errors import DomainError
from domain.tools import BUILT_IN_TOOLS, MAX_TENANT_TOOLS, McpServerTool, Tool
from tests.support.clients import TenantClient

PROVIDER_KEY = "sk-0123456789-abcdefgh-hidden"
CUSTOM_CONFIGURATION = {
    "api_endpoint": "https://api.example.com/search",
    "method": "GET",
    "parameters": {"q": {"type": "string"}},
}
EXAMPLE_MODEL = {"name": "fast", "provider": "openai", "model": "gpt-4o"}


async def create_provider_key(
    acme: TenantClient, name: str, service: str = "openai", key: str = PROVIDER_KEY
) -> dict[str, Any]:
    answer = await acme.http.post("/provider-keys", json={"name": name, "service": service, "key": key})
    assert answer.status_code == 201, answer.text
    return dict(answer.json())


@pytest.mark.parametrize(
    ("path", "body", "field"),
    [
        ("/models", {**EXAMPLE_MODEL, "provider": "unknown"}, "provider"),
        ("/models", {**EXAMPLE_MODEL, "name": "a\nb"}, "name"),
        ("/models", {**EXAMPLE_MODEL, "name": "a//b"}, "name"),
        ("/models", {**EXAMPLE_MODEL, "name": "model_01k00000000000000000000000"}, "name"),
        ("/models", {**EXAMPLE_MODEL, "model": "two words"}, "model"),
        ("/models", {**EXAMPLE_MODEL, "model": "gpt-4\n"}, "model"),
        ("/models", {**EXAMPLE_MODEL, "name": "a\n"}, "name"),
        ("/models", {**EXAMPLE_MODEL, "base_url": "ftp://x"}, "base_url"),
        ("/models", {**EXAMPLE_MODEL, "base_url": "https://user:pass@x"}, "base_url"),
        ("/models", {**EXAMPLE_MODEL, "provider": "databricks"}, "base_url"),
        ("/models", {**EXAMPLE_MODEL, "provider": "openai_compatible"}, "base_url"),
        ("/models", {**EXAMPLE_MODEL, "provider": "azure"}, "base_url"),
        ("/models", {**EXAMPLE_MODEL, "provider": "bedrock"}, "parameters.region"),
        ("/models", {**EXAMPLE_MODEL, "provider": "gemini", "api": "responses"}, "api"),
        ("/models", {**EXAMPLE_MODEL, "provider": "local", "base_url": "http://x"}, "base_url"),
        ("/models", {**EXAMPLE_MODEL, "provider": "local", "api_key_name": "x"}, "api_key_name"),
        ("/models", {**EXAMPLE_MODEL, "api_key_name": "missing"}, "api_key_name"),
        ("/models", {**EXAMPLE_MODEL, "api_key_name": "a\0b"}, "api_key_name"),
        ("/models", {**EXAMPLE_MODEL, "parameters": {"temperature": 3}}, "parameters.temperature"),
        ("/models", {**EXAMPLE_MODEL, "parameters": {"max_tokens": "many"}}, "parameters.max_tokens"),
        ("/models", {**EXAMPLE_MODEL, "parameters": {"messages": []}}, "parameters.messages"),
        ("/models", {**EXAMPLE_MODEL, "parameters": {"x": "y" * 20_000}}, "parameters"),
        ("/models", {**EXAMPLE_MODEL, "price": {"input": -1, "output": 1}}, "price.input"),
        ("/models", {**EXAMPLE_MODEL, "price": {"input": 1}}, "price.output"),
        ("/models", {**EXAMPLE_MODEL, "price": {"input": 1, "output": 1, "per": "day"}}, "price.per"),
        ("/models", {**EXAMPLE_MODEL, "group_id": "x"}, "group_id"),
        ("/provider-keys", {"name": "k", "service": "openai"}, "key"),
        ("/provider-keys", {"name": "k", "service": "openai", "key": f"{PROVIDER_KEY}\n"}, "key"),
        ("/provider-keys", {"name": "k", "service": "openai", "key": [PROVIDER_KEY]}, "key"),
        ("/provider-keys", {"name": "k", "service": "bedrock", "key": "AKIAIOSFODNN7EXAMPLE"}, "key"),
        ("/provider-keys", {"name": "k", "service": "open ai", "key": PROVIDER_KEY}, "service"),
        ("/provider-keys", {"name": "k", "service": "openai\n", "key": PROVIDER_KEY}, "service"),
        ("/provider-keys", {"name": "a/b", "service": "openai", "key": PROVIDER_KEY}, "name"),
        ("/provider-keys", {"name": "k", "service": "openai", "api_key": PROVIDER_KEY, "key": PROVIDER_KEY}, "api_key"),
        ("/tools", {"name": "t", "configuration": {}}, "configuration.api_endpoint"),
        ("/tools", {"name": "t", "tool_type": "builtin", "configuration": CUSTOM_CONFIGURATION}, "tool_type"),
        ("/tools", {"name": "t", "configuration": {**CUSTOM_CONFIGURATION, "colour": "red"}}, "configuration.colour"),
        ("/tools", {"name": "t", "configuration": {**CUSTOM_CONFIGURATION, "secrets": {"X-Key": "missing"}}}, None),
        ("/tools", {"name": "Enabled", "configuration": CUSTOM_CONFIGURATION}, "name"),
        ("/tools", {"name": "configurations", "configuration": CUSTOM_CONFIGURATION}, "name"),
        ("/tools", {"name": "mcp", "configuration": CUSTOM_CONFIGURATION}, "name"),
        ("/tools", {"name": "a\\b", "configuration": CUSTOM_CONFIGURATION}, "name"),
        ("/tools", {"name": "t", "category": "Two Words", "configuration": CUSTOM_CONFIGURATION}, "category"),
        ("/tools", {"name": "t", "tool_type": "mcp", "configuration": CUSTOM_CONFIGURATION}, None),
        (
            "/tools",
            {"name": "t", "configuration": {**CUSTOM_CONFIGURATION, "headers": {"X": "y" * 70_000}}},
            "configuration",
        ),
    ],
)
async def test_invalid_entry_is_refused_by_field(
    acme: TenantClient, path: str, body: dict[str, Any], field: str | None
) -> None:
    answer = await acme.http.post(path, json=body)
    assert answer.status_code == 422, answer.text
    error_field = answer.json()["errors"][0]["field"]
    assert error_field == field if field is not None else error_field.startswith("configuration."), answer.text
    assert PROVIDER_KEY not in answer.text
    changed = await acme.http.patch("/models/smollm2", json={name: body[name] for name in body if name != "name"})
    if path == "/models" and field != "name":
        assert changed.status_code == 422, changed.text


async def test_duplicate_names_conflict(acme: TenantClient) -> None:
    await create_provider_key(acme, "My Key")
    for path, body in (
        ("/provider-keys", {"name": "my-key", "service": "x", "key": PROVIDER_KEY}),
        ("/models", {**EXAMPLE_MODEL, "name": "smollm2"}),
        ("/tools", {"name": "Python", "configuration": CUSTOM_CONFIGURATION}),
        ("/tools", {"name": "http-request", "configuration": CUSTOM_CONFIGURATION}),
    ):
        refused = await acme.http.post(path, json=body)
        assert (refused.status_code, refused.json()["errors"][0]["field"]) == (409, "name"), refused.text
    await acme.http.post("/models", json=EXAMPLE_MODEL)
    assert (await acme.http.patch("/models/fast", json={"name": "smollm2"})).status_code == 409
    await create_provider_key(acme, "Other")
    assert (await acme.http.patch("/provider-keys/other", json={"name": "My Key"})).status_code == 409
    await acme.http.post("/tools", json={"name": "One", "configuration": CUSTOM_CONFIGURATION})
    await acme.http.post("/tools", json={"name": "Two", "configuration": CUSTOM_CONFIGURATION})
    for name in ("one", "python"):
        assert (await acme.http.patch("/tools/two", json={"name": name})).status_code == 409


async def test_provider_key_is_never_shown(acme: TenantClient, system) -> None:
    hidden = f"sk-{secrets.token_hex(16)}"
    headers = {"Idempotency-Key": "keep-it"}
    body = {"name": "Hidden", "service": "openai", "key": hidden}
    first = await acme.http.post("/provider-keys", json=body, headers=headers)
    again = await acme.http.post("/provider-keys", json=body, headers=headers)
    assert again.headers["Idempotency-Replayed"] == "true"
    assert again.json() == first.json()
    other = await acme.http.post("/provider-keys", json={**body, "key": "another"}, headers=headers)
    assert other.json()["error"] == "idempotency_conflict"
    answers = [first, again, other, await acme.http.get("/provider-keys"), await acme.http.get("/provider-keys/hidden")]
    answers.append(await acme.http.post("/provider-keys", json=body))
    answers.append(await acme.http.put("/provider-keys/hidden", json={"key": f"{hidden}\n"}))
    answers.append(await acme.http.put("/provider-keys/hidden", json={"key": hidden, "colour": "red"}))
    assert [answer.status_code for answer in answers[-3:]] == [409, 422, 422]
    assert not any(hidden in answer.text for answer in answers)
    assert not any(hidden in line for line in system.lines)
    async with acme.open_client(await acme.create_key(scopes=["read:catalog"])) as reader:
        assert (await reader.get("/provider-keys")).json()["total"] == 1
        assert (await reader.post("/provider-keys", json=body)).status_code == 403


async def test_short_keys_hide_their_last_four_and_lists_filter_by_service(acme: TenantClient) -> None:
    assert (await create_provider_key(acme, "Short", "search", "twelve-chars"))["last_four"] is None
    await create_provider_key(acme, "Long", "OpenAI")
    keys = (await acme.http.get("/provider-keys?service=openai")).json()["items"]
    assert [key["name"] for key in keys] == ["Long"]
    changed = await acme.http.patch("/provider-keys/long", json={"service": "search"})
    assert changed.json()["service"] == "search"
    assert (await acme.http.get("/provider-keys?service=search")).json()["total"] == 2


async def test_references_to_a_key_follow_its_name_and_prevent_deletion(acme: TenantClient, resources) -> None:
    key = await create_provider_key(acme, "Search Key")
    await acme.http.post("/models", json={**EXAMPLE_MODEL, "api_key_name": key["id"]})
    tool = {"name": "Search", "configuration": {**CUSTOM_CONFIGURATION, "secrets": {"X-Api-Key": "Search Key"}}}
    created = (await acme.http.post("/tools", json=tool)).json()
    assert created["configuration"]["secrets"] == {"X-Api-Key": "search_key"}
    assert (await acme.http.get("/models/fast")).json()["api_key_name"] == "search_key"

    refused = await acme.http.delete("/provider-keys/search_key")
    assert refused.status_code == 409
    assert "model fast" in refused.json()["detail"]
    assert "tool Search" in refused.json()["detail"]

    await acme.http.put("/provider-keys/search_key", json={"name": "New Name"})
    assert (await acme.http.get("/models/fast")).json()["api_key_name"] == "new_name"
    assert (await acme.http.get("/tools/search")).json()["configuration"]["secrets"] == {"X-Api-Key": "new_name"}
    async with resources.store.tenant_transaction(acme.tenant_id) as tx:
        resolved = await llms.resolve_model(tx, "fast")
        assert resources.keyring.open(resolved.sealed_key or b"").decode() == PROVIDER_KEY
    assert (await acme.http.patch("/models/fast", json={"api_key_name": None})).json()["api_key_name"] is None
    changed = await acme.http.patch("/tools/search", json={"configuration": CUSTOM_CONFIGURATION})
    assert changed.json()["configuration"]["secrets"] == {}
    assert (await acme.http.delete("/provider-keys/new_name")).status_code == 204


async def test_only_key_of_a_service_is_used_automatically(acme: TenantClient, resources) -> None:
    await acme.http.post("/models", json=EXAMPLE_MODEL)

    async def resolve_sealed_key(name: str, provider: str | None = None) -> bytes | None:
        async with resources.store.tenant_transaction(acme.tenant_id) as tx:
            return (await llms.resolve_model(tx, name, provider)).sealed_key

    assert await resolve_sealed_key("fast") is None
    await create_provider_key(acme, "First", "OpenAI", "first-key")
    assert resources.keyring.open(await resolve_sealed_key("fast")) == b"first-key"
    assert resources.keyring.open(await resolve_sealed_key("gpt-4o-mini")) == b"first-key"
    assert resources.keyring.open(await resolve_sealed_key("anything", "openai")) == b"first-key"
    assert await resolve_sealed_key("claude-sonnet-4") is None
    assert await resolve_sealed_key("smollm2") is None
    await create_provider_key(acme, "Second")
    # With two keys of the service, the model must name one.
    assert await resolve_sealed_key("fast") is None
    assert (await acme.http.patch("/models/fast", json={"api_key_name": "first"})).status_code == 200
    assert resources.keyring.open(await resolve_sealed_key("fast")) == b"first-key"
    with pytest.raises(DomainError, match="must be 'openai', with which the model 'fast' is registered"):
        await resolve_sealed_key("fast", "anthropic")


async def test_every_field_of_a_model_can_be_updated(acme: TenantClient) -> None:
    created = (await acme.http.post("/models", json=EXAMPLE_MODEL)).json()
    changes = {
        "name": "slow",
        "provider": "openai_compatible",
        "base_url": "http://127.0.0.1:9/v1",
        "model": "omega/1:latest",
        "parameters": {"top_p": 0.5, "reasoning_effort": "low"},
        "price": {"input": 1.5, "output": 2, "cached_input": 0.1},
    }
    changed = await acme.http.put("/models/fast", json=changes)
    assert changed.status_code == 200, changed.text
    assert {name: changed.json()[name] for name in changes} == changes
    assert changed.json()["updated_at"] > created["updated_at"]
    assert (await acme.http.get(f"/models/{created['id']}")).json() == changed.json()
    assert (await acme.http.patch("/models/slow", json={"price": None})).json()["price"] is None
    assert (await acme.http.patch("/models/slow", json={"base_url": None})).status_code == 422
    assert (await acme.http.patch("/models/smollm2", json={"name": "small"})).json()["name"] == "small"
    assert (await acme.http.delete("/models/small")).status_code == 204
    assert (await acme.http.get("/models/small")).status_code == 404


async def test_built_in_tools_can_only_be_enabled_and_disabled_per_tenant(
    acme: TenantClient, other_tenant: TenantClient
) -> None:
    tool = (await acme.http.get("/tools/python")).json()
    assert tool["id"] == (await other_tenant.http.get("/tools/python")).json()["id"]
    assert (tool["tool_type"], tool["category"], tool["fenced"], tool["effects"]) == ("builtin", "code", True, True)
    for reference in (tool["id"], "python"):
        assert (await acme.http.delete(f"/tools/{reference}")).status_code == 409
        assert (await acme.http.patch(f"/tools/{reference}", json={"description": "x"})).status_code == 409
    assert (await acme.http.patch("/tools/python/toggle-enabled")).json()["enabled"] is False
    disabled = (await acme.http.get("/tools/python")).json()
    assert disabled["enabled"] is False
    # Created with the tenant, and updated when it was disabled.
    since = (await acme.http.get("/tenant")).json()["created_at"]
    assert (tool["created_at"], tool["updated_at"], disabled["created_at"]) == (since, since, since)
    assert disabled["updated_at"] > since
    assert (await other_tenant.http.get("/tools/python")).json()["enabled"] is True
    assert [
        disabled_tool["name"] for disabled_tool in (await acme.http.get("/tools?enabled=false")).json()["items"]
    ] == ["python"]
    assert (await acme.http.patch("/tools/python", json={"enabled": False})).json()["enabled"] is False
    assert (await acme.http.put(f"/tools/{tool['id']}", json={"enabled": True})).json()["enabled"] is True
    assert (await acme.http.patch("/tools/python/toggle-enabled")).json()["enabled"] is False
    assert (await acme.http.patch("/tools/python/toggle-enabled")).json()["enabled"] is True
    schema = (await acme.http.get("/tools/configurations/filesystem_read/schema")).json()
    assert schema["required"] == ["path"]
    assert schema["properties"]["encoding"]["default"] == "utf-8"
    assert "api_endpoint" in (await acme.http.get("/tools/configurations/http/schema")).json()["properties"]
    assert "url" in (await acme.http.get("/tools/configurations/mcp/schema")).json()["required"]
    assert (await acme.http.get("/tools/configurations/nothing/schema")).status_code == 404


async def test_every_field_of_a_tool_can_be_updated(acme: TenantClient) -> None:
    created = (
        await acme.http.post(
            "/tools", json={"name": "Search", "tool_type": "http", "configuration": CUSTOM_CONFIGURATION}
        )
    ).json()
    # Only GET has no effects.
    assert (created["tool_type"], created["effects"], created["category"], created["description"]) == (
        "custom",
        False,
        "custom",
        "",
    )
    posting = {**CUSTOM_CONFIGURATION, "method": "POST"}
    assert (await acme.http.patch("/tools/search", json={"configuration": posting})).json()["effects"] is True
    overridden = await acme.http.patch("/tools/search", json={"effects": False})
    assert overridden.json()["effects"] is False
    assert (await acme.http.patch("/tools/search", json={"configuration": posting})).json()["effects"] is False
    changes = {"name": "Look Up", "description": "Finds.", "category": "search", "enabled": False, "effects": True}
    changed = (await acme.http.put("/tools/search", json=changes)).json()
    assert {name: changed[name] for name in changes} == changes
    assert changed["slug"] == "look_up"
    server = {"tool_type": "mcp", "configuration": {"url": "https://mcp.example.com/mcp"}}
    assert (await acme.http.patch("/tools/look_up", json={"tool_type": "mcp"})).status_code == 422
    replaced = (await acme.http.patch("/tools/look_up", json=server)).json()
    assert (replaced["tool_type"], replaced["parameters"]) == ("mcp", {})
    assert (await acme.http.get("/tools/look_up")).json() == replaced
    for query, total in (
        ("tool_type=mcp", 1),
        ("category=search", 1),
        ("category=filesystem", 3),
        ("category=none", 0),
    ):
        assert (await acme.http.get(f"/tools?{query}")).json()["total"] == total
    assert (await acme.http.get("/tools/enabled?tool_type=mcp")).json()["total"] == 0
    assert (await acme.http.delete("/tools/look_up")).status_code == 204
    assert (await acme.http.get("/tools/look_up")).status_code == 404


async def test_tool_list_pages_continue_into_built_in_tools(acme: TenantClient) -> None:
    for name in ("One", "Two", "Three"):
        await acme.http.post("/tools", json={"name": name, "configuration": CUSTOM_CONFIGURATION})
    all_names = ["Three", "Two", "One", *(tool.name for tool in BUILT_IN_TOOLS)]
    for limit in (1, 2, 4, 9, 20):
        names: list[str] = []
        while True:
            page = (await acme.http.get(f"/tools?limit={limit}&offset={len(names)}")).json()
            assert page["total"] == len(all_names)
            names += [tool["name"] for tool in page["items"]]
            if not page["has_more"]:
                break
        assert names == all_names
    assert (await acme.http.get("/tools?offset=50")).json()["items"] == []


async def test_tools_resolve_by_name_slug_or_id(acme: TenantClient, resources) -> None:
    created = (await acme.http.post("/tools", json={"name": "My Search", "configuration": CUSTOM_CONFIGURATION})).json()
    server = {"name": "Git", "tool_type": "mcp", "configuration": {"url": "https://mcp.example.com/mcp"}}
    await acme.http.post("/tools", json=server)
    async with resources.store.tenant_transaction(acme.tenant_id) as tx:
        references = ["My Search", "git/log", "python", created["id"], "my_search", "git", "git/log", "git/diff"]
        resolved = await tools.resolve_tools(tx, references)
        resolved_names = [(tool.slug, tool.tool_name if isinstance(tool, McpServerTool) else None) for tool in resolved]
        assert resolved_names == [("my_search", None), ("git", "log"), ("python", None), ("git", None), ("git", "diff")]
        with pytest.raises(DomainError) as caught:
            await tools.resolve_tools(tx, ["git", "nothing", "My Search/x", "git/", "a\0b"])
    assert [error.field for error in caught.value.errors] == ["tools[1]", "tools[2]", "tools[3]", "tools[4]"]


async def test_number_of_tools_per_tenant_is_limited(acme: TenantClient, resources) -> None:
    first = (await acme.http.post("/tools", json={"name": "t", "configuration": CUSTOM_CONFIGURATION})).json()
    async with resources.store.tenant_transaction(acme.tenant_id) as tx:
        tool = msgspec.convert(first, Tool)
        for number in range(MAX_TENANT_TOOLS - 2):
            await tx.tools.add(
                msgspec.structs.replace(tool, id=ids.generate_id("tool"), name=f"t{number}", slug=f"t{number}")
            )
    statuses = []
    for name in ("last", "one-more"):
        statuses.append(
            (await acme.http.post("/tools", json={"name": name, "configuration": CUSTOM_CONFIGURATION})).status_code
        )
    assert statuses == [201, 409]
    listed = (await acme.http.get("/tools?limit=1000")).json()
    assert listed["total"] == len(listed["items"]) == MAX_TENANT_TOOLS + len(BUILT_IN_TOOLS)


async def test_new_tenant_has_the_local_model_and_may_delete_it(acme: TenantClient, system) -> None:
    async with acme.open_client(system.admin_key) as operator:
        assert (await operator.get("/models/smollm2")).json()["provider"] == "local"
    assert (await acme.http.delete("/models/smollm2")).status_code == 204
    assert (await acme.http.get("/models")).json()["items"] == []
    assert json.loads((await acme.http.get("/models/smollm2")).text)["error"] == "not_found"
