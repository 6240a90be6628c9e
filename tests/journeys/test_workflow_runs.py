"""Test runs of workflows as seeds/paracle.md shows them, and the effect of every field of a step."""

import asyncio
from itertools import pairwise
from typing import Any

from tests.support.clients import TenantClient
from tests.support.fake_provider import FakeProvider
from tests.support.model_agents import create_model, create_model_agent, generate_name, stream_events, wait_for_status

# Returns its payload, or fails with the message in `fail`.
ECHO_SOURCE = """
import time

def handle(payload):
    if payload.get("fail"):
        raise ValueError(payload["fail"])
    time.sleep(payload.get("sleep", 0))
    return payload
"""
WAIT_HEADERS = {"Prefer": "wait=60"}


async def deploy_echo_agent(acme: TenantClient) -> str:
    return await acme.deploy_agent(ECHO_SOURCE)


async def create_workflow(acme: TenantClient, *steps: dict[str, Any], **more: Any) -> str:
    answer = await acme.http.post("/workflows", json={"name": generate_name("flow"), "steps": list(steps), **more})
    assert answer.status_code == 201, answer.text
    return str(answer.json()["id"])


async def start_workflow(acme: TenantClient, workflow: str, **body: Any) -> dict[str, Any]:
    answer = await acme.http.post(f"/workflows/{workflow}/execute", json=body)
    assert answer.status_code == 201, answer.text
    return dict(answer.json())


async def run_workflow(acme: TenantClient, *steps: dict[str, Any], outputs: Any = None, **body: Any) -> dict[str, Any]:
    """Create a workflow of these steps and run it to its end."""
    started = await start_workflow(acme, await create_workflow(acme, *steps, outputs=outputs), **body)
    return await acme.wait_for_end(started["id"])


async def list_children(acme: TenantClient, execution_id: str) -> dict[str, dict[str, Any]]:
    items = (await acme.http.get("/executions", params={"parent_id": execution_id, "limit": 1000})).json()["items"]
    return {child["step"]: child for child in items}


async def list_step_events(acme: TenantClient, execution_id: str) -> list[tuple[Any, ...]]:
    """Return step, item and status of every step event of the log."""
    return [
        (event["step"], event.get("item"), event["status"])
        for event in await stream_events(acme, execution_id)
        if event["type"] == "step"
    ]


async def test_workflow_as_paracle_shows_it(acme: TenantClient, provider: FakeProvider) -> None:
    name = await create_model(acme, provider, generate_name(), price={"input": 1000.0, "output": 1000.0})
    reviewer = await create_model_agent(acme, name)
    code = await deploy_echo_agent(acme)
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
    created = await acme.http.post("/workflows", json={"name": "code-review", "steps": steps})
    assert created.status_code == 201, created.text
    listed = (await acme.http.get("/workflows")).json()["items"]
    assert [{field: workflow[field] for field in ("id", "name", "status", "steps")} for workflow in listed] == [
        {"id": created.json()["id"], "name": "code-review", "status": "active", "steps": 4}
    ]
    provider.queue_text("Two bugs.", to=name)
    body = {"inputs": {"file": "api.py", "priority": "high"}}
    started = await acme.http.post(f"/workflows/{created.json()['id']}/execute", json=body)
    assert started.status_code == 201
    first = started.json()
    assert (first["steps_completed"], first["steps_total"], first["kind"]) == (0, 4, "workflow")
    assert first["status"] in ("pending", "running")
    await acme.wait_for_end(first["execution_id"])
    ended = (await acme.http.get(f"/workflows/executions/{first['execution_id']}")).json()
    assert (ended["id"], ended["workflow_id"], ended["status"]) == (first["id"], created.json()["id"], "completed")
    assert (ended["steps_completed"], ended["steps_total"]) == (4, 4)
    assert ended["started_at"] < ended["completed_at"]
    assert ended["results"] == {
        "analyze": {"file": "api.py", "priority": "high"},
        "review": {"content": "Two bugs."},
        "test": {"file": "api.py"},
        "report": {"was": "Two bugs."},
    }
    assert ended["result"] == {"was": "Two bugs."}, "the result of the last step"
    assert provider.requests[-1].get_last_text() == "Review api.py."
    (cost,) = (
        await acme.http.get("/costs", params={"execution_id": (await list_children(acme, first["id"]))["review"]["id"]})
    ).json()["items"]
    assert ended["total_cost"] == cost["cost_usd"] > 0
    assert (await acme.http.get("/executions", params={"workflow_id": created.json()["id"]})).json()["total"] == 1
    assert (await acme.http.get("/executions")).json()["total"] == 1, "children are not listed"


