"""Invalid input from providers and lost commits reach a model agent's worker: no run hangs, and nothing counts twice."""

import asyncio
import json
import time
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from types import SimpleNamespace
from typing import Any

import pytest
from websockets.asyncio.client import connect

from domain.events import AttemptEvents, EventQuery, ExecutionEvent
from domain.executions import Execution, RunStep, steps
from domain.llms import ChatMessage, ModelCall, ModelReply, ModelTarget, ModelUsage, ReplyPart, TextDelta
from domain.ports import Tx
from domain.shared.errors import DomainError
from infra.llm import GenaiPrices
from infra.polling import retry_through_outage
from infra.wiring import Resources
from scripts.system import System
from tests.support.clients import TenantClient
from tests.support.fake_provider import FakeProvider, ScriptedAnswer, build_call
from tests.support.model_agents import (
    create_model,
    create_model_agent,
    generate_name,
    run_execution,
    start_execution,
    stream_events,
    wait_for_status,
)
from workers.event_writer import EventWriter
from workers.model_calls import ModelAccess, ModelCalls, ModelRequest

PRICE = {"input": 1000.0, "output": 1000.0}
HALF_PAIR = "half \ud83d of a pair"


async def test_invalid_text_of_a_provider_ends_only_its_call(acme: TenantClient, provider: FakeProvider) -> None:
    name = await create_model(acme, provider, generate_name())
    agent = await create_model_agent(acme, name)
    provider.queue_failure(500, message=HALF_PAIR, to=name)
    provider.queue_text("Fine", to=name)
    assert (await run_execution(acme, agent["id"], task="Go"))["result"] == {"content": "Fine"}
    provider.queue_failure(400, message=HALF_PAIR + "\0", to=name)
    failed_execution = await run_execution(acme, agent["id"], task="Go")
    assert (failed_execution["error_type"], "half \ufffd of a pair" in failed_execution["error_message"]) == (
        "refused",
        True,
    )
    claude_model = generate_name("claude")
    registration = {"name": claude_model, "provider": "anthropic", "model": claude_model, "base_url": provider.root}
    assert (await acme.http.post("/models", json=registration)).status_code == 201
    provider.queue_answer(ScriptedAnswer(tokens=[HALF_PAIR]), claude_model)
    execution = await run_execution(acme, (await create_model_agent(acme, claude_model))["id"], task="Go")
    assert execution["result"] == {"content": "half \ufffd of a pair"}


async def test_impossible_token_counts_are_estimated(acme: TenantClient, provider: FakeProvider) -> None:
    name = await create_model(acme, provider, generate_name(), price=PRICE)
    agent = await create_model_agent(acme, name)
    for prompt, completion in ((-5, 10), (10**40, 1), (1, 10**18)):
        provider.queue_text("Fine", prompt=prompt, completion=completion, to=name)
        execution = await run_execution(acme, agent["id"], task="Go")
        assert execution["result"] == {"content": "Fine"}, execution
        [cost] = (await acme.http.get(f"/costs?execution_id={execution['id']}")).json()["items"]
        assert (cost["estimated"], 0 < cost["total_tokens"] < 100) == (True, True)


async def test_invalid_names_and_results_do_not_fail_the_run(acme: TenantClient, provider: FakeProvider) -> None:
    name = await create_model(acme, provider, generate_name())
    agent = await create_model_agent(acme, name, tools=["filesystem_write", "filesystem_read", "python"], verbose=True)
    forged = "import sys\nf = sys._getframe()\nwhile f:\n  f.f_globals['_collect_changed_files'] = lambda b: ({}, 5)\n  f = f.f_back"
    calls = {
        "there is no tool": build_call("bad\0name", {}, id="id\0"),
        "is not a path": build_call("filesystem_write", {"path": "a\0", "content": ""}),
        "'size': 1": build_call("filesystem_write", {"path": "nul", "content": "\0"}),
        "no text encoding": build_call("filesystem_read", {"path": "nul", "encoding": "punycode"}),
        "'content': '\\x00'": build_call("filesystem_read", {"path": "nul"}),
        "\\\\ud800": build_call("python", {"code": "print('\\ud800')"}),
        "files_too_large": build_call("python", {"code": "open(b'\\xff', 'w').close()"}),
        "cannot be read": build_call("python", {"code": forged}),
    }
    for tool_call in calls.values():
        provider.queue_text("", calls=[tool_call], to=name)
    provider.queue_text("Done", to=name)
    execution = await run_execution(acme, agent["id"], task="Go", mode="yolo")
    assert execution["result"] == {"content": "Done"}, execution
    tool_results = [event for event in await stream_events(acme, execution["id"]) if event["type"] == "tool_result"]
    for expected, tool_result in zip(calls, tool_results, strict=True):
        assert expected in str(tool_result.get("result", tool_result.get("error"))), tool_result
    logs = await acme.http.get(f"/logs/{agent['id']}")
    assert logs.status_code == 200, logs.text


