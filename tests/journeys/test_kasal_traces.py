"""The Execution History and Execution Trace parts of seeds/kasal.md: what a run was made of, and what it cost."""

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

PRICE = {"input": 1000.0, "output": 2000.0}


async def trace(acme: TenantClient, execution_id: str, query: str = "") -> dict[str, Any]:
    answer = await acme.http.get(f"/execution-trace/{execution_id}{query}")
    assert answer.status_code == 200, answer.text
    return dict(answer.json())


def spans(of: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """All spans of a trace, or of a span."""
    for one in of["spans"] if "spans" in of else of["children"]:
        yield one
        yield from spans(one)


def shape(span: dict[str, Any]) -> Any:
    return f"{span['kind']} {span['name']}", [shape(child) for child in span["children"]]


def shown(span: dict[str, Any]) -> list[Any]:
    """The messages of a span: role, texts, tool calls and their answers."""
    return [
        (
            message["role"],
            "".join(part.get("content") or part.get("response") or "" for part in message["parts"]),
            [(part["id"], part["name"]) for part in message["parts"] if part["type"] == "tool_call"],
            [part["id"] for part in message["parts"] if part["type"] == "tool_call_response"],
        )
        for message in span["attributes"]["gen_ai.input.messages"]
    ]


def sent(body: dict[str, Any]) -> list[Any]:
    """The same of a request that reached the provider."""
    return [
        (
            message["role"],
            message.get("content") or "",
            [(called["id"], called["function"]["name"]) for called in message.get("tool_calls", ())],
            [message["tool_call_id"]] if "tool_call_id" in message else [],
        )
        for message in body["messages"]
    ]


def check(whole: dict[str, Any]) -> None:
    """What is true of every trace that has ended."""
    found = list(spans(whole))
    assert len({span["id"] for span in found}) == len(found)
    for span in found:
        assert span["ended_at"] >= span["started_at"], span
        if span["children"]:
            assert span["cost_usd"] == pytest.approx(sum(one["cost_usd"] for one in span["children"]), abs=1e-9)
            assert span["total_tokens"] == sum(one["total_tokens"] for one in span["children"])
        for child in span["children"]:
            assert child["parent_id"] == span["id"]


async def costs(acme: TenantClient, execution_id: str) -> list[dict[str, Any]]:
    return list((await acme.http.get(f"/costs?execution_id={execution_id}")).json()["items"])


async def test_history_is_the_executions(acme: TenantClient) -> None:
    agent_id = await acme.deploy_agent("def handle(p): return p\n")
    made = [(await acme.run_agent(agent_id, {"n": n}))["id"] for n in range(3)]
    listed = (await acme.http.get("/execution-history?limit=2&offset=0")).json()
    assert [one["execution_id"] for one in listed["items"]] == made[:0:-1]
    assert (listed["total"], listed["has_more"]) == (3, True)
    assert (await acme.http.get(f"/execution-history/{made[0]}")).json()["result"] == {"n": 0}


async def test_an_agent_with_tools_that_delegates(acme: TenantClient, provider: FakeProvider) -> None:
    boss = await create_model(acme, provider, generate_name("boss"), price=PRICE)
    helper = await create_model(acme, provider, generate_name("helper"), price=PRICE)
    other = await create_model_agent(acme, helper, role="Counter", tools=["filesystem_list"], temperature=0.1)
    made = await create_model_agent(
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
    ended = await run_execution(acme, made["id"], task="Have the secret-files counted", mode="yolo")
    assert ended["status"] == "completed", ended

    whole = await trace(acme, ended["id"])
    check(whole)
    (root,) = whole["spans"]
    assert (whole["execution_id"], whole["status"], whole["truncated"]) == (ended["id"], "completed", False)
    assert shape(root) == (
        f"agent {made['name']}",
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
    billed = await costs(acme, ended["id"])
    assert root["cost_usd"] == pytest.approx(sum(one["cost_usd"] for one in billed), abs=1e-9)
    assert root["cost_usd"] == pytest.approx(ended["total_cost"], abs=1e-9)
    assert root["total_tokens"] == sum(one["total_tokens"] for one in billed)
    assert {one["id"] for one in spans(whole) if one["kind"] == "model_call"} == {one["id"] for one in billed}

    asked, first, wrong, *_ = root["children"]
    told = root["attributes"]
    assert told["gen_ai.operation.name"] == "invoke_agent"
    assert (told["gen_ai.agent.id"], told["gen_ai.agent.name"]) == (made["id"], made["name"])
    assert (told["gen_ai.request.temperature"], told["gen_ai.request.max_tokens"]) == (0.6, 99)
    assert (told["paddock.execution.id"], told["paddock.attempt"]) == (ended["id"], ended["attempt"])
    assert told["paddock.mode"] == "yolo"
    told = asked["attributes"]
    assert (told["gen_ai.operation.name"], told["gen_ai.provider.name"]) == ("chat", "openai_compatible")
    assert (told["gen_ai.request.model"], told["gen_ai.response.finish_reasons"]) == (boss, ["tool_calls"])
    assert asked["total_tokens"] == told["gen_ai.usage.input_tokens"] + told["gen_ai.usage.output_tokens"] > 0
    assert (first["status"], wrong["status"]) == ("ok", "error")
    told = first["attributes"]
    assert (told["gen_ai.tool.name"], told["gen_ai.tool.call.id"]) == ("filesystem_write", "w1")
    assert wrong["attributes"]["error.type"] == "tool_failed"
    nested = next(one for one in spans(whole) if one["name"] == other["name"])
    assert nested["attributes"]["gen_ai.agent.id"] == other["id"]
    assert nested["children"][0]["attributes"]["gen_ai.request.temperature"] == 0.1
    assert nested["children"][-1]["attributes"]["gen_ai.response.finish_reasons"] == ["stop"]

    # What was said is not in it, unless that is asked for.
    assert "secret-" not in str(whole)
    full = await trace(acme, ended["id"], "?content=true")
    (root,) = full["spans"]
    told = root["attributes"]
    assert "Have the secret-files counted" in told["gen_ai.input.messages"][0]["parts"][0]["content"]
    answer = {"role": "assistant", "parts": [{"type": "text", "content": "It said: one secret-file"}]}
    assert told["gen_ai.output.messages"] == [answer]
    assert root["children"][-1]["attributes"]["gen_ai.output.messages"] == [answer]
    assert "secret-words" in root["children"][1]["attributes"]["gen_ai.tool.call.arguments"]
    nested = next(one for one in spans(full) if one["name"] == other["name"])
    assert nested["attributes"]["gen_ai.input.messages"][0]["parts"][0]["content"] == "Count the secret-files"
    assert (await acme.http.get(f"/execution-trace/{ended['id']}?contents=true")).status_code == 422
    # Each call of a model shows what the provider was sent.
    calls = sorted((one for one in spans(full) if one["kind"] == "model_call"), key=lambda one: one["started_at"])
    assert [shown(one) for one in calls] == [
        sent(one.body) for one in provider.requests if one.body["model"] in (boss, helper)
    ]
    assert len(calls) == 5


async def test_calls_that_failed_and_text_that_postgres_cannot_take_apart(
    acme: TenantClient, provider: FakeProvider
) -> None:
    name = await create_model(acme, provider, generate_name())
    made = await create_model_agent(acme, name)
    provider.queue_failure(503, to=name)
    provider.queue_text("a\0b", to=name)
    ended = await run_execution(acme, made["id"], task="x\0y")
    assert ended["status"] == "completed", ended
    (root,) = (await trace(acme, ended["id"], "?content=true"))["spans"]
    failed, answered = root["children"]
    assert (failed["status"], failed["attributes"]["error.type"]) == ("error", "unavailable")
    assert answered["status"] == "ok"
    assert {one["attributes"]["paddock.step.path"] for one in root["children"]} == {"1"}
    assert "x\\u0000y" in root["attributes"]["gen_ai.input.messages"][0]["parts"][0]["content"]
    assert shown(failed) == shown(answered)
    assert shown(failed)[-1][1] == "x\0y"


async def test_the_call_that_ended_a_run_shows_what_it_was_sent(acme: TenantClient, provider: FakeProvider) -> None:
    name = await create_model(acme, provider, generate_name())
    made = await create_model_agent(acme, name, instructions="Be brief.")
    provider.queue_text("", to=name, calls=[build_call("filesystem_list", {}, id="l1")])
    for _ in range(4):
        provider.queue_failure(400, to=name)
    ended = await run_execution(acme, made["id"], task="Look around")
    assert ended["status"] == "failed", ended
    calls = [one for one in spans(await trace(acme, ended["id"], "?content=true")) if one["kind"] == "model_call"]
    assert [one[0] for one in shown(calls[-1])] == ["system", "user", "assistant", "tool"]
    assert shown(calls[-1]) == sent(provider.requests[-1].body)


async def test_uploaded_code_that_calls_models(acme: TenantClient, provider: FakeProvider) -> None:
    name = await create_model(acme, provider, "echo", price=PRICE)
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
    whole = await trace(acme, ended["id"])
    check(whole)
    (root,) = whole["spans"]
    # Two, or more where a worker was lost: all that was billed.
    billed = await costs(acme, ended["id"])
    assert [span["kind"] for span in spans(whole)] == ["agent", *["model_call"] * len(billed)]
    assert {one["id"] for one in root["children"]} == {one["id"] for one in billed}
    assert root["attributes"]["gen_ai.agent.version"] == ended["agent_version_id"]
    assert root["cost_usd"] == pytest.approx(ended["total_cost"], abs=1e-9)
    assert root["cost_usd"] > 0
    assert [one["attributes"]["gen_ai.usage.output_tokens"] for one in root["children"]][-2:] == [2, 1]


async def test_a_tool_by_itself_and_code_that_fails(acme: TenantClient) -> None:
    called = await acme.http.post("/tools/filesystem_write/execute", json={"args": {"path": "a", "content": "b"}})
    whole = await trace(acme, called.json()["execution_id"], "?content=true")
    (root,) = whole["spans"]
    assert (root["kind"], root["name"], root["status"], root["children"]) == ("tool", "filesystem_write", "ok", [])
    assert root["attributes"]["gen_ai.operation.name"] == "execute_tool"
    assert '"path":"a"' in root["attributes"]["gen_ai.tool.call.arguments"]

    failed = await acme.run_agent(await acme.deploy_agent("def handle(p): raise ValueError('no such luck')\n"))
    whole = await trace(acme, failed["id"])
    (root,) = whole["spans"]
    assert (whole["status"], root["status"]) == ("failed", "error")
    assert (root["attributes"]["error.type"], root["attributes"]["paddock.error.message"]) == (
        "ValueError",
        failed["error_message"],
    )


async def test_a_run_that_waits_is_decided_on_and_cancelled(acme: TenantClient, provider: FakeProvider) -> None:
    name = await create_model(acme, provider, generate_name())
    made = await create_model_agent(acme, name, tools=["filesystem_write"])
    calls = [build_call("filesystem_write", {"path": "a", "content": "1"}, id=f"c{n}") for n in (1, 2)]
    provider.queue_text("", to=name, calls=calls)
    execution_id = await start_execution(acme, made["id"], task="Write")
    await wait_for_status(acme, execution_id, "waiting")
    whole = await trace(acme, execution_id)
    (root,) = whole["spans"]
    assert (whole["status"], root["status"], root["ended_at"], root["duration_ms"]) == (
        "waiting",
        "waiting",
        None,
        None,
    )
    assert [(one["kind"], one["status"]) for one in root["children"]] == [
        ("model_call", "ok"),
        ("tool", "waiting"),
        ("tool", "waiting"),
    ]
    rejected = await acme.http.post(f"/executions/{execution_id}/reject", json={"call_id": "c1", "reason": "Not that"})
    assert rejected.status_code == 200, rejected.text
    (root,) = (await trace(acme, execution_id))["spans"]
    (event,) = root["children"][1]["events"]
    assert event["name"] == "rejected"
    assert event["attributes"] == {"paddock.decided_by": acme.account["id"], "paddock.reason": "Not that"}
    assert (await acme.http.post(f"/executions/{execution_id}/cancel")).status_code == 200
    whole = await trace(acme, execution_id)
    check(whole)
    (root,) = whole["spans"]
    assert [one["status"] for one in (root, *root["children"])] == ["cancelled", "ok", "cancelled", "cancelled"]


async def test_it_is_read_by_who_may_read_executions_of_its_tenant(
    acme: TenantClient, other_tenant: TenantClient, shared_tenant: TenantClient
) -> None:
    ended = await shared_tenant.run_agent("hello", {"name": "you"})
    path = f"/execution-trace/{ended['id']}"
    assert (await shared_tenant.http.get(path)).status_code == 200
    assert (await other_tenant.http.get(path)).status_code == 404
    async with shared_tenant.open_client(await shared_tenant.create_key(scopes=["read:agents"])) as blind:
        assert (await blind.get(path)).status_code == 403
    async with shared_tenant.open_client(await shared_tenant.create_key(scopes=["read:executions"])) as reader:
        assert (await reader.get(path)).status_code == 200
    for nothing in ("exec_01k00000000000000000000000", "nothing"):
        assert (await shared_tenant.http.get(f"/execution-trace/{nothing}")).status_code == 404


async def test_it_is_one_statement_however_much_there_is(resources, acme: TenantClient, provider: FakeProvider) -> None:
    """So it is of one moment, too."""
    name = await create_model(acme, provider, generate_name())
    made = await create_model_agent(acme, name, tools=["filesystem_list"])
    asked: list[str] = []

    def note(record: Any) -> None:
        asked.append(record.query)

    counts = []
    for steps in (1, 6):
        for _ in range(steps - 1):
            provider.queue_text(
                "", to=name, calls=[build_call("filesystem_list", {}), build_call("filesystem_list", {})]
            )
        provider.queue_text("done", to=name)
        ended = await run_execution(acme, made["id"], task="Go", mode="yolo")
        assert ended["status"] == "completed", ended
        async with resources.store.tenant_transaction(acme.tenant_id) as tx:
            raw = tx._raw
            raw.add_query_logger(note)
            try:
                asked.clear()
                found = await traces.read_trace_sources(tx, ended["id"])
            finally:
                raw.remove_query_logger(note)
        counts.append(
            (len(asked), len(list(spans({"spans": [_plain(one) for one in traces.build_trace(found).spans]}))))
        )
    assert counts == [(1, 2), (1, 17)]


def _plain(span: traces.Span) -> dict[str, Any]:
    return {"id": span.id, "children": [_plain(child) for child in span.children]}


async def test_a_crew(acme: TenantClient, provider: FakeProvider) -> None:
    name = await create_model(acme, provider, generate_name(), price=PRICE)
    agents = (
        f"lead: {{role: Lead, goal: Lead, llm: {name}, temperature: 0.3}}\n"
        f"writer: {{role: Writer, goal: Write, llm: {name}}}\n"
    )
    tasks = (
        "research: {name: Find out, description: Look, expected_output: Facts, agent: lead}\n"
        "write: {description: Write it, expected_output: A report, agent: writer, context: [research]}\n"
    )
    body = {"name": "team", "agents_yaml": agents, "tasks_yaml": tasks}
    made = await acme.http.post("/crews", json=body)
    assert made.status_code == 201, made.text
    for words in ("Fact one, ä.", "The report."):
        provider.queue_text(words, to=name)
    started = (await acme.http.post("/crews/team/execute", json={})).json()
    ended = await acme.wait_for_end(started["id"])
    assert ended["status"] == "completed", ended
    whole = await trace(acme, ended["id"])
    check(whole)
    (root,) = whole["spans"]
    assert shape(root) == (
        "crew team",
        [
            ("task Find out", [("agent lead", [(f"model_call {name}", [])])]),
            ("task write", [("memory context", []), ("agent writer", [(f"model_call {name}", [])])]),
        ],
    )
    told = root["attributes"]
    assert (told["gen_ai.operation.name"], told["gen_ai.workflow.name"]) == ("invoke_workflow", "team")
    assert told["paddock.crew.id"] == made.json()["id"]
    research, write = root["children"]
    memory = write["children"][0]["attributes"]
    assert memory["paddock.context.steps"] == ["research"]
    assert memory["paddock.context.characters"] == len("Fact one, ä.")
    assert research["children"][0]["attributes"]["gen_ai.request.temperature"] == 0.3
    assert root["cost_usd"] == pytest.approx(ended["total_cost"], abs=1e-9)
    assert root["cost_usd"] > 0
    children = (await acme.http.get(f"/executions?parent_id={ended['id']}")).json()["items"]
    billed = [one for child in children for one in await costs(acme, child["id"])]
    assert root["cost_usd"] == pytest.approx(sum(one["cost_usd"] for one in billed), abs=1e-9)
    # One step by its own id is a part of the same trace.
    part = await trace(acme, research["children"][0]["id"])
    assert part["trace_id"] == whole["trace_id"]
    assert shape(part["spans"][0]) == shape(research["children"][0])


async def test_a_workflow(acme: TenantClient, provider: FakeProvider) -> None:
    """Items, a step that is tried again, one that is left out, an approval, a tool, and a workflow in it."""
    name = await create_model(acme, provider, generate_name(), price=PRICE)
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
    made = await acme.http.post("/workflows", json={"name": generate_name("flow"), "steps": steps})
    assert made.status_code == 201, made.text
    provider.queue_failure(400, to=name)
    provider.queue_text("Fine", to=name)
    started = await acme.http.post(
        f"/workflows/{made.json()['id']}/execute", json={"inputs": {"files": ["a", "b"]}, "mode": "yolo"}
    )
    execution_id = started.json()["id"]
    await wait_for_status(acme, execution_id, "waiting")
    (root,) = (await trace(acme, execution_id))["spans"]
    (waiting,) = [one for one in root["children"] if one["status"] == "waiting"]
    assert (root["status"], waiting["name"], waiting["ended_at"]) == ("waiting", "ask", None)
    assert (await acme.http.post(f"/executions/{execution_id}/approve", json={"reason": "Go"})).status_code == 200
    ended = await acme.wait_for_end(execution_id)
    assert ended["status"] == "completed", ended
    whole = await trace(acme, execution_id)
    check(whole)
    (root,) = whole["spans"]
    named = {span["name"]: span for span in root["children"]}
    assert shape(named["each"]) == (
        "step each",
        [(f"step each[{n}]", [(f"agent {named['each']['children'][n]['children'][0]['name']}", [])]) for n in (0, 1)],
    )
    assert [span["attributes"]["paddock.step.item"] for span in named["each"]["children"]] == [0, 1]
    assert (named["never"]["status"], named["never"]["attributes"]["paddock.step.status"]) == ("ok", "skipped")
    failed, again = named["review"]["children"]
    assert [(one["kind"], one["status"], one["attributes"]["paddock.try"]) for one in (failed, again)] == [
        ("agent", "error", 1),
        ("agent", "ok", 2),
    ]
    assert failed["attributes"]["error.type"] == "refused"
    assert [one["attributes"].get("error.type") for one in failed["children"]] == ["refused"]
    assert shape(named["sub"]) == (
        "step sub",
        [(f"workflow {inner['name']}", [("step list", [("tool filesystem_list", [])])])],
    )
    (event,) = named["ask"]["events"]
    assert event["name"] == "approved"
    assert event["attributes"]["paddock.decided_by"] == acme.account["id"]
    assert root["attributes"]["paddock.workflow.id"] == made.json()["id"]
    assert root["cost_usd"] == pytest.approx(ended["total_cost"], abs=1e-9)
    assert root["cost_usd"] > 0


async def test_what_was_completed_before_is_not_run_again_and_says_where_it_was(acme: TenantClient) -> None:
    code = await acme.deploy_agent(
        "def handle(p):\n    if p.get('fail'):\n        raise ValueError('no')\n    return p\n"
    )
    steps = [
        {"id": "a", "agent": code},
        {"id": "b", "agent": code, "inputs": {"fail": True}, "depends_on": ["a"]},
    ]
    made = await acme.http.post("/workflows", json={"name": generate_name("flow"), "steps": steps})
    started = await acme.http.post(f"/workflows/{made.json()['id']}/execute", json={})
    first = await acme.wait_for_end(started.json()["id"])
    assert first["status"] == "failed"
    again = await acme.http.post(f"/executions/{first['id']}/retry?from=failed")
    assert again.status_code == 201, again.text
    second = await acme.wait_for_end(again.json()["id"])
    before, after = [(await trace(acme, one["id"]))["spans"][0] for one in (first, second)]
    assert after["status"] == "error"
    a, b = sorted(after["children"], key=lambda one: one["name"])
    assert (a["status"], a["children"]) == ("ok", [])
    was = next(one for one in before["children"] if one["name"] == "a")
    assert a["attributes"]["paddock.step.execution.id"] == was["children"][0]["id"]
    assert [one["status"] for one in b["children"]] == ["error"]


async def test_a_crew_whose_manager_delegates(acme: TenantClient, provider: FakeProvider) -> None:
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
    made = await acme.http.post("/crews", json=body)
    assert made.status_code == 201, made.text
    provider.queue_text("", to=lead, calls=[build_call("delegate", {"agent": "writer", "task": "Write the report"})])
    provider.queue_text("The report.", to=name)
    provider.queue_text("Here it is.", to=lead)
    ended = await acme.wait_for_end((await acme.http.post("/crews/led/execute", json={})).json()["id"])
    assert ended["status"] == "completed", ended
    whole = await trace(acme, ended["id"])
    check(whole)
    (task,) = whole["spans"][0]["children"]
    (manager,) = task["children"]
    assert [shape(one) for one in manager["children"]] == [
        (f"model_call {lead}", []),
        ("tool delegate", [("agent writer", [(f"model_call {name}", [])])]),
        (f"model_call {lead}", []),
    ]
    assert "gen_ai.agent.id" not in manager["children"][1]["children"][0]["attributes"]
