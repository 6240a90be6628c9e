"""Workflows as seeds/paracle.md shows them, and everything that a step may say, each seen to do something."""

import asyncio
from itertools import pairwise
from typing import Any

from tests.support.clients import TenantClient
from tests.support.fake_provider import FakeProvider
from tests.support.model_agents import create_model, create_model_agent, generate_name, stream_events, wait_for_status

# Echoes what it is given, or fails with what it is told to.
ECHO = """
import time

def handle(payload):
    if payload.get("fail"):
        raise ValueError(payload["fail"])
    time.sleep(payload.get("sleep", 0))
    return payload
"""
WAIT = {"Prefer": "wait=60"}


async def echo(acme: TenantClient) -> str:
    return await acme.deploy_agent(ECHO)


async def flow(acme: TenantClient, *steps: dict[str, Any], **more: Any) -> str:
    answer = await acme.http.post("/workflows", json={"name": generate_name("flow"), "steps": list(steps), **more})
    assert answer.status_code == 201, answer.text
    return str(answer.json()["id"])


async def start(acme: TenantClient, workflow: str, **body: Any) -> dict[str, Any]:
    answer = await acme.http.post(f"/workflows/{workflow}/execute", json=body)
    assert answer.status_code == 201, answer.text
    return dict(answer.json())


async def run(acme: TenantClient, *steps: dict[str, Any], outputs: Any = None, **body: Any) -> dict[str, Any]:
    """Keep a workflow of these steps and run it until it has ended."""
    started = await start(acme, await flow(acme, *steps, outputs=outputs), **body)
    return await acme.wait_for_end(started["id"])


async def children(acme: TenantClient, execution_id: str) -> dict[str, dict[str, Any]]:
    items = (await acme.http.get("/executions", params={"parent_id": execution_id, "limit": 1000})).json()["items"]
    return {one["step"]: one for one in items}


async def told(acme: TenantClient, execution_id: str) -> list[tuple[Any, ...]]:
    """What the plan's log says of its steps: step, item and status."""
    return [
        (e["step"], e.get("item"), e["status"]) for e in await stream_events(acme, execution_id) if e["type"] == "step"
    ]


async def test_a_workflow_as_paracle_shows_it(acme: TenantClient, provider: FakeProvider) -> None:
    name = await create_model(acme, provider, generate_name(), price={"input": 1000.0, "output": 1000.0})
    reviewer = await create_model_agent(acme, name)
    code = await echo(acme)
    file = {"file": "{{ inputs.file }}"}
    steps = [
        {"id": "analyze", "agent": code, "inputs": {**file, "priority": "{{ inputs.priority }}"}},
        {"id": "review", "agent": reviewer["name"], "prompt": "Review {{ inputs.file }}.", "depends_on": ["analyze"]},
        {"id": "test", "agent": code, "inputs": file, "depends_on": ["analyze"]},
        {
            "id": "report",
            "agent": code,
            "inputs": {"was": "{{ steps.review.outputs.content }}"},
            "depends_on": ["review", "test"],
        },
    ]
    made = await acme.http.post("/workflows", json={"name": "code-review", "steps": steps})
    assert made.status_code == 201, made.text
    listed = (await acme.http.get("/workflows")).json()["items"]
    assert [{field: one[field] for field in ("id", "name", "status", "steps")} for one in listed] == [
        {"id": made.json()["id"], "name": "code-review", "status": "active", "steps": 4}
    ]
    provider.queue_text("Two bugs.", to=name)
    body = {"inputs": {"file": "api.py", "priority": "high"}}
    started = await acme.http.post(f"/workflows/{made.json()['id']}/execute", json=body)
    assert started.status_code == 201
    first = started.json()
    assert (first["steps_completed"], first["steps_total"], first["kind"]) == (0, 4, "workflow")
    assert first["status"] in ("pending", "running")
    await acme.wait_for_end(first["execution_id"])
    ended = (await acme.http.get(f"/workflows/executions/{first['execution_id']}")).json()
    assert (ended["id"], ended["workflow_id"], ended["status"]) == (first["id"], made.json()["id"], "completed")
    assert (ended["steps_completed"], ended["steps_total"]) == (4, 4)
    assert ended["started_at"] < ended["completed_at"]
    assert ended["results"] == {
        "analyze": {"file": "api.py", "priority": "high"},
        "review": {"content": "Two bugs."},
        "test": {"file": "api.py"},
        "report": {"was": "Two bugs."},
    }
    assert ended["result"] == {"was": "Two bugs."}, "the last step's"
    assert provider.requests[-1].get_last_text() == "Review api.py."
    (cost,) = (
        await acme.http.get("/costs", params={"execution_id": (await children(acme, first["id"]))["review"]["id"]})
    ).json()["items"]
    assert ended["total_cost"] == cost["cost_usd"] > 0
    assert (await acme.http.get("/executions", params={"workflow_id": made.json()["id"]})).json()["total"] == 1
    assert (await acme.http.get("/executions")).json()["total"] == 1, "steps are not in the list"


