"""Test the states of agents in the database: what is written, who loses, and what a deleted state leaves."""

import asyncio
import json
from collections.abc import AsyncIterator
from datetime import timedelta
from typing import Any

import msgspec
import pytest

from domain import agents, executions, states
from domain.executions import AttemptOutcome, Execution, ExecutionStart
from domain.ports import SandboxOutcome
from domain.shared.access import Caller
from domain.shared.errors import DomainError
from domain.shared.masking import SecretMask
from domain.shared.pages import Page
from domain.states import StateChange
from infra.postgres.db import create_engine
from infra.postgres.store import PostgresStore
from tests.support.isolated_database import NOW, IsolatedDatabase, SilentBell, open_isolated_database
from workers.run.code_run import CodeRun
from workers.run.work_files import WorkFiles
from workers.run.work_room import WorkLimits

LEASE = timedelta(seconds=10)


class StateEnvironment:
    """A store of its own, with one agent and its runs."""

    def __init__(self, database: IsolatedDatabase, store: PostgresStore, caller: Caller, agent_id: str) -> None:
        self.database, self.store, self.caller, self.agent_id = database, store, caller, agent_id

    async def put(self, value: Any, name: str = "default", revision: int | None = None) -> int:
        async with self.store.transaction(self.caller) as tx:
            change = StateChange(value=value, revision=revision)
            return (await states.put_state(tx, self.agent_id, name, change)).revision

    async def get(self, name: str = "default") -> Any:
        async with self.store.transaction(self.caller) as tx:
            return (await states.get_state(tx, self.agent_id, name)).value

    async def delete(self, name: str = "default") -> None:
        async with self.store.transaction(self.caller) as tx:
            await states.delete_state(tx, self.agent_id, name)

    async def start_run(self) -> tuple[Execution, CodeRun]:
        async with self.store.transaction(self.caller) as tx:
            await executions.start_execution(tx, self.caller, self.agent_id, ExecutionStart())
        async with self.store.autocommit() as tx:
            (execution,) = await executions.claim_executions(tx, "worker", LEASE, 1)
        return execution, CodeRun(execution, lambda: NOW, self._drop_events)

    async def load(self, run: CodeRun) -> Any:
        blobs: Any = None  # never used: the run has no files
        files = WorkFiles(self.store, blobs, run.execution, WorkLimits())
        load_state = run.build_hooks(self.store, None, files).load_state
        assert load_state is not None
        return json.loads(await load_state() or b"{}")

    async def settle(self, run: CodeRun, value: Any, outcome: SandboxOutcome | None = None) -> SandboxOutcome:
        """Settle a run that leaves a state, as the runner does in one transaction."""
        run.handle_message("state", json.dumps(value).encode())
        outcome = run.keep_state(outcome or SandboxOutcome(output=b"1"))
        async with self.store.tenant_transaction(self.caller.tenant_id) as tx:
            ended = AttemptOutcome(execution=run.execution, outcome=outcome, events=[])
            assert (await executions.settle_executions(tx, [ended])).settled_attempts
            if run.write_results is not None:
                await run.write_results(tx)
        return outcome

    async def _drop_events(self, _: object) -> None: ...


@pytest.fixture
async def environment(system) -> AsyncIterator[StateEnvironment]:
    async with open_isolated_database(system) as database:
        caller = await database.add_tenant()
        agent_id = await database.add_agent(caller)
        engine = create_engine(database.url, pool_size=4, application="tests")
        yield StateEnvironment(database, PostgresStore(engine, SilentBell(), lambda: NOW), caller, agent_id)
        await engine.dispose()


async def test_a_completed_run_leaves_its_state_to_the_next(environment: StateEnvironment) -> None:
    _, run = await environment.start_run()
    assert await environment.load(run) == {}
    await environment.settle(run, {"count": 1, "odd": "\0é"})
    assert await environment.get() == {"count": 1, "odd": "\0é"}
    _, run = await environment.start_run()
    assert await environment.load(run) == {"count": 1, "odd": "\0é"}


@pytest.mark.parametrize("start", [None, {"from": "before"}])
async def test_of_two_runs_that_change_one_state_the_later_fails(environment: StateEnvironment, start: Any) -> None:
    if start is not None:
        await environment.put(start)
    (first, first_run), (second, second_run) = await environment.start_run(), await environment.start_run()
    for run in (first_run, second_run):
        assert await environment.load(run) == (start or {})
    await environment.settle(first_run, {"by": first.id})
    with pytest.raises(DomainError) as caught:
        await environment.settle(second_run, {"by": second.id})
    assert caught.value.code == "state_conflict"
    assert "Run it again" in caught.value.detail
    failure = second_run.drop_results(caught.value)
    assert failure is not None
    assert (failure.error_type, second_run.write_results) == ("state_conflict", None)
    assert await environment.get() == {"by": first.id}
    async with environment.store.transaction(environment.caller) as tx:
        assert (await executions.get_execution(tx, second.id)).status in ("preparing", "running"), "nothing was settled"


