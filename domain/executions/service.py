"""Start executions, and start ended ones again."""

from datetime import datetime, timedelta
from typing import Any, Final

import msgspec

from domain import agents, llms, schemas, secrets, tools
from domain.agents import MAX_TIMEOUT_SECONDS, Agent, AgentSpec, build_messages
from domain.builds import AgentVersion
from domain.executions.answers import apply_answer_start
from domain.executions.gates import add_at_gates
from domain.executions.queries import get_execution
from domain.executions.rings import job_from_execution
from domain.executions.schema import (
    DEFAULT_MAX_ATTEMPTS,
    DEFAULT_TIMEOUT_SECONDS,
    MODEL_AGENT_TIMEOUT_SECONDS,
    AnswerStart,
    Execution,
    ExecutionStart,
    build_payload,
    name_payload_field,
)
from domain.executions.steering import MAX_CLOCK_SKEW, MAX_DELAY_SECONDS
from domain.executions.terms import add_label_terms
from domain.ports import Tx
from domain.shared import ids, names
from domain.shared.access import Caller
from domain.shared.errors import Conflict, InvalidField
from domain.shared.json_limits import check_json_field
from domain.shared.status import TERMINAL_STATUSES
from domain.shared.tags import check_metadata, check_tags
from domain.shared.times import read_time

# What a repeated run has from the one before, be it of an agent or of a plan.
STEERING_FIELDS: Final = (
    "thread_id",
    "messages",
    "tags",
    "metadata",
    "priority",
    "concurrency_key",
    "concurrency_limit",
)
# A single tool call takes no longer than its caller would wait.
TOOL_CALL_TIMEOUT_SECONDS: Final = 60


async def start_execution(
    tx: Tx, caller: Caller, reference: str, data: ExecutionStart, schedule_id: str | None = None
) -> Execution:
    """Write a pending execution of an agent and ring for it.

    Errors: `not_found`, `agent_archived`, `version_not_ready`, `secret_unavailable`, `invalid_field`,
    `concurrency_limit`.
    """
    payload = build_payload(data)
    if data.timeout is not None and data.timeout > MAX_TIMEOUT_SECONDS:
        raise InvalidField("timeout", f"must be at most {MAX_TIMEOUT_SECONDS} seconds for an agent.")
    agent = await _lock_startable_agent(tx, reference)
    if data.state is not None:
        names.check_state_name("state", data.state)
    if agent.kind == "llm":
        if data.state is not None:
            raise InvalidField("state", f"applies to uploaded agents only; {agent.name!r} is a model agent.")
        spec, execution = await _build_model_execution(tx, caller, agent, data, payload)
        await schemas.check_value(spec.input_schema, payload, name_payload_field(data), caller.tenant_id)
        execution = apply_start_options(execution, data, schedule_id)
        await _enforce_concurrency(tx, agent, execution)
        return await add_execution(tx, execution, spec)
    version = await agents.get_runnable_version(tx, agent, data.agent_version_id)
    for field in ("mode", "model"):
        if getattr(data, field) is not None:
            raise InvalidField(field, f"applies to model agents only; {agent.name!r} runs uploaded code.")
    if data.cost_limit is not None and not version.models:
        raise InvalidField("cost_limit", f"limits the cost of model calls; {agent.name!r} names no models.")
    input_schema = agents.apply_version_schemas(agent, version).input_schema
    await schemas.check_value(input_schema, payload, name_payload_field(data), caller.tenant_id)
    await secrets.check_start_settings(tx, agent, agent.env, version)
    execution = _build_code_execution(tx, caller, agent, version, data, payload)
    execution = apply_start_options(execution, data, schedule_id)
    await _enforce_concurrency(tx, agent, execution)
    return await add_execution(tx, execution, None)


def _resolve_start_times(data: ExecutionStart, now: datetime) -> tuple[datetime | None, datetime | None]:
    """Return when a run begins, if it is put off, and when it expires. Errors: `invalid_field`."""
    if data.run_at is not None and data.delay_seconds is not None:
        raise InvalidField("delay_seconds", "means run_at; send one of them.")
    run_at = None if data.run_at is None else read_time("run_at", data.run_at)
    if run_at is not None and run_at < now - MAX_CLOCK_SKEW:
        raise InvalidField("run_at", f"is in the past: it is {now:%Y-%m-%dT%H:%M:%SZ} now.")
    if run_at is not None and run_at > now + timedelta(seconds=MAX_DELAY_SECONDS):
        raise InvalidField("run_at", "must be within a year from now.")
    if data.delay_seconds:
        run_at = now + timedelta(seconds=data.delay_seconds)
    expires_at = None if data.expires_in is None else now + timedelta(seconds=data.expires_in)
    if run_at is not None and expires_at is not None and expires_at <= max(run_at, now):
        raise InvalidField("expires_in", "must be longer than the run is put off: it would expire before it may begin.")
    return run_at, expires_at


