"""Agents: create, list, change, delete."""

from litestar import Response, Router, delete, get, post, route

from api.front import Front, created, needs
from api.requests import HttpRequest
from domain import agents
from domain.agents import Agent, AgentStatus, NewAgent, PatchAgent
from domain.shared.access import Caller
from domain.shared.pages import Listing, Page


@post("/agents", opt=needs("write:agents"))
async def create_agent(front: Front, request: HttpRequest, caller: Caller, data: NewAgent) -> Response[Agent]:
    """Create an agent. With a model (or any field of a model agent) it is ready to run; without, upload an archive."""
    return await created(front, request, caller, lambda tx: agents.create(tx, caller, data))


@get("/agents", opt=needs("read:agents"))
async def list_agents(
    front: Front, caller: Caller, part: Page, status: AgentStatus | None = None, parent: str | None = None
) -> Listing[Agent]:
    """The tenant's agents, newest first; `parent` narrows them to those that inherit from an agent."""
    async with front.store.begin(caller) as tx:
        return await agents.list_agents(tx, part, status, parent)


@get("/agents/{agent_id:str}", opt=needs("read:agents"))
async def get_agent(front: Front, caller: Caller, agent_id: str, resolved: bool = False) -> Agent:
    """An agent by id or name. `resolved=true` shows what is in force, with all that it inherits."""
    async with front.store.begin(caller) as tx:
        return await agents.shown(tx, agent_id, resolved)


@route("/agents/{agent_id:str}", http_method=["PATCH", "PUT"], opt=needs("write:agents"), status_code=200)
async def patch_agent(front: Front, caller: Caller, agent_id: str, data: PatchAgent) -> Agent:
    """Change what was sent; PUT does the same. `archived` stops new executions."""
    async with front.store.begin(caller) as tx:
        return await agents.patch(tx, agent_id, data)


@delete("/agents/{agent_id:str}", opt=needs("write:agents"))
async def delete_agent(front: Front, caller: Caller, agent_id: str) -> None:
    """Remove an agent and cancel its executions; the record of them stays."""
    async with front.store.begin(caller) as tx:
        await agents.delete(tx, agent_id)


router = Router("/", route_handlers=[create_agent, list_agents, get_agent, patch_agent, delete_agent], tags=["agents"])