async def test_runs_that_settle_at_the_same_moment_lose_no_change(environment: StateEnvironment) -> None:
    await environment.put({"count": 0})
    runs = [(await environment.start_run())[1] for _ in range(4)]
    counts = [(await environment.load(run))["count"] for run in runs]
    assert counts == [0] * 4
    results = await asyncio.gather(*(environment.settle(run, {"count": 1}) for run in runs), return_exceptions=True)
    conflicts = [result for result in results if isinstance(result, DomainError)]
    assert len(conflicts) == 3, results
    assert {conflict.code for conflict in conflicts} == {"state_conflict"}


@pytest.mark.parametrize("again", [False, True])
async def test_a_state_that_was_deleted_meanwhile_is_not_written(environment: StateEnvironment, again: bool) -> None:
    old = await environment.put({"a": 1})
    _, run = await environment.start_run()
    await environment.load(run)
    await environment.delete()
    if again:
        assert await environment.put({"a": 2}) > old, "a revision is never given twice"
    with pytest.raises(DomainError, match="Another run changed") as caught:
        await environment.settle(run, {"a": 3})
    assert caught.value.code == "state_conflict"


async def test_a_failed_run_and_a_forged_message_write_nothing(environment: StateEnvironment) -> None:
    _, run = await environment.start_run()
    await environment.load(run)
    await environment.settle(run, {"a": 1}, SandboxOutcome(error_type="ValueError", error_message="no"))
    _, run = await environment.start_run()
    await environment.settle(run, {"never": "read"})
    with pytest.raises(DomainError, match="There is no state"):
        await environment.get()


@pytest.mark.parametrize(
    ("state", "problem"),
    [
        (b"[" * 200 + b"]" * 200, "The state nests deeper than"),
        (b"{", "The state is not JSON."),
        (b'"\xff"', "The state is not JSON."),
        (b'"' + b"x" * (1024 * 1024 - 1) + b'"', "larger than 1048576 bytes"),
    ],
)
async def test_a_forged_state_fails_its_run(environment: StateEnvironment, state: bytes, problem: str) -> None:
    _, run = await environment.start_run()
    await environment.load(run)
    run.handle_message("state", state)
    outcome = run.keep_state(SandboxOutcome(output=b"1"))
    assert outcome.error_type == "state_not_json"
    assert problem in (outcome.error_message or "")
    assert run.write_results is None


async def test_a_result_past_its_limits_leaves_no_state(environment: StateEnvironment) -> None:
    _, run = await environment.start_run()
    await environment.load(run)
    outcome = await environment.settle(run, {"a": 1}, SandboxOutcome(output=b"[" * 200 + b"]" * 200))
    assert outcome.error_type == "result_not_json"
    with pytest.raises(DomainError, match="There is no state"):
        await environment.get()


async def test_a_secret_in_a_state_is_masked(environment: StateEnvironment) -> None:
    _, run = await environment.start_run()
    await environment.load(run)
    run.mask.use_mask(SecretMask(["correct-horse-battery"]))
    await environment.settle(run, {"token": "Bearer correct-horse-battery", "plain": 1})
    assert await environment.get() == {"token": "Bearer ***", "plain": 1}


async def test_a_revision_guards_a_change_from_outside(environment: StateEnvironment) -> None:
    revision = await environment.put({"a": 1}, revision=0)
    for stale in (0, revision - 1, revision + 1):
        with pytest.raises(DomainError) as caught:
            await environment.put({"a": 2}, revision=stale)
        assert caught.value.code == "state_conflict"
    assert await environment.put({"a": 2}, revision=revision) > revision
    assert await environment.get() == {"a": 2}


async def test_an_agent_has_a_bounded_number_of_states(
    environment: StateEnvironment, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(states, "MAX_STATES", 2)
    for name in ("a", "b"):
        await environment.put(1, name)
    await environment.put(2, "a")
    with pytest.raises(DomainError) as caught:
        await environment.put(1, "c")
    assert caught.value.code == "quota_exceeded"
    _, run = await environment.start_run()
    await environment.load(run)
    with pytest.raises(DomainError) as caught:
        await environment.settle(run, {"a": 1})
    failure = run.drop_results(caught.value)
    assert failure is not None
    assert failure.error_type == "quota_exceeded"


async def test_states_are_listed_by_name_without_their_values(environment: StateEnvironment) -> None:
    for number, name in enumerate(("b", "a", "价格")):
        await environment.put("x" * number, name)
    async with environment.store.transaction(environment.caller) as tx:
        listing = await states.list_states(tx, environment.agent_id, Page(limit=2))
        rest = await states.list_states(tx, environment.agent_id, Page(limit=2, offset=2))
    assert [(state.name, state.size_bytes) for state in listing.items] == [("a", 3), ("b", 2)]
    assert (listing.total, listing.has_more) == (3, True)
    assert [state.name for state in rest.items] == ["价格"]
    assert "value" not in msgspec.json.encode(listing).decode()


async def test_a_deleted_agent_s_states_are_deleted(environment: StateEnvironment) -> None:
    await environment.put({"a": 1})
    async with environment.store.transaction(environment.caller) as tx:
        await agents.delete_agent(tx, environment.agent_id)
    assert await environment.database.owner.fetchval("SELECT count(*) FROM agent_states") == 0
