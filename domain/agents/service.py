"""Create, change and delete agents."""

from typing import Any, Literal

import msgspec
from msgspec import UNSET

from domain import llms, schemas, templates, tools
from domain.agents.inheritance import resolve_agent, resolve_code_agent, resolve_parent
from domain.agents.schema import (
    AGENT_NAME_PATTERN,
    LLM_FIELDS,
    RESERVED_AGENT_NAMES,
    Agent,
    AgentFilter,
    ModelAgentFields,
    NewAgent,
    PatchAgent,
)
from domain.ports import Tx
from domain.shared import ids, names
from domain.shared.access import Caller
from domain.shared.errors import Conflict, DomainError, FieldError, InvalidField, InvalidFields, require_found
from domain.shared.exposure import read_exposure
from domain.shared.jobs import Job
from domain.shared.pages import Listing, Page, build_listing
from domain.shared.tags import check_metadata, check_tags
from domain.shared.variables import check_variables, find_gateway_names


def check_agent_name(name: str) -> str:
    """Return a name that can be part of a path and of a log line. Errors: `invalid_field`."""
    return names.check_name(name, "agent", RESERVED_AGENT_NAMES, AGENT_NAME_PATTERN, "slashes or control characters")


async def create_agent(tx: Tx, caller: Caller, data: NewAgent) -> Agent:
    """Create an agent: a model agent is `ready` at once, any other waits in `draft` for its archive.

    Errors: `conflict` for a taken name, `invalid_field` for unknown models, tools, templates and parents.
    """
    agent = Agent(
        id=ids.generate_id("agent"),
        name=check_agent_name(data.name),
        description=data.description,
        kind="llm" if data.collect_model_fields() else "code",
        user_id=caller.user_id,
        tenant_id=caller.tenant_id,
        status="draft",
        current_version_id=None,
        max_concurrency=data.max_concurrency,
        concurrency_policy=data.concurrency_policy,
        tags=check_tags(data.tags or []),
        metadata=check_metadata(data.metadata),
        expose=read_exposure(data.expose),
        created_at=tx.now,
        updated_at=tx.now,
    )
    await _set_model_fields(tx, agent, data)
    if data.env is not None:
        await _set_env(tx, agent, data.env)
    _set_schemas(agent, data)
    if not await tx.agents.add(agent):
        raise _name_taken(agent.name)
    return agent


async def _set_env(tx: Tx, agent: Agent, env: dict[str, str] | None) -> None:
    """Set the variables of an uploaded agent. Errors: `invalid_field`, also for names that its version sets itself."""
    if agent.kind != "code":
        raise InvalidField("env", "is allowed only for agents that run uploaded code; this is a model agent.")
    check_variables(env or {}, "env")
    version = await tx.builds.get(agent.current_version_id) if env and agent.current_version_id else None
    if env and version is not None:
        errors = [
            FieldError(field=f"env.{name}", message=f"is a secret of {version.version}.")
            for name in version.secrets or []
            if name in env
        ]
        errors += [
            FieldError(field=f"env.{name}", message="is set by the sandbox, because the version names `models`.")
            for name in find_gateway_names(env)
            if version.models
        ]
        if errors:
            raise InvalidFields(errors)
    agent.env = env or None


def _set_schemas(agent: Agent, data: NewAgent | PatchAgent) -> None:
    """Set the schemas that were sent. Errors: `invalid_field`, naming the place."""
    for field in ("input_schema", "output_schema"):
        schema = getattr(data, field)
        if schema is not UNSET:
            setattr(agent, field, None if schema is None else schemas.parse_schema(schema, field))


async def _set_model_fields(tx: Tx, agent: Agent, data: ModelAgentFields) -> None:
    """Set the model fields that were sent. Errors: `invalid_field`."""
    sent = data.collect_model_fields()
    if not sent:
        return
    if agent.kind != "llm":
        raise InvalidField(next(iter(sent)), "is allowed only for model agents; this agent runs uploaded code.")
    _rename_alias(sent)
    await _resolve_references(tx, agent, sent)
    for name in (*LLM_FIELDS, "tools", "parent", "parent_id"):
        if name in sent:
            setattr(agent, name, sent[name])
    await _check_models(tx, agent, sent)
    if "tools" in sent:
        await tools.resolve_tools(tx, agent.tools)
    if agent.status in ("draft", "ready"):
        agent.status = "ready" if (await resolve_agent(tx, agent)).model is not None else "draft"


def _rename_alias(sent: dict[str, Any]) -> None:
    """Rename the field `llm` to `model`. Errors: `invalid_field` if both were sent."""
    if "llm" not in sent:
        return
    if "model" in sent:
        raise InvalidField("llm", "is another name for model. Send one of them.")
    sent["model"] = sent.pop("llm")


async def _resolve_references(tx: Tx, agent: Agent, sent: dict[str, Any]) -> None:
    """Replace the parent and the template that were sent by their names, and add their ids. Errors: `invalid_field`."""
    if "parent" in sent:
        parent = None if sent["parent"] is None else await resolve_parent(tx, agent, sent["parent"])
        sent["parent"], sent["parent_id"] = (None, None) if parent is None else (parent.name, parent.id)
    if "template" in sent:
        template = None if sent["template"] is None else await templates.resolve_template(tx, sent["template"])
        sent["template"], sent["template_id"] = (None, None) if template is None else (template.name, template.id)