async def test_a_run_of_any_kind_starts_at_one_door(acme: TenantClient) -> None:
    one = await flow(acme, {"id": "a", "tool": "filesystem_list"})
    name = (await acme.http.get(f"/workflows/{one}")).json()["name"]
    answer = await acme.http.post("/executions", json={"workflow_id": name, "run_name": "Nightly"}, headers=WAIT)
    assert (answer.status_code, answer.json()["status"], answer.json()["run_name"]) == (201, "completed", "Nightly")
    assert answer.json()["workflow_id"] == one
    waited = await acme.http.post(f"/workflows/{name}/execute", json={"task": "go"}, headers=WAIT)
    assert (waited.json()["status"], waited.json()["input_data"]) == ("completed", {"task": "go"})
    again = await acme.http.get(f"/executions?workflow_id={one}&kind=workflow")
    assert again.json()["total"] == 2


async def test_steps_that_do_not_depend_run_side_by_side(acme: TenantClient) -> None:
    code = await echo(acme)
    slow = [{"id": name, "agent": code, "inputs": {"sleep": 1.5}} for name in ("a", "b", "c")]
    ended = await run(acme, *slow, {"id": "d", "agent": code, "depends_on": ["a", "b", "c"]})
    assert ended["status"] == "completed"
    by_step = await children(acme, ended["id"])
    starts = [by_step[name]["started_at"] for name in "abc"]
    ends = [by_step[name]["completed_at"] for name in "abc"]
    assert max(starts) < min(ends)
    assert by_step["d"]["created_at"] >= max(ends)


async def test_a_step_is_left_out_when_its_condition_says_so(acme: TenantClient) -> None:
    code = await echo(acme)
    steps = [
        {"id": "first", "agent": code, "inputs": {"n": "{{ inputs.n }}"}},
        {"id": "large", "agent": code, "depends_on": ["first"], "when": "steps.first.outputs.n > 5"},
        {"id": "small", "agent": code, "depends_on": ["first"], "when": "{{ steps.first.outputs.n <= 5 }}"},
        {
            "id": "after",
            "agent": code,
            "depends_on": ["large", "small"],
            "inputs": {"large": "{{ steps.large.status }}", "small": "{{ steps.small }}"},
        },
    ]
    ended = await run(acme, *steps, inputs={"n": 7})
    assert (ended["status"], ended["steps_completed"]) == ("completed", 4)
    assert set(ended["results"]) == {"first", "large", "after"}
    assert ended["results"]["after"] == {
        "large": "completed",
        "small": {"outputs": None, "status": "skipped", "error": None},
    }
    assert ("small", None, "skipped") in await told(acme, ended["id"])
    bad = await run(acme, {"id": "a", "agent": code, "when": "inputs.n"}, inputs={"n": 7})
    assert (bad["status"], bad["error_type"]) == ("failed", "bad_expression")
    assert "when" in bad["error_message"]


