"""What the page on crews prints can be copied, and what CrewAI does by default can be written out."""

import json
import re
from pathlib import Path
from typing import Any

import pytest

from tests.journeys.test_kasal_crews import made
from tests.support.clients import TenantClient
from tests.support.fake_provider import FakeProvider
from tests.support.model_agents import create_model, generate_name

PAGE = Path(__file__).parents[2] / "docs" / "crews.md"
AGENT: dict[str, Any] = {"role": "r", "goal": "g", "llm": "smollm2"}
TASK: dict[str, Any] = {"description": "d", "expected_output": "e", "agent": "a"}
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


def body(agent: dict[str, Any], task: dict[str, Any]) -> dict[str, str]:
    return {"agents_yaml": json.dumps({"a": {**AGENT, **agent}}), "tasks_yaml": json.dumps({"t": {**TASK, **task}})}


async def test_the_page_can_be_copied(acme: TenantClient, provider: FakeProvider) -> None:
    printed = re.findall(r"```yaml\n(# (agents|tasks)_yaml\n.*?)```", PAGE.read_text(), re.DOTALL)
    assert [kind for _, kind in printed] == ["agents", "tasks"]
    documents = {f"{kind}_yaml": text for text, kind in printed}
    found = (await acme.http.post("/crews/debug", json=documents)).json()
    assert (found["valid"], found["warnings"], found["inputs"]) == (True, [], ["topic"]), found
    name = await create_model(acme, provider, generate_name())
    crew = await made(acme, "/crews", name="newsroom", **documents)
    provider.queue_text("Three facts.", to=name)
    answer = await acme.http.post(f"/crews/{crew['id']}/execute", json={"inputs": {"topic": "horses"}, "model": name})
    ended = await acme.wait_for_end(answer.json()["id"])
    assert (ended["status"], ended["result"]) == ("completed", "Three facts."), ended
    assert (await acme.http.get(f"/executions/{ended['id']}/files/facts/horses.md")).text == "Three facts."


async def test_defaults_may_be_written_out(acme: TenantClient) -> None:
    found = (await acme.http.post("/crews/debug", json=body(AGENT_DEFAULTS, TASK_DEFAULTS))).json()
    assert found["valid"], found["errors"]


@pytest.mark.parametrize(
    ("field", "value", "word"),
    [
        ("cache", False, "only CrewAI's default is accepted, true"),
        ("memory", True, "context"),
        ("allow_code_execution", True, "python"),
        ("max_retry_limit", 5, "only CrewAI's default is accepted, 2"),
        ("max_retry_limit", True, "only CrewAI's default is accepted, 2"),
        ("cache", 1, "only CrewAI's default is accepted, true"),
        ("code_execution_mode", "unsafe", "only CrewAI's default is accepted, safe"),
        ("reasoning", True, "planning"),
        ("mood", None, "is not a field here"),
    ],
)
async def test_what_is_no_default_is_refused(acme: TenantClient, field: str, value: Any, word: str) -> None:
    found = (await acme.http.post("/crews/debug", json=body({field: value}, {}))).json()
    assert [one["field"] for one in found["errors"]] == [f"agents_yaml.a.{field}"]
    assert word in found["errors"][0]["message"]
