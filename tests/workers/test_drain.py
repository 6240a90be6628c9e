"""A worker that is asked to stop claims nothing new, lets running work end for a while, and hands over the rest."""

import asyncio
import os
import signal
from collections.abc import Callable

import pytest

from domain import builds, evaluations, executions
from domain.evaluations import build_evaluations
from domain.executions import ExecutionStart
from domain.ports import SandboxOutcome
from domain.queues import WorkerInfo, choose_gauge_exporter
from domain.shared.errors import DomainError
from infra.polling import PollResult
from infra.postgres.db import create_engine
from infra.postgres.store import PostgresStore
from tests.support.isolated_database import NOW, SilentBell, open_isolated_database
from tests.workers.test_claimer import FakeRunner
from tests.workers.test_lifecycle import LEASE
from workers.claimer import Claimer
from workers.lifecycle import STALLED_SECONDS, Drain, run_with_background


async def _wait_until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(10):
        while not condition():
            await asyncio.sleep(0.001)


async def test_first_signal_lets_running_work_end() -> None:
    work, drain, rung = FakeRunner(pending=3), Drain(600), asyncio.Event()
    main = asyncio.create_task(drain.run(Claimer(work, 2, rung, drain).run()))
    await _wait_until(lambda: work.running == 2)
    os.kill(os.getpid(), signal.SIGTERM)
    await _wait_until(drain.has_begun)
    rung.set()
    await asyncio.sleep(0.05)
    assert not main.done()
    work.release.set()
    await asyncio.wait_for(main, 10)
    # The third was ready to be claimed, and is left to another worker.
    assert (work.done, work.pending, work.running) == (2, 1, 0)


@pytest.mark.parametrize("second", [signal.SIGTERM, signal.SIGINT])
async def test_second_signal_cancels_running_work(second: signal.Signals) -> None:
    work, drain = FakeRunner(pending=1), Drain(600)
    main = asyncio.create_task(drain.run(Claimer(work, 1, asyncio.Event(), drain).run()))
    await _wait_until(lambda: work.running == 1)
    os.kill(os.getpid(), signal.SIGINT)
    await _wait_until(drain.has_begun)
    assert work.running == 1
    os.kill(os.getpid(), second)
    await asyncio.wait_for(main, 10)
    assert (work.done, work.running) == (0, 0)


async def test_work_that_outlives_the_drain_is_cancelled() -> None:
    work, drain = FakeRunner(pending=1), Drain(0.05)
    main = asyncio.create_task(drain.run(Claimer(work, 1, asyncio.Event(), drain).run()))
    await _wait_until(lambda: work.running == 1)
    drain.begin_drain("a test")
    await asyncio.wait_for(main, 10)
    assert (work.done, work.running) == (0, 0)


async def test_drain_finishes_the_current_round_and_begins_no_other() -> None:
    drain, gate, rounds = Drain(600), asyncio.Event(), 0

    async def work() -> PollResult:
        nonlocal rounds
        rounds += 1
        await gate.wait()
        return PollResult(did_work=True, pause_seconds=0.0)

    main = asyncio.create_task(drain.run(drain.poll("test", work, wake=asyncio.Event())))
    await _wait_until(lambda: rounds == 1)
    drain.begin_drain("a test")
    await asyncio.sleep(0.02)
    assert not main.done()
    gate.set()
    await asyncio.wait_for(main, 10)
    assert rounds == 1


async def test_leases_are_extended_until_the_work_has_ended() -> None:
    """Keep extending leases while the work is being handed over."""
    order: list[str] = []

    async def extend_leases() -> None:
        try:
            await asyncio.sleep(600)
        finally:
            order.append("kept")

    async def work() -> None:
        try:
            await asyncio.sleep(600)
        finally:
            await asyncio.sleep(0.01)
            order.append("worked")

    task = asyncio.create_task(run_with_background(work(), extend_leases()))
    await asyncio.sleep(0.01)
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    assert order == ["worked", "kept"]


