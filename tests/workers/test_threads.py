"""Any interleaving of runs, failures, cancels, forks and lost workers on one thread leaves its turns whole, in one order.

A plain model is kept beside the database: the turns that completed runs added, in the order in which they were settled.
"""

import asyncio
import contextlib
from datetime import datetime, timedelta
from typing import Any, Final

import asyncpg
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from domain import executions, launch, threads
from domain.executions import AttemptOutcome, Execution, ExecutionStart, TargetedExecutionStart
from domain.llms import ConversationMessage
from domain.ports import SandboxOutcome, Tx
from domain.shared import ids
from domain.shared.access import Caller
from domain.shared.errors import DomainError
from domain.shared.pages import Page
from domain.threads import Conversation, NewThread, ThreadFork, ThreadMessages
from infra.postgres.store import PostgresStore
from tests.support.isolated_database import NOW, IsolatedDatabase
from tests.support.stats_environment import run_property_test
from workers.upkeep import GateKeeper, RetentionSweeper

LEASE_DURATION: Final = timedelta(seconds=10)
STEP = st.one_of(
    st.tuples(st.just("start"), st.sampled_from([None, "queue", "reject", "cancel"])),
    st.tuples(st.just("claim")),
    st.tuples(st.just("complete"), st.integers(0, 5)),
    st.tuples(st.just("fail"), st.integers(0, 5)),
    st.tuples(st.just("cancel"), st.integers(0, 5)),
    st.tuples(st.just("lose_workers")),
    st.tuples(st.just("add_by_hand")),
    st.tuples(st.just("fork"), st.floats(0, 1)),
)


