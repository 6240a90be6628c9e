"""The export of traces: each ended execution reaches the collector, in OpenTelemetry's own words, whatever happens."""

import asyncio
import base64
import contextlib
import gzip
import json
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from aiohttp import web
from google.protobuf import json_format
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.trace.v1 import trace_pb2

from domain import costs, executions, traces
from domain.costs import BilledCall, CostAttribution
from domain.executions import AttemptOutcome, Execution, ExecutionStart, RunStep, steps
from domain.llms import ModelUsage
from domain.ports import SandboxOutcome
from domain.shared import ids
from domain.shared.access import Caller
from domain.shared.secrets import Secret
from domain.traces import TracedRun, TraceSources
from infra import otlp
from infra.otlp import CollectorRefusal, CollectorUnavailable, TraceCollector
from infra.postgres.db import create_engine
from infra.postgres.store import PostgresStore
from infra.settings import SettingsError, parse_headers, read_settings
from tests.conftest import run_system
from tests.support.clients import register_tenant
from tests.support.fake_provider import FakeProvider
from tests.support.isolated_database import NOW, IsolatedDatabase, SilentBell, open_isolated_database
from tests.support.model_agents import create_model, create_model_agent, run_execution
from workers.record.traces import EXPORT_LEASE, TraceExporter


@dataclass
class Server:
    """A collector. `answers` are the next ones, (status, headers, body); else it takes everything."""

    url: str = ""
    answers: list[tuple[int, dict[str, str], bytes]] = field(default_factory=list)
    asked: list[tuple[dict[str, str], dict[str, Any]]] = field(default_factory=list)
    wait: asyncio.Event | None = None

    @property
    def bodies(self) -> list[dict[str, Any]]:
        return [body for _, body in self.asked]

    @property
    def traces(self) -> list[str]:
        """The ids of the traces that came, in order."""
        return [one["resourceSpans"][0]["scopeSpans"][0]["spans"][0]["traceId"] for one in self.bodies]

    async def handle(self, request: web.Request) -> web.Response:
        assert (request.method, request.path) == ("POST", "/v1/traces")
        headers = {name.lower(): value for name, value in request.headers.items()}
        # aiohttp's server inflates it, as the header says.
        self.asked.append((headers, json.loads(await request.read())))
        if self.wait is not None:
            await self.wait.wait()
        status, more, body = self.answers.pop(0) if self.answers else (200, {}, b"{}")
        return web.Response(status=status, headers={"Content-Type": "application/json", **more}, body=body)


@contextlib.asynccontextmanager
async def serving(port: int = 0) -> AsyncIterator[Server]:
    server, app = Server(), web.Application(client_max_size=1 << 26)
    app.router.add_route("*", "/{path:.*}", server.handle)
    runner = web.AppRunner(app)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", port)
    await site.start()
    server.url = f"http://127.0.0.1:{runner.addresses[0][1]}"
    try:
        yield server
    finally:
        await runner.cleanup()


def parsed(body: dict[str, Any]) -> ExportTraceServiceRequest:
    """As every receiver reads it; but that ids are hexadecimal in OTLP, where protobuf's JSON has base64."""

    def bytes_of(value: Any) -> Any:
        if isinstance(value, list):
            return [bytes_of(one) for one in value]
        if not isinstance(value, dict):
            return value
        ids_ = ("traceId", "spanId", "parentSpanId")
        return {
            name: base64.b64encode(bytes.fromhex(one)).decode() if name in ids_ else bytes_of(one)
            for name, one in value.items()
        }

    return json_format.ParseDict(bytes_of(body), ExportTraceServiceRequest())


def values(attributes: Any) -> dict[str, Any]:
    found = {}
    for one in attributes:
        kind = one.value.WhichOneof("value")
        value = getattr(one.value, kind)
        found[one.key] = [item.string_value for item in value.values] if kind == "array_value" else value
    return found


def nanoseconds(at: datetime) -> int:
    return (at - datetime(1970, 1, 1, tzinfo=UTC)) // timedelta(microseconds=1) * 1000


# What is sent.


