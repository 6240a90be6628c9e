"""Test what crews know and remember, and the files and schemas of their tasks."""

import json
from typing import Any

from tests.journeys.test_crew_runs import create_models, list_requests, run_crew, start_crew
from tests.journeys.test_crew_task_rules import create_crew
from tests.journeys.test_crews import create_object, list_refused_fields
from tests.support.clients import TenantClient
from tests.support.fake_provider import FakeProvider

BEES = "Honey bees fly at 24 kilometres per hour and beat their wings two hundred times a second."
BANK = "The branch of the bank opens at nine, and its vault is emptied every Friday evening."


async def upload_text(acme: TenantClient, text: str) -> str:
    answer = await acme.http.post("/files", files={"file": ("notes.txt", text.encode(), "text/plain")})
    assert answer.status_code == 201, answer.text
    return str(answer.json()["id"])


async def list_memories(acme: TenantClient, crew: str, **query: Any) -> list[dict[str, Any]]:
    answer = await acme.http.get(f"/crews/{crew}/memories", params=query)
    assert answer.status_code == 200, answer.text
    return list(answer.json()["items"])


async def test_knowledge_that_fits_a_task_is_part_of_its_prompt(acme: TenantClient, provider: FakeProvider) -> None:
    (name,) = await create_models(acme, provider, "knowing")
    file_id = await upload_text(acme, BEES)
    task = {"description": "How fast do honey bees fly?"}
    for number, sources in enumerate(
        ([BANK, BEES], [{"content": f"{BANK}\n{BEES}"}], [BANK, {"file_paths": [file_id]}])
    ):
        agent = {"knowledge_sources": sources, "knowledge_config": {"results_limit": 1}}
        crew = await create_crew(acme, f"knowing-{number}", name, agent, task)
        await run_crew(acme, crew)
        prompt = list_requests(provider, name)[-1].get_last_text()
        assert BEES in prompt
        assert (BANK in prompt) == (number == 1), "other parts are left out"
    crew = await create_crew(acme, "unrelated", name, {"knowledge_sources": [BANK]}, task)
    await run_crew(acme, crew)
    assert BANK not in list_requests(provider, name)[-1].get_last_text(), "what does not fit is left out"


async def test_files_as_knowledge_take_the_scope_to_read_files(acme: TenantClient, provider: FakeProvider) -> None:
    (name,) = await create_models(acme, provider, "scoped")
    source = {"file_paths": [await upload_text(acme, BEES)]}
    crew = await create_crew(acme, "scoped", name, {}, {"description": "Say what you know."})
    agents = {"asker": {"role": "r", "goal": "g", "llm": name, "knowledge_sources": [source]}}
    key = await acme.create_key(scopes=["write:catalog", "read:catalog", "run:agents"])
    async with acme.open_client(key) as http:
        tasks = {"ask": {"description": "d", "expected_output": "e", "agent": "asker"}}
        for change in (
            {"knowledge_sources": [source]},
            {"agents_yaml": json.dumps(agents), "tasks_yaml": json.dumps(tasks)},
        ):
            answer = await http.patch(f"/crews/{crew}", json=change)
            assert (answer.status_code, answer.json()["error"]) == (403, "missing_scope"), answer.text
        assert (await http.patch(f"/crews/{crew}", json={"knowledge_sources": [BANK]})).status_code == 200


async def test_knowledge_of_a_crew_is_for_all_its_agents(acme: TenantClient, provider: FakeProvider) -> None:
    first, second = await create_models(acme, provider, "first", "second")
    agents = {
        "first": {"role": "r", "goal": "g", "llm": first, "knowledge_sources": ["Bees of the north fly slowly."]},
        "second": {"role": "r", "goal": "g", "llm": second},
    }
    tasks = {
        key: {"description": "How fast do honey bees fly?", "expected_output": "e", "agent": key, "context": []}
        for key in agents
    }
    fields = {"agents_yaml": json.dumps(agents), "tasks_yaml": json.dumps(tasks), "knowledge_sources": [BEES]}
    crew = await create_object(acme, "/crews", name="knowing", **fields)
    assert crew["knowledge_sources"] == [BEES]
    await run_crew(acme, crew["id"])
    prompts = [list_requests(provider, name)[0].get_last_text() for name in (first, second)]
    assert all(BEES in prompt for prompt in prompts)
    assert ["north" in prompt for prompt in prompts] == [True, False]


