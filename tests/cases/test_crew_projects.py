"""Test crews from the files of a CrewAI project, `crew.jsonc` and `agents/NAME.jsonc`. The projects are CrewAI's own."""

from pathlib import Path
from typing import Any

import pytest

from tests.journeys.test_crews import create_object, list_refused_fields
from tests.support.case_inputs import find_case_folder
from tests.support.clients import TenantClient
from tests.support.fake_provider import FakeProvider
from tests.support.model_agents import create_model, generate_name

AGENT = '{"role": "Writer", "goal": "Write", "backstory": "b", "llm": "smollm2"}'
CREW = '{"agents": ["writer"], "tasks": [{"name": "write", "description": "d", "expected_output": "e", "agent": "writer"}]}'


def read_project(name: str, **replaced: str) -> dict[str, str]:
    """Return the files of one of CrewAI's projects, with names of models that exist here."""
    folder = find_case_folder("39-crewai-json-projects") / name
    files = {str(path.relative_to(folder)): path.read_text() for path in sorted(folder.rglob("*.jsonc"))}
    for old, new in replaced.items():
        files = {path: text.replace(old.replace("__", "/"), new) for path, text in files.items()}
    return files


async def debug_files(acme: TenantClient, files: dict[str, str]) -> dict[str, Any]:
    answer = await acme.http.post("/crews/debug", json={"files": files})
    assert answer.status_code == 200, answer.text
    return dict(answer.json())


async def list_problems(acme: TenantClient, files: dict[str, str]) -> list[tuple[str, int | None, str]]:
    result = await debug_files(acme, files)
    return [(problem["field"], problem["line"], problem["message"]) for problem in result["errors"]]


async def test_missing_name_does_not_hide_what_is_wrong_with_the_files(acme: TenantClient) -> None:
    broken = {"crew.jsonc": '{"name": "Research", "agents": ["writer"]\n"tasks": []}', "agents/writer.jsonc": AGENT}
    answer = await acme.http.post("/crews", json={"files": broken})
    assert list_refused_fields(answer) == ["files.crew.jsonc (line 2)"]
    answer = await acme.http.post("/crews", json={"files": {"crew.jsonc": CREW, "agents/writer.jsonc": AGENT}})
    assert answer.json()["detail"] == "name: is required, here or in crew.jsonc."


async def test_files_and_yaml_make_the_same_crew(acme: TenantClient, provider: FakeProvider) -> None:
    name = await create_model(acme, provider, generate_name())
    files = {
        "crew.jsonc": """{
          // Who and what.
          "name": "Market Research",
          "agents": ["researcher",],
          "tasks": [{"name": "research", "description": "Look into {topic}", "expected_output": "Facts",
                     "agent": "researcher", "output_file": "{topic}.md"}],
          "inputs": {"topic": "AI"}, /* a default */
          "max_rpm": 600,
        }""",
        "agents/researcher.jsonc": f"""{{"role": "Researcher of {{topic}}", "goal": "Find out", "backstory": "b",
          "llm": {{"model": "{name}", "temperature": 0.5, "max_tokens": 300}}, "settings": {{"max_iter": 7}}}}""",
    }
    crew = await create_object(acme, "/crews", files=files)
    assert (crew["name"], crew["inputs"], crew["max_rpm"]) == ("Market Research", {"topic": "AI"}, 600)
    settings = {field: crew[field] for field in ("agents_yaml", "tasks_yaml", "inputs", "max_rpm")}
    again = await create_object(acme, "/crews", name="again", **settings)
    assert again["agents_yaml"] == crew["agents_yaml"]
    for reference, body, topic in ((crew["id"], {}, "AI"), ("again", {"inputs": {"topic": "bees"}}, "bees")):
        provider.queue_text("Fact one.", to=name)
        started = await acme.http.post(f"/crews/{reference}/execute", json=body)
        assert started.status_code == 201, started.text
        ended = await acme.wait_for_end(started.json()["id"])
        assert (ended["status"], ended["result"]) == ("completed", "Fact one."), ended
        asked = provider.requests[-1]
        assert asked.get_last_text("system").startswith(f"You are Researcher of {topic}.")
        assert (asked.body["temperature"], asked.get_last_text().splitlines()[0]) == (0.5, f"Look into {topic}")
        assert (await acme.http.get(f"/executions/{ended['id']}/files/{topic}.md")).text == "Fact one."


