"""Test names in any script on every route, and references to models as crews write them."""

import json
from typing import Any
from urllib.parse import quote

import pytest

from tests.cases.test_placeholders_and_output_files import read_crew_documents
from tests.journeys.test_crews import create_object, list_refused_fields
from tests.support.case_inputs import find_case_folder
from tests.support.clients import TenantClient
from tests.support.fake_provider import FakeProvider
from tests.support.model_agents import create_model, create_model_agent, generate_name, run_execution

SCRIPTS_FOLDER = find_case_folder("27-names-in-other-scripts")
MODELS_FOLDER = find_case_folder("33-models-named-as-crews-name-them")
NAMES_OF_MANY_SCRIPTS = [
    "搜索工具",
    "Ключ",
    "بحث في الويب",
    "🔎",
    "---",
    "C++",
    "Ünal",
    "2nd",
    "a.b",
    "שלום \u200f",
    "नाम",
    "x" * 128,
]
TOOL_CONFIGURATION = {"api_endpoint": "https://example.com/s", "method": "GET", "parameters": {"q": {"type": "string"}}}


def build_bodies(name: str) -> dict[str, dict[str, Any]]:
    name = name.strip()
    return {
        "/tools": {"name": name, "tool_type": "custom", "configuration": TOOL_CONFIGURATION},
        "/tasks": {"name": name, "description": "x", "expected_output": "y"},
        "/provider-keys": {"name": name, "service": "openai", "key": "sk-0000000000000000000000"},
        "/agents": {"name": name, "model": "smollm2", "instructions": "x"},
        "/templates": {"name": name, "template": "x"},
        "/workflows": {"name": name, "steps": [{"id": name[:64], "agent": name, "prompt": "x"}]},
        "/crews": {
            "name": name,
            "agents_yaml": json.dumps({name[:64]: {"role": "r", "goal": "g", "llm": "smollm2"}}),
            "tasks_yaml": json.dumps({name[:64]: {"description": "d", "expected_output": "e", "agent": name[:64]}}),
        },
        "/models": {"name": name, "provider": "openai", "model": "gpt-4o"},
        "/scheduler/schedules": {"name": name, "cron_expression": "@daily", "workflow_id": name, "enabled": False},
        "/api-keys": {"name": name},
    }


@pytest.mark.parametrize("name", NAMES_OF_MANY_SCRIPTS)
async def test_any_name_works_on_every_route(acme: TenantClient, name: str) -> None:
    for path, body in build_bodies(name).items():
        created = await create_object(acme, path, **body)
        assert created["name"] == body["name"]
        if path != "/api-keys":
            answer = await acme.http.get(f"{path}/{quote(created['name'], safe='')}")
            assert (answer.status_code, answer.json()["id"]) == (200, created["id"]), answer.text
        if "slug" in created:
            assert (await acme.http.get(f"{path}/{created['slug']}")).json()["id"] == created["id"]
            duplicate = await acme.http.post(path, json=body)
            assert (duplicate.status_code, duplicate.json()["error"]) == (409, "conflict"), duplicate.text


async def test_crew_keys_accept_any_script(acme: TenantClient, provider: FakeProvider) -> None:
    name = await create_model(acme, provider, generate_name())
    debug_result = (await acme.http.post("/crews/debug", json=read_crew_documents(SCRIPTS_FOLDER))).json()
    assert debug_result["valid"], debug_result["errors"]
    crew = await create_object(acme, "/crews", name="报告", **read_crew_documents(SCRIPTS_FOLDER))
    answer = await acme.http.post(f"/crews/{crew['id']}/execute", json={"inputs": {"topic": "马"}, "model": name})
    ended = await acme.wait_for_end(answer.json()["id"])
    assert (ended["status"], set(ended["results"])) == ("completed", {"研究", "Write it up"}), ended
    documents = (await acme.http.get("/crews/报告/yaml")).json()
    assert (await acme.http.post("/crews/debug", json=documents)).json()["valid"]
    # A key with a line break or a bracket, which error paths use, is refused.
    invalid_documents = {"agents_yaml": json.dumps({"a\nb": {"role": "r"}, "c[0]": {"role": "r"}}), "tasks_yaml": "{}"}
    messages = [
        error["message"] for error in (await acme.http.post("/crews/debug", json=invalid_documents)).json()["errors"]
    ]
    assert sum("a key must be 1 to 64 characters" in message for message in messages) == 2


