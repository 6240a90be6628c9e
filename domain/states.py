"""Keep the states of uploaded agents: JSON that a run leaves for later runs of its agent, under a name.

A run reads the state when its code first uses it, and stores it when it is settled as completed, or not at all. Of two
runs that change the same state at the same time, the one that ends later fails with `state_conflict`.
"""

from datetime import datetime
from typing import Annotated, Any, Final, Protocol

import msgspec
from msgspec import Meta

from domain import agents
from domain.agents import Agent
from domain.executions import Execution
from domain.ports import Tx
from domain.shared import names
from domain.shared.errors import Conflict, DomainError, InvalidField, NotFound
from domain.shared.json_limits import JsonTooLarge, check_json, check_json_field
from domain.shared.pages import Listing, Page

DEFAULT_STATE_NAME: Final = "default"
MAX_STATE_BYTES: Final = 1024 * 1024
# The states of one agent besides those of threads.
MAX_STATES: Final = 10_000
# The revision of a state that does not exist.
NO_REVISION: Final = 0


class AgentStateSummary(msgspec.Struct, kw_only=True):
    """Describe a state without its value. `revision` is another with each change, and larger than all before."""

    name: str
    revision: int
    size_bytes: int
    updated_at: datetime


class AgentState(AgentStateSummary, kw_only=True):
    """Show a state with its value, which is JSON of at most 1 MiB."""

    value: Any


class StateChange(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """Replace the value of a state.

    With a `revision` only if the state still has that one: 0 is a state that does not exist.
    """

    value: Annotated[Any, Meta(examples=[{"count": 1}])]
    revision: Annotated[int, Meta(ge=0, le=(1 << 63) - 1)] | None = None


class States(Protocol):
    """Store the states of the bound tenant's agents."""

    async def list_page(self, agent_id: str, page: Page) -> Listing[AgentStateSummary]: ...
    async def find(self, agent_id: str, name: str) -> AgentState | None: ...
    async def find_json(self, agent_id: str, name: str) -> tuple[bytes, int]:
        """Return the JSON of a state and its revision; without a state, nothing and `NO_REVISION`."""
        ...

    async def count_other(self, agent_id: str, name: str) -> int:
        """Count the agent's states besides this one and those of threads, up to `MAX_STATES`."""
        ...

    async def save_json(
        self,
        agent_id: str,
        name: str,
        value: bytes,
        revision: int | None,
        now: datetime,
        thread_id: str | None = None,
    ) -> bool:
        """Replace or create a state; with a `revision` only if it has that one. Returns whether it was written.

        A state of a thread is deleted with it.
        """
        ...

    async def delete(self, agent_id: str, name: str) -> bool: ...
    async def delete_all(self, agent_id: str) -> None: ...


async def list_states(tx: Tx, reference: str, page: Page) -> Listing[AgentStateSummary]:
    """List an agent's states by name, without their values. Errors: `not_found`."""
    agent = await agents.get_agent(tx, reference)
    return await tx.states.list_page(agent.id, page)


async def get_state(tx: Tx, reference: str, name: str) -> AgentState:
    """Return a state of an agent. Errors: `not_found`."""
    agent = await agents.get_agent(tx, reference)
    state = await tx.states.find(agent.id, name)
    if state is None:
        raise NotFound("state", name)
    return state


async def put_state(tx: Tx, reference: str, name: str, data: StateChange) -> AgentState:
    """Create or replace a state of an uploaded agent.

    Errors: `not_found`, `conflict` for a model agent, `state_conflict` for another revision, `quota_exceeded`.
    """
    agent = await agents.get_agent(tx, reference, lock="share")
    _refuse_model_agent(agent)
    check_json_field("value", data.value)
    value = msgspec.json.encode(data.value)
    if len(value) > MAX_STATE_BYTES:
        raise InvalidField("value", f"is {len(value)} bytes of JSON; at most {MAX_STATE_BYTES} are allowed.")
    await _check_count(tx, agent.id, names.check_state_name("state_name", name))
    if not await tx.states.save_json(agent.id, name, value, data.revision, tx.now):
        raise Conflict(
            f"The state {name!r} no longer has the revision {data.revision}. Read it again.", "state_conflict"
        )
    return await get_state(tx, agent.id, name)


async def delete_state(tx: Tx, reference: str, name: str) -> None:
    """Delete a state of an agent. Runs that read it before cannot store it any more. Errors: `not_found`."""
    agent = await agents.get_agent(tx, reference)
    if not await tx.states.delete(agent.id, name):
        raise NotFound("state", name)


async def save_run_state(tx: Tx, execution: Execution, value: bytes, revision: int) -> None:
    """Store the state that a run leaves, if it is still the one that the run read.

    Errors: `state_conflict`, `quota_exceeded`.
    """
    name, agent_id, thread_id = get_state_name(execution), execution.agent_id or "", execution.thread_id
    if revision == NO_REVISION and thread_id is None:
        await _check_count(tx, agent_id, name)
    if not await tx.states.save_json(agent_id, name, value, revision, tx.now, thread_id):
        raise Conflict(
            f"Another run changed the state {name!r} after this one had read it, so this one cannot be completed. Run "
            "it again. To prevent this, let the agent run once at a time (max_concurrency: 1), or give the runs states "
            "of different names.",
            "state_conflict",
        )


def explain_bad_state(value: bytes) -> str | None:
    """Return what is wrong with the JSON of a state that a run leaves; None if nothing is."""
    try:
        check_json(value)
        msgspec.json.decode(value)
    except JsonTooLarge as error:
        return f"The state {error.reason}"
    except (msgspec.MsgspecError, RecursionError, UnicodeDecodeError):
        return "The state is not JSON."
    return None if len(value) <= MAX_STATE_BYTES else f"The state is larger than {MAX_STATE_BYTES} bytes of JSON."


def get_state_name(execution: Execution) -> str:
    """Return the name of the state that a run reads and leaves: in a thread, that of the thread."""
    return execution.state or execution.thread_id or DEFAULT_STATE_NAME


def _refuse_model_agent(agent: Agent) -> None:
    if agent.kind == "llm":
        raise Conflict(f"{agent.name!r} is a model agent. Only uploaded agents keep states.")


async def _check_count(tx: Tx, agent_id: str, name: str) -> None:
    if await tx.states.count_other(agent_id, name) >= MAX_STATES:
        message = f"The agent has {MAX_STATES} states, and can have no more. Delete some of them."
        raise DomainError("quota_exceeded", message)