async def test_memory_is_recalled_by_later_runs_of_the_crew(acme: TenantClient, provider: FakeProvider) -> None:
    (name,) = await create_models(acme, provider, "remembering")
    crew = await create_crew(acme, "remembering", name, {}, {"description": "Say how fast {animal} fly."})
    assert (await acme.http.patch(f"/crews/{crew}", json={"memory": True})).json()["memory"] is True
    provider.queue_text("Honey bees fly at 24 kilometres per hour.", to=name)
    first = await run_crew(acme, crew, inputs={"animal": "honey bees"})
    assert "earlier runs" not in list_requests(provider, name)[0].get_last_text()
    (memory,) = await list_memories(acme, crew)
    assert (memory["scope"], memory["run_id"], "24 kilometres" in memory["content"]) == ("/", first["id"], True)
    await run_crew(acme, crew, inputs={"animal": "bumble bees"})
    assert "24 kilometres per hour" in list_requests(provider, name)[1].get_last_text()
    # Without memory, and in another crew, it is not known.
    other = await create_crew(acme, "other", name, {}, {"description": "Say how fast {animal} fly."})
    await acme.http.patch(f"/crews/{other}", json={"memory": True})
    await run_crew(acme, other, inputs={"animal": "honey bees"})
    assert "24 kilometres" not in list_requests(provider, name)[2].get_last_text()
    await acme.http.patch(f"/crews/{crew}", json={"memory": False})
    await run_crew(acme, crew, inputs={"animal": "honey bees"})
    assert "24 kilometres" not in list_requests(provider, name)[3].get_last_text()
    assert len(await list_memories(acme, crew)) == 2


async def test_scopes_of_a_memory_do_not_mix(acme: TenantClient, provider: FakeProvider) -> None:
    (name,) = await create_models(acme, provider, "scoped")
    crew = await create_crew(acme, "scoped", name, {}, {"description": "What does {customer} like best?"})
    memory = {"root_path": "/customers/{customer}"}
    await acme.http.patch(f"/crews/{crew}", json={"memory": memory})
    for number, (customer, answer) in enumerate((("ada", "Ada likes tea best."), ("bob", "No idea."), ("ada", "Tea."))):
        provider.queue_text(answer, to=name)
        await run_crew(acme, crew, inputs={"customer": customer})
        prompt = list_requests(provider, name)[-1].get_last_text()
        assert ("Ada likes tea best." in prompt) == (number == 2)
    assert len(await list_memories(acme, crew, memory_scope="/customers/ada")) == 2
    assert (
        await acme.http.delete(f"/crews/{crew}/memories", params={"memory_scope": "/customers/ada"})
    ).status_code == 204
    assert [entry["scope"] for entry in await list_memories(acme, crew)] == ["/customers/bob"]


async def test_memory_is_deleted_alone_and_with_the_crew(
    acme: TenantClient, other_tenant: TenantClient, provider: FakeProvider
) -> None:
    (name,) = await create_models(acme, provider, "forgetting")
    crew = await create_crew(acme, "forgetting", name, {"memory": True}, {})
    for _ in range(2):
        await run_crew(acme, crew)
    newest, oldest = await list_memories(acme, crew)
    assert newest["scope"] == "/agents/writer"
    for path in (f"/crews/{crew}/memories", f"/crews/{crew}/memories/{oldest['id']}"):
        assert (await other_tenant.http.delete(path)).status_code == 404
    assert (await other_tenant.http.get(f"/crews/{crew}/memories")).status_code == 404
    assert (await acme.http.delete(f"/crews/{crew}/memories/{oldest['id']}")).status_code == 204
    assert (await acme.http.delete(f"/crews/{crew}/memories/{oldest['id']}")).status_code == 404
    assert [memory["id"] for memory in await list_memories(acme, crew)] == [newest["id"]]
    assert (await acme.http.delete(f"/crews/{crew}")).status_code == 204
    # The same name is another crew, and knows nothing.
    again = await create_crew(acme, "forgetting", name, {"memory": True}, {})
    assert await list_memories(acme, again) == []