class ThreadModel:
    """Change one thread in the database and in a model of it, and compare them."""

    def __init__(self, store: PostgresStore, caller: Caller, agent_id: str, clock: list[datetime]) -> None:
        self._store, self._caller, self._agent_id, self._clock = store, caller, agent_id, clock
        self.thread_id = ""
        self._started: list[str] = []
        # Attempts that a worker holds, or believes to hold, with what it read of the thread.
        self._attempts: list[tuple[Execution, Conversation]] = []
        # The content of each message, with the run that it belongs to.
        self._messages: list[tuple[str, str | None]] = []
        self._forks: list[tuple[str, list[str]]] = []
        self._number = 0

    async def open(self) -> None:
        async with self._store.transaction(self._caller) as tx:
            self.thread_id = (await threads.create_thread(tx, self._caller, NewThread())).id

    async def start(self, if_busy: Any) -> None:
        self._number += 1
        data = TargetedExecutionStart(
            agent_id=self._agent_id, task=f"question {self._number}", thread_id=self.thread_id, if_busy=if_busy
        )
        try:
            async with self._store.transaction(self._caller) as tx:
                self._started.append((await launch.start_target(tx, self._caller, data)).id)
        except DomainError as error:
            assert (if_busy, error.code) == ("reject", "thread_busy")

    async def claim(self) -> None:
        async with self._store.autocommit() as tx:
            claimed = await executions.claim_executions(tx, "w", LEASE_DURATION, 5)
        assert len(claimed) <= 1, "two runs of one thread at a time"
        for execution in claimed:
            async with self._store.tenant_transaction(execution.tenant_id) as tx:
                conversation = await threads.load_conversation(tx, execution, 1_000_000)
            self._attempts.append((execution, conversation))

    async def complete(self, place: int) -> None:
        if self._attempts:
            execution, conversation = self._attempts.pop(place % len(self._attempts))
            answer = f"answer of {execution.id}, attempt {execution.attempt}"
            turn = threads.build_plain_turn(execution, answer)
            outcome = AttemptOutcome(execution=execution, outcome=SandboxOutcome(output=b'"answer"'), events=[])
            async with self._store.tenant_transaction(execution.tenant_id) as tx:
                settlement = await executions.settle_executions(tx, [outcome])
                if settlement.settled_attempts:
                    await threads.append_turn(tx, execution, conversation, turn)
            if settlement.settled_attempts:
                # It saw all that came before its turn, and nothing of another's.
                read = [stored.message.content for stored in conversation.history]
                assert read == [content for content, _ in self._messages]
                self._messages += [(message.content, execution.id) for message in turn]

    async def fail(self, place: int) -> None:
        if self._attempts:
            execution, _ = self._attempts.pop(place % len(self._attempts))
            outcome = SandboxOutcome(error_type="timeout", error_message="It took too long.")
            async with self._store.tenant_transaction(execution.tenant_id) as tx:
                await executions.settle_executions(
                    tx, [AttemptOutcome(execution=execution, outcome=outcome, events=[])]
                )

    async def cancel(self, place: int) -> None:
        if self._started:
            with contextlib.suppress(DomainError):
                async with self._store.transaction(self._caller) as tx:
                    await executions.cancel_execution(tx, self._started[place % len(self._started)])

    async def lose_workers(self) -> None:
        """Let every lease run out. The workers do not know it, and may still try to settle."""
        self._clock[0] += 2 * LEASE_DURATION
        for execution, _ in self._attempts:
            async with self._store.tenant_transaction(execution.tenant_id) as tx:
                await executions.requeue_expired(tx, execution.id)

    async def add_by_hand(self) -> None:
        self._number += 1
        content = f"by hand {self._number}"
        data = ThreadMessages(messages=[ConversationMessage(role="user", content=content)])
        try:
            async with self._store.transaction(self._caller) as tx:
                await threads.add_messages_by_hand(tx, self.thread_id, data)
            self._messages.append((content, None))
        except DomainError as error:
            assert error.code == "thread_busy"

    async def fork(self, part: float) -> None:
        at = round(part * len(self._messages))
        async with self._store.transaction(self._caller) as tx:
            fork = await threads.fork_thread(tx, self._caller, self.thread_id, ThreadFork(at=at))
        self._forks.append((fork.id, [content for content, _ in self._messages[:at]]))

    async def keep_gates(self) -> None:
        keeper = GateKeeper(self._store)
        while (await keeper.run_round()).did_work:
            pass

    async def check(self) -> None:
        async with self._store.transaction(self._caller) as tx:
            thread = await threads.get_thread(tx, self.thread_id)
            stored = await tx.threads.list_newest(self.thread_id, 0, 1_000_000)
            forks = [(fork_id, await self._read_contents(tx, fork_id)) for fork_id, _ in self._forks]
            runs = [await executions.get_execution(tx, execution_id) for execution_id in self._started]
        assert [message.seq for message in stored] == list(range(1, thread.last_seq + 1))
        assert [(message.message.content, message.execution_id) for message in stored] == self._messages
        assert forks == self._forks
        turns = [run_id for _, run_id in self._messages if run_id is not None]
        assert {run.id for run in runs if run.status == "completed"} == set(turns)
        assert all(turns.count(run_id) == 2 for run_id in turns), "each answer once"
        for run in runs:
            if run.status in ("failed", "cancelled"):
                assert run.error_message is not None
                assert run.error_message.endswith("The thread is as it was before this run.")

    async def _read_contents(self, tx: Tx, thread_id: str) -> list[str]:
        return [stored.message.content for stored in await tx.threads.list_newest(thread_id, 0, 1_000_000)]