async def _check_models(tx: Tx, agent: Agent, sent: dict[str, Any]) -> None:
    """Check that the models that were sent can be called. Errors: `invalid_field`."""
    if {"model", "provider"} & sent.keys() and agent.model is not None:
        await llms.resolve_model(tx, agent.model, agent.provider)
    if agent.provider is not None and agent.model is None:
        raise InvalidField("provider", "needs a model. Send the model too.")
    if sent.get("fallback_model") is not None:
        try:
            await llms.resolve_model(tx, sent["fallback_model"])
        except DomainError as error:
            raise InvalidField("fallback_model", error.detail.removeprefix("model: ")) from error


async def show_agent(tx: Tx, reference: str, resolve: bool) -> Agent:
    """Return an agent as it was defined, or with the effective values that it inherits. Errors: `not_found`."""
    agent = await get_agent(tx, reference)
    if not resolve:
        return agent
    return await resolve_agent(tx, agent) if agent.kind == "llm" else await resolve_code_agent(tx, agent)


async def get_agent(tx: Tx, reference: str, lock: bool | Literal["share"] = False) -> Agent:
    """Return an agent by id or name. Errors: `not_found`."""
    return require_found("agent", reference, await tx.agents.find(reference, lock))


async def list_agents(tx: Tx, page: Page, filters: AgentFilter) -> Listing[Agent]:
    """List the tenant's agents, newest first, or the children of a parent. An unknown parent has none."""
    if filters.parent is None:
        return await tx.agents.list_page(page, filters)
    parent_agent = await tx.agents.find(filters.parent)
    if parent_agent is None:
        return build_listing([], 0, page)
    return await tx.agents.list_page(page, msgspec.structs.replace(filters, parent=parent_agent.id))


async def patch_agent(tx: Tx, reference: str, data: PatchAgent) -> Agent:
    """Change the fields that were sent. Errors: `not_found`, `conflict` for a taken name or nothing to restore."""
    agent = await get_agent(tx, reference, lock=True)
    if data.name is not UNSET:
        agent.name = check_agent_name(data.name)
    if data.description is not UNSET:
        agent.description = data.description
    if data.max_concurrency is not UNSET:
        agent.max_concurrency = data.max_concurrency
    if data.concurrency_policy is not UNSET:
        agent.concurrency_policy = data.concurrency_policy
    await _set_model_fields(tx, agent, data)
    if data.env is not UNSET:
        await _set_env(tx, agent, data.env)
        # Sandboxes that wait with the old variables are ended.
        tx.announce_status(agent.id, "changed")
    _set_labels(agent, data)
    _set_schemas(agent, data)
    if data.status == "archived":
        agent.status = "archived"
    elif data.status == "ready" and agent.status == "archived":
        runs = agent.current_version_id or (await resolve_agent(tx, agent)).model
        agent.status = "ready" if runs else "draft"
    elif data.status == "ready" and agent.status != "ready":
        if agent.kind == "llm":
            raise Conflict("The agent has no model. Set a model for it or its parent.")
        raise Conflict(f"The agent is {agent.status}; it becomes ready when a version of it is built.")
    agent.updated_at = tx.now
    if not await tx.agents.save(agent):
        raise _name_taken(agent.name)
    if data.max_concurrency is not UNSET:
        # Executions that waited for the old limit may run now.
        lane: Literal["run", "llm"] = "llm" if agent.kind == "llm" else "run"
        tx.ring_job(Job(lane=lane, row_id=agent.id, tenant_id=agent.tenant_id, attempt=0))
    return agent


def _set_labels(agent: Agent, data: PatchAgent) -> None:
    if data.tags is not UNSET:
        agent.tags = check_tags(data.tags or [])
    if data.metadata is not UNSET:
        agent.metadata = check_metadata(data.metadata)
    if data.expose is not UNSET:
        agent.expose = read_exposure(data.expose)


async def delete_agent(tx: Tx, reference: str) -> None:
    """Delete an agent. Its name becomes free, and its waiting and running executions are cancelled.

    The records of its executions stay. Its archives are deleted from object storage soon and no longer count toward the
    quota.
    """
    agent = await get_agent(tx, reference, lock=True)
    children = await tx.agents.list_children(agent.id)
    if children:
        raise Conflict(f"The agent {children[0].name!r} inherits from this one. Change its parent first.")
    if named := await tx.schedules.list_names_by_target("agent", agent.id):
        raise Conflict(f"The schedule {named[0]!r} starts this agent. Delete or change it first.")
    for execution_id in await tx.executions.cancel_oldest(agent.id, 0, "The agent was deleted.", tx.now, True):
        tx.free_gates(execution_id)
        tx.announce_status(execution_id, "cancelled")
    await tx.secrets.remove_agent(agent.id)
    await tx.states.delete_all(agent.id)
    await tx.agents.delete(agent.id, tx.now)
    tx.announce_status(agent.id, "deleted")
    tx.ring_job(Job(lane="record", row_id=agent.id, tenant_id="", attempt=0))


def _name_taken(name: str) -> DomainError:
    return DomainError(
        "conflict",
        f"There is an agent named {name!r} already.",
        InvalidField("name", "is already taken in this tenant.").errors,
    )