async def test_similar_names_get_different_slugs_and_equivalent_names_conflict(acme: TenantClient) -> None:
    slugs_by_path: dict[str, list[str]] = {}
    for path in ("/tools", "/tasks", "/provider-keys"):
        for name in ("C++", "C#", "C", "Ünal", "Unal", "搜索工具", "查询工具"):
            created = await create_object(acme, path, **build_bodies(name)[path])
            slugs_by_path.setdefault(path, []).append(created["slug"])
        assert len(set(slugs_by_path[path])) == 7
        for name, conflicting_name in (("c++", "C++"), ("c", "C"), ("unal", "Unal"), ("C ", None)):
            refused = await acme.http.post(path, json={**build_bodies("x")[path], "name": name})
            assert refused.status_code == (422 if conflicting_name is None else 409), refused.text
            assert conflicting_name is None or repr(conflicting_name) in refused.json()["detail"]
        # Renaming to an equivalent name keeps the slug, and the slugs of others.
        renamed = await acme.http.patch(f"{path}/C%2B%2B", json={"name": "c++"})
        assert renamed.json()["slug"] == slugs_by_path[path][0]
        assert (await acme.http.patch(f"{path}/C%23", json={"name": "c ++"})).status_code in (200, 409)
    # A name is preferred to the slug of another tool.
    second_tool = await create_object(acme, "/tools", **build_bodies(slugs_by_path["/tools"][1])["/tools"])
    assert (await acme.http.get(f"/tools/{second_tool['name']}")).json()["id"] == second_tool["id"]


async def test_unknown_reference_without_a_slug_matches_no_agent(acme: TenantClient) -> None:
    await create_model_agent(acme, "smollm2", name="写手")
    await create_model_agent(acme, "smollm2", name="C")
    for reference in ("不存在", "C#", "🔎"):
        refused = await acme.http.post("/tasks", json={"name": "t", "description": "d", "agent": reference})
        assert (refused.status_code, list_refused_fields(refused)) == (422, ["agent"]), reference
    assert (await create_object(acme, "/tasks", name="t", description="d", agent="c"))["agent"] == "c"


async def test_step_ids_and_inputs_accept_any_script(acme: TenantClient, provider: FakeProvider) -> None:
    name = await create_model(acme, provider, generate_name())
    await create_model_agent(acme, name, name="写手")
    steps = [
        {"id": "研究", "agent": "写手", "prompt": "Say {{ inputs.слово }}"},
        {
            "id": "Write it up",
            "agent": "写手",
            "prompt": "From {{ steps.研究.outputs.content }}",
            "depends_on": ["研究"],
        },
    ]
    outputs = {"all": '{{ steps["Write it up"].outputs.content }}'}
    await create_object(acme, "/workflows", name="报告", steps=steps, outputs=outputs)
    provider.queue_text("马", to=name)
    provider.queue_text("a page", to=name)
    answer = await acme.http.post("/workflows/报告/execute", json={"inputs": {"слово": "馬"}})
    ended = await acme.wait_for_end(answer.json()["id"])
    assert (ended["status"], ended["result"]) == ("completed", {"all": "a page"}), ended
    prompts = [request.get_last_text() for request in provider.requests if request.model == name]
    assert prompts == ["Say 馬", "From 马"]
    for invalid_id in ("", "a ", "a\n", "x" * 65, "a[0]"):
        refused = await acme.http.post("/workflows", json={"name": "x", "steps": [{**steps[0], "id": invalid_id}]})
        assert list_refused_fields(refused) == ["steps[0].id"]
        assert ("length <= 64" if len(invalid_id) > 64 else "64 characters") in refused.json()["detail"]