async def test_workflow_starts_through_executions_and_its_own_route(acme: TenantClient) -> None:
    workflow_id = await create_workflow(acme, {"id": "a", "tool": "filesystem_list"})
    name = (await acme.http.get(f"/workflows/{workflow_id}")).json()["name"]
    answer = await acme.http.post(
        "/executions", json={"workflow_id": name, "run_name": "Nightly"}, headers=WAIT_HEADERS
    )
    assert (answer.status_code, answer.json()["status"], answer.json()["run_name"]) == (201, "completed", "Nightly")
    assert answer.json()["workflow_id"] == workflow_id
    waited = await acme.http.post(f"/workflows/{name}/execute", json={"task": "go"}, headers=WAIT_HEADERS)
    assert (waited.json()["status"], waited.json()["input_data"]) == ("completed", {"task": "go"})
    listed = await acme.http.get(f"/executions?workflow_id={workflow_id}&kind=workflow")
    assert listed.json()["total"] == 2


async def test_independent_steps_run_in_parallel(acme: TenantClient) -> None:
    code = await deploy_echo_agent(acme)
    slow = [{"id": name, "agent": code, "inputs": {"sleep": 1.5}} for name in ("a", "b", "c")]
    ended = await run_workflow(acme, *slow, {"id": "d", "agent": code, "depends_on": ["a", "b", "c"]})
    assert ended["status"] == "completed"
    by_step = await list_children(acme, ended["id"])
    starts = [by_step[name]["started_at"] for name in "abc"]
    ends = [by_step[name]["completed_at"] for name in "abc"]
    assert max(starts) < min(ends)
    assert by_step["d"]["created_at"] >= max(ends)


async def test_step_with_a_false_condition_is_skipped(acme: TenantClient) -> None:
    code = await deploy_echo_agent(acme)
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
    ended = await run_workflow(acme, *steps, inputs={"n": 7})
    assert (ended["status"], ended["steps_completed"]) == ("completed", 4)
    assert set(ended["results"]) == {"first", "large", "after"}
    assert ended["results"]["after"] == {
        "large": "completed",
        "small": {"outputs": None, "status": "skipped", "error": None},
    }
    assert ("small", None, "skipped") in await list_step_events(acme, ended["id"])
    failed = await run_workflow(acme, {"id": "a", "agent": code, "when": "inputs.n"}, inputs={"n": 7})
    assert (failed["status"], failed["error_type"]) == ("failed", "bad_expression")
    assert "when" in failed["error_message"]


async def test_mapped_step_runs_for_each_item(acme: TenantClient) -> None:
    code = await deploy_echo_agent(acme)
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
    ended = await run_workflow(acme, *steps, inputs={"files": files})
    assert ended["status"] == "completed", ended
    assert ended["results"]["each"] == [
        {"file": f"{letter}.py", "number": number, "words": f"File {number + 1}: {letter}.py"}
        for number, letter in enumerate("abc")
    ]
    assert ended["results"]["literal"] == [{"is": "x"}, {"is": {"y": "a.py"}}]
    assert ended["results"]["none"] == []
    assert ended["results"]["count"] == {"n": 3}
    assert {"each[0]", "each[1]", "each[2]", "list", "count"} <= set(await list_children(acme, ended["id"]))
    assert ("each", 2, "completed") in await list_step_events(acme, ended["id"])
    refused = await acme.http.post("/executions", json={"workflow_id": ended["workflow_id"], "inputs": {"files": 3}})
    assert refused.status_code == 201, "the list is known only after the previous step"
    failed = await acme.wait_for_end(refused.json()["id"])
    assert (failed["status"], failed["error_type"]) == ("failed", "bad_expression")


