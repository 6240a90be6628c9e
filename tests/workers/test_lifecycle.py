"""An execution's life as a state machine, on the real database: any interleaving of workers, clocks and cancels."""

import asyncio
from datetime import timedelta

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule, run_state_machine_as_test

from domain import executions
from domain.events import build_log_event
from domain.executions import AttemptOutcome, Execution, ExecutionSettlement, ExecutionStart
from domain.ports import SandboxOutcome
from domain.shared.access import Caller
from domain.shared.leases import LostLease
from domain.shared.status import TERMINAL_STATUSES
from infra.postgres.db import create_engine
from infra.postgres.store import PostgresStore
from tests.support.clients import fetch_events
from tests.support.isolated_database import NOW, SilentBell, open_isolated_database

LEASE = timedelta(seconds=10)


async def test_any_interleaving_settles_once(system) -> None:
    async with open_isolated_database(system) as database:
        caller = await database.add_tenant()
        await _live(database.url, caller, await database.add_agent(caller))


async def _live(url: str, caller: Caller, agent_id: str) -> None:
    def in_a_thread_of_its_own() -> None:
        with asyncio.Runner() as runner:
            engine = create_engine(url, pool_size=2, application="tests")

            class Life(RuleBasedStateMachine):
                def __init__(self) -> None:
                    super().__init__()
                    self.now = NOW
                    self.store = PostgresStore(engine, SilentBell(), lambda: self.now)
                    self.claims: list[Execution] = []
                    self.terminal: list[str] = []
                    self.logged = 0

                @initialize(attempts=st.integers(1, 3))
                def begin(self, attempts: int) -> None:
                    async def start() -> Execution:
                        async with self.store.transaction(caller) as tx:
                            made = await executions.start_execution(
                                tx, caller, agent_id, ExecutionStart(max_attempts=attempts)
                            )
                            claimed = await executions.claim_executions(tx, "w", LEASE, 5)
                            assert [one.id for one in claimed] == [made.id]
                            return claimed[0]

                    self.claims.append(runner.run(start()))
                    self.max_attempts = attempts

                def _do(self, work) -> object:
                    async def go() -> object:
                        async with self.store.transaction(caller) as tx:
                            return await work(tx)

                    return runner.run(go())

                def _status(self) -> Execution:
                    found = self._do(lambda tx: executions.get_execution(tx, self.claims[0].id))
                    assert isinstance(found, Execution)
                    return found

                def _release_and_claim(self, work) -> None:
                    async def go() -> None:
                        async with self.store.transaction(caller) as tx:
                            await work(tx)
                        async with self.store.autocommit() as tx:
                            self.claims += await executions.claim_executions(tx, "w", LEASE, 5)

                    runner.run(go())

                @rule(seconds=st.integers(1, 15))
                def time_passes_and_upkeep_comes(self, seconds: int) -> None:
                    self.now += timedelta(seconds=seconds)
                    self._release_and_claim(lambda tx: executions.requeue_expired(tx, self.claims[0].id))

                @rule(which=st.integers(0, 5))
                def a_worker_is_told_to_stop(self, which: int) -> None:
                    claim, before = self.claims[which % len(self.claims)], self._status()
                    self._release_and_claim(lambda tx: executions.hand_over_execution(tx, claim))
                    if before.status not in TERMINAL_STATUSES and before.attempt == claim.attempt:
                        # Claimed again at once, under a token of its own, however many attempts are left.
                        after = self._status()
                        assert (after.status, after.attempt) == ("preparing", claim.attempt + 1)
                        assert after.handovers == before.handovers + 1

                @rule(which=st.integers(0, 5))
                def a_sandbox_is_lost(self, which: int) -> None:
                    claim = self.claims[which % len(self.claims)]
                    self._release_and_claim(lambda tx: executions.release_execution(tx, claim))

                @rule(which=st.integers(0, 5), fails=st.booleans())
                def a_worker_finishes(self, which: int, fails: bool) -> None:
                    claim = self.claims[which % len(self.claims)]
                    outcome = (
                        SandboxOutcome(error_type="E", error_message="m") if fails else SandboxOutcome(output=b"1")
                    )
                    before = self._status()
                    ended = AttemptOutcome(
                        execution=claim, outcome=outcome, events=[build_log_event("INFO", "x", self.now, "stdout")]
                    )
                    settled = self._do(lambda tx: executions.settle_executions(tx, [ended]))
                    held = before.status not in TERMINAL_STATUSES and before.attempt == claim.attempt
                    assert isinstance(settled, ExecutionSettlement)
                    assert settled.settled_attempts == ({(claim.id, claim.attempt)} if held else set())
                    self.logged += held

                @rule(which=st.integers(0, 5))
                def a_worker_writes(self, which: int) -> None:
                    claim = self.claims[which % len(self.claims)]
                    before = self._status()
                    try:
                        self._do(
                            lambda tx: executions.append_agent_events(
                                tx, claim, [build_log_event("INFO", "x", self.now, "stdout")] * 2
                            )
                        )
                        self.logged += 2
                    except LostLease:
                        assert before.status in TERMINAL_STATUSES or before.attempt != claim.attempt

                @precondition(lambda self: len(self.claims) > 1)
                @rule()
                def somebody_cancels(self) -> None:
                    before = self._status()
                    if before.status not in TERMINAL_STATUSES:
                        self._do(lambda tx: executions.cancel_execution(tx, before.id))

                def teardown(self) -> None:
                    if not self.claims:
                        return
                    ended = self._status()
                    if ended.status not in TERMINAL_STATUSES:
                        self._do(lambda tx: executions.cancel_execution(tx, ended.id))
                        ended = self._status()
                    assert ended.attempt - ended.handovers <= self.max_attempts
                    events = self._do(lambda tx: fetch_events(tx, ended))
                    assert isinstance(events, list)
                    assert [event.seq for event in events] == list(range(1, len(events) + 1))
                    assert [event.is_terminal for event in events] == [False] * (len(events) - 1) + [True]
                    assert sum(event.type == "log" for event in events) == self.logged

            run_state_machine_as_test(
                Life,
                settings=settings(
                    max_examples=30,
                    stateful_step_count=12,
                    deadline=None,
                    suppress_health_check=list(HealthCheck),
                ),
            )
            runner.run(engine.dispose())

    await asyncio.to_thread(in_a_thread_of_its_own)
