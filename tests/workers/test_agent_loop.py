"""What strangers say to a model agent's worker, and what is lost on the way: no run hangs, nothing counts twice."""

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
HALF = "half \ud83d of a pair"


async def test_broken_text_of_a_provider_ends_nothing_but_its_call(acme: TenantClient, provider: FakeProvider) -> None:
    name = await create_model(acme, provider, generate_name())
    made = await create_model_agent(acme, name)
    provider.queue_failure(500, message=HALF, to=name)
    provider.queue_text("Fine", to=name)
    assert (await run_execution(acme, made["id"], task="Go"))["result"] == {"content": "Fine"}
    provider.queue_failure(400, message=HALF + "\0", to=name)
    refused = await run_execution(acme, made["id"], task="Go")
    assert (refused["error_type"], "half \ufffd of a pair" in refused["error_message"]) == ("refused", True)
    claude = generate_name("claude")
    registered = {"name": claude, "provider": "anthropic", "model": claude, "base_url": provider.root}
    assert (await acme.http.post("/models", json=registered)).status_code == 201
    provider.queue_answer(ScriptedAnswer(tokens=[HALF]), claude)
    ended = await run_execution(acme, (await create_model_agent(acme, claude))["id"], task="Go")
    assert ended["result"] == {"content": "half \ufffd of a pair"}


async def test_numbers_that_no_server_can_have_used(acme: TenantClient, provider: FakeProvider) -> None:
    name = await create_model(acme, provider, generate_name(), price=PRICE)
    made = await create_model_agent(acme, name)
    for prompt, completion in ((-5, 10), (10**40, 1), (1, 10**18)):
        provider.queue_text("Fine", prompt=prompt, completion=completion, to=name)
        ended = await run_execution(acme, made["id"], task="Go")
        assert ended["result"] == {"content": "Fine"}, ended
        [cost] = (await acme.http.get(f"/costs?execution_id={ended['id']}")).json()["items"]
        assert (cost["estimated"], 0 < cost["total_tokens"] < 100) == (True, True)


async def test_names_and_answers_that_no_column_holds(acme: TenantClient, provider: FakeProvider) -> None:
    name = await create_model(acme, provider, generate_name())
    made = await create_model_agent(acme, name, tools=["filesystem_write", "filesystem_read", "python"], verbose=True)
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
    for one in calls.values():
        provider.queue_text("", calls=[one], to=name)
    provider.queue_text("Done", to=name)
    ended = await run_execution(acme, made["id"], task="Go", mode="yolo")
    assert ended["result"] == {"content": "Done"}, ended
    told = [one for one in await stream_events(acme, ended["id"]) if one["type"] == "tool_result"]
    for expected, found in zip(calls, told, strict=True):
        assert expected in str(found.get("result", found.get("error"))), found
    logs = await acme.http.get(f"/logs/{made['id']}")
    assert logs.status_code == 200, logs.text


async def test_a_schema_cannot_keep_the_worker_busy(acme: TenantClient) -> None:
    properties = {"q": {"type": "string", "pattern": "^(a+)+$"}, "n": {"type": 5}}
    body = {
        "name": generate_name("tool"),
        "configuration": {"api_endpoint": "http://127.0.0.1:9/", "parameters": properties},
    }
    tool = (await acme.http.post("/tools", json=body)).json()
    bad = await acme.http.post(f"/tools/{tool['id']}/execute", json={"args": {"q": "a" * 60 + "b"}})
    assert (bad.status_code, "does not match" in bad.text) == (422, True)
    # A type that nobody knows is left to the endpoint, which is not there.
    unknown = await acme.http.post(f"/tools/{tool['id']}/execute", json={"args": {"n": 1}})
    assert (unknown.status_code, "cannot be reached" in unknown.text) == (422, True), unknown.text


async def test_calls_of_one_id_are_decided_on_apart(acme: TenantClient, provider: FakeProvider) -> None:
    name = await create_model(acme, provider, generate_name())
    made = await create_model_agent(acme, name, tools=["filesystem_write"])
    twice = [build_call("filesystem_write", {"path": path, "content": "x"}, id="same") for path in ("a", "b")]
    provider.queue_text("", calls=twice, to=name)
    provider.queue_text("Done", to=name)
    execution_id = await start_execution(acme, made["id"], task="Go")
    waiting = (await wait_for_status(acme, execution_id, "waiting"))["waiting_for"]
    first = {"call_id": waiting[0]["call_id"]}
    narrowed = (await acme.http.post(f"/executions/{execution_id}/approve", json=first)).json()
    assert [one["args"]["path"] for one in narrowed["waiting_for"]] == ["b"]
    await acme.http.post(f"/executions/{execution_id}/reject", json={})
    await wait_for_status(acme, execution_id, "completed")
    files = (await acme.http.get(f"/executions/{execution_id}/files")).json()["items"]
    assert [one["path"] for one in files] == ["a"]