def test_a_trace_in_otlp() -> None:
    begun, root_id = NOW + timedelta(microseconds=123), ids.generate_id("exec")
    one = traces.Span(
        id="a",
        parent_id=root_id,
        name="m",
        kind="model_call",
        status="ok",
        started_at=begun,
        ended_at=begun + timedelta(seconds=2),
        cost_usd=0.25,
        total_tokens=7,
        attributes={
            "gen_ai.operation.name": "chat",
            "gen_ai.request.model": "gpt",
            "gen_ai.request.temperature": 0.5,
            "gen_ai.usage.input_tokens": 3,
            "gen_ai.response.finish_reasons": ["stop"],
            "paddock.usage.estimated": True,
        },
    )
    other = traces.Span(
        id="b",
        parent_id=root_id,
        name="t",
        kind="tool",
        status="cancelled",
        started_at=begun,
        ended_at=None,
        attributes={"gen_ai.operation.name": "execute_tool", "error.type": "cancelled"},
        events=[traces.SpanEvent(name="approved", at=begun, attributes={"paddock.decided_by": "user_x"})],
    )
    root = traces.Span(
        id=root_id,
        parent_id=None,
        name="Team",
        kind="crew",
        status="error",
        started_at=begun,
        ended_at=begun + timedelta(seconds=3),
        attributes={"gen_ai.operation.name": "invoke_workflow", "paddock.error.message": "It broke."},
        children=[one, other],
    )
    trace_id = ids.decode_id("exec", root_id).hex
    made = traces.Trace(execution_id=root_id, trace_id=trace_id, status="failed", truncated=True, spans=[root])
    body = otlp.build_request(made, "acme")
    assert json.loads(gzip.decompress(otlp.pack_request(made, "acme"))) == body
    (of_resource,) = parsed(body).resource_spans
    told = values(of_resource.resource.attributes)
    assert (told["service.name"], told["paddock.tenant.id"]) == ("paddock", "acme")
    (scope,) = of_resource.scope_spans
    first, second, third = scope.spans
    assert [span.name for span in scope.spans] == ["invoke_workflow Team", "chat gpt", "execute_tool t"]
    assert {span.trace_id.hex() for span in scope.spans} == {trace_id}
    assert first.parent_span_id == b""
    assert {second.parent_span_id, third.parent_span_id} == {first.span_id}
    assert len({span.span_id for span in scope.spans}) == 3
    assert {len(span.span_id) for span in scope.spans} == {8}
    assert second.kind == trace_pb2.Span.SPAN_KIND_CLIENT
    assert {first.kind, third.kind} == {trace_pb2.Span.SPAN_KIND_INTERNAL}
    assert second.start_time_unix_nano == nanoseconds(begun)
    assert second.end_time_unix_nano == nanoseconds(begun) + 2_000_000_000
    # What has not ended, ends with what it belongs to.
    assert third.end_time_unix_nano == first.end_time_unix_nano == nanoseconds(begun) + 3_000_000_000
    told = values(second.attributes)
    assert told["gen_ai.response.finish_reasons"] == ["stop"]
    assert (told["gen_ai.request.temperature"], told["gen_ai.usage.input_tokens"]) == (0.5, 3)
    assert (told["paddock.cost_usd"], told["paddock.total_tokens"]) == (0.25, 7)
    assert told["paddock.usage.estimated"] is True
    assert told["paddock.span.kind"] == "model_call"
    assert values(first.attributes)["paddock.truncated"] is True
    codes = [span.status.code for span in scope.spans]
    assert codes == [trace_pb2.Status.STATUS_CODE_ERROR, trace_pb2.Status.STATUS_CODE_UNSET, 2]
    assert [span.status.message for span in scope.spans] == ["It broke.", "", "cancelled"]
    (event,) = third.events
    assert (event.name, event.time_unix_nano) == ("approved", nanoseconds(begun))
    assert values(event.attributes) == {"paddock.decided_by": "user_x"}


def test_what_never_began_has_times_all_the_same() -> None:
    part = TracedRun(
        id=ids.generate_id("exec"),
        tenant_id="t",
        kind="agent",
        status="cancelled",
        run_name="a-1",
        created_at=NOW,
        completed_at=NOW + timedelta(seconds=1),
    )
    body = otlp.build_request(traces.build_trace(TraceSources(runs=[part])), "t")
    (span,) = parsed(body).resource_spans[0].scope_spans[0].spans
    assert span.end_time_unix_nano - span.start_time_unix_nano == 1_000_000_000