async def test_a_step_for_each_item_of_a_list(acme: TenantClient) -> None:
    code = await echo(acme)
    steps = [
        {"id": "list", "agent": code, "inputs": {"files": "{{ inputs.files }}"}},
        {
            "id": "each",
            "agent": code,
            "depends_on": ["list"],
            "map": "steps.list.outputs.files",
            "inputs": {
                "file": "{{ item.name }}",
                "number": "{{ index }}",
                "words": "File {{ index + 1 }}: {{ item.name }}",
            },
        },
        {
            "id": "literal",
            "agent": code,
            "map": ["x", {"y": "{{ inputs.files[0].name }}"}],
            "inputs": {"is": "{{ item }}"},
        },
        {"id": "none", "agent": code, "map": []},
        {"id": "count", "agent": code, "depends_on": ["each"], "inputs": {"n": "{{ size(steps.each.outputs) }}"}},
    ]
    files = [{"name": f"{letter}.py"} for letter in "abc"]
    ended = await run(acme, *steps, inputs={"files": files})
    assert ended["status"] == "completed", ended
    assert ended["results"]["each"] == [
        {"file": f"{letter}.py", "number": number, "words": f"File {number + 1}: {letter}.py"}
        for number, letter in enumerate("abc")
    ]
    assert ended["results"]["literal"] == [{"is": "x"}, {"is": {"y": "a.py"}}]
    assert ended["results"]["none"] == []
    assert ended["results"]["count"] == {"n": 3}
    assert {"each[0]", "each[1]", "each[2]", "list", "count"} <= set(await children(acme, ended["id"]))
    assert ("each", 2, "completed") in await told(acme, ended["id"])
    refused = await acme.http.post("/executions", json={"workflow_id": ended["workflow_id"], "inputs": {"files": 3}})
    assert refused.status_code == 201, "only the step before tells what the list is"
    failed = await acme.wait_for_end(refused.json()["id"])
    assert (failed["status"], failed["error_type"]) == ("failed", "bad_expression")


async def test_so_many_items_at_once_and_no_more(acme: TenantClient) -> None:
    code = await echo(acme)
    ended = await run(
        acme,
        {"id": "each", "agent": code, "map": "inputs.n", "max_parallel": 1, "inputs": {"sleep": 0.1}},
        inputs={"n": [1, 2, 3]},
    )
    assert ended["status"] == "completed"
    ran = await children(acme, ended["id"])
    spans = sorted((one["created_at"], one["completed_at"]) for one in ran.values())
    assert all(before[1] <= after[0] for before, after in pairwise(spans))
    assert len(spans) == 3


async def test_a_list_that_is_too_long_is_refused_at_the_start(acme: TenantClient) -> None:
    one = await flow(acme, {"id": "each", "tool": "filesystem_list", "map": "inputs.n"})
    for given in ({"n": [0] * 200_000}, {"n": 5}, {}):
        answer = await acme.http.post(f"/workflows/{one}/execute", json={"inputs": given})
        assert answer.status_code == 422, answer.text
        assert [error["field"] for error in answer.json()["errors"]] == ["steps[0].map"]


async def test_what_failed_is_tried_again(acme: TenantClient, provider: FakeProvider) -> None:
    name = await create_model(acme, provider, generate_name())
    writer = await create_model_agent(acme, name)
    provider.queue_failure(400, to=name)
    provider.queue_failure(400, to=name)
    provider.queue_text("At last.", to=name)
    ask = {"id": "ask", "agent": writer["id"], "prompt": "Try."}
    ended = await run(acme, {**ask, "retry": {"attempts": 2, "delay": 0.1, "factor": 1}})
    assert (ended["status"], ended["result"]) == ("completed", {"content": "At last."})
    tried = (await acme.http.get("/executions", params={"parent_id": ended["id"]})).json()["items"]
    assert [(one["step"], one["status"]) for one in tried] == [
        ("ask", "completed"),
        ("ask", "failed"),
        ("ask", "failed"),
    ]
    provider.queue_failure(400, to=name)
    provider.queue_failure(400, to=name)
    failed = await run(acme, {**ask, "retry": 1}, {"id": "next", "tool": "filesystem_list", "depends_on": ["ask"]})
    assert (failed["status"], failed["steps_completed"]) == ("failed", 0)
    assert "'ask' failed" in failed["error_message"]
    assert len((await acme.http.get("/executions", params={"parent_id": failed["id"]})).json()["items"]) == 2
    provider.queue_text("Well.", to=name)
    again = await acme.http.post(f"/executions/{failed['id']}/retry?from=failed", headers=WAIT)
    assert (again.json()["status"], again.json()["retry_of"]) == ("completed", failed["id"])


