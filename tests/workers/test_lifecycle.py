"""Run executions as a state machine on the real database, with any interleaving of workers, clocks and cancels."""

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
        await _run_state_machine(database.url, caller, await database.add_agent(caller))


async def _run_state_machine(url: str, caller: Caller, agent_id: str) -> None:
    def run_in_thread() -> None:
        with asyncio.Runner() as runner:
            engine = create_engine(url, pool_size=2, application="tests")

            class ExecutionMachine(RuleBasedStateMachine):
                def __init__(self) -> None:
                    super().__init__()
                    self.now = NOW
                    self.store = PostgresStore(engine, SilentBell(), lambda: self.now)
                    self.claims: list[Execution] = []
                    self.terminal: list[str] = []
                    self.logged = 0

                @initialize(attempts=st.integers(1, 3))
                def start_and_claim(self, attempts: int) -> None:
                    async def start() -> Execution:
                        async with self.store.transaction(caller) as tx:
                            execution = await executions.start_execution(
                                tx, caller, agent_id, ExecutionStart(max_attempts=attempts)
                            )
                            claimed = await executions.claim_executions(tx, "w", LEASE, 5)
                            assert [claim.id for claim in claimed] == [execution.id]
                            return claimed[0]

                    self.claims.append(runner.run(start()))
                    self.max_attempts = attempts

                def do_in_transaction(self, work) -> object:
                    async def run_transaction() -> object:
                        async with self.store.transaction(caller) as tx:
                            return await work(tx)

                    return runner.run(run_transaction())

                def get_execution(self) -> Execution:
                    execution = self.do_in_transaction(lambda tx: executions.get_execution(tx, self.claims[0].id))
                    assert isinstance(execution, Execution)
                    return execution

                def _release_and_claim(self, work) -> None:
                    async def run_transaction() -> None:
                        async with self.store.transaction(caller) as tx:
                            await work(tx)
                        async with self.store.autocommit() as tx:
                            self.claims += await executions.claim_executions(tx, "w", LEASE, 5)

                    runner.run(run_transaction())

                @rule(seconds=st.integers(1, 15))
                def pass_time_and_requeue(self, seconds: int) -> None:
                    self.now += timedelta(seconds=seconds)
                    self._release_and_claim(lambda tx: executions.requeue_expired(tx, self.claims[0].id))

                @rule(which=st.integers(0, 5))
                def hand_over(self, which: int) -> None:
                    claim, before = self.claims[which % len(self.claims)], self.get_execution()
                    self._release_and_claim(lambda tx: executions.hand_over_execution(tx, claim))
                    if before.status not in TERMINAL_STATUSES and before.attempt == claim.attempt:
                        # Claimed again at once, under a token of its own, however many attempts are left.
                        after = self.get_execution()
                        assert (after.status, after.attempt) == ("preparing", claim.attempt + 1)
                        assert after.handovers == before.handovers + 1

                @rule(which=st.integers(0, 5))
                def release_sandbox(self, which: int) -> None:
                    claim = self.claims[which % len(self.claims)]
                    self._release_and_claim(lambda tx: executions.release_execution(tx, claim))

                @rule(which=st.integers(0, 5), fails=st.booleans())
                def finish_attempt(self, which: int, fails: bool) -> None:
                    claim = self.claims[which % len(self.claims)]
                    outcome = (
                        SandboxOutcome(error_type="E", error_message="m") if fails else SandboxOutcome(output=b"1")
                    )
                    before = self.get_execution()
                    attempt_outcome = AttemptOutcome(
                        execution=claim, outcome=outcome, events=[build_log_event("INFO", "x", self.now, "stdout")]
                    )
                    settlement = self.do_in_transaction(lambda tx: executions.settle_executions(tx, [attempt_outcome]))
                    holds_lease = before.status not in TERMINAL_STATUSES and before.attempt == claim.attempt
                    assert isinstance(settlement, ExecutionSettlement)
                    assert settlement.settled_attempts == ({(claim.id, claim.attempt)} if holds_lease else set())
                    self.logged += holds_lease

                @rule(which=st.integers(0, 5))
                def write_events(self, which: int) -> None:
                    claim = self.claims[which % len(self.claims)]
                    before = self.get_execution()
                    try:
                        self.do_in_transaction(
                            lambda tx: executions.append_agent_events(
                                tx, claim, [build_log_event("INFO", "x", self.now, "stdout")] * 2
                            )
                        )
                        self.logged += 2
                    except LostLease:
                        assert before.status in TERMINAL_STATUSES or before.attempt != claim.attempt

                @precondition(lambda self: len(self.claims) > 1)
                @rule()
                def cancel(self) -> None:
                    before = self.get_execution()
                    if before.status not in TERMINAL_STATUSES:
                        self.do_in_transaction(lambda tx: executions.cancel_execution(tx, before.id))

                def teardown(self) -> None:
                    if not self.claims:
                        return
                    execution = self.get_execution()
                    if execution.status not in TERMINAL_STATUSES:
                        self.do_in_transaction(lambda tx: executions.cancel_execution(tx, execution.id))
                        execution = self.get_execution()
                    assert execution.attempt - execution.handovers <= self.max_attempts
                    events = self.do_in_transaction(lambda tx: fetch_events(tx, execution))
                    assert isinstance(events, list)
                    assert [event.seq for event in events] == list(range(1, len(events) + 1))
                    assert [event.is_terminal for event in events] == [False] * (len(events) - 1) + [True]
                    assert sum(event.type == "log" for event in events) == self.logged

            run_state_machine_as_test(
                ExecutionMachine,
                settings=settings(
                    max_examples=30,
                    stateful_step_count=12,
                    deadline=None,
                    suppress_health_check=list(HealthCheck),
                ),
            )
            runner.run(engine.dispose())

    await asyncio.to_thread(run_in_thread)