# To whom.


async def test_what_a_collector_answers() -> None:
    async with serving() as server:
        collector = TraceCollector(
            f"{server.url}/", parse_headers(Secret("X-Team=a%20b, authorization=Bearer%20x"), "otlp_headers")
        )
        body = gzip.compress(b'{"resourceSpans":[{"scopeSpans":[{"spans":[{"traceId":"00"}]}]}]}')
        try:
            assert await collector.send_request(body) is None
            headers, _ = server.asked[0]
            assert (headers["x-team"], headers["authorization"]) == ("a b", "Bearer x")
            assert (headers["content-type"], headers["content-encoding"]) == ("application/json", "gzip")
            server.answers.append((200, {}, b'{"partialSuccess":{"rejectedSpans":"2","errorMessage":"too old"}}'))
            assert await collector.send_request(body) == "2 spans: too old"
            server.answers.append((200, {}, b"no json at all"))
            assert await collector.send_request(body) is None
            for status in (429, 502, 503, 504):
                server.answers.append((status, {"Retry-After": "7"}, b""))
                with pytest.raises(CollectorUnavailable) as away:
                    await collector.send_request(body)
                assert away.value.retry_after_seconds == 7
            for status in (301, 400, 401, 404, 413, 500):
                server.answers.append((status, {"Location": "http://127.0.0.1:1/"}, b"never"))
                with pytest.raises(CollectorRefusal):
                    await collector.send_request(body)
        finally:
            await collector.close()
    whole = TraceCollector(f"{server.url}/v1/traces", {})
    with pytest.raises(CollectorUnavailable):
        await whole.send_request(body)
    await whole.close()


def test_pauses_grow_to_an_end_and_heed_what_was_asked() -> None:
    longest = [max(otlp.compute_retry_delay(tries) for _ in range(50)) for tries in range(1, 30)]
    assert all(timedelta(seconds=1) <= one <= timedelta(seconds=300) for one in longest)
    assert otlp.compute_retry_delay(3) < otlp.compute_retry_delay(20)
    assert otlp.compute_retry_delay(1, 600) == timedelta(seconds=600)
    assert otlp.compute_retry_delay(1, 1e9) <= timedelta(hours=1)


def test_settings_that_cannot_be(system: Any) -> None:
    env = dict(system.environment)
    for name, value in (
        ("PADDOCK_OTLP_ENDPOINT", "127.0.0.1:4318"),
        ("PADDOCK_OTLP_HEADERS", "no-value"),
        ("PADDOCK_OTLP_HEADERS", "a=b%0d%0ac: d"),
        ("PADDOCK_OTLP_HEADERS", "a b=secret"),
    ):
        with pytest.raises(SettingsError, match=name) as refused:
            read_settings({**env, name: value})
        assert "secret" not in str(refused.value)
    given = read_settings({**env, "PADDOCK_OTLP_ENDPOINT": "https://c:4318", "PADDOCK_OTLP_HEADERS": "a=b,,c=d=e"})
    assert parse_headers(given.otlp_headers, "otlp_headers") == {"a": "b", "c": "d=e"}


# What is due, and what becomes of it.


@dataclass
class World:
    """A database of its own with a clock that stands still, two exporters and a collector."""

    database: IsolatedDatabase
    store: PostgresStore
    caller: Caller
    server: Server
    collector: TraceCollector
    clock: list[datetime]
    agent_id: str

    def exporter(self) -> TraceExporter:
        return TraceExporter(self.store, self.collector)

    def later(self, **much: float) -> None:
        self.clock[0] += timedelta(**much)

    async def begun(self) -> Execution:
        async with self.store.transaction(self.caller) as tx:
            await executions.start_execution(tx, self.caller, self.agent_id, ExecutionStart())
        async with self.store.system_transaction() as tx:
            (claimed,) = await executions.claim_executions(tx, "w", timedelta(minutes=1), 1)
        return claimed

    async def ended(self, **outcome: Any) -> Execution:
        """An execution that has just ended."""
        one = await self.begun()
        await self.finish(one, **outcome)
        return one

    async def finish(self, one: Execution, **outcome: Any) -> None:
        async with self.store.system_transaction() as tx:
            made = SandboxOutcome(**(outcome or {"output": b"1"}))
            await executions.settle_executions(tx, [AttemptOutcome(execution=one, outcome=made, events=[])])

    async def left(self) -> list[tuple[str, int]]:
        rows = await self.database.owner.fetch("SELECT execution_id, tries FROM trace_exports ORDER BY execution_id")
        return [(ids.encode_id("exec", row["execution_id"]), row["tries"]) for row in rows]

    async def due_in(self) -> float:
        """Seconds until the next one is due."""
        at = await self.database.owner.fetchval("SELECT min(due_at) FROM trace_exports")
        return float((at - self.clock[0]).total_seconds())


