"""Export traces: each ended execution reaches the collector in OpenTelemetry's terms, through outages and lost workers."""

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
class FakeCollector:
    """A collector. `answers` are the next ones, (status, headers, body); without them it accepts everything."""

    url: str = ""
    answers: list[tuple[int, dict[str, str], bytes]] = field(default_factory=list)
    requests: list[tuple[dict[str, str], dict[str, Any]]] = field(default_factory=list)
    may_answer: asyncio.Event | None = None

    @property
    def bodies(self) -> list[dict[str, Any]]:
        return [body for _, body in self.requests]

    @property
    def trace_ids(self) -> list[str]:
        """Return the ids of the traces that arrived, in order."""
        return [body["resourceSpans"][0]["scopeSpans"][0]["spans"][0]["traceId"] for body in self.bodies]

    async def handle(self, request: web.Request) -> web.Response:
        assert (request.method, request.path) == ("POST", "/v1/traces")
        headers = {name.lower(): value for name, value in request.headers.items()}
        # aiohttp's server inflates it, as the header says.
        self.requests.append((headers, json.loads(await request.read())))
        if self.may_answer is not None:
            await self.may_answer.wait()
        status, extra_headers, body = self.answers.pop(0) if self.answers else (200, {}, b"{}")
        return web.Response(status=status, headers={"Content-Type": "application/json", **extra_headers}, body=body)


@contextlib.asynccontextmanager
async def run_collector(port: int = 0) -> AsyncIterator[FakeCollector]:
    server, app = FakeCollector(), web.Application(client_max_size=1 << 26)
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


def parse_request(body: dict[str, Any]) -> ExportTraceServiceRequest:
    """Parse as every receiver does. Ids are hexadecimal in OTLP, where protobuf's JSON has base64."""

    def encode_ids(value: Any) -> Any:
        if isinstance(value, list):
            return [encode_ids(item) for item in value]
        if not isinstance(value, dict):
            return value
        ids_ = ("traceId", "spanId", "parentSpanId")
        return {
            name: base64.b64encode(bytes.fromhex(item)).decode() if name in ids_ else encode_ids(item)
            for name, item in value.items()
        }

    return json_format.ParseDict(encode_ids(body), ExportTraceServiceRequest())


def read_attributes(attributes: Any) -> dict[str, Any]:
    value_by_key = {}
    for attribute in attributes:
        kind = attribute.value.WhichOneof("value")
        value = getattr(attribute.value, kind)
        value_by_key[attribute.key] = [item.string_value for item in value.values] if kind == "array_value" else value
    return value_by_key


def to_nanoseconds(at: datetime) -> int:
    return (at - datetime(1970, 1, 1, tzinfo=UTC)) // timedelta(microseconds=1) * 1000


# What is sent.


