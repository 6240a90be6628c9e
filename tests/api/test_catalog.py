"""The registries of models, provider keys and tools: bad input, references between them, what is never shown."""

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

KEY = "sk-0123456789-abcdefgh-hidden"
CUSTOM = {"api_endpoint": "https://api.example.com/search", "method": "GET", "parameters": {"q": {"type": "string"}}}
MODEL = {"name": "fast", "provider": "openai", "model": "gpt-4o"}


async def keep(acme: TenantClient, name: str, service: str = "openai", key: str = KEY) -> dict[str, Any]:
    made = await acme.http.post("/provider-keys", json={"name": name, "service": service, "key": key})
    assert made.status_code == 201, made.text
    return dict(made.json())


@pytest.mark.parametrize(
    ("path", "body", "field"),
    [
        ("/models", {**MODEL, "provider": "nobody"}, "provider"),
        ("/models", {**MODEL, "name": "a\nb"}, "name"),
        ("/models", {**MODEL, "name": "a//b"}, "name"),
        ("/models", {**MODEL, "name": "model_01k00000000000000000000000"}, "name"),
        ("/models", {**MODEL, "model": "two words"}, "model"),
        ("/models", {**MODEL, "model": "gpt-4\n"}, "model"),
        ("/models", {**MODEL, "name": "a\n"}, "name"),
        ("/models", {**MODEL, "base_url": "ftp://x"}, "base_url"),
        ("/models", {**MODEL, "base_url": "https://user:pass@x"}, "base_url"),
        ("/models", {**MODEL, "provider": "databricks"}, "base_url"),
        ("/models", {**MODEL, "provider": "openai_compatible"}, "base_url"),
        ("/models", {**MODEL, "provider": "local", "base_url": "http://x"}, "base_url"),
        ("/models", {**MODEL, "provider": "local", "api_key_name": "x"}, "api_key_name"),
        ("/models", {**MODEL, "api_key_name": "missing"}, "api_key_name"),
        ("/models", {**MODEL, "api_key_name": "a\0b"}, "api_key_name"),
        ("/models", {**MODEL, "parameters": {"temperature": 3}}, "parameters.temperature"),
        ("/models", {**MODEL, "parameters": {"max_tokens": "many"}}, "parameters.max_tokens"),
        ("/models", {**MODEL, "parameters": {"messages": []}}, "parameters.messages"),
        ("/models", {**MODEL, "parameters": {"x": "y" * 20_000}}, "parameters"),
        ("/models", {**MODEL, "price": {"input": -1, "output": 1}}, "price.input"),
        ("/models", {**MODEL, "price": {"input": 1}}, "price.output"),
        ("/models", {**MODEL, "price": {"input": 1, "output": 1, "per": "day"}}, "price.per"),
        ("/models", {**MODEL, "group_id": "x"}, "group_id"),
        ("/provider-keys", {"name": "k", "service": "openai"}, "key"),
        ("/provider-keys", {"name": "k", "service": "openai", "key": f"{KEY}\n"}, "key"),
        ("/provider-keys", {"name": "k", "service": "openai", "key": [KEY]}, "key"),
        ("/provider-keys", {"name": "k", "service": "open ai", "key": KEY}, "service"),
        ("/provider-keys", {"name": "k", "service": "openai\n", "key": KEY}, "service"),
        ("/provider-keys", {"name": "a/b", "service": "openai", "key": KEY}, "name"),
        ("/provider-keys", {"name": "k", "service": "openai", "api_key": KEY, "key": KEY}, "api_key"),
        ("/tools", {"name": "t", "configuration": {}}, "configuration.api_endpoint"),
        ("/tools", {"name": "t", "tool_type": "builtin", "configuration": CUSTOM}, "tool_type"),
        ("/tools", {"name": "t", "configuration": {**CUSTOM, "colour": "red"}}, "configuration.colour"),
        ("/tools", {"name": "t", "configuration": {**CUSTOM, "secrets": {"X-Key": "missing"}}}, None),
        ("/tools", {"name": "Enabled", "configuration": CUSTOM}, "name"),
        ("/tools", {"name": "configurations", "configuration": CUSTOM}, "name"),
        ("/tools", {"name": "mcp", "configuration": CUSTOM}, "name"),
        ("/tools", {"name": "a\\b", "configuration": CUSTOM}, "name"),
        ("/tools", {"name": "t", "category": "Two Words", "configuration": CUSTOM}, "category"),
        ("/tools", {"name": "t", "tool_type": "mcp", "configuration": CUSTOM}, None),
        ("/tools", {"name": "t", "configuration": {**CUSTOM, "headers": {"X": "y" * 70_000}}}, "configuration"),
    ],
)
async def test_each_mistake_names_its_field(
    acme: TenantClient, path: str, body: dict[str, Any], field: str | None
) -> None:
    answer = await acme.http.post(path, json=body)
    assert answer.status_code == 422, answer.text
    told = answer.json()["errors"][0]["field"]
    assert told == field if field is not None else told.startswith("configuration."), answer.text
    assert KEY not in answer.text
    changed = await acme.http.patch("/models/smollm2", json={name: body[name] for name in body if name != "name"})
    if path == "/models" and field != "name":
        assert changed.status_code == 422, changed.text