async def test_slow_schema_cannot_block_the_worker(acme: TenantClient) -> None:
    properties = {"q": {"type": "string", "pattern": "^(a+)+$"}, "n": {"type": 5}}
    body = {
        "name": generate_name("tool"),
        "configuration": {"api_endpoint": "http://127.0.0.1:9/", "parameters": properties},
    }
    tool = (await acme.http.post("/tools", json=body)).json()
    refused = await acme.http.post(f"/tools/{tool['id']}/execute", json={"args": {"q": "a" * 60 + "b"}})
    assert (refused.status_code, "does not match" in refused.text) == (422, True)
    # An unknown type is left to the endpoint, which does not exist here.
    unknown = await acme.http.post(f"/tools/{tool['id']}/execute", json={"args": {"n": 1}})
    assert (unknown.status_code, "cannot be reached" in unknown.text) == (422, True), unknown.text


async def test_calls_with_the_same_id_are_decided_separately(acme: TenantClient, provider: FakeProvider) -> None:
    name = await create_model(acme, provider, generate_name())
    agent = await create_model_agent(acme, name, tools=["filesystem_write"])
    calls = [build_call("filesystem_write", {"path": path, "content": "x"}, id="same") for path in ("a", "b")]
    provider.queue_text("", calls=calls, to=name)
    provider.queue_text("Done", to=name)
    execution_id = await start_execution(acme, agent["id"], task="Go")
    waiting = (await wait_for_status(acme, execution_id, "waiting"))["waiting_for"]
    first = {"call_id": waiting[0]["call_id"]}
    execution = (await acme.http.post(f"/executions/{execution_id}/approve", json=first)).json()
    assert [call["args"]["path"] for call in execution["waiting_for"]] == ["b"]
    await acme.http.post(f"/executions/{execution_id}/reject", json={})
    await wait_for_status(acme, execution_id, "completed")
    files = (await acme.http.get(f"/executions/{execution_id}/files")).json()["items"]
    assert [file["path"] for file in files] == ["a"]


async def test_number_of_calls_per_answer_is_limited(acme: TenantClient, provider: FakeProvider) -> None:
    name = await create_model(acme, provider, generate_name())
    agent = await create_model_agent(acme, name, tools=["filesystem_write"])
    provider.queue_text("", calls=[build_call("nothing", {}) for _ in range(steps.MAX_CALLS_PER_ANSWER + 5)], to=name)
    provider.queue_text("Done", to=name)
    execution = await run_execution(acme, agent["id"], task="Go")
    events = await stream_events(acme, execution["id"])
    assert sum(event["type"] == "tool_result" for event in events) == steps.MAX_CALLS_PER_ANSWER
    assert any(event["type"] == "warning" for event in events)
    messages = [request for request in provider.requests if request.model == name][-1].body["messages"]
    assert sum(message["role"] == "tool" for message in messages) == steps.MAX_CALLS_PER_ANSWER + 5, (
        "providers want an answer to each"
    )


async def test_path_is_a_file_or_a_folder(acme: TenantClient, provider: FakeProvider) -> None:
    name = await create_model(acme, provider, generate_name())
    agent = await create_model_agent(acme, name, tools=["filesystem_write", "python"])
    for path in ("a/b", "a", "a/b/c", "a/d"):
        provider.queue_text("", calls=[build_call("filesystem_write", {"path": path, "content": "x"})], to=name)
    provider.queue_text("", calls=[build_call("python", {"code": "import os; sorted(os.listdir('a'))"})], to=name)
    provider.queue_text("Done", to=name)
    execution = await run_execution(acme, agent["id"], task="Go", mode="yolo")
    tool_results = [event for event in await stream_events(acme, execution["id"]) if event["type"] == "tool_result"]
    assert ["error" in tool_result for tool_result in tool_results] == [False, True, True, False, False]
    assert tool_results[-1]["result"] == {"value": "['b', 'd']"}


async def test_cursor_beyond_the_log_is_refused(system: System, acme: TenantClient, provider: FakeProvider) -> None:
    name = await create_model(acme, provider, generate_name())
    agent = await create_model_agent(acme, name)
    execution = await run_execution(acme, agent["id"], task="Go")
    url = f"ws://127.0.0.1:{system.port}/api/v1/agents/{agent['name']}/stream"
    async with connect(url, additional_headers={"Authorization": acme.http.headers["Authorization"]}) as socket:
        await socket.send(json.dumps({"execution_id": execution["id"], "after": 2**31}))
        assert json.loads(await socket.recv())["error"] == "invalid_field"