async def test_failed_tasks_are_not_remembered(acme: TenantClient, provider: FakeProvider) -> None:
    (name,) = await create_models(acme, provider, "failing")
    crew = await create_crew(acme, "failing", name, {"memory": True}, {})
    provider.queue_failure(401, to=name)
    assert (await acme.wait_for_end((await start_crew(acme, crew))["id"]))["status"] == "failed"
    assert await list_memories(acme, crew) == []


async def test_same_text_of_another_tenant_is_not_recalled(
    acme: TenantClient, other_tenant: TenantClient, provider: FakeProvider
) -> None:
    (name,) = await create_models(acme, provider, "ours")
    (other_name,) = await create_models(other_tenant, provider, "theirs")
    agent = {"memory": True, "knowledge_sources": ["Our bees fly at 24 kilometres per hour."]}
    task = {"description": "How fast do bees fly?"}
    crew = await create_crew(acme, "shared name", name, agent, task)
    provider.queue_text("Our bees are secret.", to=name)
    await run_crew(acme, crew)
    theirs = await create_crew(other_tenant, "shared name", other_name, {"memory": True}, task)
    await run_crew(other_tenant, theirs)
    prompt = list_requests(provider, other_name)[0].get_last_text()
    assert "24 kilometres" not in prompt
    assert "secret" not in prompt
    # Their file is no knowledge of ours.
    file_id = await upload_text(acme, BEES)
    foreign = await create_crew(
        other_tenant, "foreign", other_name, {"knowledge_sources": [{"file_paths": file_id}]}, task
    )
    await run_crew(other_tenant, foreign)
    assert BEES not in list_requests(provider, other_name)[-1].get_last_text()


async def test_answer_fits_the_schema_of_its_task(acme: TenantClient, provider: FakeProvider) -> None:
    (name,) = await create_models(acme, provider, "shaped")
    schema = {"type": "object", "properties": {"speed": {"type": "integer"}}, "required": ["speed"]}
    for number, field in enumerate(("output_json", "output_pydantic", "response_model")):
        crew = await create_crew(acme, f"shaped-{number}", name, {}, {field: schema})
        for text in ('{"speed": "fast"}', '{"speed": 24}'):
            provider.queue_text(text, to=name)
        ended = await run_crew(acme, crew)
        assert ended["results"] == {"write": {"speed": 24}}, ended
        assert list_requests(provider, name)[-1].body["response_format"]["type"] == "json_schema"
    task = {"output_json": {"type": "objekt"}, "description": "d", "agent": "a"}
    fields = {"agents_yaml": json.dumps({"a": {"role": "r", "llm": name}}), "tasks_yaml": json.dumps({"t": task})}
    problems = (await acme.http.post("/crews/debug", json=fields)).json()["errors"]
    assert [problem["field"] for problem in problems] == ["tasks_yaml.t.output_json.type"]
    fields["tasks_yaml"] = json.dumps({"t": {**task, "output_json": {"python": "my.models.Report"}}})
    problems = (await acme.http.post("/crews/debug", json=fields)).json()["errors"]
    assert "Python" in problems[0]["message"]


async def test_input_files_are_in_the_workspace_of_the_run(acme: TenantClient, provider: FakeProvider) -> None:
    (name,) = await create_models(acme, provider, "reading")
    file_id = await upload_text(acme, BEES)
    crew = await create_crew(acme, "reading", name, {}, {"input_files": {"bees": file_id, "plan": "data/plan.txt"}})
    refused = await acme.http.post(f"/crews/{crew}/execute", json={})
    assert list_refused_fields(refused) == ["files"]
    ended = await run_crew(acme, crew, files={"data/plan.txt": file_id})
    asked = list_requests(provider, name)[0]
    assert "- bees: bees\n- plan: data/plan.txt" in asked.get_last_text()
    assert [tool["function"]["name"] for tool in asked.body["tools"]] == ["filesystem_read"]
    assert (await acme.http.get(f"/executions/{ended['id']}/files/bees")).text == BEES
    bad = json.dumps({"t": {"description": "d", "agent": "a", "input_files": {"x": "../etc/passwd"}}})
    fields = {"agents_yaml": json.dumps({"a": {"role": "r", "llm": name}}), "tasks_yaml": bad}
    problems = (await acme.http.post("/crews/debug", json=fields)).json()["errors"]
    assert [problem["field"] for problem in problems] == ["tasks_yaml.t.input_files.x"]