@pytest.mark.parametrize(
    "name",
    [
        "gemini/gemini-2.0-flash",
        "openrouter/deepseek/deepseek-chat",
        "llama3.1:8b",
        "hf.co/a/B-GGUF:Q4_K_M",
        "模型/一:二",
        "openai/gpt-4o",
        "a b?c#d%2Fe",
        "x" * 256,
        "bedrock/us.anthropic.claude-3-5-sonnet-20240620-v1:0",
    ],
)
async def test_models_accept_names_with_slashes_and_colons(
    acme: TenantClient, provider: FakeProvider, name: str
) -> None:
    upstream_model = generate_name()
    body = {"name": name, "provider": "openai_compatible", "model": upstream_model, "base_url": provider.url}
    created_model = await create_object(acme, "/models", **body)
    path = f"/models/{quote(name, safe='')}"
    assert (await acme.http.get(path)).json()["id"] == created_model["id"]
    price = {"input": 1, "output": 1}
    for method in ("PATCH", "PUT"):
        changed = await acme.http.request(method, path, json={"price": price})
        assert changed.json()["price"]["input"] == 1, changed.text
    created_agent = await create_model_agent(acme, name, fallback_model=name)
    assert (await run_execution(acme, created_agent["id"], payload={"task": "x"}))["status"] == "completed"
    assert (await acme.http.get("/costs/summary")).json()["by_model"]
    crew = {
        "agents_yaml": json.dumps({"a": {"role": "r", "goal": "g", "llm": name, "fallback_model": name}}),
        "tasks_yaml": json.dumps({"t": {"description": "d", "expected_output": "e", "agent": "a"}}),
    }
    assert (await acme.http.post("/crews/debug", json=crew)).json()["valid"]
    assert (await acme.http.delete(path)).status_code == 204
    assert (await acme.http.get(path)).status_code == 404


@pytest.mark.parametrize("name", ["", "/a", "a/", "a//b", "a\nb", " a", "..", "x" * 257])
async def test_model_names_that_break_a_path_are_refused(acme: TenantClient, name: str) -> None:
    refused = await acme.http.post("/models", json={"name": name, "provider": "openai", "model": "m"})
    assert (refused.status_code, list_refused_fields(refused)) == (422, ["name"])


async def test_crew_models_resolve_once_registered(acme: TenantClient, provider: FakeProvider) -> None:
    debug_result = (await acme.http.post("/crews/debug", json=read_crew_documents(MODELS_FOLDER))).json()
    messages = {error["field"]: error["message"] for error in debug_result["errors"]}
    # Gemini, OpenRouter, Groq and Ollama are providers here and have their own model names. Each resource of Azure has
    # an address of its own.
    assert set(messages) == {"agents_yaml.old.llm"}
    assert "'azure/gpt-4o' needs an address. Register a model with this name" in messages["agents_yaml.old.llm"]
    await create_model(acme, provider, "azure/gpt-4o")
    assert (await acme.http.post("/crews/debug", json=read_crew_documents(MODELS_FOLDER))).json()["valid"]


async def test_agents_accept_provider_and_model_references(acme: TenantClient) -> None:
    for reference in (
        "openai/gpt-4o",
        "ollama/llama3.1:8b",
        "anthropic/claude-x",
        "local/smollm2",
        "deepseek/deepseek-chat",
    ):
        assert (await create_model_agent(acme, reference))["model"] == reference
    for reference in ("unknown/gpt", "databricks/x", "openai/", "/gpt-4o", "openai/smollm2"):
        refused = await acme.http.post("/agents", json={"name": generate_name(), "model": reference})
        assert (refused.status_code, list_refused_fields(refused)) == (422, ["model"]), reference