async def test_names_are_taken_once(acme: TenantClient) -> None:
    await keep(acme, "My Key")
    for path, body in (
        ("/provider-keys", {"name": "my-key", "service": "x", "key": KEY}),
        ("/models", {**MODEL, "name": "smollm2"}),
        ("/tools", {"name": "Python", "configuration": CUSTOM}),
        ("/tools", {"name": "http-request", "configuration": CUSTOM}),
    ):
        refused = await acme.http.post(path, json=body)
        assert (refused.status_code, refused.json()["errors"][0]["field"]) == (409, "name"), refused.text
    await acme.http.post("/models", json=MODEL)
    assert (await acme.http.patch("/models/fast", json={"name": "smollm2"})).status_code == 409
    await keep(acme, "Other")
    assert (await acme.http.patch("/provider-keys/other", json={"name": "My Key"})).status_code == 409
    await acme.http.post("/tools", json={"name": "One", "configuration": CUSTOM})
    await acme.http.post("/tools", json={"name": "Two", "configuration": CUSTOM})
    for name in ("one", "python"):
        assert (await acme.http.patch("/tools/two", json={"name": name})).status_code == 409


async def test_a_key_is_shown_nowhere(acme: TenantClient, system) -> None:
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


async def test_short_keys_show_nothing_and_services_narrow_a_list(acme: TenantClient) -> None:
    assert (await keep(acme, "Short", "search", "twelve-chars"))["last_four"] is None
    await keep(acme, "Long", "OpenAI")
    found = (await acme.http.get("/provider-keys?service=openai")).json()["items"]
    assert [key["name"] for key in found] == ["Long"]
    changed = await acme.http.patch("/provider-keys/long", json={"service": "search"})
    assert changed.json()["service"] == "search"
    assert (await acme.http.get("/provider-keys?service=search")).json()["total"] == 2


async def test_what_uses_a_key_follows_its_name_and_keeps_it(acme: TenantClient, resources) -> None:
    key = await keep(acme, "Search Key")
    await acme.http.post("/models", json={**MODEL, "api_key_name": key["id"]})
    tool = {"name": "Search", "configuration": {**CUSTOM, "secrets": {"X-Api-Key": "Search Key"}}}
    made = (await acme.http.post("/tools", json=tool)).json()
    assert made["configuration"]["secrets"] == {"X-Api-Key": "search_key"}
    assert (await acme.http.get("/models/fast")).json()["api_key_name"] == "search_key"

    refused = await acme.http.delete("/provider-keys/search_key")
    assert refused.status_code == 409
    assert "model fast" in refused.json()["detail"]
    assert "tool Search" in refused.json()["detail"]

    await acme.http.put("/provider-keys/search_key", json={"name": "New Name"})
    assert (await acme.http.get("/models/fast")).json()["api_key_name"] == "new_name"
    assert (await acme.http.get("/tools/search")).json()["configuration"]["secrets"] == {"X-Api-Key": "new_name"}
    async with resources.store.tenant_transaction(acme.tenant_id) as tx:
        found = await llms.resolve_model(tx, "fast")
        assert resources.keyring.open(found.sealed_key or b"").decode() == KEY
    assert (await acme.http.patch("/models/fast", json={"api_key_name": None})).json()["api_key_name"] is None
    changed = await acme.http.patch("/tools/search", json={"configuration": CUSTOM})
    assert changed.json()["configuration"]["secrets"] == {}
    assert (await acme.http.delete("/provider-keys/new_name")).status_code == 204