async def test_any_interleaving_leaves_whole_turns_in_one_order(system) -> None:
    def run_examples(
        runner: asyncio.Runner, database: IsolatedDatabase, store: PostgresStore, clock: list[datetime]
    ) -> None:
        async def run(steps: list[Any]) -> None:
            clock[0] = NOW
            caller = await database.add_tenant()
            model = ThreadModel(store, caller, await database.add_agent(caller), clock)
            await model.open()
            for name, *arguments in [*steps, ("claim",), ("complete", 0), ("claim",), ("complete", 0)]:
                await getattr(model, name)(*arguments)
                await model.keep_gates()
                await model.check()
            # Other examples must not claim what this one left.
            async with store.transaction(caller) as tx:
                await threads.delete_thread(tx, model.thread_id)
            async with store.transaction(caller) as tx:
                assert await tx.threads.find(model.thread_id) is None
                assert await tx.threads.list_newest(model.thread_id, 0, 1_000_000) == []

        @settings(max_examples=50, deadline=None, suppress_health_check=list(HealthCheck))
        @given(steps=st.lists(STEP, min_size=5, max_size=30))
        def check(steps: list[Any]) -> None:
            runner.run(run([("start", None), *steps]))

        check()

    await run_property_test(system, run_examples)


async def test_runs_at_the_same_time_leave_whole_turns(system) -> None:
    """Start, run, cancel and fork one thread from many tasks at once, against the gates and the locks of Postgres."""

    def run_examples(
        runner: asyncio.Runner, database: IsolatedDatabase, store: PostgresStore, clock: list[datetime]
    ) -> None:
        async def run() -> None:
            clock[0] = NOW
            caller = await database.add_tenant()
            agent_id = await database.add_agent(caller)
            async with store.transaction(caller) as tx:
                thread_id = (await threads.create_thread(tx, caller, NewThread())).id
            completed: list[str] = []
            is_over = asyncio.Event()

            async def start_runs(count: int) -> None:
                for number in range(count):
                    async with store.transaction(caller) as tx:
                        data = ExecutionStart(task=f"question {number}", thread_id=thread_id)
                        started = await launch.start_agent(tx, caller, agent_id, data)
                    if number % 4 == 3:
                        with contextlib.suppress(DomainError):
                            async with store.transaction(caller) as tx:
                                await executions.cancel_execution(tx, started.id)

            async def work(number: int) -> None:
                while not is_over.is_set():
                    await GateKeeper(store).run_round()
                    async with store.autocommit() as tx:
                        claimed = await executions.claim_executions(tx, f"w{number}", LEASE_DURATION, 1)
                    for execution in claimed:
                        async with store.tenant_transaction(execution.tenant_id) as tx:
                            conversation = await threads.load_conversation(tx, execution, 1_000_000)
                        assert len(conversation.history) == 2 * len(completed)
                        outcome = AttemptOutcome(
                            execution=execution, outcome=SandboxOutcome(output=b'"done"'), events=[]
                        )
                        async with store.tenant_transaction(execution.tenant_id) as tx:
                            settlement = await executions.settle_executions(tx, [outcome])
                            if settlement.settled_attempts:
                                turn = threads.build_plain_turn(execution, execution.id)
                                await threads.append_turn(tx, execution, conversation, turn)
                                completed.append(execution.id)
                    await asyncio.sleep(0)

            async def copy_thread() -> None:
                while not is_over.is_set():
                    async with store.transaction(caller) as tx:
                        fork = await threads.fork_thread(tx, caller, thread_id, ThreadFork())
                        messages = await tx.threads.list_newest(fork.id, 0, 1_000_000)
                        assert (len(messages), fork.last_seq % 2) == (fork.last_seq, 0)
                    await asyncio.sleep(0.01)

            async def start_all() -> None:
                async with asyncio.TaskGroup() as starting:
                    for _ in range(4):
                        starting.create_task(start_runs(8))
                async with asyncio.timeout(60):
                    while True:
                        async with store.transaction(caller) as tx:
                            if not await tx.threads.list_open_runs(thread_id):
                                break
                        await asyncio.sleep(0.02)
                is_over.set()

            async with asyncio.TaskGroup() as group:
                for number in range(3):
                    group.create_task(work(number))
                group.create_task(copy_thread())
                group.create_task(start_all())
            async with store.transaction(caller) as tx:
                stored = await tx.threads.list_newest(thread_id, 0, 1_000_000)
            assert [message.execution_id for message in stored[1::2]] == completed
            assert [message.message.content for message in stored[1::2]] == completed
            assert len(completed) >= 24
            with pytest.raises(DomainError):
                async with store.transaction(caller) as tx:
                    await threads.get_thread(tx, "thread_01k3v9rt0hf7btqeqn5j8x2a4c")

        runner.run(run())

    await run_property_test(system, run_examples)