async def test_a_failure_that_does_not_matter(acme: TenantClient) -> None:
    code = await echo(acme)
    ended = await run(
        acme,
        {"id": "a", "agent": code, "inputs": {"fail": "no luck"}, "continue_on_failure": True},
        {"id": "b", "agent": code, "depends_on": ["a"], "inputs": {"was": "{{ steps.a.status }}: {{ steps.a.error }}"}},
    )
    assert ended["status"] == "completed"
    assert ended["results"] == {"b": {"was": "failed: no luck"}}
    failed = await run(
        acme,
        {"id": "a", "agent": code, "inputs": {"fail": "no luck"}},
        {"id": "b", "agent": code, "depends_on": ["a"]},
        {"id": "c", "agent": code, "inputs": {"sleep": 1}},
    )
    assert (failed["status"], failed["error_type"]) == ("failed", "ValueError")
    assert set(await children(acme, failed["id"])) == {"a", "c"}
    assert ("b", None, "cancelled") in await told(acme, failed["id"])


async def test_a_step_has_its_time(acme: TenantClient) -> None:
    code = await echo(acme)
    failed = await run(acme, {"id": "a", "agent": code, "inputs": {"sleep": 30}, "timeout": 1})
    assert (failed["status"], failed["error_type"]) == ("failed", "timeout")
    whole = await run(acme, {"id": "a", "agent": code, "inputs": {"sleep": 25}}, timeout=1)
    assert (whole["status"], whole["error_type"]) == ("failed", "timeout")
    assert (await children(acme, whole["id"]))["a"]["status"] == "cancelled"


async def test_somebody_has_to_approve(acme: TenantClient) -> None:
    code = await echo(acme)
    ask = {"id": "ship", "name": "Ship it", "agent": code, "depends_on": ["a"], "requires_approval": True}
    one = await flow(acme, {"id": "a", "agent": code}, ask, {"id": "b", "agent": code, "depends_on": ["ship"]})
    first = await wait_for_status(acme, (await start(acme, one))["id"], "waiting")
    assert first["steps_completed"] == 1
    assert [(call["call_id"], call["name"]) for call in first["waiting_for"]] == [("ship", "Ship it")]
    approved = await acme.http.post(f"/executions/{first['id']}/approve", json={"call_id": "ship", "reason": "Fine."})
    assert approved.status_code == 200, approved.text
    ended = await acme.wait_for_end(first["id"])
    assert (ended["status"], ended["steps_completed"], ended["waiting_for"]) == ("completed", 3, None)
    approvals = [one for one in await stream_events(acme, first["id"]) if one["type"] == "approval"]
    assert [one["status"] for one in approvals] == ["waiting", "approved"]
    assert (approvals[1]["by"], approvals[1]["reason"]) == (acme.account["id"], "Fine.")
    second = await wait_for_status(acme, (await start(acme, one))["id"], "waiting")
    await acme.http.post(f"/executions/{second['id']}/reject", json={"reason": "Not on Fridays."})
    rejected = await acme.wait_for_end(second["id"])
    assert (rejected["status"], rejected["error_type"]) == ("failed", "rejected")
    assert "Not on Fridays." in rejected["error_message"]
    assert set(await children(acme, second["id"])) == {"a"}
    late = await acme.http.post(f"/executions/{second['id']}/approve")
    assert late.status_code == 409
    # A rejection that does not matter.
    third = await flow(acme, {**ask, "depends_on": [], "continue_on_failure": True}, {"id": "b", "agent": code})
    waiting = await wait_for_status(acme, (await start(acme, third))["id"], "waiting")
    await acme.http.post(f"/executions/{waiting['id']}/reject")
    assert (await acme.wait_for_end(waiting["id"]))["status"] == "completed"