async def test_one_answer_cannot_ask_for_everything(acme: TenantClient, provider: FakeProvider) -> None:
    name = await create_model(acme, provider, generate_name())
    made = await create_model_agent(acme, name, tools=["filesystem_write"])
    provider.queue_text("", calls=[build_call("nothing", {}) for _ in range(steps.MAX_CALLS_PER_ANSWER + 5)], to=name)
    provider.queue_text("Done", to=name)
    ended = await run_execution(acme, made["id"], task="Go")
    told = await stream_events(acme, ended["id"])
    assert sum(one["type"] == "tool_result" for one in told) == steps.MAX_CALLS_PER_ANSWER
    assert any(one["type"] == "warning" for one in told)
    answered = [one for one in provider.requests if one.model == name][-1].body["messages"]
    assert sum(one["role"] == "tool" for one in answered) == steps.MAX_CALLS_PER_ANSWER + 5, (
        "providers want an answer to each"
    )


async def test_a_name_is_a_file_or_a_folder(acme: TenantClient, provider: FakeProvider) -> None:
    name = await create_model(acme, provider, generate_name())
    made = await create_model_agent(acme, name, tools=["filesystem_write", "python"])
    for path in ("a/b", "a", "a/b/c", "a/d"):
        provider.queue_text("", calls=[build_call("filesystem_write", {"path": path, "content": "x"})], to=name)
    provider.queue_text("", calls=[build_call("python", {"code": "import os; sorted(os.listdir('a'))"})], to=name)
    provider.queue_text("Done", to=name)
    ended = await run_execution(acme, made["id"], task="Go", mode="yolo")
    told = [one for one in await stream_events(acme, ended["id"]) if one["type"] == "tool_result"]
    assert ["error" in one for one in told] == [False, True, True, False, False]
    assert told[-1]["result"] == {"value": "['b', 'd']"}


async def test_a_number_that_no_log_reaches(system: System, acme: TenantClient, provider: FakeProvider) -> None:
    name = await create_model(acme, provider, generate_name())
    made = await create_model_agent(acme, name)
    ended = await run_execution(acme, made["id"], task="Go")
    url = f"ws://127.0.0.1:{system.port}/api/v1/agents/{made['name']}/stream"
    async with connect(url, additional_headers={"Authorization": acme.http.headers["Authorization"]}) as socket:
        await socket.send(json.dumps({"execution_id": ended["id"], "after": 2**31}))
        assert json.loads(await socket.recv())["error"] == "invalid_field"


async def test_large_events_come_a_few_at_a_time_and_all_of_them(
    acme: TenantClient, provider: FakeProvider, resources: Resources
) -> None:
    execution = await held(acme, provider, resources)
    async with resources.store.tenant_transaction(acme.tenant_id) as tx:
        large = [
            ExecutionEvent(type="tool_result", data={"n": n, "result": "x" * 200_000}, at=tx.now) for n in range(20)
        ]
        assert await tx.events.append_if_leased(execution.id, execution.attempt, large)
    async with resources.store.autocommit() as tx:
        asked = EventQuery(tenant_id=acme.tenant_id, execution_id=execution.id, seq=0)
        [found] = await tx.events.find_slices([asked], 500)
    assert found is not None
    assert (len(found.events) < 12, found.is_complete) == (True, False)
    await acme.http.post(f"/executions/{execution.id}/cancel")
    began = time.monotonic()
    told = await stream_events(acme, execution.id)
    assert [one["n"] for one in told if one["type"] == "tool_result"] == list(range(20))
    assert time.monotonic() - began < 3, "nothing is waited for while there is more"


async def test_inputs_do_not_multiply_without_end(acme: TenantClient, provider: FakeProvider) -> None:
    made = await create_model_agent(
        acme, await create_model(acme, provider, generate_name()), instructions="{x}" * 30_000
    )
    bomb = {"task": "Go", "inputs": {"x": "y" * 1000}}
    refused = await acme.http.post(f"/agents/{made['id']}/execute", json=bomb)
    assert (refused.status_code, "inputs" in refused.text) == (422, True), refused.text


# The log of many runs, written together


class Slow:
    """A store whose log takes its time, and chokes on one run."""

    def __init__(self, seconds: float = 0.0, bad: str = "") -> None:
        self.order: list[str] = []
        self._seconds, self._bad = seconds, bad
        self.events, self.announce_status = self, lambda *_: None

    @asynccontextmanager
    async def autocommit(self) -> AsyncIterator[Any]:
        yield self

    async def append_batches(self, written: list[AttemptEvents]) -> set[tuple[str, int]]:
        await asyncio.sleep(self._seconds)
        if any(one.execution_id == self._bad for one in written):
            raise UnicodeError(self._bad)
        self.order += [one.execution_id for one in written]
        return {(one.execution_id, one.attempt) for one in written}


def attempt(execution_id: str) -> Any:
    return SimpleNamespace(id=execution_id, attempt=1)


@asynccontextmanager
async def writing(store: Slow) -> AsyncIterator[EventWriter]:
    scribe = EventWriter(store, lambda: datetime.now(UTC), pause=0.01)  # type: ignore[arg-type]
    task = asyncio.create_task(scribe.run())
    try:
        yield scribe
    finally:
        task.cancel()


