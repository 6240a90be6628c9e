"""Agents: what a tenant runs. A `code` agent gets its versions from uploaded archives."""

import re
from datetime import datetime
from typing import Annotated, Final, Literal, Protocol

import msgspec
from msgspec import UNSET, Meta, UnsetType

from domain import ids
from domain.access import Caller
from domain.errors import DomainError, conflict, invalid, not_found
from domain.jobs import Job
from domain.pages import Listing, Page
from domain.ports import Tx

AgentStatus = Literal["draft", "building", "ready", "failed", "archived"]
AgentKind = Literal["code"]
ConcurrencyPolicy = Literal["queue", "reject", "replace"]

NAME: Final = re.compile(r"[^\x00-\x1f/\\]{1,128}")
RESERVED: Final = frozenset({".", "..", "executions"})
Name = Annotated[str, Meta(min_length=1, max_length=128, examples=["my-agent"])]
MaxConcurrency = Annotated[int, Meta(ge=1, le=100_000, examples=[4])]
Description = Annotated[str, Meta(max_length=10_000, pattern=r"^[^\x00]*$", examples=["My AI agent"])]


class Agent(msgspec.Struct, kw_only=True):
    """An agent. `status` follows its builds; `current_version_id` is what an execution runs.

    At most `max_concurrency` of its executions run at the same time. What happens to one more is
    `concurrency_policy`: it waits (`queue`), is refused with 409 (`reject`), or the oldest that has not
    ended is cancelled for it (`replace`). Without a `max_concurrency` there is no limit.
    """

    id: str
    name: str
    description: str | None
    kind: AgentKind
    user_id: str
    tenant_id: str
    status: AgentStatus
    current_version_id: str | None
    max_concurrency: int | None = None
    concurrency_policy: ConcurrencyPolicy = "queue"
    created_at: datetime
    updated_at: datetime


class NewAgent(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """What to create. The name is unique in the tenant and works wherever a path takes an agent."""

    name: Name
    description: Description | None = None
    max_concurrency: MaxConcurrency | None = None
    concurrency_policy: ConcurrencyPolicy = "queue"


class PatchAgent(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """What to change. `archived` stops new executions, `ready` brings an archived agent back."""

    name: Name | UnsetType = UNSET
    description: Description | None | UnsetType = UNSET
    status: Literal["archived", "ready"] | UnsetType = UNSET
    max_concurrency: MaxConcurrency | None | UnsetType = UNSET
    concurrency_policy: ConcurrencyPolicy | UnsetType = UNSET


class Agents(Protocol):
    """The agents of the bound tenant."""

    async def add(self, agent: Agent) -> bool: ...
    async def find(self, reference: str, lock: bool | Literal["share"] = False) -> Agent | None: ...
    async def page(self, page: Page, status: AgentStatus | None) -> Listing[Agent]: ...
    async def save(self, agent: Agent) -> bool: ...
    async def delete(self, agent_id: str, now: datetime) -> None: ...


def checked_name(name: str) -> str:
    """A name that can stand in a path and in a log line. Errors: `invalid_field`."""
    if not NAME.fullmatch(name) or name.strip() != name or ids.decode("agent", name) is not None:
        raise invalid(
            "name", "must not begin or end with a space, hold slashes or control characters, or look like an id."
        )
    if name in RESERVED:
        raise invalid("name", f"{name!r} means something else in a path.")
    return name


async def create(tx: Tx, caller: Caller, data: NewAgent) -> Agent:
    """Create an agent in `draft`. Errors: `conflict` when the name is taken."""
    agent = Agent(
        id=ids.new("agent"),
        name=checked_name(data.name),
        description=data.description,
        kind="code",
        user_id=caller.user_id,
        tenant_id=caller.tenant_id,
        status="draft",
        current_version_id=None,
        max_concurrency=data.max_concurrency,
        concurrency_policy=data.concurrency_policy,
        created_at=tx.now,
        updated_at=tx.now,
    )
    if not await tx.agents.add(agent):
        raise _name_taken(agent.name)
    return agent


async def get(tx: Tx, reference: str, lock: bool | Literal["share"] = False) -> Agent:
    """An agent by id or name. Errors: `not_found`."""
    agent = await tx.agents.find(reference, lock)
    if agent is None:
        raise not_found("agent", reference)
    return agent


async def list_agents(tx: Tx, page: Page, status: AgentStatus | None) -> Listing[Agent]:
    """The tenant's agents, newest first."""
    return await tx.agents.page(page, status)


async def patch(tx: Tx, reference: str, data: PatchAgent) -> Agent:
    """Change what was sent. Errors: `not_found`, `conflict` for a taken name or nothing to bring back."""
    agent = await get(tx, reference, lock=True)
    if data.name is not UNSET:
        agent.name = checked_name(data.name)
    if data.description is not UNSET:
        agent.description = data.description
    if data.max_concurrency is not UNSET:
        agent.max_concurrency = data.max_concurrency
    if data.concurrency_policy is not UNSET:
        agent.concurrency_policy = data.concurrency_policy
    if data.status == "archived":
        agent.status = "archived"
    elif data.status == "ready" and agent.status == "archived":
        agent.status = "ready" if agent.current_version_id else "draft"
    elif data.status == "ready" and agent.status != "ready":
        raise conflict(f"The agent is {agent.status}; it becomes ready when a version of it is built.")
    agent.updated_at = tx.now
    if not await tx.agents.save(agent):
        raise _name_taken(agent.name)
    if data.max_concurrency is not UNSET:
        # What waited for the old limit may run under the new one.
        tx.ring(Job(lane="run", row_id=agent.id, tenant_id=agent.tenant_id, attempt=0))
    return agent


async def delete(tx: Tx, reference: str) -> None:
    """Remove an agent: its name is free again, its waiting and running executions are cancelled.

    The record of its executions stays; its archives are removed by upkeep.
    """
    agent = await get(tx, reference, lock=True)
    for execution_id in await tx.executions.cancel_oldest(agent.id, 0, "The agent was deleted.", tx.now):
        tx.changed(execution_id, "cancelled")
    await tx.agents.delete(agent.id, tx.now)


def _name_taken(name: str) -> DomainError:
    return DomainError(
        "conflict", f"There is an agent named {name!r} already.", invalid("name", "is taken in this tenant.").errors
    )