def trace_of(one: Execution) -> str:
    return ids.decode_id("exec", one.id).hex


@pytest.fixture
async def world(system: Any) -> AsyncIterator[World]:
    async with open_isolated_database(system) as database, serving() as server:
        clock = [NOW]
        engine = create_engine(database.url, pool_size=6, application="tests")
        store = PostgresStore(engine, SilentBell(), lambda: clock[0])
        collector = TraceCollector(server.url, {})
        caller = await database.add_tenant()
        try:
            agent_id = await database.add_agent(caller)
            yield World(database, store, caller, server, collector, clock, agent_id)
        finally:
            await collector.close()
            await store.close()


async def test_only_what_ends_once_it_is_switched_on(world: World) -> None:
    before = await world.ended()
    exporter = world.exporter()
    assert await exporter.export_traces() is False
    running_then = await world.begun()
    ended = await world.ended(error_type="ValueError", error_message="no")
    await world.finish(running_then)
    # Not at once: the last bills and steps are written after the end.
    await exporter.export_traces()
    assert world.server.asked == []
    world.later(seconds=3)
    await exporter.export_traces()
    assert set(world.server.traces) == {trace_of(ended), trace_of(running_then)}
    assert trace_of(before) not in world.server.traces
    assert await world.left() == []
    # Once.
    world.later(days=1)
    await exporter.export_traces()
    assert len(world.server.asked) == 2
    spans = [parsed(body).resource_spans[0] for body in world.server.bodies]
    told = {values(one.resource.attributes)["paddock.tenant.id"] for one in spans}
    assert told == {world.caller.tenant_id}


async def test_who_has_not_asked_for_a_week_has_switched_it_off(world: World) -> None:
    exporter = world.exporter()
    await exporter.export_traces()
    world.later(days=6)
    kept = await world.ended()
    world.later(days=2)
    await world.ended()
    assert [name for name, _ in await world.left()] == [kept.id]
    # A process that goes on says so now and then.
    await exporter.export_traces()
    again = await world.ended()
    assert again.id in [name for name, _ in await world.left()]


async def test_steps_of_a_plan_are_no_traces_of_their_own(world: World) -> None:
    exporter = world.exporter()
    await exporter.export_traces()
    parent, child = await world.begun(), await world.begun()
    await world.database.owner.execute(
        "UPDATE executions SET parent_id = $1, root_id = $1, step = 'a' WHERE id = $2",
        *(ids.decode_id("exec", parent.id), ids.decode_id("exec", child.id)),
    )
    # The whole has ended, a part of it is still being stopped.
    await world.finish(parent)
    world.later(seconds=5)
    await exporter.export_traces()
    assert world.server.asked == []
    await world.finish(child)
    world.later(seconds=6)
    await exporter.export_traces()
    (body,) = world.server.bodies
    first, second = parsed(body).resource_spans[0].scope_spans[0].spans
    assert second.parent_span_id == first.span_id
    assert {span.trace_id.hex() for span in (first, second)} == {trace_of(parent)}
    assert await world.left() == []


async def test_what_never_stops_is_not_waited_for_for_ever(world: World) -> None:
    exporter = world.exporter()
    await exporter.export_traces()
    parent, child = await world.begun(), await world.begun()
    await world.database.owner.execute(
        "UPDATE executions SET parent_id = $1, root_id = $1, step = 'a' WHERE id = $2",
        *(ids.decode_id("exec", parent.id), ids.decode_id("exec", child.id)),
    )
    await world.finish(parent)
    world.later(minutes=11)
    await exporter.export_traces()
    (body,) = world.server.bodies
    first, second = parsed(body).resource_spans[0].scope_spans[0].spans
    assert second.end_time_unix_nano >= first.end_time_unix_nano