async def test_what_is_on_its_way_is_waited_for() -> None:
    store = Slow(seconds=0.2)
    async with writing(store) as scribe:
        scribe.add_event(attempt("one"), "token", content="Hi", step="1")
        await asyncio.sleep(0.1)
        await scribe.flush(attempt("one"))
        assert store.order == ["one"]


async def test_what_cannot_be_written_fails_its_own_run() -> None:
    store = Slow(bad="two")
    async with writing(store) as scribe:
        for name in ("one", "two", "three"):
            scribe.add_event(attempt(name), "token", content="Hi", step="1")
        async with asyncio.timeout(5):
            flushed = [scribe.flush(attempt(name)) for name in ("one", "two", "three")]
            results = await asyncio.gather(*flushed, return_exceptions=True)
            with pytest.raises(UnicodeError):
                await scribe.flush(attempt("two"))
            scribe.add_event(attempt("one"), "token", content="more", step="1")
            await scribe.flush(attempt("one"))
    assert [type(one) for one in results] == [type(None), UnicodeError, type(None)]
    assert sorted(store.order) == ["one", "one", "three"]


# Commits whose answer is lost, and ends in the middle of one


class Forgetful:
    """A store that commits, and then says for once that it did not; or that takes its time to commit."""

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


class Said:
    """A provider that answers at once."""

    async def stream(self, ask: ModelCall) -> AsyncGenerator[ReplyPart, None]:
        yield TextDelta("Hi")
        usage = ModelUsage(prompt_tokens=1000, completion_tokens=1000)
        yield ModelReply(message=ChatMessage(role="assistant", content="Hi"), finish="stop", usage=usage)


async def held(acme: TenantClient, provider: FakeProvider, resources: Resources) -> Execution:
    """A run that a worker holds, whose model says nothing."""
    name = await create_model(acme, provider, generate_name())
    provider.queue_hang(to=name)
    execution_id = await start_execution(acme, (await create_model_agent(acme, name))["id"], task="Go")
    await wait_for_status(acme, execution_id, "running")
    async with resources.store.tenant_transaction(acme.tenant_id) as tx:
        found = await tx.executions.get(execution_id)
    assert found is not None
    return found


def calling(store: Any, resources: Resources, execution: Execution) -> ModelCalls:
    access = ModelAccess(store=store, llm=Said(), prices=GenaiPrices(), keyring=resources.keyring)
    return ModelCalls(access, execution)


def step(execution: Execution, path: str, status: Any) -> RunStep:
    return RunStep(
        execution_id=execution.id,
        path=path,
        kind="model",
        name="m",
        status=status,
        attempt=execution.attempt,
        started_at=datetime.now(UTC),
    )


# Free, so that nothing has to be held before it is called.
REQUEST = ModelRequest(
    target=ModelTarget(name="m", provider="local", model="m"), messages=(ChatMessage(role="user", content="Hi"),)
)


async def test_a_commit_whose_answer_was_lost_counts_once(
    acme: TenantClient, provider: FakeProvider, resources: Resources
) -> None:
    execution = await held(acme, provider, resources)
    calls = calling(Forgetful(resources.store), resources, execution)

    async def also(tx: Tx, _: ModelReply) -> None:
        await steps.write_step(tx, step(execution, "9", "finished"), [])

    async with calls.open_call(REQUEST) as model_call:
        async for _ in model_call:
            pass
        await model_call.settle(also)
    costs = (await acme.http.get(f"/costs?execution_id={execution.id}")).json()
    assert [one["total_tokens"] for one in costs["items"]] == [2000]
    for _ in range(2):  # a step too: the same attempt may write it again, and nothing is told twice
        async with resources.store.tenant_transaction(acme.tenant_id) as tx:
            told = ExecutionEvent(type="tool_result", data={"tool": "t"}, at=tx.now)
            await steps.write_step(tx, step(execution, "9.0", "finished"), [told])
    await acme.http.post(f"/executions/{execution.id}/cancel")
    kinds = [one["type"] for one in await stream_events(acme, execution.id)]
    assert (kinds.count("tool_result"), kinds.count("cost"), kinds.count("model_call")) == (1, 1, 1)
    found = (await acme.http.get(f"/executions/{execution.id}")).json()
    assert found["steps_completed"] == 2


async def test_a_run_that_ends_while_a_call_is_settled_pays_for_it(
    acme: TenantClient, provider: FakeProvider, resources: Resources
) -> None:
    execution = await held(acme, provider, resources)
    store = Forgetful(resources.store, loses=0, seconds=0.3)

    async def ask() -> None:
        async for _ in calling(store, resources, execution).stream_answer(REQUEST):
            pass

    task = asyncio.create_task(ask())
    await store.committing.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    costs = (await acme.http.get(f"/costs?execution_id={execution.id}")).json()
    await acme.http.post(f"/executions/{execution.id}/cancel")
    assert [one["total_tokens"] for one in costs["items"]] == [2000]
