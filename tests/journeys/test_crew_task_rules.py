"""Test what CrewAI's fields do in a run: judges, feedback of a person, plans, dates, retries, limits and MCP servers."""

import asyncio
import json
import re
from datetime import UTC, datetime
from typing import Any

from tests.contracts.test_mcp_tools import run_mcp_server
from tests.journeys.test_crew_runs import create_models, list_requests, run_crew, start_crew
from tests.journeys.test_crews import create_object
from tests.support.clients import TenantClient
from tests.support.fake_provider import FakeProvider, ProviderRequest, ScriptedAnswer, build_call, split_tokens


async def create_crew(acme: TenantClient, name: str, model: str, agent: dict[str, Any], task: dict[str, Any]) -> str:
    """Create a crew of one agent that does one task."""
    agents = {"writer": {"role": "Writer", "goal": "Write", "llm": model, **agent}}
    tasks = {"write": {"description": "Write about bees", "expected_output": "A text", "agent": "writer", **task}}
    fields = {"agents_yaml": json.dumps(agents), "tasks_yaml": json.dumps(tasks)}
    return str((await create_object(acme, "/crews", name=name, **fields))["id"])


def write_verdict(valid: bool, feedback: str = "") -> str:
    return json.dumps({"valid": valid, "feedback": feedback})


async def wait_for_review(acme: TenantClient, execution_id: str, after: str | None = None) -> dict[str, Any]:
    """Return the call that a run waits for, once it is another than the answer `after`."""
    for _ in range(600):
        execution = (await acme.http.get(f"/executions/{execution_id}")).json()
        calls = execution["waiting_for"] or []
        if execution["status"] == "waiting" and calls and calls[0]["args"]["answer"] != after:
            return dict(calls[0])
        assert execution["status"] in ("pending", "running", "waiting"), execution
        await asyncio.sleep(0.05)
    raise AssertionError("the run asks for no review")


async def test_judge_sends_a_task_back_until_its_answer_passes(acme: TenantClient, provider: FakeProvider) -> None:
    (name,) = await create_models(acme, provider, "judged")
    rule = "Every fact about {topic} has a number."
    crew = await create_crew(acme, "judged", name, {}, {"guardrails": [rule, "It is polite."]})
    for text in ("Bees fly.", write_verdict(False, "Say how fast."), "Bees fly at 25 km/h.", write_verdict(True)):
        provider.queue_text(text, to=name)
    provider.queue_text("```json\n" + write_verdict(True) + "\n```", to=name)
    ended = await run_crew(acme, crew, inputs={"topic": "bees"})
    assert ended["result"] == "Bees fly at 25 km/h."
    asked, judged, again, *_ = requests = list_requests(provider, name)
    assert len(requests) == 5
    assert "Every fact about bees has a number." in judged.get_last_text()
    assert "Bees fly." in judged.get_last_text()
    assert "Write about bees" in judged.get_last_text()
    assert "It is polite." in requests[-1].get_last_text()
    assert judged.body["response_format"]["type"] == "json_schema"
    assert "Say how fast." in again.get_last_text()
    assert again.messages[: len(asked.messages)] == asked.messages, "the agent sees what it wrote before"


async def test_answers_that_never_pass_fail_the_crew(acme: TenantClient, provider: FakeProvider) -> None:
    (name,) = await create_models(acme, provider, "never")
    crew = await create_crew(acme, "never", name, {"guardrail": "It rhymes."}, {"guardrail_max_retries": 1})
    for _ in range(2):
        provider.queue_text("No rhyme.", to=name)
        provider.queue_text(write_verdict(False, "It does not rhyme."), to=name)
    ended = await acme.wait_for_end((await start_crew(acme, crew))["id"])
    assert (ended["status"], ended["error_type"]) == ("failed", "guardrail_failed"), ended
    assert "'It rhymes.' 2 times. It does not rhyme." in ended["error_message"]
    assert len(list_requests(provider, name)) == 4


async def test_judge_without_a_verdict_refuses_the_answer(acme: TenantClient, provider: FakeProvider) -> None:
    (name,) = await create_models(acme, provider, "mute")
    crew = await create_crew(acme, "mute", name, {}, {"guardrail": "It rhymes.", "guardrail_max_retries": 0})
    for text in ("No rhyme.", "I like it!", '{"valid": "maybe"}'):
        provider.queue_text(text, to=name)
    ended = await acme.wait_for_end((await start_crew(acme, crew))["id"])
    assert (ended["error_type"], "gave no verdict" in ended["error_message"]) == ("guardrail_failed", True), ended