async def test_several_exporters_send_each_once(world: World) -> None:
    first, second = world.exporter(), world.exporter()
    await first.export_traces()
    made = [await world.ended() for _ in range(40)]
    world.later(seconds=3)
    for _ in range(3):
        await asyncio.gather(first.export_traces(), second.export_traces())
    assert sorted(world.server.traces) == sorted(trace_of(one) for one in made)
    assert await world.left() == []


async def test_nothing_is_lost_while_the_collector_is_away(world: World) -> None:
    exporter = world.exporter()
    await exporter.export_traces()
    made = [await world.ended() for _ in range(10)]
    world.later(seconds=3)
    away = TraceExporter(world.store, TraceCollector("http://127.0.0.1:1", {}))
    assert await away.export_traces() is False
    # As few as it takes to see that nobody is there count as tried.
    tried = [one for one in await world.left() if one[1] == 1]
    assert len(await world.left()) == 10
    assert 1 <= len(tried) <= 4
    # It rests: not asked again in the same moment.
    assert await away.export_traces() is False
    assert [one for one in await world.left() if one[1] == 1] == tried
    for _ in range(6):
        world.later(minutes=10)
        await away.export_traces()
    assert len(await world.left()) == 10
    world.later(minutes=10)
    await exporter.export_traces()
    assert sorted(world.server.traces) == sorted(trace_of(one) for one in made)
    assert await world.left() == []


async def test_who_is_asked_to_wait_waits(world: World) -> None:
    exporter = world.exporter()
    await exporter.export_traces()
    await world.ended()
    world.later(seconds=3)
    world.server.answers.append((429, {"Retry-After": "1000"}, b""))
    await exporter.export_traces()
    assert len(world.server.asked) == 1
    assert await world.due_in() == pytest.approx(1000)
    world.later(seconds=900)
    await exporter.export_traces()
    assert len(world.server.asked) == 1
    world.later(seconds=200)
    await exporter.export_traces()
    assert len(world.server.asked) == 2
    assert await world.left() == []


async def test_what_is_refused_is_given_up_alone(world: World) -> None:
    exporter = world.exporter()
    await exporter.export_traces()
    for _ in range(3):
        await world.ended()
    world.later(seconds=3)
    world.server.answers.append((400, {}, b"bad data"))
    await exporter.export_traces()
    assert len(world.server.asked) == 3
    assert await world.left() == []


