"""Places in texts of crews, templates and agents, and files that are named by inputs."""

import json
from pathlib import Path
from typing import Any

import pytest

from tests.journeys.test_kasal_crews import fields, made
from tests.support.case_inputs import find_case_folder
from tests.support.clients import TenantClient
from tests.support.fake_provider import FakeProvider
from tests.support.model_agents import create_model, create_model_agent, generate_name, run_execution

FILES = find_case_folder("04-crewai-output-file-with-inputs")
TEXTS = find_case_folder("32-places-in-texts")
INPUTS = {"kind": "tax", "requirements": "Add up VAT.", "module_name": "ledger", "class_name": "Ledger"}


def crew_of(folder: Path, **replaced: str) -> dict[str, str]:
    found = {f"{name}_yaml": (folder / f"{name}.yaml").read_text() for name in ("agents", "tasks")}
    for old, new in replaced.items():
        found = {name: text.replace(old, new) for name, text in found.items()}
    return found


async def test_files_are_named_by_inputs(acme: TenantClient, provider: FakeProvider) -> None:
    name = await create_model(acme, provider, generate_name())
    found = (await acme.http.post("/crews/debug", json=crew_of(FILES))).json()
    assert found["valid"], found["errors"]
    assert found["inputs"] == ["requirements", "module_name", "class_name", "kind"]
    crew = await made(acme, "/crews", name="small-team", **crew_of(FILES))
    for text in ("# A design", "class Ledger: pass"):
        provider.queue_text(text, to=name)
    answer = await acme.http.post(f"/crews/{crew['id']}/execute", json={"inputs": INPUTS, "model": name})
    ended = await acme.wait_for_end(answer.json()["id"])
    assert ended["status"] == "completed", ended
    for path, text in (("output/ledger_design.md", "# A design"), ("output/ledger.py", "class Ledger: pass")):
        assert (await acme.http.get(f"/executions/{ended['id']}/files/{path}")).text == text


@pytest.mark.parametrize("value", ["../../x", "a/../../x", "a\0b", "\n"])
async def test_a_file_that_an_input_leads_out_is_refused_when_it_is_started(acme: TenantClient, value: str) -> None:
    await made(acme, "/crews", name="small-team", **crew_of(FILES))
    refused = await acme.http.post("/crews/small-team/execute", json={"inputs": {**INPUTS, "module_name": value}})
    assert (refused.status_code, fields(refused)) == (422, ["inputs.module_name"] * 2), refused.text
    assert "output_file" in refused.json()["errors"][0]["message"]
    lonely = {
        **crew_of(FILES),
        "tasks_yaml": crew_of(FILES)["tasks_yaml"].replace("output/{module_name}.py", "'{out}'"),
    }
    await made(acme, "/crews", name="lonely", **lonely)
    for wrong in ("", "/etc/passwd", "..", "."):
        refused = await acme.http.post("/crews/lonely/execute", json={"inputs": {**INPUTS, "out": wrong}})
        assert (refused.status_code, fields(refused)) == (422, ["inputs.out"]), refused.text


async def test_what_a_task_takes_a_crew_takes(acme: TenantClient) -> None:
    await create_model_agent(acme, "smollm2", name="writer")
    task = await made(
        acme, "/tasks", name="报告", description="Write about {topic}", agent="writer", output_file="{topic}/out.md"
    )
    crew = await made(acme, "/crews", name="one", tasks=[task["id"]])
    refused = await acme.http.post(f"/crews/{crew['id']}/execute", json={"inputs": {"topic": ".."}})
    assert fields(refused) == ["inputs.topic"]
    for path in ("../{topic}", "/{topic}", "{topic}/../../x"):
        body = {"name": "out", "description": "d", "agent": "writer", "output_file": path}
        assert fields(await acme.http.post("/tasks", json=body)) == ["output_file"]
        tasks = json.dumps({"out": {key: value for key, value in body.items() if key != "name"}})
        told = (await acme.http.post("/crews/debug", json={"tasks_yaml": tasks})).json()["errors"]
        assert [one["field"] for one in told] == ["tasks_yaml.out.output_file"]


