"""Test placeholders in texts of crews, templates and agents, and output files that are named by inputs."""

import json
from pathlib import Path
from typing import Any

import pytest

from tests.journeys.test_crews import create_object, list_refused_fields
from tests.support.case_inputs import find_case_folder
from tests.support.clients import TenantClient
from tests.support.fake_provider import FakeProvider
from tests.support.model_agents import create_model, create_model_agent, generate_name, run_execution

OUTPUT_FILES_CASE = find_case_folder("04-crewai-output-file-with-inputs")
PLACEHOLDERS_CASE = find_case_folder("32-places-in-texts")
EXAMPLE_INPUTS = {"kind": "tax", "requirements": "Add up VAT.", "module_name": "ledger", "class_name": "Ledger"}


def read_crew_documents(folder: Path, **replacements: str) -> dict[str, str]:
    documents = {f"{name}_yaml": (folder / f"{name}.yaml").read_text() for name in ("agents", "tasks")}
    for old, new in replacements.items():
        documents = {name: text.replace(old, new) for name, text in documents.items()}
    return documents


async def test_inputs_fill_output_file_names(acme: TenantClient, provider: FakeProvider) -> None:
    name = await create_model(acme, provider, generate_name())
    debug_result = (await acme.http.post("/crews/debug", json=read_crew_documents(OUTPUT_FILES_CASE))).json()
    assert debug_result["valid"], debug_result["errors"]
    assert debug_result["inputs"] == ["requirements", "module_name", "class_name", "kind"]
    crew = await create_object(acme, "/crews", name="small-team", **read_crew_documents(OUTPUT_FILES_CASE))
    for text in ("# A design", "class Ledger: pass"):
        provider.queue_text(text, to=name)
    answer = await acme.http.post(f"/crews/{crew['id']}/execute", json={"inputs": EXAMPLE_INPUTS, "model": name})
    ended = await acme.wait_for_end(answer.json()["id"])
    assert ended["status"] == "completed", ended
    for path, text in (("output/ledger_design.md", "# A design"), ("output/ledger.py", "class Ledger: pass")):
        assert (await acme.http.get(f"/executions/{ended['id']}/files/{path}")).text == text


@pytest.mark.parametrize("value", ["../../x", "a/../../x", "a\0b", "\n"])
async def test_input_that_leaves_the_workspace_is_refused_at_the_start(acme: TenantClient, value: str) -> None:
    await create_object(acme, "/crews", name="small-team", **read_crew_documents(OUTPUT_FILES_CASE))
    refused = await acme.http.post(
        "/crews/small-team/execute", json={"inputs": {**EXAMPLE_INPUTS, "module_name": value}}
    )
    assert (refused.status_code, list_refused_fields(refused)) == (422, ["inputs.module_name"] * 2), refused.text
    assert "output_file" in refused.json()["errors"][0]["message"]
    documents = {
        **read_crew_documents(OUTPUT_FILES_CASE),
        "tasks_yaml": read_crew_documents(OUTPUT_FILES_CASE)["tasks_yaml"].replace(
            "output/{module_name}.py", "'{out}'"
        ),
    }
    await create_object(acme, "/crews", name="lonely", **documents)
    for path in ("", "/etc/passwd", "..", "."):
        refused = await acme.http.post("/crews/lonely/execute", json={"inputs": {**EXAMPLE_INPUTS, "out": path}})
        assert (refused.status_code, list_refused_fields(refused)) == (422, ["inputs.out"]), refused.text


async def test_crew_requires_the_inputs_of_its_tasks(acme: TenantClient) -> None:
    await create_model_agent(acme, "smollm2", name="writer")
    task = await create_object(
        acme, "/tasks", name="报告", description="Write about {topic}", agent="writer", output_file="{topic}/out.md"
    )
    crew = await create_object(acme, "/crews", name="one", tasks=[task["id"]])
    refused = await acme.http.post(f"/crews/{crew['id']}/execute", json={"inputs": {"topic": ".."}})
    assert list_refused_fields(refused) == ["inputs.topic"]
    for path in ("../{topic}", "/{topic}", "{topic}/../../x"):
        body = {"name": "out", "description": "d", "agent": "writer", "output_file": path}
        assert list_refused_fields(await acme.http.post("/tasks", json=body)) == ["output_file"]
        tasks = json.dumps({"out": {key: value for key, value in body.items() if key != "name"}})
        errors = (await acme.http.post("/crews/debug", json={"tasks_yaml": tasks})).json()["errors"]
        assert [error["field"] for error in errors] == ["tasks_yaml.out.output_file"]