async def test_the_only_key_of_a_service_is_used(acme: TenantClient, resources) -> None:
    await acme.http.post("/models", json=MODEL)

    async def sealed(name: str, provider: str | None = None) -> bytes | None:
        async with resources.store.tenant_transaction(acme.tenant_id) as tx:
            return (await llms.resolve_model(tx, name, provider)).sealed_key

    assert await sealed("fast") is None
    await keep(acme, "First", "OpenAI", "first-key")
    assert resources.keyring.open(await sealed("fast")) == b"first-key"
    assert resources.keyring.open(await sealed("gpt-4o-mini")) == b"first-key"
    assert resources.keyring.open(await sealed("anything", "openai")) == b"first-key"
    assert await sealed("claude-sonnet-4") is None
    assert await sealed("smollm2") is None
    await keep(acme, "Second")
    # Nobody said which of two.
    assert await sealed("fast") is None
    assert (await acme.http.patch("/models/fast", json={"api_key_name": "first"})).status_code == 200
    assert resources.keyring.open(await sealed("fast")) == b"first-key"
    with pytest.raises(DomainError, match="must be 'openai', with which the model 'fast' is registered"):
        await sealed("fast", "anthropic")


async def test_every_field_of_a_model_changes(acme: TenantClient) -> None:
    made = (await acme.http.post("/models", json=MODEL)).json()
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
    assert changed.json()["updated_at"] > made["updated_at"]
    assert (await acme.http.get(f"/models/{made['id']}")).json() == changed.json()
    assert (await acme.http.patch("/models/slow", json={"price": None})).json()["price"] is None
    assert (await acme.http.patch("/models/slow", json={"base_url": None})).status_code == 422
    assert (await acme.http.patch("/models/smollm2", json={"name": "small"})).json()["name"] == "small"
    assert (await acme.http.delete("/models/small")).status_code == 204
    assert (await acme.http.get("/models/small")).status_code == 404


async def test_built_in_tools_are_switched_per_tenant_and_nothing_else(
    acme: TenantClient, other_tenant: TenantClient
) -> None:
    tool = (await acme.http.get("/tools/python")).json()
    assert tool["id"] == (await other_tenant.http.get("/tools/python")).json()["id"]
    assert (tool["tool_type"], tool["category"], tool["fenced"], tool["effects"]) == ("builtin", "code", True, True)
    for reference in (tool["id"], "python"):
        assert (await acme.http.delete(f"/tools/{reference}")).status_code == 409
        assert (await acme.http.patch(f"/tools/{reference}", json={"description": "x"})).status_code == 409
    assert (await acme.http.patch("/tools/python/toggle-enabled")).json()["enabled"] is False
    off = (await acme.http.get("/tools/python")).json()
    assert off["enabled"] is False
    # As old as the tenant, and changed when it was switched off.
    since = (await acme.http.get("/tenant")).json()["created_at"]
    assert (tool["created_at"], tool["updated_at"], off["created_at"]) == (since, since, since)
    assert off["updated_at"] > since
    assert (await other_tenant.http.get("/tools/python")).json()["enabled"] is True
    assert [one["name"] for one in (await acme.http.get("/tools?enabled=false")).json()["items"]] == ["python"]
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


