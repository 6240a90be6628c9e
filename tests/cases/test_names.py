"""Names in any script, everywhere something is named; and models that are named as crews name them."""

import json
from typing import Any
from urllib.parse import quote

import pytest

from tests.cases.test_places import crew_of
from tests.journeys.test_kasal_crews import fields, made
from tests.support.case_inputs import find_case_folder
from tests.support.clients import TenantClient
from tests.support.fake_provider import FakeProvider
from tests.support.model_agents import create_model, create_model_agent, generate_name, run_execution

SCRIPTS = find_case_folder("27-names-in-other-scripts")
MODELS = find_case_folder("33-models-named-as-crews-name-them")
NAMES = ["搜索工具", "Ключ", "بحث في الويب", "🔎", "---", "C++", "Ünal", "2nd", "a.b", "שלום \u200f", "नाम", "x" * 128]
TOOL = {"api_endpoint": "https://example.com/s", "method": "GET", "parameters": {"q": {"type": "string"}}}


def bodies(name: str) -> dict[str, dict[str, Any]]:
    name = name.strip()
    return {
        "/tools": {"name": name, "tool_type": "custom", "configuration": TOOL},
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


@pytest.mark.parametrize("name", NAMES)
async def test_names_of_everything(acme: TenantClient, name: str) -> None:
    for path, body in bodies(name).items():
        one = await made(acme, path, **body)
        assert one["name"] == body["name"]
        if path != "/api-keys":
            found = await acme.http.get(f"{path}/{quote(one['name'], safe='')}")
            assert (found.status_code, found.json()["id"]) == (200, one["id"]), found.text
        if "slug" in one:
            assert (await acme.http.get(f"{path}/{one['slug']}")).json()["id"] == one["id"]
            again = await acme.http.post(path, json=body)
            assert (again.status_code, again.json()["error"]) == (409, "conflict"), again.text


async def test_crews_whose_keys_are_of_other_scripts(acme: TenantClient, provider: FakeProvider) -> None:
    name = await create_model(acme, provider, generate_name())
    found = (await acme.http.post("/crews/debug", json=crew_of(SCRIPTS))).json()
    assert found["valid"], found["errors"]
    crew = await made(acme, "/crews", name="报告", **crew_of(SCRIPTS))
    answer = await acme.http.post(f"/crews/{crew['id']}/execute", json={"inputs": {"topic": "马"}, "model": name})
    ended = await acme.wait_for_end(answer.json()["id"])
    assert (ended["status"], set(ended["results"])) == ("completed", {"研究", "Write it up"}), ended
    again = (await acme.http.get("/crews/报告/yaml")).json()
    assert (await acme.http.post("/crews/debug", json=again)).json()["valid"]
    # A key of two lines, or with what errors write places with, is refused by its place.
    wrong = {"agents_yaml": json.dumps({"a\nb": {"role": "r"}, "c[0]": {"role": "r"}}), "tasks_yaml": "{}"}
    told = [one["message"] for one in (await acme.http.post("/crews/debug", json=wrong)).json()["errors"]]
    assert sum("a key must be 1 to 64 characters" in one for one in told) == 2


async def test_names_that_only_look_alike_to_machines(acme: TenantClient) -> None:
    made_: dict[str, list[str]] = {}
    for path in ("/tools", "/tasks", "/provider-keys"):
        for name in ("C++", "C#", "C", "Ünal", "Unal", "搜索工具", "查询工具"):
            one = await made(acme, path, **bodies(name)[path])
            made_.setdefault(path, []).append(one["slug"])
        assert len(set(made_[path])) == 7
        for name, other in (("c++", "C++"), ("c", "C"), ("unal", "Unal"), ("C ", None)):
            refused = await acme.http.post(path, json={**bodies("x")[path], "name": name})
            assert refused.status_code == (422 if other is None else 409), refused.text
            assert other is None or repr(other) in refused.json()["detail"]
        # What is renamed to what is alike keeps its slug, and so do others.
        renamed = await acme.http.patch(f"{path}/C%2B%2B", json={"name": "c++"})
        assert renamed.json()["slug"] == made_[path][0]
        assert (await acme.http.patch(f"{path}/C%23", json={"name": "c ++"})).status_code in (200, 409)
    # By its name before by another's slug.
    odd = await made(acme, "/tools", **bodies(made_["/tools"][1])["/tools"])
    assert (await acme.http.get(f"/tools/{odd['name']}")).json()["id"] == odd["id"]


async def test_nobody_is_meant_by_a_name_that_has_no_slug(acme: TenantClient) -> None:
    await create_model_agent(acme, "smollm2", name="写手")
    await create_model_agent(acme, "smollm2", name="C")
    for reference in ("不存在", "C#", "🔎"):
        refused = await acme.http.post("/tasks", json={"name": "t", "description": "d", "agent": reference})
        assert (refused.status_code, fields(refused)) == (422, ["agent"]), reference
    assert (await made(acme, "/tasks", name="t", description="d", agent="c"))["agent"] == "c"


async def test_steps_of_any_script(acme: TenantClient, provider: FakeProvider) -> None:
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
    await made(acme, "/workflows", name="报告", steps=steps, outputs=outputs)
    provider.queue_text("马", to=name)
    provider.queue_text("a page", to=name)
    answer = await acme.http.post("/workflows/报告/execute", json={"inputs": {"слово": "馬"}})
    ended = await acme.wait_for_end(answer.json()["id"])
    assert (ended["status"], ended["result"]) == ("completed", {"all": "a page"}), ended
    asked = [one.get_last_text() for one in provider.requests if one.model == name]
    assert asked == ["Say 馬", "From 马"]
    for wrong in ("", "a ", "a\n", "x" * 65, "a[0]"):
        refused = await acme.http.post("/workflows", json={"name": "x", "steps": [{**steps[0], "id": wrong}]})
        assert fields(refused) == ["steps[0].id"]
        assert ("length <= 64" if len(wrong) > 64 else "64 characters") in refused.json()["detail"]


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
async def test_models_are_registered_by_any_name(acme: TenantClient, provider: FakeProvider, name: str) -> None:
    own = generate_name()
    body = {"name": name, "provider": "openai_compatible", "model": own, "base_url": provider.url}
    made_ = await made(acme, "/models", **body)
    path = f"/models/{quote(name, safe='')}"
    assert (await acme.http.get(path)).json()["id"] == made_["id"]
    price = {"input": 1, "output": 1}
    for method in ("PATCH", "PUT"):
        changed = await acme.http.request(method, path, json={"price": price})
        assert changed.json()["price"]["input"] == 1, changed.text
    one = await create_model_agent(acme, name, fallback_model=name)
    assert (await run_execution(acme, one["id"], payload={"task": "x"}))["status"] == "completed"
    assert (await acme.http.get("/costs/summary")).json()["by_model"]
    crew = {
        "agents_yaml": json.dumps({"a": {"role": "r", "goal": "g", "llm": name, "fallback_model": name}}),
        "tasks_yaml": json.dumps({"t": {"description": "d", "expected_output": "e", "agent": "a"}}),
    }
    assert (await acme.http.post("/crews/debug", json=crew)).json()["valid"]
    assert (await acme.http.delete(path)).status_code == 204
    assert (await acme.http.get(path)).status_code == 404


@pytest.mark.parametrize("name", ["", "/a", "a/", "a//b", "a\nb", " a", "..", "x" * 257])
async def test_names_that_no_path_can_hold(acme: TenantClient, name: str) -> None:
    refused = await acme.http.post("/models", json={"name": name, "provider": "openai", "model": "m"})
    assert (refused.status_code, fields(refused)) == (422, ["name"])


async def test_models_as_crews_name_them(acme: TenantClient, provider: FakeProvider) -> None:
    found = (await acme.http.post("/crews/debug", json=crew_of(MODELS))).json()
    told = {one["field"]: one["message"] for one in found["errors"]}
    named = {"researcher": "gemini/gemini-2.0-flash", "analyst": "openrouter/deepseek/deepseek-chat"}
    named |= {"writer": "groq/llama-3.3-70b-versatile", "old": "azure/gpt-4o"}
    # Ollama is a provider here, and has its own names of models.
    assert set(told) == {f"agents_yaml.{key}.llm" for key in named}
    for key, name in named.items():
        assert f"{name!r}. Register a model with that name under /models" in told[f"agents_yaml.{key}.llm"]
        await create_model(acme, provider, name)
    assert (await acme.http.post("/crews/debug", json=crew_of(MODELS))).json()["valid"]


async def test_agents_name_models_as_crews_do(acme: TenantClient) -> None:
    for reference in (
        "openai/gpt-4o",
        "ollama/llama3.1:8b",
        "anthropic/claude-x",
        "local/smollm2",
        "deepseek/deepseek-chat",
    ):
        assert (await create_model_agent(acme, reference))["model"] == reference
    for reference in ("nobody/gpt", "databricks/x", "openai/", "/gpt-4o", "openai/smollm2"):
        refused = await acme.http.post("/agents", json={"name": generate_name(), "model": reference})
        assert (refused.status_code, fields(refused)) == (422, ["model"]), reference