async def test_max_parallel_limits_concurrent_items(acme: TenantClient) -> None:
    code = await deploy_echo_agent(acme)
    ended = await run_workflow(
        acme,
        {"id": "each", "agent": code, "map": "inputs.n", "max_parallel": 1, "inputs": {"sleep": 0.1}},
        inputs={"n": [1, 2, 3]},
    )
    assert ended["status"] == "completed"
    children = await list_children(acme, ended["id"])
    spans = sorted((child["created_at"], child["completed_at"]) for child in children.values())
    assert all(before[1] <= after[0] for before, after in pairwise(spans))
    assert len(spans) == 3


async def test_invalid_map_list_is_refused_at_the_start(acme: TenantClient) -> None:
    workflow_id = await create_workflow(acme, {"id": "each", "tool": "filesystem_list", "map": "inputs.n"})
    for inputs in ({"n": [0] * 200_000}, {"n": 5}, {}):
        answer = await acme.http.post(f"/workflows/{workflow_id}/execute", json={"inputs": inputs})
        assert answer.status_code == 422, answer.text
        assert [error["field"] for error in answer.json()["errors"]] == ["steps[0].map"]


async def test_failed_step_is_retried(acme: TenantClient, provider: FakeProvider) -> None:
    name = await create_model(acme, provider, generate_name())
    writer = await create_model_agent(acme, name)
    provider.queue_failure(400, to=name)
    provider.queue_failure(400, to=name)
    provider.queue_text("At last.", to=name)
    ask_step = {"id": "ask", "agent": writer["id"], "prompt": "Try."}
    ended = await run_workflow(acme, {**ask_step, "retry": {"attempts": 2, "delay": 0.1, "factor": 1}})
    assert (ended["status"], ended["result"]) == ("completed", {"content": "At last."})
    children = (await acme.http.get("/executions", params={"parent_id": ended["id"]})).json()["items"]
    assert [(child["step"], child["status"]) for child in children] == [
        ("ask", "completed"),
        ("ask", "failed"),
        ("ask", "failed"),
    ]
    provider.queue_failure(400, to=name)
    provider.queue_failure(400, to=name)
    failed = await run_workflow(
        acme, {**ask_step, "retry": 1}, {"id": "next", "tool": "filesystem_list", "depends_on": ["ask"]}
    )
    assert (failed["status"], failed["steps_completed"]) == ("failed", 0)
    assert "'ask' failed" in failed["error_message"]
    assert len((await acme.http.get("/executions", params={"parent_id": failed["id"]})).json()["items"]) == 2
    provider.queue_text("Well.", to=name)
    retried = await acme.http.post(f"/executions/{failed['id']}/retry?from=failed", headers=WAIT_HEADERS)
    assert (retried.json()["status"], retried.json()["retry_of"]) == ("completed", failed["id"])


async def test_continue_on_failure_tolerates_a_failed_step(acme: TenantClient) -> None:
    code = await deploy_echo_agent(acme)
    ended = await run_workflow(
        acme,
        {"id": "a", "agent": code, "inputs": {"fail": "no luck"}, "continue_on_failure": True},
        {"id": "b", "agent": code, "depends_on": ["a"], "inputs": {"was": "{{ steps.a.status }}: {{ steps.a.error }}"}},
    )
    assert ended["status"] == "completed"
    assert ended["results"] == {"b": {"was": "failed: no luck"}}
    failed = await run_workflow(
        acme,
        {"id": "a", "agent": code, "inputs": {"fail": "no luck"}},
        {"id": "b", "agent": code, "depends_on": ["a"]},
        {"id": "c", "agent": code, "inputs": {"sleep": 1}},
    )
    assert (failed["status"], failed["error_type"]) == ("failed", "ValueError")
    assert set(await list_children(acme, failed["id"])) == {"a", "c"}
    assert ("b", None, "cancelled") in await list_step_events(acme, failed["id"])


async def test_step_and_run_timeouts_are_enforced(acme: TenantClient) -> None:
    code = await deploy_echo_agent(acme)
    failed = await run_workflow(acme, {"id": "a", "agent": code, "inputs": {"sleep": 30}, "timeout": 1})
    assert (failed["status"], failed["error_type"]) == ("failed", "timeout")
    whole = await run_workflow(acme, {"id": "a", "agent": code, "inputs": {"sleep": 25}}, timeout=1)
    assert (whole["status"], whole["error_type"]) == ("failed", "timeout")
    assert (await list_children(acme, whole["id"]))["a"]["status"] == "cancelled"