async def test_large_events_are_read_in_small_slices(
    acme: TenantClient, provider: FakeProvider, resources: Resources
) -> None:
    execution = await claim_execution(acme, provider, resources)
    async with resources.store.tenant_transaction(acme.tenant_id) as tx:
        large = [
            ExecutionEvent(type="tool_result", data={"n": n, "result": "x" * 200_000}, at=tx.now) for n in range(20)
        ]
        assert await tx.events.append_if_leased(execution.id, execution.attempt, large)
    async with resources.store.autocommit() as tx:
        query = EventQuery(tenant_id=acme.tenant_id, execution_id=execution.id, seq=0)
        [event_slice] = await tx.events.find_slices([query], 500)
    assert event_slice is not None
    assert (len(event_slice.events) < 12, event_slice.is_complete) == (True, False)
    await acme.http.post(f"/executions/{execution.id}/cancel")
    start = time.monotonic()
    events = await stream_events(acme, execution.id)
    assert [event["n"] for event in events if event["type"] == "tool_result"] == list(range(20))
    assert time.monotonic() - start < 3, "no pause while there is more to read"


async def test_inputs_may_not_expand_without_limit(acme: TenantClient, provider: FakeProvider) -> None:
    agent = await create_model_agent(
        acme, await create_model(acme, provider, generate_name()), instructions="{x}" * 30_000
    )
    body = {"task": "Go", "inputs": {"x": "y" * 1000}}
    refused = await acme.http.post(f"/agents/{agent['id']}/execute", json=body)
    assert (refused.status_code, "inputs" in refused.text) == (422, True), refused.text


# The log of many runs, written together.


class SlowLogStore:
    """A store whose log is slow, and fails for one execution."""

    def __init__(self, seconds: float = 0.0, bad: str = "") -> None:
        self.order: list[str] = []
        self._seconds, self._bad = seconds, bad
        self.events, self.announce_status = self, lambda *_: None

    @asynccontextmanager
    async def autocommit(self) -> AsyncIterator[Any]:
        yield self

    async def append_batches(self, batches: list[AttemptEvents]) -> set[tuple[str, int]]:
        await asyncio.sleep(self._seconds)
        if any(batch.execution_id == self._bad for batch in batches):
            raise UnicodeError(self._bad)
        self.order += [batch.execution_id for batch in batches]
        return {(batch.execution_id, batch.attempt) for batch in batches}


def build_attempt(execution_id: str) -> Any:
    return SimpleNamespace(id=execution_id, attempt=1)


@asynccontextmanager
async def run_event_writer(store: SlowLogStore) -> AsyncIterator[EventWriter]:
    event_writer = EventWriter(store, lambda: datetime.now(UTC), pause=0.01)  # type: ignore[arg-type]
    task = asyncio.create_task(event_writer.run())
    try:
        yield event_writer
    finally:
        task.cancel()


async def test_flush_waits_for_events_being_written() -> None:
    store = SlowLogStore(seconds=0.2)
    async with run_event_writer(store) as event_writer:
        event_writer.add_event(build_attempt("one"), "token", content="Hi", step="1")
        await asyncio.sleep(0.1)
        await event_writer.flush(build_attempt("one"))
        assert store.order == ["one"]


async def test_failed_write_fails_only_its_own_run() -> None:
    store = SlowLogStore(bad="two")
    async with run_event_writer(store) as event_writer:
        for name in ("one", "two", "three"):
            event_writer.add_event(build_attempt(name), "token", content="Hi", step="1")
        async with asyncio.timeout(60):
            flushed = [event_writer.flush(build_attempt(name)) for name in ("one", "two", "three")]
            results = await asyncio.gather(*flushed, return_exceptions=True)
            with pytest.raises(UnicodeError):
                await event_writer.flush(build_attempt("two"))
            event_writer.add_event(build_attempt("one"), "token", content="more", step="1")
            await event_writer.flush(build_attempt("one"))
    assert [type(result) for result in results] == [type(None), UnicodeError, type(None)]
    assert sorted(store.order) == ["one", "one", "three"]


# Commits whose answer is lost, and runs that end during one.


