"""A worker that is told to end takes nothing new, lets what runs end for a while, and hands over the rest."""

import asyncio
import os
import signal
from typing import Any

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
from tests.support.isolated_database import NOW, open_isolated_database
from tests.workers.test_dispatcher import Work
from tests.workers.test_lifecycle import LEASE, Silent
from workers.claimer import Claimer
from workers.lifecycle import STALLED_SECONDS, Drain, run_with_background


async def _until(true: Any) -> None:
    async with asyncio.timeout(10):
        while not true():
            await asyncio.sleep(0.001)


async def test_the_first_signal_lets_what_runs_end() -> None:
    work, drain, rung = Work(pending=3), Drain(600), asyncio.Event()
    main = asyncio.create_task(drain.run(Claimer(work, 2, rung, drain).run()))
    await _until(lambda: work.running == 2)
    os.kill(os.getpid(), signal.SIGTERM)
    await _until(drain.has_begun)
    rung.set()
    await asyncio.sleep(0.05)
    assert not main.done()
    work.release.set()
    await asyncio.wait_for(main, 10)
    # The third was there to be taken, and stays for another worker.
    assert (work.done, work.pending, work.running) == (2, 1, 0)


@pytest.mark.parametrize("second", [signal.SIGTERM, signal.SIGINT])
async def test_the_second_signal_ends_the_waiting(second: signal.Signals) -> None:
    work, drain = Work(pending=1), Drain(600)
    main = asyncio.create_task(drain.run(Claimer(work, 1, asyncio.Event(), drain).run()))
    await _until(lambda: work.running == 1)
    os.kill(os.getpid(), signal.SIGINT)
    await _until(drain.has_begun)
    assert work.running == 1
    os.kill(os.getpid(), second)
    await asyncio.wait_for(main, 10)
    assert (work.done, work.running) == (0, 0)


async def test_what_runs_longer_than_the_drain_is_ended() -> None:
    work, drain = Work(pending=1), Drain(0.05)
    main = asyncio.create_task(drain.run(Claimer(work, 1, asyncio.Event(), drain).run()))
    await _until(lambda: work.running == 1)
    drain.begin_drain("a test")
    await asyncio.wait_for(main, 10)
    assert (work.done, work.running) == (0, 0)


async def test_a_round_under_way_is_finished_and_no_other_begun() -> None:
    drain, gate, begun = Drain(600), asyncio.Event(), 0

    async def work() -> PollResult:
        nonlocal begun
        begun += 1
        await gate.wait()
        return PollResult(did_work=True, pause_seconds=0.0)

    main = asyncio.create_task(drain.run(drain.poll("test", work, wake=asyncio.Event())))
    await _until(lambda: begun == 1)
    drain.begin_drain("a test")
    await asyncio.sleep(0.02)
    assert not main.done()
    gate.set()
    await asyncio.wait_for(main, 10)
    assert begun == 1


async def test_leases_are_kept_until_the_work_has_ended() -> None:
    """Whoever extends leases must not stop before those that are handed over are."""
    order: list[str] = []

    async def keep() -> None:
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

    task = asyncio.create_task(run_with_background(work(), keep()))
    await asyncio.sleep(0.01)
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    assert order == ["worked", "kept"]