async def test_step_waits_for_approval_or_rejection(acme: TenantClient) -> None:
    code = await deploy_echo_agent(acme)
    ship_step = {"id": "ship", "name": "Ship it", "agent": code, "depends_on": ["a"], "requires_approval": True}
    workflow_id = await create_workflow(
        acme, {"id": "a", "agent": code}, ship_step, {"id": "b", "agent": code, "depends_on": ["ship"]}
    )
    first = await wait_for_status(acme, (await start_workflow(acme, workflow_id))["id"], "waiting")
    assert first["steps_completed"] == 1
    assert [(call["call_id"], call["name"]) for call in first["waiting_for"]] == [("ship", "Ship it")]
    approved = await acme.http.post(f"/executions/{first['id']}/approve", json={"call_id": "ship", "reason": "Fine."})
    assert approved.status_code == 200, approved.text
    ended = await acme.wait_for_end(first["id"])
    assert (ended["status"], ended["steps_completed"], ended["waiting_for"]) == ("completed", 3, None)
    approvals = [event for event in await stream_events(acme, first["id"]) if event["type"] == "approval"]
    assert [approval["status"] for approval in approvals] == ["waiting", "approved"]
    assert (approvals[1]["by"], approvals[1]["reason"]) == (acme.account["id"], "Fine.")
    second = await wait_for_status(acme, (await start_workflow(acme, workflow_id))["id"], "waiting")
    await acme.http.post(f"/executions/{second['id']}/reject", json={"reason": "Not on Fridays."})
    rejected = await acme.wait_for_end(second["id"])
    assert (rejected["status"], rejected["error_type"]) == ("failed", "rejected")
    assert "Not on Fridays." in rejected["error_message"]
    assert set(await list_children(acme, second["id"])) == {"a"}
    late = await acme.http.post(f"/executions/{second['id']}/approve")
    assert late.status_code == 409
    # A tolerated rejection.
    third = await create_workflow(
        acme, {**ship_step, "depends_on": [], "continue_on_failure": True}, {"id": "b", "agent": code}
    )
    waiting = await wait_for_status(acme, (await start_workflow(acme, third))["id"], "waiting")
    await acme.http.post(f"/executions/{waiting['id']}/reject")
    assert (await acme.wait_for_end(waiting["id"]))["status"] == "completed"