def test_trace_in_otlp() -> None:
    started_at, root_id = NOW + timedelta(microseconds=123), ids.generate_id("exec")
    model_span = traces.Span(
        id="a",
        parent_id=root_id,
        name="m",
        kind="model_call",
        status="ok",
        started_at=started_at,
        ended_at=started_at + timedelta(seconds=2),
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
    tool_span = traces.Span(
        id="b",
        parent_id=root_id,
        name="t",
        kind="tool",
        status="cancelled",
        started_at=started_at,
        ended_at=None,
        attributes={"gen_ai.operation.name": "execute_tool", "error.type": "cancelled"},
        events=[traces.SpanEvent(name="approved", at=started_at, attributes={"paddock.decided_by": "user_x"})],
    )
    root = traces.Span(
        id=root_id,
        parent_id=None,
        name="Team",
        kind="crew",
        status="error",
        started_at=started_at,
        ended_at=started_at + timedelta(seconds=3),
        attributes={"gen_ai.operation.name": "invoke_workflow", "paddock.error.message": "It broke."},
        children=[model_span, tool_span],
    )
    trace_id = ids.decode_id("exec", root_id).hex
    trace = traces.Trace(execution_id=root_id, trace_id=trace_id, status="failed", truncated=True, spans=[root])
    body = otlp.build_request(trace, "acme")
    assert json.loads(gzip.decompress(otlp.pack_request(trace, "acme"))) == body
    (resource_spans,) = parse_request(body).resource_spans
    attributes = read_attributes(resource_spans.resource.attributes)
    assert (attributes["service.name"], attributes["paddock.tenant.id"]) == ("paddock", "acme")
    (scope,) = resource_spans.scope_spans
    first, second, third = scope.spans
    assert [span.name for span in scope.spans] == ["invoke_workflow Team", "chat gpt", "execute_tool t"]
    assert {span.trace_id.hex() for span in scope.spans} == {trace_id}
    assert first.parent_span_id == b""
    assert {second.parent_span_id, third.parent_span_id} == {first.span_id}
    assert len({span.span_id for span in scope.spans}) == 3
    assert {len(span.span_id) for span in scope.spans} == {8}
    assert second.kind == trace_pb2.Span.SPAN_KIND_CLIENT
    assert {first.kind, third.kind} == {trace_pb2.Span.SPAN_KIND_INTERNAL}
    assert second.start_time_unix_nano == to_nanoseconds(started_at)
    assert second.end_time_unix_nano == to_nanoseconds(started_at) + 2_000_000_000
    # What has not ended, ends with what it belongs to.
    assert third.end_time_unix_nano == first.end_time_unix_nano == to_nanoseconds(started_at) + 3_000_000_000
    attributes = read_attributes(second.attributes)
    assert attributes["gen_ai.response.finish_reasons"] == ["stop"]
    assert (attributes["gen_ai.request.temperature"], attributes["gen_ai.usage.input_tokens"]) == (0.5, 3)
    assert (attributes["paddock.cost_usd"], attributes["paddock.total_tokens"]) == (0.25, 7)
    assert attributes["paddock.usage.estimated"] is True
    assert attributes["paddock.span.kind"] == "model_call"
    assert read_attributes(first.attributes)["paddock.truncated"] is True
    codes = [span.status.code for span in scope.spans]
    assert codes == [trace_pb2.Status.STATUS_CODE_ERROR, trace_pb2.Status.STATUS_CODE_UNSET, 2]
    assert [span.status.message for span in scope.spans] == ["It broke.", "", "cancelled"]
    (event,) = third.events
    assert (event.name, event.time_unix_nano) == ("approved", to_nanoseconds(started_at))
    assert read_attributes(event.attributes) == {"paddock.decided_by": "user_x"}


def test_execution_that_never_started_has_times() -> None:
    run = TracedRun(
        id=ids.generate_id("exec"),
        tenant_id="t",
        kind="agent",
        status="cancelled",
        run_name="a-1",
        created_at=NOW,
        completed_at=NOW + timedelta(seconds=1),
    )
    body = otlp.build_request(traces.build_trace(TraceSources(runs=[run])), "t")
    (span,) = parse_request(body).resource_spans[0].scope_spans[0].spans
    assert span.end_time_unix_nano - span.start_time_unix_nano == 1_000_000_000


# Where it is sent.


async def test_answers_of_a_collector() -> None:
    async with run_collector() as server:
        collector = TraceCollector(
            f"{server.url}/", parse_headers(Secret("X-Team=a%20b, authorization=Bearer%20x"), "otlp_headers")
        )
        body = gzip.compress(b'{"resourceSpans":[{"scopeSpans":[{"spans":[{"traceId":"00"}]}]}]}')
        try:
            assert await collector.send_request(body) is None
            headers, _ = server.requests[0]
            assert (headers["x-team"], headers["authorization"]) == ("a b", "Bearer x")
            assert (headers["content-type"], headers["content-encoding"]) == ("application/json", "gzip")
            server.answers.append((200, {}, b'{"partialSuccess":{"rejectedSpans":"2","errorMessage":"too old"}}'))
            assert await collector.send_request(body) == "2 spans: too old"
            server.answers.append((200, {}, b"no json at all"))
            assert await collector.send_request(body) is None
            for status in (429, 502, 503, 504):
                server.answers.append((status, {"Retry-After": "7"}, b""))
                with pytest.raises(CollectorUnavailable) as unavailable:
                    await collector.send_request(body)
                assert unavailable.value.retry_after_seconds == 7
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


def test_retry_delays_grow_to_a_limit_and_follow_retry_after() -> None:
    longest = [max(otlp.compute_retry_delay(tries) for _ in range(50)) for tries in range(1, 30)]
    assert all(timedelta(seconds=1) <= delay <= timedelta(seconds=300) for delay in longest)
    assert otlp.compute_retry_delay(3) < otlp.compute_retry_delay(20)
    assert otlp.compute_retry_delay(1, 600) == timedelta(seconds=600)
    assert otlp.compute_retry_delay(1, 1e9) <= timedelta(hours=1)


def test_invalid_settings_are_refused(system: Any) -> None:
    env = dict(system.environment)
    for name, value in (
        ("PADDOCK_OTLP_ENDPOINT", "127.0.0.1:4318"),
        ("PADDOCK_OTLP_HEADERS", "no-value"),
        ("PADDOCK_OTLP_HEADERS", "a=b%0d%0ac: d"),
        ("PADDOCK_OTLP_HEADERS", "a b=secret"),
    ):
        with pytest.raises(SettingsError, match=name) as error:
            read_settings({**env, name: value})
        assert "secret" not in str(error.value)
    settings = read_settings({**env, "PADDOCK_OTLP_ENDPOINT": "https://c:4318", "PADDOCK_OTLP_HEADERS": "a=b,,c=d=e"})
    assert parse_headers(settings.otlp_headers, "otlp_headers") == {"a": "b", "c": "d=e"}


# What is due for export.


@dataclass
class ExportEnvironment:
    """Hold a database with a clock that stands still, a store and a collector."""

    database: IsolatedDatabase
    store: PostgresStore
    caller: Caller
    collector_server: FakeCollector
    collector: TraceCollector
    clock: list[datetime]
    agent_id: str

    def create_exporter(self) -> TraceExporter:
        return TraceExporter(self.store, self.collector)

    def advance_clock(self, **much: float) -> None:
        self.clock[0] += timedelta(**much)

    async def start_execution(self) -> Execution:
        async with self.store.transaction(self.caller) as tx:
            await executions.start_execution(tx, self.caller, self.agent_id, ExecutionStart())
        async with self.store.system_transaction() as tx:
            (claimed,) = await executions.claim_executions(tx, "w", timedelta(minutes=1), 1)
        return claimed

    async def end_execution(self, **outcome: Any) -> Execution:
        """Return an execution that has just ended."""
        execution = await self.start_execution()
        await self.settle_execution(execution, **outcome)
        return execution

    async def settle_execution(self, execution: Execution, **outcome: Any) -> None:
        async with self.store.system_transaction() as tx:
            sandbox_outcome = SandboxOutcome(**(outcome or {"output": b"1"}))
            await executions.settle_executions(
                tx, [AttemptOutcome(execution=execution, outcome=sandbox_outcome, events=[])]
            )

    async def list_pending_exports(self) -> list[tuple[str, int]]:
        rows = await self.database.owner.fetch("SELECT execution_id, tries FROM trace_exports ORDER BY execution_id")
        return [(ids.encode_id("exec", row["execution_id"]), row["tries"]) for row in rows]

    async def get_seconds_until_due(self) -> float:
        """Return the seconds until the next export is due."""
        at = await self.database.owner.fetchval("SELECT min(due_at) FROM trace_exports")
        return float((at - self.clock[0]).total_seconds())


def get_trace_id(execution: Execution) -> str:
    return ids.decode_id("exec", execution.id).hex


@pytest.fixture
async def environment(system: Any) -> AsyncIterator[ExportEnvironment]:
    async with open_isolated_database(system) as database, run_collector() as server:
        clock = [NOW]
        engine = create_engine(database.url, pool_size=6, application="tests")
        store = PostgresStore(engine, SilentBell(), lambda: clock[0])
        collector = TraceCollector(server.url, {})
        caller = await database.add_tenant()
        try:
            agent_id = await database.add_agent(caller)
            yield ExportEnvironment(database, store, caller, server, collector, clock, agent_id)
        finally:
            await collector.close()
            await store.close()


async def test_only_executions_that_end_after_the_export_began_are_sent(environment: ExportEnvironment) -> None:
    earlier = await environment.end_execution()
    exporter = environment.create_exporter()
    assert await exporter.export_traces() is False
    running = await environment.start_execution()
    ended = await environment.end_execution(error_type="ValueError", error_message="no")
    await environment.settle_execution(running)
    # Not at once, as the last costs and steps are written after the end.
    await exporter.export_traces()
    assert environment.collector_server.requests == []
    environment.advance_clock(seconds=3)
    await exporter.export_traces()
    assert set(environment.collector_server.trace_ids) == {get_trace_id(ended), get_trace_id(running)}
    assert get_trace_id(earlier) not in environment.collector_server.trace_ids
    assert await environment.list_pending_exports() == []
    # Each is sent once.
    environment.advance_clock(days=1)
    await exporter.export_traces()
    assert len(environment.collector_server.requests) == 2
    spans = [parse_request(body).resource_spans[0] for body in environment.collector_server.bodies]
    tenant_ids = {read_attributes(resource_spans.resource.attributes)["paddock.tenant.id"] for resource_spans in spans}
    assert tenant_ids == {environment.caller.tenant_id}


async def test_nothing_is_queued_a_week_after_the_last_export(environment: ExportEnvironment) -> None:
    exporter = environment.create_exporter()
    await exporter.export_traces()
    environment.advance_clock(days=6)
    queued = await environment.end_execution()
    environment.advance_clock(days=2)
    await environment.end_execution()
    assert [name for name, _ in await environment.list_pending_exports()] == [queued.id]
    # A running exporter renews this from time to time.
    await exporter.export_traces()
    later = await environment.end_execution()
    assert later.id in [name for name, _ in await environment.list_pending_exports()]


async def test_steps_of_a_plan_belong_to_its_trace(environment: ExportEnvironment) -> None:
    exporter = environment.create_exporter()
    await exporter.export_traces()
    parent, child = await environment.start_execution(), await environment.start_execution()
    await environment.database.owner.execute(
        "UPDATE executions SET parent_id = $1, root_id = $1, step = 'a' WHERE id = $2",
        *(ids.decode_id("exec", parent.id), ids.decode_id("exec", child.id)),
    )
    # The plan has ended, one of its steps is still being stopped.
    await environment.settle_execution(parent)
    environment.advance_clock(seconds=5)
    await exporter.export_traces()
    assert environment.collector_server.requests == []
    await environment.settle_execution(child)
    environment.advance_clock(seconds=6)
    await exporter.export_traces()
    (body,) = environment.collector_server.bodies
    first, second = parse_request(body).resource_spans[0].scope_spans[0].spans
    assert second.parent_span_id == first.span_id
    assert {span.trace_id.hex() for span in (first, second)} == {get_trace_id(parent)}
    assert await environment.list_pending_exports() == []


async def test_step_that_never_stops_delays_the_trace_for_a_limited_time(environment: ExportEnvironment) -> None:
    exporter = environment.create_exporter()
    await exporter.export_traces()
    parent, child = await environment.start_execution(), await environment.start_execution()
    await environment.database.owner.execute(
        "UPDATE executions SET parent_id = $1, root_id = $1, step = 'a' WHERE id = $2",
        *(ids.decode_id("exec", parent.id), ids.decode_id("exec", child.id)),
    )
    await environment.settle_execution(parent)
    environment.advance_clock(minutes=11)
    await exporter.export_traces()
    (body,) = environment.collector_server.bodies
    first, second = parse_request(body).resource_spans[0].scope_spans[0].spans
    assert second.end_time_unix_nano >= first.end_time_unix_nano


async def test_several_exporters_send_each_trace_once(environment: ExportEnvironment) -> None:
    first, second = environment.create_exporter(), environment.create_exporter()
    await first.export_traces()
    ended = [await environment.end_execution() for _ in range(40)]
    environment.advance_clock(seconds=3)
    for _ in range(3):
        await asyncio.gather(first.export_traces(), second.export_traces())
    assert sorted(environment.collector_server.trace_ids) == sorted(get_trace_id(execution) for execution in ended)
    assert await environment.list_pending_exports() == []


async def test_nothing_is_lost_while_the_collector_is_unavailable(environment: ExportEnvironment) -> None:
    exporter = environment.create_exporter()
    await exporter.export_traces()
    ended = [await environment.end_execution() for _ in range(10)]
    environment.advance_clock(seconds=3)
    failing_exporter = TraceExporter(environment.store, TraceCollector("http://127.0.0.1:1", {}))
    assert await failing_exporter.export_traces() is False
    # Only as many as it takes to see that the collector is unavailable count as tried.
    tried = [export for export in await environment.list_pending_exports() if export[1] == 1]
    assert len(await environment.list_pending_exports()) == 10
    assert 1 <= len(tried) <= 4
    # The exporter pauses and does not try again in the same moment.
    assert await failing_exporter.export_traces() is False
    assert [export for export in await environment.list_pending_exports() if export[1] == 1] == tried
    for _ in range(6):
        environment.advance_clock(minutes=10)
        await failing_exporter.export_traces()
    assert len(await environment.list_pending_exports()) == 10
    environment.advance_clock(minutes=10)
    await exporter.export_traces()
    assert sorted(environment.collector_server.trace_ids) == sorted(get_trace_id(execution) for execution in ended)
    assert await environment.list_pending_exports() == []


async def test_retry_after_is_respected(environment: ExportEnvironment) -> None:
    exporter = environment.create_exporter()
    await exporter.export_traces()
    await environment.end_execution()
    environment.advance_clock(seconds=3)
    environment.collector_server.answers.append((429, {"Retry-After": "1000"}, b""))
    await exporter.export_traces()
    assert len(environment.collector_server.requests) == 1
    assert await environment.get_seconds_until_due() == pytest.approx(1000)
    environment.advance_clock(seconds=900)
    await exporter.export_traces()
    assert len(environment.collector_server.requests) == 1
    environment.advance_clock(seconds=200)
    await exporter.export_traces()
    assert len(environment.collector_server.requests) == 2
    assert await environment.list_pending_exports() == []


async def test_refused_trace_is_dropped_alone(environment: ExportEnvironment) -> None:
    exporter = environment.create_exporter()
    await exporter.export_traces()
    for _ in range(3):
        await environment.end_execution()
    environment.advance_clock(seconds=3)
    environment.collector_server.answers.append((400, {}, b"bad data"))
    await exporter.export_traces()
    assert len(environment.collector_server.requests) == 3
    assert await environment.list_pending_exports() == []


async def test_trace_that_cannot_be_built_delays_no_other(
    environment: ExportEnvironment, monkeypatch: pytest.MonkeyPatch
) -> None:
    exporter = environment.create_exporter()
    await exporter.export_traces()
    broken, fine = await environment.end_execution(), await environment.end_execution()
    environment.advance_clock(seconds=3)
    pack_request = otlp.pack_request

    def fail_for_broken(trace: traces.Trace, tenant_id: str) -> bytes:
        if trace.execution_id == broken.id:
            raise RuntimeError("a mistake of ours")
        return pack_request(trace, tenant_id)

    monkeypatch.setattr("workers.record.traces.pack_request", fail_for_broken)
    await exporter.export_traces()
    assert environment.collector_server.trace_ids == [get_trace_id(fine)]
    assert await environment.list_pending_exports() == [(broken.id, 1)]
    monkeypatch.undo()
    environment.advance_clock(minutes=6)
    await exporter.export_traces()
    assert await environment.list_pending_exports() == []


async def test_stopped_worker_releases_its_export_and_a_lost_one_expires(environment: ExportEnvironment) -> None:
    exporter = environment.create_exporter()
    await exporter.export_traces()
    execution = await environment.end_execution()
    environment.advance_clock(seconds=3)
    environment.collector_server.may_answer = asyncio.Event()
    task = asyncio.create_task(exporter.export_traces())
    while not environment.collector_server.requests:
        await asyncio.sleep(0.01)
    # While it is being sent, no other exporter claims it.
    await environment.create_exporter().export_traces()
    assert len(environment.collector_server.requests) == 1
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    environment.collector_server.may_answer.set()
    assert await environment.list_pending_exports() == [(execution.id, 0)]
    # Claimed by a worker that is lost.
    async with environment.store.system_transaction() as tx:
        assert [export.execution_id for export in await tx.traces.claim_exports(10, tx.now, tx.now + EXPORT_LEASE)] == [
            execution.id
        ]
    await exporter.export_traces()
    assert len(environment.collector_server.requests) == 1
    environment.advance_clock(minutes=11)
    await exporter.export_traces()
    assert set(environment.collector_server.trace_ids) == {get_trace_id(execution)}
    assert await environment.list_pending_exports() == []


async def test_database_outage_is_waited_out(environment: ExportEnvironment, monkeypatch: pytest.MonkeyPatch) -> None:
    from domain.shared.errors import DomainError

    exporter = environment.create_exporter()
    await exporter.export_traces()
    execution = await environment.end_execution()
    environment.advance_clock(seconds=3)

    def raise_unavailable(tenant_id: str) -> Any:
        raise DomainError("unavailable", "Away.")

    monkeypatch.setattr(environment.store, "tenant_transaction", raise_unavailable)
    with pytest.raises(DomainError):
        await exporter.export_traces()
    monkeypatch.undo()
    assert await environment.list_pending_exports() == [(execution.id, 0)]
    await exporter.export_traces()
    assert environment.collector_server.trace_ids == [get_trace_id(execution)]


async def test_exported_trace_equals_the_api_s(environment: ExportEnvironment) -> None:
    """Compare names, parents, times and sums of a run with steps and costs."""
    exporter = environment.create_exporter()
    await exporter.export_traces()
    execution = await environment.start_execution()
    async with environment.store.transaction(environment.caller) as tx:
        for path, kind, length in (("1", "model", 2), ("1.0", "tool", 3), ("2", "model", 4)):
            step = RunStep(
                execution_id=execution.id,
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
        environment.advance_clock(seconds=seconds)
        async with environment.store.transaction(environment.caller) as tx:
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
            await costs.settle_call(tx, None, CostAttribution(execution_id=execution.id, root_id=execution.id), call)
    await environment.settle_execution(execution)
    environment.advance_clock(seconds=3)
    await exporter.export_traces()
    async with environment.store.transaction(environment.caller) as tx:
        (root,) = traces.build_trace(await traces.read_trace_sources(tx, execution.id)).spans
    exported_spans = parse_request(environment.collector_server.bodies[0]).resource_spans[0].scope_spans[0].spans
    assert [span.name for span in exported_spans] == [
        f"invoke_agent {root.name}",
        "execute_tool m",
        "chat gpt",
        "chat gpt",
    ]
    api_spans = [root, *sorted(root.children, key=lambda span: span.started_at)]
    by_id = {otlp.derive_span_id(span): span for span in api_spans}
    for span in exported_spans:
        api_span = by_id[span.span_id.hex()]
        assert span.start_time_unix_nano == to_nanoseconds(api_span.started_at)
        assert span.end_time_unix_nano == to_nanoseconds(api_span.ended_at)
        attributes = read_attributes(span.attributes)
        assert attributes["paddock.cost_usd"] == api_span.cost_usd
        assert {name: attributes[name] for name in api_span.attributes} == api_span.attributes
    assert root.cost_usd == 0.25
    assert {span.parent_span_id for span in exported_spans[1:]} == {exported_spans[0].span_id}


async def test_record_worker_exports_to_the_configured_collector(provider: FakeProvider) -> None:
    """Run another system with the two variables set."""
    async with run_collector() as server:
        variables = {"PADDOCK_OTLP_ENDPOINT": server.url, "PADDOCK_OTLP_HEADERS": "X-Token=abc"}
        async with run_system(**variables) as system, register_tenant(system.url) as acme:
            name = await create_model(acme, provider, "echo")
            agent = await create_model_agent(acme, name)
            execution = await run_execution(acme, agent["id"], task="Say it back")
            assert execution["status"] == "completed", execution
            for _ in range(600):
                if server.requests:
                    break
                await asyncio.sleep(0.05)
    (headers, body), *more = server.requests
    assert more == []
    assert headers["x-token"] == "abc"
    (resource_spans,) = parse_request(body).resource_spans
    assert read_attributes(resource_spans.resource.attributes)["paddock.tenant.id"] == acme.tenant_id
    root, model_span = resource_spans.scope_spans[0].spans
    assert root.trace_id == ids.decode_id("exec", execution["id"]).bytes
    assert (root.name, model_span.name) == (f"invoke_agent {agent['name']}", "chat echo")
    assert model_span.parent_span_id == root.span_id
    assert "Say it back" not in json.dumps(body)
