"""Handle agents: create, list, get, update and delete."""

from litestar import Response, Router, delete, get, post, route

from api.idempotency import ResourceCreator
from api.operations import IDEMPOTENCY_KEY, require_scope
from api.requests import HttpRequest, Store
from domain import agents
from domain.agents import Agent, AgentStatus, NewAgent, PatchAgent
from domain.shared.access import Caller
from domain.shared.pages import Listing, Page


@post("/agents", opt=require_scope("write:agents", IDEMPOTENCY_KEY))
async def create_agent(
    creator: ResourceCreator, request: HttpRequest, caller: Caller, data: NewAgent
) -> Response[Agent]:
    """Create an agent. With a model, or any other field of a model agent, it is ready; otherwise upload an archive."""
    return await creator.create_idempotently(request, caller, lambda tx: agents.create_agent(tx, caller, data))


@get("/agents", opt=require_scope("read:agents"))
async def list_agents(
    store: Store, caller: Caller, pagination: Page, status: AgentStatus | None = None, parent: str | None = None
) -> Listing[Agent]:
    """List the tenant's agents, newest first. `parent` selects those that inherit from an agent."""
    async with store.transaction(caller) as tx:
        return await agents.list_agents(tx, pagination, status, parent)


@get("/agents/{agent_id:str}", opt=require_scope("read:agents"))
async def get_agent(store: Store, caller: Caller, agent_id: str, resolved: bool = False) -> Agent:
    """Return an agent by id or name. `resolved=true` includes everything that it inherits."""
    async with store.transaction(caller) as tx:
        return await agents.show_agent(tx, agent_id, resolved)


@route("/agents/{agent_id:str}", http_method=["PATCH", "PUT"], opt=require_scope("write:agents"), status_code=200)
async def update_agent(store: Store, caller: Caller, agent_id: str, data: PatchAgent) -> Agent:
    """Change the fields that are sent; PUT does the same. An `archived` agent starts no new executions."""
    async with store.transaction(caller) as tx:
        return await agents.patch_agent(tx, agent_id, data)


@delete("/agents/{agent_id:str}", opt=require_scope("write:agents"))
async def delete_agent(store: Store, caller: Caller, agent_id: str) -> None:
    """Delete an agent and cancel its executions, whose records stay."""
    async with store.transaction(caller) as tx:
        await agents.delete_agent(tx, agent_id)


router = Router("/", route_handlers=[create_agent, list_agents, get_agent, update_agent, delete_agent], tags=["agents"])