async def test_handing_over_never_uses_up_attempts(system) -> None:
    """Executions, builds and evaluations: five workers are stopped in a row, and the sixth may still lose it once."""
    async with open_isolated_database(system) as database:
        caller, now = await database.add_tenant(), NOW
        agent_id = await database.add_agent(caller)
        engine = create_engine(database.url, pool_size=2, application="tests")
        store = PostgresStore(engine, Silent(), lambda: now)
        try:
            async with store.transaction(caller) as tx:
                made = await executions.start_execution(tx, caller, agent_id, ExecutionStart(max_attempts=2))
                upload = builds.ArchiveUpload(
                    version_id=builds.generate_version_id(), path="uploads/x", sha256="", size_bytes=0
                )
                version = await builds.enqueue_build(tx, caller, agent_id, upload)
                row = evaluations.parse_evaluation(b'{"prompt":"a","response":"b"}')
                sent = build_evaluations(caller.tenant_id, caller.user_id, [row], tx.now, False)
                await tx.evaluations.add(sent)
            for number in range(1, 6):
                async with store.autocommit() as tx:
                    (execution,) = await executions.claim_executions(tx, "w", LEASE, 1)
                assert execution.attempt == number
                async with store.transaction(caller) as tx:
                    building = await builds.claim_build(tx, version.id, "w", LEASE)
                    assert building is not None
                    (judging,) = await evaluations.claim_evaluations(tx, 5, LEASE)
                    await executions.hand_over_execution(tx, execution)
                    await builds.hand_over_build(tx, building)
                    await tx.evaluations.release_claims([judging])
                # Whoever was stopped may not write any more, though nobody has it now.
                ended = executions.AttemptOutcome(execution=execution, outcome=SandboxOutcome(output=b"1"), events=[])
                async with store.autocommit() as tx:
                    assert not (await executions.settle_executions(tx, [ended])).settled_attempts
            for number, status in ((6, "pending"), (7, "failed")):
                async with store.autocommit() as tx:
                    (execution,) = await executions.claim_executions(tx, "w", LEASE, 1)
                assert execution.attempt == number
                now += LEASE * 2
                async with store.transaction(caller) as tx:
                    await executions.requeue_expired(tx, made.id)
                    assert (await executions.get_execution(tx, made.id)).status == status
            async with store.transaction(caller) as tx:
                failed = await executions.get_execution(tx, made.id)
            assert failed.error_message == "The worker stopped answering during attempt 2 of 2."
            for status in ("queued", "queued", "failed"):
                async with store.transaction(caller) as tx:
                    assert await builds.claim_build(tx, version.id, "w", LEASE) is not None
                now += LEASE * 2
                async with store.transaction(caller) as tx:
                    await builds.requeue_expired_build(tx, version.id)
                    found = await tx.builds.get(version.id)
                assert found is not None
                assert found.status == status
            for lost in (False, False, True):
                async with store.system_transaction() as tx:
                    assert len(await evaluations.claim_evaluations(tx, 5, LEASE)) == 1
                now += LEASE * 2
                async with store.system_transaction() as tx:
                    waiting = await evaluations.claim_evaluations(tx, 0, LEASE)
                assert waiting == []
                async with store.transaction(caller) as tx:
                    found_row = await tx.evaluations.get(sent[0].id)
                assert found_row is not None
                assert found_row.metrics == ("failed" if lost else "pending")
        finally:
            await engine.dispose()


async def test_only_who_has_nothing_to_do_ends_when_idle() -> None:
    now, busy, away = [0.0], [1], [True]
    drain = Drain(0, once_idle=0.02, now=lambda: now[0])

    async def check() -> None:
        if away[0]:
            raise DomainError("unavailable", "away")

    watching = asyncio.create_task(drain.end_when_idle(lambda: busy[0], check))
    now[0] = 100
    await asyncio.sleep(0.05)
    assert not drain.has_begun(), "it has rows"
    busy[0] = 0
    now[0] = 200
    await asyncio.sleep(0.05)
    assert not drain.has_begun(), "what waits cannot be seen"
    away[0] = False
    drain.note_round("claim", True)
    await asyncio.sleep(0.05)
    assert not drain.has_begun(), "there was something just now"
    drain.note_round("claim", False)
    now[0] = 300
    await asyncio.wait_for(watching, 10)
    assert drain.has_begun()


async def test_a_loop_that_hangs_is_named() -> None:
    now = [0.0]
    drain = Drain(now=lambda: now[0])
    drain.note_round("claim", False)
    drain.note_round("fold", None)
    assert drain.list_stalled_loops() == []
    now[0] = STALLED_SECONDS + 1
    drain.note_round("fold", False)
    assert drain.list_stalled_loops() == ["claim"]


def test_the_oldest_upkeep_that_serves_metrics_leads() -> None:
    def worker(name: str, lane: str, port: int | None, minute: int) -> WorkerInfo:
        started = NOW.replace(minute=minute)
        return WorkerInfo(
            id=name, lane=lane, host="h", pid=1, slots=0, busy=0, warm=0, blank=0, problem=None, metrics_port=port,
            started_at=started, seen_at=NOW,
        )  # fmt: skip

    old, new = worker("upkeep@b", "upkeep", 1, 1), worker("upkeep@a", "upkeep", 1, 2)
    silent, other = worker("upkeep@c", "upkeep", None, 0), worker("run@a", "run", 1, 0)
    assert choose_gauge_exporter([new, silent, old, other]) == old
    assert choose_gauge_exporter([silent, other]) is None