async def test_person_sends_a_task_back_with_feedback(acme: TenantClient, provider: FakeProvider) -> None:
    (name,) = await create_models(acme, provider, "asked")
    crew = await create_crew(acme, "asked", name, {}, {"human_input": True, "output_file": "bees.md"})
    provider.queue_text("Bees fly.", to=name)
    execution_id = (await start_crew(acme, crew))["id"]
    call = await wait_for_review(acme, execution_id)
    assert (call["tool"], call["args"], call["step"]) == ("human_input", {"answer": "Bees fly."}, "write")
    provider.queue_text("Bees fly and dance.", to=name)
    rejected = await acme.http.post(f"/executions/{execution_id}/reject", json={"reason": "Tell of their dance."})
    assert rejected.status_code == 200, rejected.text
    await wait_for_review(acme, execution_id, after="Bees fly.")
    assert "Tell of their dance." in list_requests(provider, name)[1].get_last_text()
    assert (await acme.http.post(f"/executions/{execution_id}/approve", json={})).status_code == 200
    ended = await acme.wait_for_end(execution_id)
    assert (ended["status"], ended["result"]) == ("completed", "Bees fly and dance."), ended
    assert (await acme.http.get(f"/executions/{execution_id}/files/bees.md")).text == "Bees fly and dance."
    trace = await acme.http.get(f"/execution-trace/{execution_id}")
    assert trace.status_code == 200, trace.text


async def test_rejection_without_a_reason_fails_the_crew(acme: TenantClient, provider: FakeProvider) -> None:
    (name,) = await create_models(acme, provider, "refused")
    crew = await create_crew(acme, "refused", name, {}, {"human_input": True})
    provider.queue_text("Bees fly.", to=name)
    execution_id = (await start_crew(acme, crew))["id"]
    await wait_for_review(acme, execution_id)
    assert (await acme.http.post(f"/executions/{execution_id}/reject", json={})).status_code == 200
    ended = await acme.wait_for_end(execution_id)
    assert (ended["status"], ended["error_type"]) == ("failed", "rejected"), ended


async def test_agent_plans_until_it_is_ready(acme: TenantClient, provider: FakeProvider) -> None:
    (name,) = await create_models(acme, provider, "planner")
    agent = {"reasoning": True, "max_reasoning_attempts": 3, "tools": ["filesystem_list"]}
    crew = await create_crew(acme, "planner", name, agent, {})
    for text in ("Look.\nNOT READY", "Look, then write.\n\nREADY", "Bees fly."):
        provider.queue_text(text, to=name)
    assert (await run_crew(acme, crew))["result"] == "Bees fly."
    first, refined, asked = list_requests(provider, name)
    assert "filesystem_list" in first.get_last_text()
    assert "tools" not in first.body
    assert "Close the gaps" in refined.get_last_text()
    assert "This is your plan:\nLook, then write." in asked.get_last_text()
    assert "READY" not in asked.get_last_text()
    for setting in ({"planning": True}, {"planning_config": {"max_attempts": 1}}):
        crew = await create_crew(acme, f"planner-{len(setting)}-{next(iter(setting))}", name, setting, {})
        provider.queue_text("Never. NOT READY", to=name)
        attempts = 1 if "planning_config" in setting else 3
        for _ in range(attempts - 1):
            provider.queue_text("Never. NOT READY", to=name)
        provider.queue_text("Done.", to=name)
        assert (await run_crew(acme, crew))["result"] == "Done."


async def test_date_is_part_of_the_prompt(acme: TenantClient, provider: FakeProvider) -> None:
    (name,) = await create_models(acme, provider, "dated")
    crew = await create_crew(acme, "dated", name, {"inject_date": True, "date_format": "%d.%m.%Y"}, {})
    before = datetime.now(UTC)
    await run_crew(acme, crew)
    days = {day.strftime("%d.%m.%Y") for day in (before, datetime.now(UTC))}
    written = re.search(r"Current date: (\S+)", list_requests(provider, name)[0].get_last_text())
    assert written is not None
    assert written[1] in days
    debug = {"agents_yaml": '{"a": {"role": "r", "goal": "g", "inject_date": true, "date_format": "%9999Y"}}'}
    problems = (await acme.http.post("/crews/debug", json=debug)).json()["errors"]
    assert "agents_yaml.a.date_format" in [problem["field"] for problem in problems]


async def test_task_is_begun_again_after_an_error(acme: TenantClient, provider: FakeProvider) -> None:
    (name,) = await create_models(acme, provider, "flaky")
    crew = await create_crew(acme, "flaky", name, {"max_retry_limit": 2}, {})
    provider.queue_failure(401, to=name)
    provider.queue_text("Bees fly.", to=name)
    assert (await run_crew(acme, crew))["result"] == "Bees fly."
    strict = await create_crew(acme, "strict", name, {"max_retry_limit": 0}, {})
    provider.queue_failure(401, to=name)
    assert (await acme.wait_for_end((await start_crew(acme, strict))["id"]))["status"] == "failed"