async def test_workflows_within_workflows(acme: TenantClient, provider: FakeProvider) -> None:
    name = await create_model(acme, provider, generate_name(), price={"input": 1000.0, "output": 1000.0})
    writer = await create_model_agent(acme, name)
    code = await echo(acme)
    inner = await flow(
        acme,
        {"id": "write", "agent": writer["id"], "prompt": "{{ inputs.tone }}: {{ inputs.topic }}"},
        {
            "id": "shout",
            "agent": code,
            "depends_on": ["write"],
            "inputs": {"said": "{{ steps.write.outputs.content }}!"},
        },
        inputs={"topic": {"type": "string", "required": True}, "tone": {"default": "Kindly"}},
        outputs={"text": "{{ steps.shout.outputs.said }}"},
    )
    provider.queue_text("A", to=name)
    provider.queue_text("B", to=name)
    outer = await run(
        acme,
        {"id": "one", "workflow": inner, "inputs": {"topic": "{{ inputs.topics[0] }}"}},
        {
            "id": "two",
            "workflow": inner,
            "depends_on": ["one"],
            "inputs": {"topic": "{{ steps.one.outputs.text }}", "tone": "Loudly"},
        },
        outputs="{{ steps.two.outputs.text }}",
        inputs={"topics": ["goats"]},
    )
    assert (outer["status"], outer["result"]) == ("completed", "B!")
    assert outer["results"] == {"one": {"text": "A!"}, "two": {"text": "B!"}}
    asked = [one.get_last_text() for one in provider.requests if one.model == name]
    assert asked == ["Kindly: goats", "Loudly: A!"]
    below = await children(acme, outer["id"])
    assert {one["kind"] for one in below.values()} == {"workflow"}
    assert all(one["root_id"] == outer["id"] for one in below.values())
    leaf = (await children(acme, below["one"]["id"]))["write"]
    assert (leaf["parent_id"], leaf["root_id"]) == (below["one"]["id"], outer["id"])
    costs = (await acme.http.get("/costs")).json()
    assert outer["total_cost"] == costs["total_cost"] > 0
    # What is wrong with an input comes out where the workflow is started that has it.
    refused = await acme.http.post(f"/workflows/{inner}/execute", json={"inputs": {"topic": 1}})
    assert refused.json()["errors"][0]["field"] == "inputs.topic"


async def test_cancelling_cancels_all_of_it(acme: TenantClient, provider: FakeProvider) -> None:
    name = await create_model(acme, provider, generate_name())
    writer = await create_model_agent(acme, name)
    code = await echo(acme)
    provider.queue_hang(to=name)
    inner = await flow(
        acme,
        {"id": "ask", "agent": writer["id"], "prompt": "Hello?"},
        {"id": "then", "agent": code, "depends_on": ["ask"]},
    )
    started = await start(
        acme,
        await flow(
            acme,
            {"id": "in", "workflow": inner},
            {"id": "slow", "agent": code, "inputs": {"sleep": 25}},
            {"id": "later", "agent": code, "depends_on": ["in"]},
        ),
    )
    while not [asked for asked in provider.requests if asked.model == name]:
        await asyncio.sleep(0.05)
    cancelled = await acme.http.post(f"/executions/{started['id']}/cancel")
    assert (cancelled.status_code, cancelled.json()["status"]) == (200, "cancelled")
    below = await children(acme, started["id"])
    assert set(below) == {"in", "slow"}
    for one in [*below.values(), *(await children(acme, below["in"]["id"])).values()]:
        ended = await acme.wait_for_end(one["id"])
        assert ended["status"] == "cancelled", ended
    await provider.wait_for_hang_up()
    assert set(await children(acme, below["in"]["id"])) == {"ask"}