async def test_places_of_a_crew(acme: TenantClient) -> None:
    # The case's own tasks are no YAML: braces begin a mapping where a text is not folded or quoted.
    body = crew_of(TEXTS)
    refused = (await acme.http.post("/crews/debug", json=body)).json()
    assert refused["errors"][0]["field"] == "tasks_yaml"
    body["tasks_yaml"] = body["tasks_yaml"].replace("description: ", "description: >\n    ")
    found = (await acme.http.post("/crews/debug", json=body)).json()
    assert sorted(found["inputs"]) == ["target-audience", "topic"], found
    told = {one["field"]: one["message"] for one in found["warnings"]}
    assert "{{literal}} is left as it stands" in told["tasks_yaml.write.description"]
    await made(acme, "/crews", name="places", **body)
    missing = await acme.http.post("/crews/places/execute", json={"inputs": {"topic": "bees"}, "model": "smollm2"})
    assert fields(missing) == ["inputs.target-audience"]


async def test_what_a_crews_model_is_asked(acme: TenantClient, provider: FakeProvider) -> None:
    name = await create_model(acme, provider, generate_name())
    agents = {"имя": {"role": "For {аудитория}", "goal": r"{{goal}} \{goal} ${HOME} {task}", "llm": name}}
    tasks = {"one": {"description": r'{topic}, \{topic}, {"a": {topic}}', "expected_output": "e", "agent": "имя"}}
    body = {"agents_yaml": json.dumps(agents), "tasks_yaml": json.dumps(tasks)}
    crew = await made(acme, "/crews", name="asked", **body)
    inputs = {"topic": r"see {task} and \{topic} of {аудитория}", "аудитория": "{task}"}
    answer = await acme.http.post(f"/crews/{crew['id']}/execute", json={"inputs": inputs})
    ended = await acme.wait_for_end(answer.json()["id"])
    assert ended["status"] == "completed", ended
    (asked,) = [one for one in provider.requests if one.model == name]
    task = r'{0}, {{topic}}, {{"a": {0}}}'.format(inputs["topic"]) + "\n\nWhat is expected of you: e"
    assert asked.get_last_text() == task
    system = f"You are For {{task}}.\n\nYour goal: {{{{goal}}}} {{goal}} ${{HOME}} {task}"
    assert asked.get_last_text("system") == system


async def test_templates_say_how_to_write_a_place(acme: TenantClient) -> None:
    text = 'Dear {{name}}, you are {age}. {"a": {age}} \\{age} ${HOME} {имя}'
    made_ = await made(acme, "/templates", name="letter", template=text)
    assert made_["variables"] == ["age", "имя"]
    values: dict[str, Any] = {"age": 36, "имя": "Ada"}
    render = "/templates/letter/render"
    rendered = (await acme.http.post(render, json={"variables": values})).json()["rendered"]
    assert rendered == 'Dear {{name}}, you are 36. {"a": 36} {age} ${HOME} Ada'
    refused = await acme.http.post(render, json={"variables": {**values, "name": "Ada"}})
    assert fields(refused) == ["variables.name"]
    assert "{{name}} is left as it stands; write {name}" in refused.json()["detail"]
    body = {"name": "other", "template": text, "variables": ["age", "имя", "name"]}
    assert "write {name}" in (await acme.http.post("/templates", json=body)).json()["detail"]


async def test_a_tasks_template_keeps_escapes_for_the_crews_run(acme: TenantClient, provider: FakeProvider) -> None:
    name = await create_model(acme, provider, generate_name())
    await create_model_agent(acme, name, name="writer")
    await made(acme, "/templates", name="letter", template=r"To {who}: \{who} as it stands")
    variables = {"who": "{audience}"}
    task = await made(acme, "/tasks", name="t", template="letter", variables=variables, agent="writer")
    assert task["description"] == r"To {audience}: \{who} as it stands"
    crew = await made(acme, "/crews", name="c", tasks=[task["id"]])
    answer = await acme.http.post(f"/crews/{crew['id']}/execute", json={"inputs": {"audience": "kids"}})
    assert (await acme.wait_for_end(answer.json()["id"]))["status"] == "completed"
    (asked,) = [one for one in provider.requests if one.model == name]
    assert asked.get_last_text() == "To kids: {who} as it stands"


async def test_a_task_that_comes_alone_is_no_text_with_places(acme: TenantClient, provider: FakeProvider) -> None:
    name = await create_model(acme, provider, generate_name())
    one = await create_model_agent(acme, name, instructions=r"Explain \{braces}.")
    for inputs, said in (
        ({"task": r"What is \{x} in {x}?"}, r"What is \{x} in {x}?"),
        ({"task": r"\{x} is {x}", "x": 1}, "{x} is 1\n\nInputs:\n"),
    ):
        assert (await run_execution(acme, one["id"], payload=inputs))["status"] == "completed"
        last = [asked for asked in provider.requests if asked.model == name][-1]
        assert last.get_last_text().startswith(said)
        assert last.get_last_text("system") == "Explain {braces}."