async def test_threads_are_removed_when_they_were_not_used_for_long(system) -> None:
    def run_examples(
        runner: asyncio.Runner, database: IsolatedDatabase, store: PostgresStore, clock: list[datetime]
    ) -> None:
        async def run() -> None:
            clock[0] = NOW
            caller = await database.add_tenant()
            agent_id = await database.add_agent(caller)
            greeting = [ConversationMessage(role="user", content="Hello")]
            async with store.transaction(caller) as tx:
                old, busy = [
                    (await threads.create_thread(tx, caller, NewThread(messages=greeting))).id for _ in range(2)
                ]
                await tx.states.save_json(agent_id, old, b"{}", None, tx.now, old)
                await launch.start_agent(tx, caller, agent_id, ExecutionStart(task="Go", thread_id=busy))
            clock[0] += timedelta(days=8)
            async with store.transaction(caller) as tx:
                new = (await threads.create_thread(tx, caller, NewThread())).id
            await database.owner.execute("UPDATE tenants SET retention_days = 7 WHERE id = $1", caller.tenant_id)
            removed = await RetentionSweeper(store).remove_expired()
            assert removed["threads"] == 1
            async with store.transaction(caller) as tx:
                assert await tx.threads.find(old) is None
                assert await tx.threads.list_newest(old, 0, 1000) == []
                assert await tx.states.find(agent_id, old) is None
                assert await tx.threads.find(busy) is not None
                assert await tx.threads.find(new) is not None

        runner.run(run())

    await run_property_test(system, run_examples)


async def test_thread_is_not_deleted_while_it_is_forked(system) -> None:
    def run_examples(
        runner: asyncio.Runner, database: IsolatedDatabase, store: PostgresStore, _clock: list[datetime]
    ) -> None:
        async def run() -> None:
            caller = await database.add_tenant()
            greeting = [ConversationMessage(role="user", content="Hello")]
            async with store.transaction(caller) as tx:
                source = (await threads.create_thread(tx, caller, NewThread(messages=greeting))).id
            row_id = ids.decode_id("thread", source)
            async with store.transaction(caller) as tx:
                await threads.fork_thread(tx, caller, source, ThreadFork())
                with pytest.raises(asyncpg.LockNotAvailableError):
                    await database.owner.execute("SELECT FROM threads WHERE id = $1 FOR UPDATE NOWAIT", row_id)

        runner.run(run())

    await run_property_test(system, run_examples)


async def test_messages_that_are_too_large_together_are_listed_a_few_at_a_time(system) -> None:
    def run_examples(
        runner: asyncio.Runner, database: IsolatedDatabase, store: PostgresStore, _clock: list[datetime]
    ) -> None:
        async def run() -> None:
            caller = await database.add_tenant()
            message = ConversationMessage(role="user", content="x" * 1_000_000)
            async with store.transaction(caller) as tx:
                thread = (await threads.create_thread(tx, caller, NewThread(messages=[message] * 6))).id
                for _ in range(2):
                    await threads.add_messages_by_hand(tx, thread, ThreadMessages(messages=[message] * 6))
            async with store.transaction(caller) as tx:
                with pytest.raises(DomainError, match="limit: is too large: these messages have 180") as refused:
                    await threads.list_messages(tx, thread, Page(limit=100, offset=0), False)
                assert [error.field for error in refused.value.errors] == ["limit"]
                listing = await threads.list_messages(tx, thread, Page(limit=10, offset=0), True)
                assert (len(listing.items), listing.has_more) == (10, True)

        runner.run(run())

    await run_property_test(system, run_examples)