async def test_placeholders_of_a_crew_are_its_inputs(acme: TenantClient) -> None:
    # The tasks of the case are invalid YAML: an unquoted brace begins a mapping.
    body = read_crew_documents(PLACEHOLDERS_CASE)
    refused = (await acme.http.post("/crews/debug", json=body)).json()
    assert refused["errors"][0]["field"] == "tasks_yaml"
    body["tasks_yaml"] = body["tasks_yaml"].replace("description: ", "description: >\n    ")
    debug_result = (await acme.http.post("/crews/debug", json=body)).json()
    assert sorted(debug_result["inputs"]) == ["target-audience", "topic"], debug_result
    warnings = {warning["field"]: warning["message"] for warning in debug_result["warnings"]}
    assert "{{literal}} is left as it stands" in warnings["tasks_yaml.write.description"]
    await create_object(acme, "/crews", name="places", **body)
    missing = await acme.http.post("/crews/places/execute", json={"inputs": {"topic": "bees"}, "model": "smollm2"})
    assert list_refused_fields(missing) == ["inputs.target-audience"]


async def test_crew_prompts_are_filled_once_and_escapes_kept(acme: TenantClient, provider: FakeProvider) -> None:
    name = await create_model(acme, provider, generate_name())
    agents = {"имя": {"role": "For {аудитория}", "goal": r"{{goal}} \{goal} ${HOME} {task}", "llm": name}}
    tasks = {"one": {"description": r'{topic}, \{topic}, {"a": {topic}}', "expected_output": "e", "agent": "имя"}}
    body = {"agents_yaml": json.dumps(agents), "tasks_yaml": json.dumps(tasks)}
    crew = await create_object(acme, "/crews", name="asked", **body)
    inputs = {"topic": r"see {task} and \{topic} of {аудитория}", "аудитория": "{task}"}
    answer = await acme.http.post(f"/crews/{crew['id']}/execute", json={"inputs": inputs})
    ended = await acme.wait_for_end(answer.json()["id"])
    assert ended["status"] == "completed", ended
    (request,) = [sent_request for sent_request in provider.requests if sent_request.model == name]
    task = r'{0}, {{topic}}, {{"a": {0}}}'.format(inputs["topic"]) + "\n\nWhat is expected of you: e"
    assert request.get_last_text() == task
    system = f"You are For {{task}}.\n\nYour goal: {{{{goal}}}} {{goal}} ${{HOME}} {task}"
    assert request.get_last_text("system") == system


async def test_template_errors_explain_placeholder_syntax(acme: TenantClient) -> None:
    text = 'Dear {{name}}, you are {age}. {"a": {age}} \\{age} ${HOME} {имя}'
    created = await create_object(acme, "/templates", name="letter", template=text)
    assert created["variables"] == ["age", "имя"]
    values: dict[str, Any] = {"age": 36, "имя": "Ada"}
    render = "/templates/letter/render"
    rendered = (await acme.http.post(render, json={"variables": values})).json()["rendered"]
    assert rendered == 'Dear {{name}}, you are 36. {"a": 36} {age} ${HOME} Ada'
    refused = await acme.http.post(render, json={"variables": {**values, "name": "Ada"}})
    assert list_refused_fields(refused) == ["variables.name"]
    assert "{{name}} is left as it stands; write {name}" in refused.json()["detail"]
    body = {"name": "other", "template": text, "variables": ["age", "имя", "name"]}
    assert "write {name}" in (await acme.http.post("/templates", json=body)).json()["detail"]


async def test_task_template_keeps_escapes_for_the_crew(acme: TenantClient, provider: FakeProvider) -> None:
    name = await create_model(acme, provider, generate_name())
    await create_model_agent(acme, name, name="writer")
    await create_object(acme, "/templates", name="letter", template=r"To {who}: \{who} as it stands")
    variables = {"who": "{audience}"}
    task = await create_object(acme, "/tasks", name="t", template="letter", variables=variables, agent="writer")
    assert task["description"] == r"To {audience}: \{who} as it stands"
    crew = await create_object(acme, "/crews", name="c", tasks=[task["id"]])
    answer = await acme.http.post(f"/crews/{crew['id']}/execute", json={"inputs": {"audience": "kids"}})
    assert (await acme.wait_for_end(answer.json()["id"]))["status"] == "completed"
    (request,) = [sent_request for sent_request in provider.requests if sent_request.model == name]
    assert request.get_last_text() == "To kids: {who} as it stands"


async def test_plain_task_is_not_filled_with_placeholders(acme: TenantClient, provider: FakeProvider) -> None:
    name = await create_model(acme, provider, generate_name())
    created_agent = await create_model_agent(acme, name, instructions=r"Explain \{braces}.")
    for inputs, expected_text in (
        ({"task": r"What is \{x} in {x}?"}, r"What is \{x} in {x}?"),
        ({"task": r"\{x} is {x}", "x": 1}, "{x} is 1\n\nInputs:\n"),
    ):
        assert (await run_execution(acme, created_agent["id"], payload=inputs))["status"] == "completed"
        last_request = [sent_request for sent_request in provider.requests if sent_request.model == name][-1]
        assert last_request.get_last_text().startswith(expected_text)
        assert last_request.get_last_text("system") == "Explain {braces}."