async def test_what_a_run_comes_to(acme: TenantClient) -> None:
    code = await echo(acme)
    steps = [{"id": "a", "agent": code, "inputs": {"n": 1}}, {"id": "b", "agent": code, "inputs": {"n": 2}}]
    assert (await run(acme, *steps))["result"] == {"a": {"n": 1}, "b": {"n": 2}}, "those that no other waits for"
    outputs = {"sum": "{{ steps.a.outputs.n + steps.b.outputs.n }}", "who": "{{ inputs.who }}", "plain": [1, None]}
    ended = await run(acme, *steps, outputs=outputs, inputs={"who": "me"})
    assert ended["result"] == {"sum": 3, "who": "me", "plain": [1, None]}
    assert ended["output_data"] == ended["result"]
    failed = await run(acme, *steps, outputs="{{ steps.a.outputs.nothing }}")
    assert (failed["status"], failed["error_type"]) == ("failed", "bad_expression")
    assert "outputs" in failed["error_message"]


async def test_files_of_a_run_lie_together(acme: TenantClient, provider: FakeProvider) -> None:
    name = await create_model(acme, provider, generate_name())
    writer = await create_model_agent(acme, name)
    provider.queue_text("# Report", to=name)
    ended = await run(
        acme,
        {"id": "ask", "agent": writer["id"], "prompt": "Report.", "output_file": "out/report.md"},
        {"id": "read", "tool": "filesystem_read", "depends_on": ["ask"], "inputs": {"path": "out/report.md"}},
    )
    assert ended["status"] == "completed", ended
    assert ended["results"]["read"]["content"] == "# Report"
    files = (await acme.http.get(f"/executions/{ended['id']}/files")).json()["items"]
    assert [one["path"] for one in files] == ["out/report.md"]


async def test_what_a_run_says_of_its_agents(acme: TenantClient, provider: FakeProvider) -> None:
    own, other = (
        await create_model(acme, provider, generate_name()),
        await create_model(acme, provider, generate_name()),
    )
    writer = await create_model_agent(acme, own, tools=["filesystem_write"])
    one = await flow(acme, {"id": "ask", "agent": writer["id"], "prompt": "Write."})
    provider.queue_text("Other.", to=other)
    ended = await acme.wait_for_end((await start(acme, one, model=other))["id"])
    assert (ended["result"], ended["model"]) == ({"content": "Other."}, other)
    for mode, status in (("safe", "waiting"), ("yolo", "completed")):
        provider.queue_tool_call("filesystem_write", {"path": "a", "content": "b"}, to=own)
        provider.queue_text("Done.", to=own)
        found = await wait_for_status(acme, (await start(acme, one, mode=mode))["id"], status)
        if status == "waiting":
            (call,) = found["waiting_for"]
            assert (call["tool"], call["step"]) == ("filesystem_write", "ask")
            await acme.http.post(f"/executions/{found['id']}/approve")
            found = await acme.wait_for_end(found["id"])
        assert (found["status"], found["result"]) == ("completed", {"content": "Done."})


