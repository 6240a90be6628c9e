"""Test execution history and execution traces (seeds/kasal.md): the spans of a run and their costs."""

from collections.abc import Iterator
from typing import Any

import pytest

from domain import traces
from tests.support.clients import DEFAULT_MANIFEST, TenantClient
from tests.support.fake_provider import FakeProvider, build_call
from tests.support.model_agents import (
    create_model,
    create_model_agent,
    generate_name,
    run_execution,
    start_execution,
    wait_for_status,
)

MODEL_PRICE = {"input": 1000.0, "output": 2000.0}


async def read_trace(acme: TenantClient, execution_id: str, query: str = "") -> dict[str, Any]:
    answer = await acme.http.get(f"/execution-trace/{execution_id}{query}")
    assert answer.status_code == 200, answer.text
    return dict(answer.json())


def iterate_spans(parent: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Yield all spans of a trace, or below a span."""
    for span in parent["spans"] if "spans" in parent else parent["children"]:
        yield span
        yield from iterate_spans(span)


def outline_span(span: dict[str, Any]) -> Any:
    return f"{span['kind']} {span['name']}", [outline_span(child) for child in span["children"]]


def list_input_messages(span: dict[str, Any]) -> list[Any]:
    """Return the messages of a span: role, text, tool calls and ids of answered calls."""
    return [
        (
            message["role"],
            "".join(part.get("content") or part.get("response") or "" for part in message["parts"]),
            [(part["id"], part["name"]) for part in message["parts"] if part["type"] == "tool_call"],
            [part["id"] for part in message["parts"] if part["type"] == "tool_call_response"],
        )
        for message in span["attributes"]["gen_ai.input.messages"]
    ]


def list_sent_messages(body: dict[str, Any]) -> list[Any]:
    """Return the same for a request that reached the provider."""
    return [
        (
            message["role"],
            message.get("content") or "",
            [(called["id"], called["function"]["name"]) for called in message.get("tool_calls", ())],
            [message["tool_call_id"]] if "tool_call_id" in message else [],
        )
        for message in body["messages"]
    ]


def check_ended_trace(trace: dict[str, Any]) -> None:
    """Check the invariants of every trace that has ended."""
    all_spans = list(iterate_spans(trace))
    assert len({span["id"] for span in all_spans}) == len(all_spans)
    for span in all_spans:
        assert span["ended_at"] >= span["started_at"], span
        if span["children"]:
            assert span["cost_usd"] == pytest.approx(
                sum(child_span["cost_usd"] for child_span in span["children"]), abs=1e-9
            )
            assert span["total_tokens"] == sum(child_span["total_tokens"] for child_span in span["children"])
        for child in span["children"]:
            assert child["parent_id"] == span["id"]


async def list_costs(acme: TenantClient, execution_id: str) -> list[dict[str, Any]]:
    return list((await acme.http.get(f"/costs?execution_id={execution_id}")).json()["items"])


async def test_history_lists_executions(acme: TenantClient) -> None:
    agent_id = await acme.deploy_agent("def handle(p): return p\n")
    execution_ids = [(await acme.run_agent(agent_id, {"n": n}))["id"] for n in range(3)]
    listed = (await acme.http.get("/execution-history?limit=2&offset=0")).json()
    assert [item["execution_id"] for item in listed["items"]] == execution_ids[:0:-1]
    assert (listed["total"], listed["has_more"]) == (3, True)
    assert (await acme.http.get(f"/execution-history/{execution_ids[0]}")).json()["result"] == {"n": 0}


async def test_trace_of_an_agent_with_tools_and_delegation(acme: TenantClient, provider: FakeProvider) -> None:
    boss = await create_model(acme, provider, generate_name("boss"), price=MODEL_PRICE)
    helper = await create_model(acme, provider, generate_name("helper"), price=MODEL_PRICE)
    other = await create_model_agent(acme, helper, role="Counter", tools=["filesystem_list"], temperature=0.1)
    created = await create_model_agent(
        acme, boss, allow_delegation=True, tools=["filesystem_write"], temperature=0.6, max_tokens=99
    )
    wrote = {"path": "a.txt", "content": "secret-words"}
    provider.queue_text(
        "", to=boss, calls=[build_call("filesystem_write", wrote, id="w1"), build_call("no_such_tool", {}, id="n1")]
    )
    provider.queue_text(
        "", to=boss, calls=[build_call("delegate", {"agent": other["name"], "task": "Count the secret-files"})]
    )
    provider.queue_text("", to=helper, calls=[build_call("filesystem_list", {})])
    provider.queue_text("One secret-file", to=helper)
    provider.queue_text("It said: one secret-file", to=boss)
    ended = await run_execution(acme, created["id"], task="Have the secret-files counted", mode="yolo")
    assert ended["status"] == "completed", ended

    trace = await read_trace(acme, ended["id"])
    check_ended_trace(trace)
    (root,) = trace["spans"]
    assert (trace["execution_id"], trace["status"], trace["truncated"]) == (ended["id"], "completed", False)
    assert outline_span(root) == (
        f"agent {created['name']}",
        [
            (f"model_call {boss}", []),
            ("tool filesystem_write", []),
            ("tool no_such_tool", []),
            (f"model_call {boss}", []),
            (
                "tool delegate",
                [
                    (
                        f"agent {other['name']}",
                        [(f"model_call {helper}", []), ("tool filesystem_list", []), (f"model_call {helper}", [])],
                    )
                ],
            ),
            (f"model_call {boss}", []),
        ],
    )
    billed = await list_costs(acme, ended["id"])
    assert root["cost_usd"] == pytest.approx(sum(cost["cost_usd"] for cost in billed), abs=1e-9)
    assert root["cost_usd"] == pytest.approx(ended["total_cost"], abs=1e-9)
    assert root["total_tokens"] == sum(cost["total_tokens"] for cost in billed)
    assert {span["id"] for span in iterate_spans(trace) if span["kind"] == "model_call"} == {
        cost["id"] for cost in billed
    }

    first_call, file_tool, unknown_tool, *_ = root["children"]
    attributes = root["attributes"]
    assert attributes["gen_ai.operation.name"] == "invoke_agent"
    assert (attributes["gen_ai.agent.id"], attributes["gen_ai.agent.name"]) == (created["id"], created["name"])
    assert (attributes["gen_ai.request.temperature"], attributes["gen_ai.request.max_tokens"]) == (0.6, 99)
    assert (attributes["paddock.execution.id"], attributes["paddock.attempt"]) == (ended["id"], ended["attempt"])
    assert attributes["paddock.mode"] == "yolo"
    attributes = first_call["attributes"]
    assert (attributes["gen_ai.operation.name"], attributes["gen_ai.provider.name"]) == ("chat", "openai_compatible")
    assert (attributes["gen_ai.request.model"], attributes["gen_ai.response.finish_reasons"]) == (boss, ["tool_calls"])
    assert (
        first_call["total_tokens"]
        == attributes["gen_ai.usage.input_tokens"] + attributes["gen_ai.usage.output_tokens"]
        > 0
    )
    assert (file_tool["status"], unknown_tool["status"]) == ("ok", "error")
    attributes = file_tool["attributes"]
    assert (attributes["gen_ai.tool.name"], attributes["gen_ai.tool.call.id"]) == ("filesystem_write", "w1")
    assert unknown_tool["attributes"]["error.type"] == "tool_failed"
    nested = next(span for span in iterate_spans(trace) if span["name"] == other["name"])
    assert nested["attributes"]["gen_ai.agent.id"] == other["id"]
    assert nested["children"][0]["attributes"]["gen_ai.request.temperature"] == 0.1
    assert nested["children"][-1]["attributes"]["gen_ai.response.finish_reasons"] == ["stop"]

    # Content is omitted unless it is requested.
    assert "secret-" not in str(trace)
    full_trace = await read_trace(acme, ended["id"], "?content=true")
    (root,) = full_trace["spans"]
    attributes = root["attributes"]
    assert "Have the secret-files counted" in attributes["gen_ai.input.messages"][0]["parts"][0]["content"]
    answer = {"role": "assistant", "parts": [{"type": "text", "content": "It said: one secret-file"}]}
    assert attributes["gen_ai.output.messages"] == [answer]
    assert root["children"][-1]["attributes"]["gen_ai.output.messages"] == [answer]
    assert "secret-words" in root["children"][1]["attributes"]["gen_ai.tool.call.arguments"]
    nested = next(span for span in iterate_spans(full_trace) if span["name"] == other["name"])
    assert nested["attributes"]["gen_ai.input.messages"][0]["parts"][0]["content"] == "Count the secret-files"
    assert (await acme.http.get(f"/execution-trace/{ended['id']}?contents=true")).status_code == 422
    # Each model call shows the messages that were sent to the provider.
    calls = sorted(
        (span for span in iterate_spans(full_trace) if span["kind"] == "model_call"),
        key=lambda call: call["started_at"],
    )
    assert [list_input_messages(span) for span in calls] == [
        list_sent_messages(request.body) for request in provider.requests if request.body["model"] in (boss, helper)
    ]
    assert len(calls) == 5


async def test_trace_of_failed_calls_and_nul_characters(acme: TenantClient, provider: FakeProvider) -> None:
    name = await create_model(acme, provider, generate_name())
    created = await create_model_agent(acme, name)
    provider.queue_failure(503, to=name)
    provider.queue_text("a\0b", to=name)
    ended = await run_execution(acme, created["id"], task="x\0y")
    assert ended["status"] == "completed", ended
    (root,) = (await read_trace(acme, ended["id"], "?content=true"))["spans"]
    failed, answered = root["children"]
    assert (failed["status"], failed["attributes"]["error.type"]) == ("error", "unavailable")
    assert answered["status"] == "ok"
    assert {child["attributes"]["paddock.step.path"] for child in root["children"]} == {"1"}
    assert "x\\u0000y" in root["attributes"]["gen_ai.input.messages"][0]["parts"][0]["content"]
    assert list_input_messages(failed) == list_input_messages(answered)
    assert list_input_messages(failed)[-1][1] == "x\0y"


async def test_failed_final_call_shows_its_input_messages(acme: TenantClient, provider: FakeProvider) -> None:
    name = await create_model(acme, provider, generate_name())
    created = await create_model_agent(acme, name, instructions="Be brief.")
    provider.queue_text("", to=name, calls=[build_call("filesystem_list", {}, id="l1")])
    for _ in range(4):
        provider.queue_failure(400, to=name)
    ended = await run_execution(acme, created["id"], task="Look around")
    assert ended["status"] == "failed", ended
    calls = [
        span
        for span in iterate_spans(await read_trace(acme, ended["id"], "?content=true"))
        if span["kind"] == "model_call"
    ]
    assert [message[0] for message in list_input_messages(calls[-1])] == ["system", "user", "assistant", "tool"]
    assert list_input_messages(calls[-1]) == list_sent_messages(provider.requests[-1].body)


async def test_trace_of_uploaded_code_with_model_calls(acme: TenantClient, provider: FakeProvider) -> None:
    name = await create_model(acme, provider, "echo", price=MODEL_PRICE)
    source = """
import json, os, urllib.request

def ask(text):
    body = json.dumps({"model": "echo", "messages": [{"role": "user", "content": text}]}).encode()
    url = os.environ["OPENAI_BASE_URL"] + "/chat/completions"
    request = urllib.request.Request(url, body, {"Content-Type": "application/json"})
    return json.load(urllib.request.urlopen(request))["choices"][0]["message"]["content"]

def handle(payload):
    return [ask("one two"), ask("three")]
"""
    agent_id = await acme.deploy_agent(source, manifest=f"{DEFAULT_MANIFEST}models: [{name}]\n")
    ended = await acme.run_agent(agent_id, {"a": 1})
    assert ended["result"] == ["one two", "three"], ended
    trace = await read_trace(acme, ended["id"])
    check_ended_trace(trace)
    (root,) = trace["spans"]
    # Two calls, or more if a worker was lost: every billed call.
    billed = await list_costs(acme, ended["id"])
    assert [span["kind"] for span in iterate_spans(trace)] == ["agent", *["model_call"] * len(billed)]
    assert {child["id"] for child in root["children"]} == {cost["id"] for cost in billed}
    assert root["attributes"]["gen_ai.agent.version"] == ended["agent_version_id"]
    assert root["cost_usd"] == pytest.approx(ended["total_cost"], abs=1e-9)
    assert root["cost_usd"] > 0
    assert [child["attributes"]["gen_ai.usage.output_tokens"] for child in root["children"]][-2:] == [2, 1]


async def test_trace_of_a_single_tool_and_of_failed_code(acme: TenantClient) -> None:
    tool_answer = await acme.http.post("/tools/filesystem_write/execute", json={"args": {"path": "a", "content": "b"}})
    trace = await read_trace(acme, tool_answer.json()["execution_id"], "?content=true")
    (root,) = trace["spans"]
    assert (root["kind"], root["name"], root["status"], root["children"]) == ("tool", "filesystem_write", "ok", [])
    assert root["attributes"]["gen_ai.operation.name"] == "execute_tool"
    assert '"path":"a"' in root["attributes"]["gen_ai.tool.call.arguments"]

    failed = await acme.run_agent(await acme.deploy_agent("def handle(p): raise ValueError('no such luck')\n"))
    trace = await read_trace(acme, failed["id"])
    (root,) = trace["spans"]
    assert (trace["status"], root["status"]) == ("failed", "error")
    assert (root["attributes"]["error.type"], root["attributes"]["paddock.error.message"]) == (
        "ValueError",
        failed["error_message"],
    )


async def test_trace_of_a_waiting_and_cancelled_run(acme: TenantClient, provider: FakeProvider) -> None:
    name = await create_model(acme, provider, generate_name())
    created = await create_model_agent(acme, name, tools=["filesystem_write"])
    calls = [build_call("filesystem_write", {"path": "a", "content": "1"}, id=f"c{n}") for n in (1, 2)]
    provider.queue_text("", to=name, calls=calls)
    execution_id = await start_execution(acme, created["id"], task="Write")
    await wait_for_status(acme, execution_id, "waiting")
    trace = await read_trace(acme, execution_id)
    (root,) = trace["spans"]
    assert (trace["status"], root["status"], root["ended_at"], root["duration_ms"]) == (
        "waiting",
        "waiting",
        None,
        None,
    )
    assert [(child["kind"], child["status"]) for child in root["children"]] == [
        ("model_call", "ok"),
        ("tool", "waiting"),
        ("tool", "waiting"),
    ]
    rejected = await acme.http.post(f"/executions/{execution_id}/reject", json={"call_id": "c1", "reason": "Not that"})
    assert rejected.status_code == 200, rejected.text
    (root,) = (await read_trace(acme, execution_id))["spans"]
    (event,) = root["children"][1]["events"]
    assert event["name"] == "rejected"
    assert event["attributes"] == {"paddock.decided_by": acme.account["id"], "paddock.reason": "Not that"}
    assert (await acme.http.post(f"/executions/{execution_id}/cancel")).status_code == 200
    trace = await read_trace(acme, execution_id)
    check_ended_trace(trace)
    (root,) = trace["spans"]
    assert [span["status"] for span in (root, *root["children"])] == ["cancelled", "ok", "cancelled", "cancelled"]


async def test_trace_requires_tenant_and_scope(
    acme: TenantClient, other_tenant: TenantClient, shared_tenant: TenantClient
) -> None:
    ended = await shared_tenant.run_agent("hello", {"name": "you"})
    path = f"/execution-trace/{ended['id']}"
    assert (await shared_tenant.http.get(path)).status_code == 200
    assert (await other_tenant.http.get(path)).status_code == 404
    async with shared_tenant.open_client(await shared_tenant.create_key(scopes=["read:agents"])) as without_scope:
        assert (await without_scope.get(path)).status_code == 403
    async with shared_tenant.open_client(await shared_tenant.create_key(scopes=["read:executions"])) as reader:
        assert (await reader.get(path)).status_code == 200
    for unknown_id in ("exec_01k00000000000000000000000", "nothing"):
        assert (await shared_tenant.http.get(f"/execution-trace/{unknown_id}")).status_code == 404


async def test_trace_is_read_with_one_statement(resources, acme: TenantClient, provider: FakeProvider) -> None:
    """Read a consistent snapshot with one statement for any number of spans."""
    name = await create_model(acme, provider, generate_name())
    created = await create_model_agent(acme, name, tools=["filesystem_list"])
    queries: list[str] = []

    def record_query(record: Any) -> None:
        queries.append(record.query)

    counts = []
    for steps in (1, 6):
        for _ in range(steps - 1):
            provider.queue_text(
                "", to=name, calls=[build_call("filesystem_list", {}), build_call("filesystem_list", {})]
            )
        provider.queue_text("done", to=name)
        ended = await run_execution(acme, created["id"], task="Go", mode="yolo")
        assert ended["status"] == "completed", ended
        async with resources.store.tenant_transaction(acme.tenant_id) as tx:
            raw = tx._raw
            raw.add_query_logger(record_query)
            try:
                queries.clear()
                sources = await traces.read_trace_sources(tx, ended["id"])
            finally:
                raw.remove_query_logger(record_query)
        counts.append(
            (
                len(queries),
                len(
                    list(
                        iterate_spans(
                            {"spans": [_outline_children(span) for span in traces.build_trace(sources).spans]}
                        )
                    )
                ),
            )
        )
    assert counts == [(1, 2), (1, 17)]


def _outline_children(span: traces.Span) -> dict[str, Any]:
    return {"id": span.id, "children": [_outline_children(child) for child in span.children]}


async def test_trace_of_a_crew(acme: TenantClient, provider: FakeProvider) -> None:
    name = await create_model(acme, provider, generate_name(), price=MODEL_PRICE)
    agents = (
        f"lead: {{role: Lead, goal: Lead, llm: {name}, temperature: 0.3}}\n"
        f"writer: {{role: Writer, goal: Write, llm: {name}}}\n"
    )
    tasks = (
        "research: {name: Find out, description: Look, expected_output: Facts, agent: lead}\n"
        "write: {description: Write it, expected_output: A report, agent: writer, context: [research]}\n"
    )
    body = {"name": "team", "agents_yaml": agents, "tasks_yaml": tasks}
    created = await acme.http.post("/crews", json=body)
    assert created.status_code == 201, created.text
    for text in ("Fact one, ä.", "The report."):
        provider.queue_text(text, to=name)
    started = (await acme.http.post("/crews/team/execute", json={})).json()
    ended = await acme.wait_for_end(started["id"])
    assert ended["status"] == "completed", ended
    trace = await read_trace(acme, ended["id"])
    check_ended_trace(trace)
    (root,) = trace["spans"]
    assert outline_span(root) == (
        "crew team",
        [
            ("task Find out", [("agent lead", [(f"model_call {name}", [])])]),
            ("task write", [("memory context", []), ("agent writer", [(f"model_call {name}", [])])]),
        ],
    )
    attributes = root["attributes"]
    assert (attributes["gen_ai.operation.name"], attributes["gen_ai.workflow.name"]) == ("invoke_workflow", "team")
    assert attributes["paddock.crew.id"] == created.json()["id"]
    research, write = root["children"]
    memory = write["children"][0]["attributes"]
    assert memory["paddock.context.steps"] == ["research"]
    assert memory["paddock.context.characters"] == len("Fact one, ä.")
    assert research["children"][0]["attributes"]["gen_ai.request.temperature"] == 0.3
    assert root["cost_usd"] == pytest.approx(ended["total_cost"], abs=1e-9)
    assert root["cost_usd"] > 0
    children = (await acme.http.get(f"/executions?parent_id={ended['id']}")).json()["items"]
    billed = [cost for child in children for cost in await list_costs(acme, child["id"])]
    assert root["cost_usd"] == pytest.approx(sum(cost["cost_usd"] for cost in billed), abs=1e-9)
    # The trace of a child execution has the same trace id.
    child_trace = await read_trace(acme, research["children"][0]["id"])
    assert child_trace["trace_id"] == trace["trace_id"]
    assert outline_span(child_trace["spans"][0]) == outline_span(research["children"][0])


async def test_trace_of_a_workflow(acme: TenantClient, provider: FakeProvider) -> None:
    """Trace a workflow with items, a retried step, a skipped step, an approval, a tool and a nested workflow."""
    name = await create_model(acme, provider, generate_name(), price=MODEL_PRICE)
    reviewer = await create_model_agent(acme, name)
    code = await acme.deploy_agent("def handle(p): return p\n")
    inner = {"name": generate_name("inner"), "steps": [{"id": "list", "tool": "filesystem_list"}]}
    assert (await acme.http.post("/workflows", json=inner)).status_code == 201
    steps = [
        {"id": "each", "agent": code, "map": "inputs.files", "inputs": {"file": "{{ item }}"}},
        {"id": "never", "agent": code, "when": "false"},
        {
            "id": "review",
            "agent": reviewer["name"],
            "prompt": "Review it",
            "depends_on": ["each"],
            "retry": {"attempts": 1, "delay": 0},
        },
        {"id": "sub", "workflow": inner["name"], "depends_on": ["review"]},
        {"id": "ask", "agent": code, "requires_approval": True, "depends_on": ["sub"]},
    ]
    created = await acme.http.post("/workflows", json={"name": generate_name("flow"), "steps": steps})
    assert created.status_code == 201, created.text
    provider.queue_failure(400, to=name)
    provider.queue_text("Fine", to=name)
    started = await acme.http.post(
        f"/workflows/{created.json()['id']}/execute", json={"inputs": {"files": ["a", "b"]}, "mode": "yolo"}
    )
    execution_id = started.json()["id"]
    await wait_for_status(acme, execution_id, "waiting")
    (root,) = (await read_trace(acme, execution_id))["spans"]
    (waiting,) = [child for child in root["children"] if child["status"] == "waiting"]
    assert (root["status"], waiting["name"], waiting["ended_at"]) == ("waiting", "ask", None)
    assert (await acme.http.post(f"/executions/{execution_id}/approve", json={"reason": "Go"})).status_code == 200
    ended = await acme.wait_for_end(execution_id)
    assert ended["status"] == "completed", ended
    trace = await read_trace(acme, execution_id)
    check_ended_trace(trace)
    (root,) = trace["spans"]
    span_by_name = {span["name"]: span for span in root["children"]}
    assert outline_span(span_by_name["each"]) == (
        "step each",
        [
            (f"step each[{n}]", [(f"agent {span_by_name['each']['children'][n]['children'][0]['name']}", [])])
            for n in (0, 1)
        ],
    )
    assert [span["attributes"]["paddock.step.item"] for span in span_by_name["each"]["children"]] == [0, 1]
    assert (span_by_name["never"]["status"], span_by_name["never"]["attributes"]["paddock.step.status"]) == (
        "ok",
        "skipped",
    )
    first_try, second_try = span_by_name["review"]["children"]
    assert [(span["kind"], span["status"], span["attributes"]["paddock.try"]) for span in (first_try, second_try)] == [
        ("agent", "error", 1),
        ("agent", "ok", 2),
    ]
    assert first_try["attributes"]["error.type"] == "refused"
    assert [child["attributes"].get("error.type") for child in first_try["children"]] == ["refused"]
    assert outline_span(span_by_name["sub"]) == (
        "step sub",
        [(f"workflow {inner['name']}", [("step list", [("tool filesystem_list", [])])])],
    )
    (event,) = span_by_name["ask"]["events"]
    assert event["name"] == "approved"
    assert event["attributes"]["paddock.decided_by"] == acme.account["id"]
    assert root["attributes"]["paddock.workflow.id"] == created.json()["id"]
    assert root["cost_usd"] == pytest.approx(ended["total_cost"], abs=1e-9)
    assert root["cost_usd"] > 0


async def test_trace_of_a_resumed_workflow_links_completed_steps(acme: TenantClient) -> None:
    code = await acme.deploy_agent(
        "def handle(p):\n    if p.get('fail'):\n        raise ValueError('no')\n    return p\n"
    )
    steps = [
        {"id": "a", "agent": code},
        {"id": "b", "agent": code, "inputs": {"fail": True}, "depends_on": ["a"]},
    ]
    created = await acme.http.post("/workflows", json={"name": generate_name("flow"), "steps": steps})
    started = await acme.http.post(f"/workflows/{created.json()['id']}/execute", json={})
    first = await acme.wait_for_end(started.json()["id"])
    assert first["status"] == "failed"
    retried = await acme.http.post(f"/executions/{first['id']}/retry?from=failed")
    assert retried.status_code == 201, retried.text
    second = await acme.wait_for_end(retried.json()["id"])
    before, after = [(await read_trace(acme, execution["id"]))["spans"][0] for execution in (first, second)]
    assert after["status"] == "error"
    a, b = sorted(after["children"], key=lambda span: span["name"])
    assert (a["status"], a["children"]) == ("ok", [])
    first_span = next(child for child in before["children"] if child["name"] == "a")
    assert a["attributes"]["paddock.step.execution.id"] == first_span["children"][0]["id"]
    assert [child["status"] for child in b["children"]] == ["error"]


async def test_trace_of_a_crew_with_a_manager(acme: TenantClient, provider: FakeProvider) -> None:
    lead, name = (
        await create_model(acme, provider, generate_name("lead")),
        await create_model(acme, provider, generate_name()),
    )
    body = {
        "name": "led",
        "agents_yaml": f"writer: {{role: Writer, goal: Write, llm: {name}}}\n",
        "tasks_yaml": "write: {description: Write it, expected_output: A report, agent: writer}\n",
        "process": "hierarchical",
        "manager_model": lead,
    }
    created = await acme.http.post("/crews", json=body)
    assert created.status_code == 201, created.text
    provider.queue_text("", to=lead, calls=[build_call("delegate", {"agent": "writer", "task": "Write the report"})])
    provider.queue_text("The report.", to=name)
    provider.queue_text("Here it is.", to=lead)
    ended = await acme.wait_for_end((await acme.http.post("/crews/led/execute", json={})).json()["id"])
    assert ended["status"] == "completed", ended
    trace = await read_trace(acme, ended["id"])
    check_ended_trace(trace)
    (task,) = trace["spans"][0]["children"]
    (manager,) = task["children"]
    assert [outline_span(child) for child in manager["children"]] == [
        (f"model_call {lead}", []),
        ("tool delegate", [("agent writer", [(f"model_call {name}", [])])]),
        (f"model_call {lead}", []),
    ]
    assert "gen_ai.agent.id" not in manager["children"][1]["children"][0]["attributes"]
