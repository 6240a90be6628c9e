"""Handle agents: create, list, get, update and delete."""

from dataclasses import dataclass

from litestar import Response, Router, delete, get, post, route
from litestar.di import Provide

from api.idempotency import ResourceCreator
from api.operations import IDEMPOTENCY_KEY, require_scope
from api.requests import HttpRequest, Store
from domain import agents
from domain.agents import Agent, AgentFilter, AgentStatus, NewAgent, PatchAgent
from domain.shared.access import Caller
from domain.shared.pages import Listing, Page
from domain.shared.tags import check_metadata_filters, check_tags


@dataclass(frozen=True, kw_only=True)
class AgentQuery:
    """Hold the query parameters that select agents."""

    status: AgentStatus | None = None
    parent: str | None = None
    tag: list[str] | None = None
    metadata: list[str] | None = None

    def to_filter(self) -> AgentFilter:
        """Return the filter. Errors: `invalid_field`."""
        return AgentFilter(
            status=self.status,
            parent=self.parent,
            tags=check_tags(self.tag or [], "tag"),
            metadata=check_metadata_filters(self.metadata or []),
        )


@post("/agents", opt=require_scope("write:agents", IDEMPOTENCY_KEY))
async def create_agent(
    creator: ResourceCreator, request: HttpRequest, caller: Caller, data: NewAgent
) -> Response[Agent]:
    """Create an agent. With a model, or any other field of a model agent, it is ready; otherwise upload an archive."""
    return await creator.create_idempotently(request, caller, lambda tx: agents.create_agent(tx, caller, data))


@get("/agents", opt=require_scope("read:agents"))
async def list_agents(store: Store, caller: Caller, pagination: Page, query_filter: AgentQuery) -> Listing[Agent]:
    """List the tenant's agents, newest first. `parent` selects those that inherit from an agent.

    `tag=eu&tag=prod` selects those with both tags, `metadata=team:red` those with this member.
    """
    async with store.transaction(caller) as tx:
        return await agents.list_agents(tx, pagination, query_filter.to_filter())


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


router = Router(
    "/",
    route_handlers=[create_agent, list_agents, get_agent, update_agent, delete_agent],
    dependencies={"query_filter": Provide(AgentQuery, sync_to_thread=False)},
    tags=["agents"],
)