def apply_start_options(execution: Execution, data: ExecutionStart, schedule_id: str | None) -> Execution:
    """Return a new execution of an agent or a plan with the options that are the same for both.

    Errors: `invalid_field` for times and keys that contradict each other.
    """
    run_at, expires_at = _resolve_start_times(data, execution.created_at)
    if data.concurrency_limit is not None and data.concurrency_key is None:
        raise InvalidField("concurrency_limit", "is the limit of a key: send concurrency_key as well.")
    messages = None if data.messages is None else [llms.message_to_json(message) for message in data.messages]
    return msgspec.structs.replace(
        execution,
        run_name=execution.run_name if data.run_name is None else data.run_name,
        schedule_id=schedule_id,
        state=data.state,
        files=data.files,
        tags=check_tags(data.tags or []),
        metadata=check_metadata(data.metadata),
        thread_id=data.thread_id,
        messages=messages,
        run_at=run_at,
        expires_at=expires_at,
        blocked="delayed" if run_at is not None and run_at > execution.created_at else None,
        priority=data.priority,
        concurrency_key=data.concurrency_key,
        concurrency_limit=None if data.concurrency_key is None else data.concurrency_limit or 1,
    )


async def start_tool_call(tx: Tx, caller: Caller, name: str, data: tools.ToolInvocation) -> Execution:
    """Write a pending execution of one tool call, in the workspace of another execution if that is named.

    Errors: `not_found`, `conflict` for a disabled tool, `invalid_field`.
    """
    tool = await tools.get_tool(tx, caller, name)
    if not tool.enabled:
        raise Conflict(f"The tool {tool.name!r} is disabled.")
    if data.tool is not None and tool.tool_type != "mcp":
        raise InvalidField("tool", f"picks a tool of an MCP server; {tool.name!r} is not an MCP server.")
    if data.tool is None and tool.tool_type == "mcp":
        raise InvalidField("tool", "is required: name the tool of this MCP server.")
    check_json_field("args", data.args)
    if data.execution_id is not None:
        await get_execution(tx, data.execution_id)
    input_data: dict[str, Any] = {"tool": tool.id if data.tool is None else f"{tool.id}/{data.tool}", "args": data.args}
    if data.execution_id is not None:
        input_data["execution_id"] = data.execution_id
    execution = msgspec.structs.replace(
        _build_for_caller(tx, caller, tool.slug, input_data),
        kind="tool",
        lane="llm",
        mode="yolo",
        timeout=TOOL_CALL_TIMEOUT_SECONDS,
        max_attempts=1,
    )
    return await add_execution(tx, execution, None)


async def retry_execution(tx: Tx, caller: Caller, execution_id: str) -> Execution:
    """Run an ended execution again, as a new one with the same version, input and limits.

    A model agent runs with the definition of that time. Errors: `not_found`, `conflict` for one that has not ended,
    `version_not_ready`, `agent_archived`, `secret_unavailable`, `concurrency_limit`.
    """
    old = await get_execution(tx, execution_id)
    if old.status not in TERMINAL_STATUSES:
        raise Conflict(f"The execution is {old.status}; only one that has ended can be run again.")
    name, spec = old.run_name.rsplit("-", 1)[0], await tx.executions.get_spec(old.id)
    if old.agent_id is not None:
        agent = await _lock_startable_agent(tx, old.agent_id)
        if old.lane == "run":
            version = await agents.get_runnable_version(tx, agent, old.agent_version_id)
            await secrets.check_start_settings(tx, agent, old.env, version)
        name = agent.name
        await _enforce_concurrency(tx, agent, old)
    copied_fields = (
        "kind",
        "lane",
        "agent_id",
        "agent_name",
        "agent_version_id",
        "mode",
        "model",
        "cost_limit",
        "env",
        "state",
        "files",
        "output_schema",
        "timeout",
        "max_attempts",
        *STEERING_FIELDS,
    )
    copies = {field: getattr(old, field) for field in copied_fields}
    execution = _build_for_caller(tx, caller, name, old.input_data)
    return await add_execution(tx, msgspec.structs.replace(execution, **copies, retry_of=old.id), spec)


async def _lock_startable_agent(tx: Tx, reference: str) -> Agent:
    # A shared lock: archiving and deleting wait for this start, and it for them; starts do not wait for each other.
    agent = await agents.get_agent(tx, reference, lock="share")
    agents.refuse_archived(agent)
    return agent