class ForgetfulStore:
    """A store that commits and then fails once as if it had not; or that is slow to commit."""

    def __init__(self, store: Any, loses: int = 1, seconds: float = 0.0) -> None:
        self._store, self._loses, self._seconds = store, loses, seconds
        self.committing = asyncio.Event()

    @asynccontextmanager
    async def tenant_transaction(self, tenant_id: str) -> AsyncIterator[Tx]:
        async with self._store.tenant_transaction(tenant_id) as tx:
            yield tx
            self.committing.set()
            await asyncio.sleep(self._seconds)
        if self._loses:
            self._loses -= 1
            raise DomainError("unavailable", "The database did not answer.")

    async def run(self, tenant_id: str, work: Any, *, retry: bool = False, max_seconds: float | None = None) -> Any:
        async def run_once() -> Any:
            async with self.tenant_transaction(tenant_id) as tx:
                return await work(tx)

        return await (retry_through_outage(run_once, max_seconds) if retry else run_once())


class InstantModel:
    """A provider that answers at once."""

    async def stream(self, call: ModelCall) -> AsyncGenerator[ReplyPart, None]:
        yield TextDelta("Hi")
        usage = ModelUsage(prompt_tokens=1000, completion_tokens=1000)
        yield ModelReply(message=ChatMessage(role="assistant", content="Hi"), finish="stop", usage=usage)


async def claim_execution(acme: TenantClient, provider: FakeProvider, resources: Resources) -> Execution:
    """Return an execution that a worker holds and whose model does not answer."""
    name = await create_model(acme, provider, generate_name())
    provider.queue_hang(to=name)
    execution_id = await start_execution(acme, (await create_model_agent(acme, name))["id"], task="Go")
    await wait_for_status(acme, execution_id, "running")
    async with resources.store.tenant_transaction(acme.tenant_id) as tx:
        execution = await tx.executions.get(execution_id)
    assert execution is not None
    return execution


def create_model_calls(store: Any, resources: Resources, execution: Execution) -> ModelCalls:
    access = ModelAccess(store=store, llm=InstantModel(), prices=GenaiPrices(), keyring=resources.keyring)
    return ModelCalls(access, execution)


def build_step(execution: Execution, path: str, status: Any) -> RunStep:
    return RunStep(
        execution_id=execution.id,
        path=path,
        kind="model",
        name="m",
        status=status,
        attempt=execution.attempt,
        started_at=datetime.now(UTC),
    )


# Free, so that no budget is reserved before the call.
REQUEST = ModelRequest(
    target=ModelTarget(name="m", provider="local", model="m"), messages=(ChatMessage(role="user", content="Hi"),)
)


async def test_commit_whose_answer_was_lost_counts_once(
    acme: TenantClient, provider: FakeProvider, resources: Resources
) -> None:
    execution = await claim_execution(acme, provider, resources)
    calls = create_model_calls(ForgetfulStore(resources.store), resources, execution)

    async def write_step(tx: Tx, _: ModelReply) -> None:
        await steps.write_step(tx, build_step(execution, "9", "finished"), [])

    async with calls.open_call(REQUEST) as model_call:
        async for _ in model_call:
            pass
        await model_call.settle(write_step)
    costs = (await acme.http.get(f"/costs?execution_id={execution.id}")).json()
    assert [cost["total_tokens"] for cost in costs["items"]] == [2000]
    for _ in range(2):  # the same attempt may write a step again, and its event is written once
        async with resources.store.tenant_transaction(acme.tenant_id) as tx:
            event = ExecutionEvent(type="tool_result", data={"tool": "t"}, at=tx.now)
            await steps.write_step(tx, build_step(execution, "9.0", "finished"), [event])
    await acme.http.post(f"/executions/{execution.id}/cancel")
    kinds = [event["type"] for event in await stream_events(acme, execution.id)]
    assert (kinds.count("tool_result"), kinds.count("cost"), kinds.count("model_call")) == (1, 1, 1)
    execution_after = (await acme.http.get(f"/executions/{execution.id}")).json()
    assert execution_after["steps_completed"] == 2


async def test_run_that_ends_during_settlement_is_billed(
    acme: TenantClient, provider: FakeProvider, resources: Resources
) -> None:
    execution = await claim_execution(acme, provider, resources)
    store = ForgetfulStore(resources.store, loses=0, seconds=0.3)

    async def run_call() -> None:
        async for _ in create_model_calls(store, resources, execution).stream_answer(REQUEST):
            pass

    task = asyncio.create_task(run_call())
    await store.committing.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    costs = (await acme.http.get(f"/costs?execution_id={execution.id}")).json()
    await acme.http.post(f"/executions/{execution.id}/cancel")
    assert [cost["total_tokens"] for cost in costs["items"]] == [2000]