@pytest.mark.parametrize(
    ("files", "field", "line", "message"),
    [
        ({"agents/writer.jsonc": AGENT}, "files.crew.jsonc", None, "is required"),
        ({"crew.jsonc": CREW}, "files.crew.jsonc.agents[0]", 1, "send agents/writer.jsonc"),
        ({"crew.jsonc": CREW + "}", "agents/writer.jsonc": AGENT}, "files.crew.jsonc", 1, "is not JSON"),
        ({"crew.jsonc": CREW, "agents/writer.jsonc": "[]"}, "files.agents/writer.jsonc", 1, "must be an object"),
        ({"crew.jsonc": CREW, "agents/writer.jsonc": AGENT, "tools/x.py": ""}, "files.tools/x.py", None, "is not read"),
        (
            {"crew.jsonc": CREW, "agents/writer.jsonc": AGENT[:-1] + ',\n"max_itr": 3}'},
            "files.agents/writer.jsonc.max_itr",
            2,
            "is not a field here",
        ),
        (
            {"crew.jsonc": CREW, "agents/writer.jsonc": AGENT[:-1] + ',\n\n"settings": {"max_iter": 0}}'},
            "files.agents/writer.jsonc.settings.max_iter",
            3,
            "1",
        ),
        (
            {"crew.jsonc": CREW[:-1] + ',\n"process": "random"}', "agents/writer.jsonc": AGENT},
            "files.crew.jsonc.process",
            2,
            "sequential",
        ),
        (
            {"crew.jsonc": CREW.replace('"agent": "writer"', '\n"agent": "editor"'), "agents/writer.jsonc": AGENT},
            "files.crew.jsonc.tasks[0].agent",
            2,
            "editor",
        ),
        (
            {
                "crew.jsonc": CREW,
                "agents/writer.jsonc": AGENT.replace('"smollm2"', '{"model": "m", "base_url": "http://x"}'),
            },
            "files.agents/writer.jsonc.llm.base_url",
            1,
            "/models",
        ),
        (
            {"crew.jsonc": CREW[:-1] + ',\n"task_callback": {"python": "a.b"}}', "agents/writer.jsonc": AGENT},
            "files.crew.jsonc.task_callback",
            2,
            "Python",
        ),
        (
            {
                "crew.jsonc": CREW[:-1] + ',\n"manager_agent": "boss", "process": "hierarchical"}',
                "agents/writer.jsonc": AGENT,
            },
            "files.crew.jsonc.manager_agent",
            2,
            "boss",
        ),
    ],
)
async def test_a_problem_is_named_by_its_file_and_line(
    acme: TenantClient, files: dict[str, str], field: str, line: int | None, message: str
) -> None:
    problems = await list_problems(acme, files)
    assert any(problem[:2] == (field, line) and message in problem[2] for problem in problems), problems
    suffix = "" if line is None else f" (line {line})"
    refused = await acme.http.post("/crews", json={"name": "bad", "files": files})
    assert f"{field}{suffix}" in list_refused_fields(refused)


async def test_files_replace_a_crew_and_do_not_stand_beside_yaml(acme: TenantClient) -> None:
    files = {"crew.jsonc": CREW, "agents/writer.jsonc": AGENT}
    crew = await create_object(acme, "/crews", name="project", files=files)
    both = await acme.http.post("/crews", json={"name": "both", "files": files, "agents_yaml": "a: {role: r}"})
    assert list_refused_fields(both) == ["agents_yaml"]
    assert list_refused_fields(await acme.http.post("/crews", json={"files": files})) == ["name"]
    changed = {**files, "crew.jsonc": CREW[:-1] + ', "planning": true, "planning_llm": "smollm2"}'}
    answer = await acme.http.patch(f"/crews/{crew['id']}", json={"files": changed})
    assert answer.status_code == 200, answer.text
    assert (answer.json()["planning"], answer.json()["planning_model"]) == (True, "smollm2")
    result = await debug_files(acme, {**files, "agents/idle.jsonc": AGENT})
    assert [warning["field"] for warning in result["warnings"]] == ["files.agents/idle.jsonc"]