async def test_handing_over_uses_up_no_attempts(system) -> None:
    """Stop five workers in a row with executions, builds and evaluations; the sixth may still lose its lease once."""
    async with open_isolated_database(system) as database:
        caller, now = await database.add_tenant(), NOW
        agent_id = await database.add_agent(caller)
        engine = create_engine(database.url, pool_size=2, application="tests")
        store = PostgresStore(engine, SilentBell(), lambda: now)
        try:
            async with store.transaction(caller) as tx:
                execution_of_test = await executions.start_execution(
                    tx, caller, agent_id, ExecutionStart(max_attempts=2)
                )
                upload = builds.ArchiveUpload(
                    version_id=builds.generate_version_id(), path="uploads/x", sha256="", size_bytes=0
                )
                version = await builds.enqueue_build(tx, caller, agent_id, upload)
                row = evaluations.parse_evaluation(b'{"prompt":"a","response":"b"}')
                new_evaluations = build_evaluations(caller.tenant_id, caller.user_id, [row], tx.now, False)
                await tx.evaluations.add(new_evaluations)
            for number in range(1, 6):
                async with store.autocommit() as tx:
                    (execution,) = await executions.claim_executions(tx, "w", LEASE, 1)
                assert execution.attempt == number
                async with store.transaction(caller) as tx:
                    claimed_build = await builds.claim_build(tx, version.id, "w", LEASE)
                    assert claimed_build is not None
                    (claimed_evaluation,) = await evaluations.claim_evaluations(tx, 5, LEASE)
                    await executions.hand_over_execution(tx, execution)
                    await builds.hand_over_build(tx, claimed_build)
                    await tx.evaluations.release_claims([claimed_evaluation])
                # A worker that was stopped may not settle, even while no other worker holds the lease.
                late_outcome = executions.AttemptOutcome(
                    execution=execution, outcome=SandboxOutcome(output=b"1"), events=[]
                )
                async with store.autocommit() as tx:
                    assert not (await executions.settle_executions(tx, [late_outcome])).settled_attempts
            for number, status in ((6, "pending"), (7, "failed")):
                async with store.autocommit() as tx:
                    (execution,) = await executions.claim_executions(tx, "w", LEASE, 1)
                assert execution.attempt == number
                now += LEASE * 2
                async with store.transaction(caller) as tx:
                    await executions.requeue_expired(tx, execution_of_test.id)
                    assert (await executions.get_execution(tx, execution_of_test.id)).status == status
            async with store.transaction(caller) as tx:
                failed = await executions.get_execution(tx, execution_of_test.id)
            assert failed.error_message == "The worker stopped answering during attempt 2 of 2."
            for status in ("queued", "queued", "failed"):
                async with store.transaction(caller) as tx:
                    assert await builds.claim_build(tx, version.id, "w", LEASE) is not None
                now += LEASE * 2
                async with store.transaction(caller) as tx:
                    await builds.requeue_expired_build(tx, version.id)
                    version_after = await tx.builds.get(version.id)
                assert version_after is not None
                assert version_after.status == status
            for is_lost in (False, False, True):
                async with store.system_transaction() as tx:
                    assert len(await evaluations.claim_evaluations(tx, 5, LEASE)) == 1
                now += LEASE * 2
                async with store.system_transaction() as tx:
                    claimed_again = await evaluations.claim_evaluations(tx, 0, LEASE)
                assert claimed_again == []
                async with store.transaction(caller) as tx:
                    evaluation_after = await tx.evaluations.get(new_evaluations[0].id)
                assert evaluation_after is not None
                assert evaluation_after.metrics == ("failed" if is_lost else "pending")
        finally:
            await engine.dispose()


async def test_only_an_idle_worker_ends_when_idle() -> None:
    now, busy, is_unavailable = [0.0], [1], [True]
    drain = Drain(0, once_idle=0.02, now=lambda: now[0])

    async def check() -> None:
        if is_unavailable[0]:
            raise DomainError("unavailable", "The database is unavailable.")

    watching = asyncio.create_task(drain.end_when_idle(lambda: busy[0], check))
    now[0] = 100
    await asyncio.sleep(0.05)
    assert not drain.has_begun(), "rows are still held"
    busy[0] = 0
    now[0] = 200
    await asyncio.sleep(0.05)
    assert not drain.has_begun(), "the queue cannot be read"
    is_unavailable[0] = False
    drain.note_round("claim", True)
    await asyncio.sleep(0.05)
    assert not drain.has_begun(), "there was work a moment ago"
    drain.note_round("claim", False)
    now[0] = 300
    await asyncio.wait_for(watching, 10)
    assert drain.has_begun()


async def test_stalled_loop_is_named() -> None:
    now = [0.0]
    drain = Drain(now=lambda: now[0])
    drain.note_round("claim", False)
    drain.note_round("fold", None)
    assert drain.list_stalled_loops() == []
    now[0] = STALLED_SECONDS + 1
    drain.note_round("fold", False)
    assert drain.list_stalled_loops() == ["claim"]


def test_oldest_upkeep_with_metrics_exports_the_gauges() -> None:
    def build_worker(name: str, lane: str, port: int | None, minute: int) -> WorkerInfo:
        started_at = NOW.replace(minute=minute)
        return WorkerInfo(
            id=name, lane=lane, host="h", pid=1, slots=0, busy=0, warm=0, blank=0, problem=None, metrics_port=port,
            started_at=started_at, seen_at=NOW,
        )  # fmt: skip

    old, new = build_worker("upkeep@b", "upkeep", 1, 1), build_worker("upkeep@a", "upkeep", 1, 2)
    silent, other = build_worker("upkeep@c", "upkeep", None, 0), build_worker("run@a", "run", 1, 0)
    assert choose_gauge_exporter([new, silent, old, other]) == old
    assert choose_gauge_exporter([silent, other]) is None