async def test_one_that_cannot_be_made_keeps_nobody_waiting(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    exporter = world.exporter()
    await exporter.export_traces()
    broken, fine = await world.ended(), await world.ended()
    world.later(seconds=3)
    made = otlp.pack_request

    def fails(trace: traces.Trace, tenant_id: str) -> bytes:
        if trace.execution_id == broken.id:
            raise RuntimeError("a mistake of ours")
        return made(trace, tenant_id)

    monkeypatch.setattr("workers.record.traces.pack_request", fails)
    await exporter.export_traces()
    assert world.server.traces == [trace_of(fine)]
    assert await world.left() == [(broken.id, 1)]
    monkeypatch.undo()
    world.later(minutes=6)
    await exporter.export_traces()
    assert await world.left() == []


async def test_a_worker_that_is_told_to_stop_gives_back_and_one_that_dies_is_waited_out(world: World) -> None:
    exporter = world.exporter()
    await exporter.export_traces()
    one = await world.ended()
    world.later(seconds=3)
    world.server.wait = asyncio.Event()
    task = asyncio.create_task(exporter.export_traces())
    while not world.server.asked:
        await asyncio.sleep(0.01)
    # In the middle of sending: nobody else has it.
    await world.exporter().export_traces()
    assert len(world.server.asked) == 1
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    world.server.wait.set()
    assert await world.left() == [(one.id, 0)]
    # Claimed, and never heard of again.
    async with world.store.system_transaction() as tx:
        assert [due.execution_id for due in await tx.traces.claim_exports(10, tx.now, tx.now + EXPORT_LEASE)] == [
            one.id
        ]
    await exporter.export_traces()
    assert len(world.server.asked) == 1
    world.later(minutes=11)
    await exporter.export_traces()
    assert set(world.server.traces) == {trace_of(one)}
    assert await world.left() == []


async def test_a_database_that_does_not_answer_is_waited_out(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    from domain.shared.errors import DomainError

    exporter = world.exporter()
    await exporter.export_traces()
    one = await world.ended()
    world.later(seconds=3)

    def away(tenant_id: str) -> Any:
        raise DomainError("unavailable", "Away.")

    monkeypatch.setattr(world.store, "tenant_transaction", away)
    with pytest.raises(DomainError):
        await exporter.export_traces()
    monkeypatch.undo()
    assert await world.left() == [(one.id, 0)]
    await exporter.export_traces()
    assert world.server.traces == [trace_of(one)]


async def test_what_is_exported_is_what_the_api_shows(world: World) -> None:
    """Names, parents, times and sums of a run with steps and bills."""
    exporter = world.exporter()
    await exporter.export_traces()
    one = await world.begun()
    async with world.store.transaction(world.caller) as tx:
        for path, kind, length in (("1", "model", 2), ("1.0", "tool", 3), ("2", "model", 4)):
            step = RunStep(
                execution_id=one.id,
                path=path,
                kind=kind,
                name="m",
                status="finished",
                attempt=1,
                started_at=tx.now,
                finished_at=tx.now + timedelta(seconds=length),
                output={"result": 1} if kind == "tool" else {"finish": "stop", "message": {}, "usage": None},
            )
            await steps.write_step(tx, step, [])
    for seconds in (2, 2):
        world.later(seconds=seconds)
        async with world.store.transaction(world.caller) as tx:
            call = BilledCall(
                provider="openai",
                model="gpt",
                model_name="m",
                status="ok",
                estimated=False,
                usage=ModelUsage(prompt_tokens=3, completion_tokens=4),
                cost_usd=0.125,
                duration_ms=1500.0,
                first_token_ms=100.0,
            )
            await costs.settle_call(tx, None, CostAttribution(execution_id=one.id, root_id=one.id), call)
    await world.finish(one)
    world.later(seconds=3)
    await exporter.export_traces()
    async with world.store.transaction(world.caller) as tx:
        (root,) = traces.build_trace(await traces.read_trace_sources(tx, one.id)).spans
    found = parsed(world.server.bodies[0]).resource_spans[0].scope_spans[0].spans
    assert [span.name for span in found] == [f"invoke_agent {root.name}", "execute_tool m", "chat gpt", "chat gpt"]
    shown = [root, *sorted(root.children, key=lambda span: span.started_at)]
    by_id = {otlp.derive_span_id(span): span for span in shown}
    for span in found:
        mine = by_id[span.span_id.hex()]
        assert span.start_time_unix_nano == nanoseconds(mine.started_at)
        assert span.end_time_unix_nano == nanoseconds(mine.ended_at)
        told = values(span.attributes)
        assert told["paddock.cost_usd"] == mine.cost_usd
        assert {name: told[name] for name in mine.attributes} == mine.attributes
    assert root.cost_usd == 0.25
    assert {span.parent_span_id for span in found[1:]} == {found[0].span_id}


async def test_a_record_worker_exports_where_a_collector_is_named(provider: FakeProvider) -> None:
    """The whole way: a system of its own, with the two variables set."""
    async with serving() as server:
        names = {"PADDOCK_OTLP_ENDPOINT": server.url, "PADDOCK_OTLP_HEADERS": "X-Token=abc"}
        async with run_system(**names) as system, register_tenant(system.url) as acme:
            name = await create_model(acme, provider, "echo")
            made = await create_model_agent(acme, name)
            ended = await run_execution(acme, made["id"], task="Say it back")
            assert ended["status"] == "completed", ended
            for _ in range(600):
                if server.asked:
                    break
                await asyncio.sleep(0.05)
    (headers, body), *more = server.asked
    assert more == []
    assert headers["x-token"] == "abc"
    (of_resource,) = parsed(body).resource_spans
    assert values(of_resource.resource.attributes)["paddock.tenant.id"] == acme.tenant_id
    root, asked = of_resource.scope_spans[0].spans
    assert root.trace_id == ids.decode_id("exec", ended["id"]).bytes
    assert (root.name, asked.name) == (f"invoke_agent {made['name']}", "chat echo")
    assert asked.parent_span_id == root.span_id
    assert "Say it back" not in json.dumps(body)