async def test_money_is_bounded_for_all_of_it(acme: TenantClient, provider: FakeProvider) -> None:
    name = await create_model(acme, provider, generate_name(), price={"input": 1.0, "output": 1.0})
    writer = await create_model_agent(acme, name, max_tokens=100)
    steps = [
        {"id": "one", "agent": writer["id"], "prompt": "Hello"},
        {"id": "two", "agent": writer["id"], "prompt": "Hello", "depends_on": ["one"]},
    ]
    one = await flow(acme, *steps)
    provider.queue_text("Dear.", to=name, prompt=10, completion=90)
    limited = await acme.wait_for_end((await start(acme, one, cost_limit=0.0001))["id"])
    assert (limited["status"], limited["error_type"]) == ("failed", "budget_exceeded")
    assert set(limited["results"]) == {"one"}
    assert limited["total_cost"] == 0.0001

    body = {"scope": "workflow", "subject": one, "limit_usd": 0.0002, "period": "day"}
    budget = (await acme.http.post("/budgets", json=body)).json()
    assert budget["spent_usd"] == 0.0001, "what it has spent already"
    provider.queue_text("Dear.", to=name, prompt=10, completion=90)
    failed = await acme.wait_for_end((await start(acme, one))["id"])
    assert (failed["status"], failed["error_type"]) == ("failed", "budget_exceeded")
    assert "The workflow's budget" in failed["error_message"]
    assert (await acme.http.get(f"/budgets/{budget['id']}")).json()["spent_usd"] == 0.0002
    # Others are not bounded by it.
    provider.queue_text("Fine.", to=name)
    assert (await run(acme, steps[0]))["status"] == "completed"


async def test_a_run_keeps_the_plan_it_was_started_with(acme: TenantClient) -> None:
    code = await echo(acme)
    steps = [
        {"id": "ask", "tool": "filesystem_list", "requires_approval": True},
        {"id": "a", "agent": code, "inputs": {"n": 1}, "depends_on": ["ask"]},
    ]
    one = await flow(acme, *steps, outputs="{{ steps.a.outputs }}")
    waiting = await wait_for_status(acme, (await start(acme, one))["id"], "waiting")
    await acme.http.patch(f"/workflows/{one}", json={"steps": steps[:1], "outputs": None})
    await acme.http.delete(f"/workflows/{one}")
    await acme.http.post(f"/executions/{waiting['id']}/approve")
    ended = await acme.wait_for_end(waiting["id"])
    assert (ended["status"], ended["result"], ended["workflow_id"]) == ("completed", {"n": 1}, one)


async def test_run_again_from_the_failed_step_finds_the_files_of_those_before(acme: TenantClient) -> None:
    steps = [
        {"id": "write", "tool": "filesystem_write", "inputs": {"path": "note.txt", "content": "kept"}},
        {
            "id": "read",
            "tool": "filesystem_read",
            "inputs": {"path": "note.txt"},
            "depends_on": ["write"],
            "requires_approval": True,
        },
    ]
    made = await acme.http.post("/workflows", json={"name": "notes", "steps": steps})
    assert made.status_code == 201, made.text
    first = (await acme.http.post("/workflows/notes/execute", json={})).json()["id"]
    await wait_for_status(acme, first, "waiting")
    assert (await acme.http.post(f"/executions/{first}/reject", json={"reason": "Not yet."})).status_code == 200
    failed = await wait_for_status(acme, first, "failed")
    assert (failed["error_type"], failed["results"]) == ("rejected", {"write": {"path": "note.txt", "size": 4}})
    again = (await acme.http.post(f"/executions/{first}/retry", params={"from": "failed"})).json()
    await wait_for_status(acme, again["id"], "waiting")
    assert (await acme.http.post(f"/executions/{again['id']}/approve")).status_code == 200
    ended = await wait_for_status(acme, again["id"], "completed")
    assert ended["results"]["read"]["content"] == "kept"
    children = (await acme.http.get("/executions", params={"parent_id": again["id"]})).json()["items"]
    assert [one["step"] for one in children] == ["read"], "what had been written is not written again"
    file = await acme.http.get(f"/executions/{children[0]['id']}/files/note.txt")
    assert file.text == "kept", "a step shows the files of the run that it belongs to"
    log = (await acme.http.get(f"/execution-logs/{again['id']}")).json()["items"]
    assert {one["metadata"]["execution_id"] for one in log} == {again["id"]}
    told = [one for one in log if one["metadata"]["type"] == "step" and one["metadata"]["status"] == "completed"]
    assert told[-1]["metadata"]["child_id"] == children[0]["id"]
    assert told[-1]["message"] == "The step read is completed"