async def test_nested_workflows_run_with_their_inputs(acme: TenantClient, provider: FakeProvider) -> None:
    name = await create_model(acme, provider, generate_name(), price={"input": 1000.0, "output": 1000.0})
    writer = await create_model_agent(acme, name)
    code = await deploy_echo_agent(acme)
    inner = await create_workflow(
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
    outer = await run_workflow(
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
    prompts = [request.get_last_text() for request in provider.requests if request.model == name]
    assert prompts == ["Kindly: goats", "Loudly: A!"]
    children_by_step = await list_children(acme, outer["id"])
    assert {child["kind"] for child in children_by_step.values()} == {"workflow"}
    assert all(child["root_id"] == outer["id"] for child in children_by_step.values())
    leaf = (await list_children(acme, children_by_step["one"]["id"]))["write"]
    assert (leaf["parent_id"], leaf["root_id"]) == (children_by_step["one"]["id"], outer["id"])
    costs = (await acme.http.get("/costs")).json()
    assert outer["total_cost"] == costs["total_cost"] > 0
    # An invalid input is refused when the workflow that declares it is started.
    refused = await acme.http.post(f"/workflows/{inner}/execute", json={"inputs": {"topic": 1}})
    assert refused.json()["errors"][0]["field"] == "inputs.topic"


async def test_cancelling_a_workflow_cancels_all_children(acme: TenantClient, provider: FakeProvider) -> None:
    name = await create_model(acme, provider, generate_name())
    writer = await create_model_agent(acme, name)
    code = await deploy_echo_agent(acme)
    provider.queue_hang(to=name)
    inner = await create_workflow(
        acme,
        {"id": "ask", "agent": writer["id"], "prompt": "Hello?"},
        {"id": "then", "agent": code, "depends_on": ["ask"]},
    )
    started = await start_workflow(
        acme,
        await create_workflow(
            acme,
            {"id": "in", "workflow": inner},
            {"id": "slow", "agent": code, "inputs": {"sleep": 25}},
            {"id": "later", "agent": code, "depends_on": ["in"]},
        ),
    )
    while not [request for request in provider.requests if request.model == name]:
        await asyncio.sleep(0.05)
    cancelled = await acme.http.post(f"/executions/{started['id']}/cancel")
    assert (cancelled.status_code, cancelled.json()["status"]) == (200, "cancelled")
    children_by_step = await list_children(acme, started["id"])
    assert set(children_by_step) == {"in", "slow"}
    for child in [*children_by_step.values(), *(await list_children(acme, children_by_step["in"]["id"])).values()]:
        ended = await acme.wait_for_end(child["id"])
        assert ended["status"] == "cancelled", ended
    await provider.wait_for_hang_up()
    assert set(await list_children(acme, children_by_step["in"]["id"])) == {"ask"}


async def test_result_is_built_from_outputs_or_last_steps(acme: TenantClient) -> None:
    code = await deploy_echo_agent(acme)
    steps = [{"id": "a", "agent": code, "inputs": {"n": 1}}, {"id": "b", "agent": code, "inputs": {"n": 2}}]
    assert (await run_workflow(acme, *steps))["result"] == {"a": {"n": 1}, "b": {"n": 2}}, (
        "the results of the last steps"
    )
    outputs = {"sum": "{{ steps.a.outputs.n + steps.b.outputs.n }}", "who": "{{ inputs.who }}", "plain": [1, None]}
    ended = await run_workflow(acme, *steps, outputs=outputs, inputs={"who": "me"})
    assert ended["result"] == {"sum": 3, "who": "me", "plain": [1, None]}
    assert ended["output_data"] == ended["result"]
    failed = await run_workflow(acme, *steps, outputs="{{ steps.a.outputs.nothing }}")
    assert (failed["status"], failed["error_type"]) == ("failed", "bad_expression")
    assert "outputs" in failed["error_message"]


async def test_steps_of_a_run_share_files(acme: TenantClient, provider: FakeProvider) -> None:
    name = await create_model(acme, provider, generate_name())
    writer = await create_model_agent(acme, name)
    provider.queue_text("# Report", to=name)
    ended = await run_workflow(
        acme,
        {"id": "ask", "agent": writer["id"], "prompt": "Report.", "output_file": "out/report.md"},
        {"id": "read", "tool": "filesystem_read", "depends_on": ["ask"], "inputs": {"path": "out/report.md"}},
    )
    assert ended["status"] == "completed", ended
    assert ended["results"]["read"]["content"] == "# Report"
    files = (await acme.http.get(f"/executions/{ended['id']}/files")).json()["items"]
    assert [file["path"] for file in files] == ["out/report.md"]


async def test_model_and_mode_of_a_run_apply_to_its_agents(acme: TenantClient, provider: FakeProvider) -> None:
    own_model, override_model = (
        await create_model(acme, provider, generate_name()),
        await create_model(acme, provider, generate_name()),
    )
    writer = await create_model_agent(acme, own_model, tools=["filesystem_write"])
    workflow_id = await create_workflow(acme, {"id": "ask", "agent": writer["id"], "prompt": "Write."})
    provider.queue_text("Other.", to=override_model)
    ended = await acme.wait_for_end((await start_workflow(acme, workflow_id, model=override_model))["id"])
    assert (ended["result"], ended["model"]) == ({"content": "Other."}, override_model)
    for mode, status in (("safe", "waiting"), ("yolo", "completed")):
        provider.queue_tool_call("filesystem_write", {"path": "a", "content": "b"}, to=own_model)
        provider.queue_text("Done.", to=own_model)
        execution = await wait_for_status(acme, (await start_workflow(acme, workflow_id, mode=mode))["id"], status)
        if status == "waiting":
            (call,) = execution["waiting_for"]
            assert (call["tool"], call["step"]) == ("filesystem_write", "ask")
            await acme.http.post(f"/executions/{execution['id']}/approve")
            execution = await acme.wait_for_end(execution["id"])
        assert (execution["status"], execution["result"]) == ("completed", {"content": "Done."})


async def test_cost_limit_and_budget_cover_the_whole_workflow(acme: TenantClient, provider: FakeProvider) -> None:
    name = await create_model(acme, provider, generate_name(), price={"input": 1.0, "output": 1.0})
    writer = await create_model_agent(acme, name, max_tokens=100)
    steps = [
        {"id": "one", "agent": writer["id"], "prompt": "Hello"},
        {"id": "two", "agent": writer["id"], "prompt": "Hello", "depends_on": ["one"]},
    ]
    workflow_id = await create_workflow(acme, *steps)
    provider.queue_text("Dear.", to=name, prompt=10, completion=90)
    limited = await acme.wait_for_end((await start_workflow(acme, workflow_id, cost_limit=0.0001))["id"])
    assert (limited["status"], limited["error_type"]) == ("failed", "budget_exceeded")
    assert set(limited["results"]) == {"one"}
    assert limited["total_cost"] == 0.0001

    body = {"scope": "workflow", "subject": workflow_id, "limit_usd": 0.0002, "period": "day"}
    budget = (await acme.http.post("/budgets", json=body)).json()
    assert budget["spent_usd"] == 0.0001, "earlier costs count"
    provider.queue_text("Dear.", to=name, prompt=10, completion=90)
    failed = await acme.wait_for_end((await start_workflow(acme, workflow_id))["id"])
    assert (failed["status"], failed["error_type"]) == ("failed", "budget_exceeded")
    assert "The workflow's budget" in failed["error_message"]
    assert (await acme.http.get(f"/budgets/{budget['id']}")).json()["spent_usd"] == 0.0002
    # Other workflows are not limited by it.
    provider.queue_text("Fine.", to=name)
    assert (await run_workflow(acme, steps[0]))["status"] == "completed"


async def test_run_keeps_the_plan_of_its_start(acme: TenantClient) -> None:
    code = await deploy_echo_agent(acme)
    steps = [
        {"id": "ask", "tool": "filesystem_list", "requires_approval": True},
        {"id": "a", "agent": code, "inputs": {"n": 1}, "depends_on": ["ask"]},
    ]
    workflow_id = await create_workflow(acme, *steps, outputs="{{ steps.a.outputs }}")
    waiting = await wait_for_status(acme, (await start_workflow(acme, workflow_id))["id"], "waiting")
    await acme.http.patch(f"/workflows/{workflow_id}", json={"steps": steps[:1], "outputs": None})
    await acme.http.delete(f"/workflows/{workflow_id}")
    await acme.http.post(f"/executions/{waiting['id']}/approve")
    ended = await acme.wait_for_end(waiting["id"])
    assert (ended["status"], ended["result"], ended["workflow_id"]) == ("completed", {"n": 1}, workflow_id)


async def test_retry_from_the_failed_step_finds_earlier_files(acme: TenantClient) -> None:
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
    created = await acme.http.post("/workflows", json={"name": "notes", "steps": steps})
    assert created.status_code == 201, created.text
    first = (await acme.http.post("/workflows/notes/execute", json={})).json()["id"]
    await wait_for_status(acme, first, "waiting")
    assert (await acme.http.post(f"/executions/{first}/reject", json={"reason": "Not yet."})).status_code == 200
    failed = await wait_for_status(acme, first, "failed")
    assert (failed["error_type"], failed["results"]) == ("rejected", {"write": {"path": "note.txt", "size": 4}})
    retried = (await acme.http.post(f"/executions/{first}/retry", params={"from": "failed"})).json()
    await wait_for_status(acme, retried["id"], "waiting")
    assert (await acme.http.post(f"/executions/{retried['id']}/approve")).status_code == 200
    ended = await wait_for_status(acme, retried["id"], "completed")
    assert ended["results"]["read"]["content"] == "kept"
    children = (await acme.http.get("/executions", params={"parent_id": retried["id"]})).json()["items"]
    assert [child["step"] for child in children] == ["read"], "the completed step is not repeated"
    file = await acme.http.get(f"/executions/{children[0]['id']}/files/note.txt")
    assert file.text == "kept", "a step shows the files of its run"
    log = (await acme.http.get(f"/execution-logs/{retried['id']}")).json()["items"]
    assert {entry["metadata"]["execution_id"] for entry in log} == {retried["id"]}
    completed_events = [
        entry for entry in log if entry["metadata"]["type"] == "step" and entry["metadata"]["status"] == "completed"
    ]
    assert completed_events[-1]["metadata"]["child_id"] == children[0]["id"]
    assert completed_events[-1]["message"] == "The step read is completed"