async def test_max_rpm_of_an_agent_limits_its_calls_alone(acme: TenantClient, provider: FakeProvider) -> None:
    slow, fast = await create_models(acme, provider, "slow", "fast")
    agents = {
        key: {"role": key, "goal": "g", "llm": model, **({"max_rpm": 1} if key == "slow" else {})}
        for key, model in (("slow", slow), ("fast", fast))
    }
    tasks = {
        f"t{number}": {"description": "d", "expected_output": "e", "agent": agent, "async_execution": number < 3}
        for number, agent in enumerate(("slow", "fast", "slow", "fast"))
    }
    fields = {"agents_yaml": json.dumps(agents), "tasks_yaml": json.dumps(tasks)}
    crew = await create_object(acme, "/crews", name="limited", **fields)
    started = await start_crew(acme, crew["id"])
    for _ in range(600):
        children = (await acme.http.get(f"/executions?parent_id={started['id']}")).json()["items"]
        done = {child["step"] for child in children if child["status"] == "completed"}
        running = {child["step"] for child in children if child["status"] == "running"}
        if "t1" in done and done & {"t0", "t2"} and running & {"t0", "t2"}:
            break
        await asyncio.sleep(0.05)
    await asyncio.sleep(1.5)
    assert len(list_requests(provider, slow)) == 1, "its second call waits for the limit of the agent"
    assert len(list_requests(provider, fast)) == 1
    assert (await acme.http.post(f"/executions/{started['id']}/cancel")).status_code == 200


async def test_messages_are_shortened_to_the_context_of_the_model(acme: TenantClient, provider: FakeProvider) -> None:
    short, strict = await create_models(acme, provider, "short", "strict")

    def refuse_long_prompts(asked: ProviderRequest) -> ScriptedAnswer | None:
        if asked.model not in (short, strict):
            return None
        if len(asked.get_last_text()) > 3_000:
            return ScriptedAnswer(status=400, message="This model's maximum context length is 1000 tokens.")
        return ScriptedAnswer(tokens=split_tokens("Bees fly."))

    provider.add_rule(refuse_long_prompts)
    task = {"description": "Write about bees. " + "Long text. " * 1_000}
    assert (await run_crew(acme, await create_crew(acme, "short", short, {}, task)))["result"] == "Bees fly."
    sent = list_requests(provider, short)
    assert sent[0].get_last_text().startswith("Write about bees.")
    assert len(sent) > 1
    assert sent[-1].get_last_text().startswith("Write about bees.")
    crew = await create_crew(acme, "strict-context", strict, {"respect_context_window": False}, task)
    ended = await acme.wait_for_end((await start_crew(acme, crew))["id"])
    assert (ended["status"], "maximum context length" in ended["error_message"]) == ("failed", True), ended
    assert len(list_requests(provider, strict)) == 1


async def test_mcp_servers_of_an_agent_are_its_tools(acme: TenantClient, provider: FakeProvider) -> None:
    (name,) = await create_models(acme, provider, "remote")
    async with run_mcp_server() as (url, _, _):
        crew = await create_crew(acme, "remote", name, {"mcps": [f"{url}#add"]}, {})
        provider.queue_text("", to=name, calls=[build_call("127_0_0_1_add", {"a": 2, "b": 40})])
        provider.queue_text("42", to=name)
        ended = await run_crew(acme, crew, mode="yolo")
        first, second = list_requests(provider, name)
        assert [tool["function"]["name"] for tool in first.body["tools"]] == ["127_0_0_1_add"]
        assert (ended["result"], "42" in second.get_last_text("tool")) == ("42", True), second.body
        every = await create_crew(acme, "remote-all", name, {"mcps": [{"url": url, "headers": {"X-Team": "a"}}]}, {})
        provider.queue_text("No calls.", to=name)
        await run_crew(acme, every, mode="yolo")
        assert len(list_requests(provider, name)[-1].body["tools"]) > 1


async def test_mcp_servers_are_guarded_and_named(acme: TenantClient, provider: FakeProvider) -> None:
    (name,) = await create_models(acme, provider, "guarded")
    crew = await create_crew(acme, "guarded", name, {"mcps": ["http://169.254.169.254/mcp"]}, {})
    provider.queue_text("Without it.", to=name)
    ended = await run_crew(acme, crew)
    assert ended["result"] == "Without it."
    assert "tools" not in list_requests(provider, name)[0].body
    for reference in ("https://user:secret@example.com/mcp", "no-such-server#list", {"url": "ftp://example.com"}):
        agents = json.dumps({"a": {"role": "r", "goal": "g", "llm": name, "mcps": [reference]}})
        problems = (await acme.http.post("/crews/debug", json={"agents_yaml": agents})).json()["errors"]
        assert "agents_yaml.a.mcps" in [problem["field"] for problem in problems], reference
