"""Test that the examples of the page on crews work, and that CrewAI's defaults may be written out."""

import json
import re
from pathlib import Path
from typing import Any

import pytest

from tests.journeys.test_crews import create_object
from tests.support.clients import TenantClient
from tests.support.fake_provider import FakeProvider
from tests.support.model_agents import create_model, generate_name

CREWS_PAGE = Path(__file__).parents[2] / "docs" / "crews.md"
EXAMPLE_AGENT: dict[str, Any] = {"role": "r", "goal": "g", "llm": "smollm2"}
EXAMPLE_TASK: dict[str, Any] = {"description": "d", "expected_output": "e", "agent": "a"}
# CrewAI's pages on agents and tasks, 2026.
AGENT_DEFAULTS: dict[str, Any] = {
    "cache": True,
    "memory": False,
    "respect_context_window": True,
    "max_retry_limit": 2,
    "multimodal": False,
    "verbose": False,
    "allow_delegation": False,
    "allow_code_execution": False,
    "code_execution_mode": "safe",
    "max_iter": 20,
    "max_rpm": None,
    "max_execution_time": None,
    "function_calling_llm": None,
    "tools": [],
    "inject_date": False,
    "date_format": "%Y-%m-%d",
    "reasoning": False,
    "max_reasoning_attempts": None,
    "use_system_prompt": True,
    "system_template": None,
    "prompt_template": None,
    "response_template": None,
    "step_callback": None,
    "embedder": None,
    "knowledge_sources": [],
    "mcps": None,
}
TASK_DEFAULTS: dict[str, Any] = {
    "async_execution": False,
    "human_input": False,
    "markdown": False,
    "create_directory": True,
    "tools": [],
    "guardrail_max_retries": 3,
    "guardrail": None,
    "output_json": None,
    "output_pydantic": None,
    "callback": None,
    "config": None,
    "context": None,
    "output_file": None,
    "name": None,
}


def build_documents(agent: dict[str, Any], task: dict[str, Any]) -> dict[str, str]:
    return {
        "agents_yaml": json.dumps({"a": {**EXAMPLE_AGENT, **agent}}),
        "tasks_yaml": json.dumps({"t": {**EXAMPLE_TASK, **task}}),
    }


async def test_examples_of_the_crews_page_work(acme: TenantClient, provider: FakeProvider) -> None:
    examples = re.findall(r"```yaml\n(# (agents|tasks)_yaml\n.*?)```", CREWS_PAGE.read_text(), re.DOTALL)
    assert [kind for _, kind in examples] == ["agents", "tasks", "tasks"]
    (agents_yaml, _), (tasks_yaml, _), (checked_tasks_yaml, _) = examples
    checked = {"agents_yaml": json.dumps({"writer": EXAMPLE_AGENT}), "tasks_yaml": checked_tasks_yaml}
    debug_result = (await acme.http.post("/crews/debug", json=checked)).json()
    assert (debug_result["valid"], debug_result["warnings"]) == (True, []), debug_result
    documents = {"agents_yaml": agents_yaml, "tasks_yaml": tasks_yaml}
    debug_result = (await acme.http.post("/crews/debug", json=documents)).json()
    assert (debug_result["valid"], debug_result["warnings"], debug_result["inputs"]) == (True, [], ["topic"]), (
        debug_result
    )
    name = await create_model(acme, provider, generate_name())
    crew = await create_object(acme, "/crews", name="newsroom", **documents)
    provider.queue_text("Three facts.", to=name)
    answer = await acme.http.post(f"/crews/{crew['id']}/execute", json={"inputs": {"topic": "horses"}, "model": name})
    ended = await acme.wait_for_end(answer.json()["id"])
    assert (ended["status"], ended["result"]) == ("completed", "Three facts."), ended
    assert (await acme.http.get(f"/executions/{ended['id']}/files/facts/horses.md")).text == "Three facts."


async def test_crewai_defaults_are_accepted(acme: TenantClient) -> None:
    result = (await acme.http.post("/crews/debug", json=build_documents(AGENT_DEFAULTS, TASK_DEFAULTS))).json()
    assert result["valid"], result["errors"]


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("memory", "long", "Expected `bool`"),
        ("allow_code_execution", True, "python"),
        ("max_retry_limit", 11, "<= 10"),
        ("max_retry_limit", True, "Expected `int`"),
        ("step_callback", {"python": "a.b"}, "Python code"),
        ("cache", 1, "only CrewAI's default is accepted, true"),
        ("code_execution_mode", "unsafe", "python"),
        ("use_system_prompt", False, "only CrewAI's default is accepted, true"),
        ("mood", None, "is not a field here"),
    ],
)
async def test_unsupported_crewai_settings_are_refused(
    acme: TenantClient, field: str, value: Any, message: str
) -> None:
    result = (await acme.http.post("/crews/debug", json=build_documents({field: value}, {}))).json()
    assert [error["field"] for error in result["errors"]] == [f"agents_yaml.a.{field}"]
    assert message in result["errors"][0]["message"]