async def test_texts_of_a_project_are_its_knowledge(acme: TenantClient) -> None:
    sources = '"knowledge_sources": [{"file_paths": ["bees.txt"], "chunk_size": 500}, "Plain."]'
    files = {
        "crew.jsonc": f"{CREW[:-1]}, {sources}}}",
        "agents/writer.jsonc": f"{AGENT[:-1]}, {sources.replace('bees.txt', 'knowledge/bees.txt')}}}",
        "knowledge/bees.txt": "Bees dance.",
    }
    crew = await create_object(acme, "/crews", name="knowing project", files=files)
    assert crew["knowledge_sources"] == [{"name": "bees.txt", "content": "Bees dance.", "chunk_size": 500}, "Plain."]
    assert "Bees dance." in crew["agents_yaml"]
    del files["knowledge/bees.txt"]
    problems = await list_problems(acme, files)
    assert [problem[0] for problem in problems] == [
        "files.agents/writer.jsonc.knowledge_sources[0]",
        "files.crew.jsonc.knowledge_sources[0]",
    ]
    assert all("no id of an uploaded file" in problem[2] for problem in problems)


async def test_a_manager_of_its_own_file_leads_the_crew(acme: TenantClient) -> None:
    crew = CREW[:-1] + ', "process": "hierarchical", "manager_agent": "boss"}'
    files = {"crew.jsonc": crew, "agents/writer.jsonc": AGENT, "agents/boss.json": AGENT.replace("Writer", "Boss")}
    result = await debug_files(acme, files)
    assert (result["errors"], [step["agent"] for step in result["steps"]]) == ([], ["boss"])


@pytest.mark.parametrize("name", ["created", "documented"])
async def test_projects_of_crewai_itself_are_taken(acme: TenantClient, name: str) -> None:
    replaced = {"openai__gpt-4o": "smollm2", "provider__model-id": "smollm2", "SerperDevTool": "http_request"}
    files = read_project(name, **replaced)
    assert Path(find_case_folder("39-crewai-json-projects"), "SOURCE.md").is_file()
    result = await debug_files(acme, files)
    assert result["errors"] == []
    crew = await create_object(acme, "/crews", name=f"project {name}", files=files)
    assert (crew["memory"], crew["name"]) == (True, f"project {name}")


async def test_travel_crew_runs_as_its_files_say(acme: TenantClient, provider: FakeProvider) -> None:
    name = await create_model(acme, provider, generate_name())
    root = Path(__file__).parents[2] / "examples" / "travel_crew"
    paths = [path for path in root.rglob("*") if path.suffix in (".jsonc", ".txt")]
    files = {str(path.relative_to(root)): path.read_text().replace("smollm2", name) for path in paths}
    result = await debug_files(acme, files)
    assert (result["errors"], result["warnings"]) == ([], [])
    crew = await create_object(acme, "/crews", files=files)
    assert (crew["name"], crew["memory"], crew["inputs"]) == ("Travel desk", True, {"city": "Oslo", "days": 2})
    for text in (
        "- the Opera House",
        "Day 1, day 2, day 3.",
        '{"valid": false, "feedback": "Two days."}',
        "Day 1, day 2.",
        '{"valid": true, "feedback": ""}',
    ):
        provider.queue_text(text, to=name)
    started = await acme.http.post("/crews/Travel%20desk/execute", json={})
    ended = await acme.wait_for_end(started.json()["id"])
    assert (ended["status"], ended["result"]) == ("completed", "Day 1, day 2."), ended
    asked = [request for request in provider.requests if request.model == name]
    assert "a roof that visitors walk on" in asked[0].get_last_text()
    assert "Current date: " in asked[0].get_last_text()
    assert "Two days." in asked[3].get_last_text()
    assert (await acme.http.get(f"/executions/{ended['id']}/files/plans/Oslo.md")).text == "Day 1, day 2."
    assert (await acme.http.get(f"/crews/{crew['id']}/memories")).json()["total"] == 2