async def _enforce_concurrency(tx: Tx, agent: Agent, execution: Execution) -> None:
    """Apply the agent's policy where one more execution would exceed its limit. Errors: `concurrency_limit`.

    A delayed execution neither counts nor is counted: when its time comes, it waits in the queue.
    """
    limit = agent.max_concurrency
    if limit is None or agent.concurrency_policy == "queue" or execution.blocked == "delayed":
        return
    if await tx.executions.count_open_runs(agent.id) < limit:
        return
    if agent.concurrency_policy == "reject":
        message = f"{limit} executions of {agent.name!r} are already running or waiting; the agent allows {limit}."
        raise Conflict(message, "concurrency_limit")
    for execution_id in await tx.executions.cancel_oldest(
        agent.id, limit - 1, "Replaced by a newer execution.", tx.now
    ):
        tx.free_gates(execution_id)
        tx.announce_status(execution_id, "cancelled")


def _build_code_execution(
    tx: Tx, caller: Caller, agent: Agent, version: AgentVersion, data: ExecutionStart, payload: dict[str, Any]
) -> Execution:
    return msgspec.structs.replace(
        _build_for_caller(tx, caller, agent.name, payload),
        agent_id=agent.id,
        agent_name=agent.name,
        agent_version_id=version.id,
        cost_limit=data.cost_limit,
        env=agent.env,
        output_schema=agent.output_schema,
        timeout=data.timeout or version.timeout or DEFAULT_TIMEOUT_SECONDS,
        max_attempts=data.max_attempts or DEFAULT_MAX_ATTEMPTS,
    )


async def _build_model_execution(
    tx: Tx, caller: Caller, agent: Agent, data: ExecutionStart, payload: dict[str, Any]
) -> tuple[AgentSpec, Execution]:
    """Build an execution of a model agent, with the agent as this run uses it. Errors: `conflict`, `invalid_field`."""
    if data.agent_version_id is not None:
        raise InvalidField("agent_version_id", f"{agent.name!r} is a model agent; it has no versions.")
    if not payload and not await _has_question(tx, data):
        raise InvalidField("task", "is required: describe the task, here or in inputs.")
    spec = await agents.resolve_spec(tx, agent, data.model)
    if isinstance(data, AnswerStart):
        spec = apply_answer_start(spec, data)
    build_messages(spec, payload)
    execution = msgspec.structs.replace(
        _build_for_caller(tx, caller, agent.name, payload),
        lane="llm",
        agent_id=agent.id,
        agent_name=agent.name,
        mode=data.mode or "safe",
        model=spec.model,
        cost_limit=data.cost_limit,
        timeout=data.timeout or spec.timeout or MODEL_AGENT_TIMEOUT_SECONDS,
        max_attempts=data.max_attempts or DEFAULT_MAX_ATTEMPTS,
    )
    return spec, execution


async def _has_question(tx: Tx, data: ExecutionStart) -> bool:
    """Return whether the conversation before the task ends with something to answer."""
    if data.messages:
        return data.messages[-1].role in ("user", "tool")
    return data.thread_id is not None and await tx.threads.find_last_role(data.thread_id) in ("user", "tool")


def _build_for_caller(tx: Tx, caller: Caller, name: str, input_data: dict[str, Any]) -> Execution:
    return build_execution(tx, caller.tenant_id, caller.user_id, caller.key_id, name, input_data)


def build_run_name(name: str, execution_id: str) -> str:
    """Build the name of an execution that was started without one."""
    return f"{name}-{execution_id[-6:]}"


def build_execution(tx: Tx, tenant_id: str, user_id: str, key_id: str | None, name: str, input_data: Any) -> Execution:
    """Build a pending execution of an agent for a user or an API key."""
    execution_id = ids.generate_id("exec")
    return Execution(
        id=execution_id,
        run_name=build_run_name(name, execution_id),
        kind="agent",
        agent_id=None,
        agent_version_id=None,
        user_id=user_id,
        tenant_id=tenant_id,
        status="pending",
        input_data=input_data,
        output_data=None,
        error_message=None,
        error_type=None,
        attempt=0,
        max_attempts=DEFAULT_MAX_ATTEMPTS,
        timeout=DEFAULT_TIMEOUT_SECONDS,
        key_id=key_id,
        retry_of=None,
        steps_total=1,
        steps_completed=0,
        total_cost=0.0,
        created_at=tx.now,
        started_at=None,
        completed_at=None,
        updated_at=tx.now,
    )


async def add_execution(tx: Tx, execution: Execution, spec: AgentSpec | None) -> Execution:
    """Write an execution, and ring for it unless it is blocked."""
    execution = await add_at_gates(tx, execution, spec)
    await add_label_terms(tx, execution)
    if execution.blocked is None:
        tx.ring_job(job_from_execution(execution))
    return execution
