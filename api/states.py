"""Handle the states that runs of an agent keep: list, get, replace and delete."""

from litestar import Router, delete, get, put

from api.operations import require_scope
from api.requests import Store
from domain import states
from domain.shared.access import Caller
from domain.shared.pages import Listing, Page
from domain.states import AgentState, AgentStateSummary, StateChange

_ITEM_PATH = "/agents/{agent_id:str}/states/{state_name:str}"
_WRITE_ACCESS = require_scope("write:executions")


@get("/agents/{agent_id:str}/states", opt=require_scope("read:executions"))
async def list_states(store: Store, caller: Caller, agent_id: str, pagination: Page) -> Listing[AgentStateSummary]:
    """List an agent's states by name, without their values."""
    async with store.transaction(caller) as tx:
        return await states.list_states(tx, agent_id, pagination)


@get(_ITEM_PATH, opt=require_scope("read:executions"))
async def get_state(store: Store, caller: Caller, agent_id: str, state_name: str) -> AgentState:
    """Return a state with its value."""
    async with store.transaction(caller) as tx:
        return await states.get_state(tx, agent_id, state_name)


@put(_ITEM_PATH, opt=_WRITE_ACCESS)
async def put_state(store: Store, caller: Caller, agent_id: str, state_name: str, data: StateChange) -> AgentState:
    """Create or replace a state. With a `revision`, 409 if the state has another one by now."""
    async with store.transaction(caller) as tx:
        return await states.put_state(tx, agent_id, state_name, data)


@delete(_ITEM_PATH, opt=_WRITE_ACCESS)
async def delete_state(store: Store, caller: Caller, agent_id: str, state_name: str) -> None:
    """Delete a state. A run that read it before cannot store it any more."""
    async with store.transaction(caller) as tx:
        await states.delete_state(tx, agent_id, state_name)


router = Router("/", route_handlers=[list_states, get_state, put_state, delete_state], tags=["agents"])