async def test_every_field_of_a_tool_changes(acme: TenantClient) -> None:
    made = (
        await acme.http.post("/tools", json={"name": "Search", "tool_type": "http", "configuration": CUSTOM})
    ).json()
    # Only GET changes nothing.
    assert (made["tool_type"], made["effects"], made["category"], made["description"]) == (
        "custom",
        False,
        "custom",
        "",
    )
    posting = {**CUSTOM, "method": "POST"}
    assert (await acme.http.patch("/tools/search", json={"configuration": posting})).json()["effects"] is True
    told = await acme.http.patch("/tools/search", json={"effects": False})
    assert told.json()["effects"] is False
    assert (await acme.http.patch("/tools/search", json={"configuration": posting})).json()["effects"] is False
    changes = {"name": "Look Up", "description": "Finds.", "category": "search", "enabled": False, "effects": True}
    changed = (await acme.http.put("/tools/search", json=changes)).json()
    assert {name: changed[name] for name in changes} == changes
    assert changed["slug"] == "look_up"
    server = {"tool_type": "mcp", "configuration": {"url": "https://mcp.example.com/mcp"}}
    assert (await acme.http.patch("/tools/look_up", json={"tool_type": "mcp"})).status_code == 422
    moved = (await acme.http.patch("/tools/look_up", json=server)).json()
    assert (moved["tool_type"], moved["parameters"]) == ("mcp", {})
    assert (await acme.http.get("/tools/look_up")).json() == moved
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


async def test_a_list_goes_on_into_the_built_in_ones(acme: TenantClient) -> None:
    for name in ("One", "Two", "Three"):
        await acme.http.post("/tools", json={"name": name, "configuration": CUSTOM})
    whole = ["Three", "Two", "One", *(tool.name for tool in BUILT_IN_TOOLS)]
    for limit in (1, 2, 4, 9, 20):
        seen: list[str] = []
        while True:
            part = (await acme.http.get(f"/tools?limit={limit}&offset={len(seen)}")).json()
            assert part["total"] == len(whole)
            seen += [tool["name"] for tool in part["items"]]
            if not part["has_more"]:
                break
        assert seen == whole
    assert (await acme.http.get("/tools?offset=50")).json()["items"] == []


async def test_agents_name_tools_by_anything(acme: TenantClient, resources) -> None:
    made = (await acme.http.post("/tools", json={"name": "My Search", "configuration": CUSTOM})).json()
    server = {"name": "Git", "tool_type": "mcp", "configuration": {"url": "https://mcp.example.com/mcp"}}
    await acme.http.post("/tools", json=server)
    async with resources.store.tenant_transaction(acme.tenant_id) as tx:
        asked = ["My Search", "git/log", "python", made["id"], "my_search", "git", "git/log", "git/diff"]
        found = await tools.resolve_tools(tx, asked)
        shown = [(tool.slug, tool.tool_name if isinstance(tool, McpServerTool) else None) for tool in found]
        assert shown == [("my_search", None), ("git", "log"), ("python", None), ("git", None), ("git", "diff")]
        with pytest.raises(DomainError) as caught:
            await tools.resolve_tools(tx, ["git", "nothing", "My Search/x", "git/", "a\0b"])
    assert [error.field for error in caught.value.errors] == ["tools[1]", "tools[2]", "tools[3]", "tools[4]"]


async def test_a_tenant_has_so_many_tools(acme: TenantClient, resources) -> None:
    first = (await acme.http.post("/tools", json={"name": "t", "configuration": CUSTOM})).json()
    async with resources.store.tenant_transaction(acme.tenant_id) as tx:
        tool = msgspec.convert(first, Tool)
        for number in range(MAX_TENANT_TOOLS - 2):
            await tx.tools.add(
                msgspec.structs.replace(tool, id=ids.generate_id("tool"), name=f"t{number}", slug=f"t{number}")
            )
    codes = []
    for name in ("last", "one-more"):
        codes.append((await acme.http.post("/tools", json={"name": name, "configuration": CUSTOM})).status_code)
    assert codes == [201, 409]
    listed = (await acme.http.get("/tools?limit=1000")).json()
    assert listed["total"] == len(listed["items"]) == MAX_TENANT_TOOLS + len(BUILT_IN_TOOLS)


async def test_new_tenants_have_the_local_model_and_may_do_without(acme: TenantClient, system) -> None:
    async with acme.open_client(system.admin_key) as operator:
        assert (await operator.get("/models/smollm2")).json()["provider"] == "local"
    assert (await acme.http.delete("/models/smollm2")).status_code == 204
    assert (await acme.http.get("/models")).json()["items"] == []
    assert json.loads((await acme.http.get("/models/smollm2")).text)["error"] == "not_found"
