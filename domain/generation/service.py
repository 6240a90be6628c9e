"""Start generations, and return their results."""

import secrets
from collections.abc import Awaitable, Callable
from typing import Any, Final

import msgspec

from domain import llms, tools
from domain.agents import AgentFilter, AgentSpec, build_unlisted_agent
from domain.executions import MODEL_AGENT_TIMEOUT_SECONDS, Execution, add_execution, build_execution
from domain.generation import drafts, prompts
from domain.generation.schema import (
    MAX_OFFERED_TOOLS,
    AgentDraft,
    AgentGeneration,
    CrewGeneration,
    GenerationKind,
    GenerationStart,
    NameGeneration,
    NameGenerationStart,
    TaskDraft,
    TaskGeneration,
)
from domain.ports import Tx
from domain.shared import names
from domain.shared.access import Caller
from domain.shared.errors import Conflict, DomainError, InvalidField, NotFound
from domain.shared.pages import Page
from domain.shared.status import TERMINAL_STATUSES
from domain.tasks import Task
from domain.tools import Tool, ToolFilter

# The newest agents of the tenant, to choose one for a task.
MAX_OFFERED_AGENTS: Final = 20
_MAX_NAME_TRIES: Final = 20
# A retry may succeed after these.
_TRANSIENT_ERROR_TYPES: Final = frozenset(
    {"rate_limited", "unavailable", "timeout", "cut_off", "worker_lost", "internal_error", "model_unavailable"}
)
_AGENT_NAMES: Final[dict[GenerationKind, str]] = {
    "agent": "agent-generation",
    "task": "task-generation",
    "crew": "crew-generation",
    "name": "name-generation",
}


class _Generation(msgspec.Struct, frozen=True, kw_only=True):
    """Describe a generation to start: the `text` to work on, and the tools and agents to choose among."""

    kind: GenerationKind
    model_name: str
    model: llms.Model
    text: str
    tools: list[Tool] = []
    agent_names: list[str] = []


async def start_generation(tx: Tx, caller: Caller, kind: GenerationKind, data: GenerationStart) -> Execution:
    """Add a pending execution that generates an agent, a task or a crew, and ring its lane.

    Errors: `invalid_field` for an unknown model, unknown or disabled tools.
    """
    model = (await llms.resolve_model(tx, data.model)).model
    offered_tools = await _list_offered_tools(tx, caller, data.tools)
    agent_names: list[str] = []
    if kind == "task":
        agents = await tx.agents.list_page(Page(limit=MAX_OFFERED_AGENTS), AgentFilter(status="ready"))
        agent_names = [agent.name for agent in agents.items]
    generation = _Generation(
        kind=kind,
        model_name=data.model,
        model=model,
        text=data.description,
        tools=offered_tools,
        agent_names=agent_names,
    )
    return await _add_generation(tx, caller, generation)


async def start_name_generation(tx: Tx, caller: Caller, data: NameGenerationStart) -> Execution:
    """Add a pending execution that generates a name for a run. Errors: `invalid_field`."""
    model = (await llms.resolve_model(tx, data.model)).model
    max_length = prompts.LOCAL_READ_LENGTH if model.provider == "local" else prompts.MAX_READ_LENGTH
    sources = (data.description, data.agents_yaml, data.tasks_yaml)
    texts = [source.strip() for source in sources if source and source.strip()]
    if not texts:
        message = "is required: describe the run here, in agents_yaml or in tasks_yaml."
        raise InvalidField("description", message)
    text = "\n\n".join(part[: max_length // len(texts)] for part in texts)
    generation = _Generation(kind="name", model_name=data.model, model=model, text=text)
    return await _add_generation(tx, caller, generation)


async def _list_offered_tools(tx: Tx, caller: Caller, references: list[str] | None) -> list[Tool]:
    if references is not None:
        return await tools.resolve_tools(tx, references)
    enabled = await tools.list_tools(tx, caller, Page(limit=MAX_OFFERED_TOOLS), ToolFilter(enabled=True))
    return enabled.items


async def _add_generation(tx: Tx, caller: Caller, generation: _Generation) -> Execution:
    kind, is_local = generation.kind, generation.model.provider == "local"
    agent = build_unlisted_agent(
        _AGENT_NAMES[kind],
        caller.user_id,
        caller.tenant_id,
        tx.now,
        instructions=prompts.build_instructions(kind, generation.tools, generation.agent_names, is_local),
        model=generation.model_name,
        temperature=prompts.LOCAL_TEMPERATURE if is_local else None,
        max_tokens=prompts.LOCAL_ANSWER_TOKENS if is_local else prompts.MAX_ANSWER_TOKENS,
        max_steps=1,
    )
    answer_schema = prompts.build_answer_schema(kind, is_local, generation.tools, generation.agent_names)
    spec = AgentSpec.from_agent(agent, answer_schema=answer_schema)
    input_data = {"task": prompts.build_question(kind, generation.text)}
    execution = msgspec.structs.replace(
        build_execution(tx, caller.tenant_id, caller.user_id, caller.key_id, spec.name, input_data),
        kind="generation",
        lane="llm",
        mode="sandbox",
        model=generation.model_name,
        timeout=MODEL_AGENT_TIMEOUT_SECONDS,
    )
    return await add_execution(tx, execution, spec)


async def get_agent_generation(tx: Tx, execution: Execution) -> AgentGeneration:
    """Return the agent of a generation. Errors: `not_found`, and the reason of a failed generation."""
    spec = await _get_spec(tx, execution, "agent")
    agent = None
    if _has_answer(execution):
        answer = _read_answer(execution, "agent")
        name = await _choose_name(drafts.clean_name(answer.get("name"), "Agent"), tx.agents.find, set())
        agent = drafts.build_agent(answer, name, spec.model or "", await _list_existing_tools(tx, answer))
    return AgentGeneration(agent=agent, execution_id=execution.id, status=execution.status)


async def get_task_generation(tx: Tx, execution: Execution) -> TaskGeneration:
    """Return the task of a generation. Errors: as for agents."""
    await _get_spec(tx, execution, "task")
    task = None
    if _has_answer(execution):
        answer = _read_answer(execution, "task")
        name = await _choose_name(drafts.clean_name(answer.get("name"), "Task"), _create_task_finder(tx), set())
        agent = answer.get("agent")
        has_agent = isinstance(agent, str) and await tx.agents.find(agent) is not None
        existing_tools = await _list_existing_tools(tx, answer)
        task = drafts.build_task(answer, name, agent if has_agent else None, existing_tools)
    return TaskGeneration(task=task, execution_id=execution.id, status=execution.status)


async def get_crew_generation(tx: Tx, execution: Execution) -> CrewGeneration:
    """Return the crew of a generation, with its agents and tasks. Errors: as for agents."""
    spec = await _get_spec(tx, execution, "crew")
    if not _has_answer(execution):
        return CrewGeneration(crew=None, agents=[], tasks=[], execution_id=execution.id, status=execution.status)
    answer, model = _read_answer(execution, "crew"), spec.model or ""
    agent_answers, task_answers = _list_objects(answer, "agents"), _list_objects(answer, "tasks")
    existing_tools = await _list_existing_tools(tx, answer, *agent_answers, *task_answers)
    agents: list[AgentDraft] = []
    tasks: list[TaskDraft] = []
    members: list[str] = []
    used_names = set[str]()
    for agent_answer in agent_answers or [{}]:
        members.append(drafts.clean_name(agent_answer.get("name"), "Agent"))
        name = await _choose_name(members[-1], tx.agents.find, used_names)
        agents.append(drafts.build_agent(agent_answer, name, model, existing_tools))
    used_names = set()
    for position, task_answer in enumerate(task_answers or [{}]):
        clean_name = drafts.clean_name(task_answer.get("name"), "Task")
        name = await _choose_name(clean_name, _create_task_finder(tx), used_names)
        agent = agents[drafts.match_member(task_answer.get("agent"), members, position)].name
        tasks.append(drafts.build_task(task_answer, name, agent, existing_tools))
    name = await _choose_name(drafts.clean_name(answer.get("name"), "Crew"), tx.crews.find, set())
    return CrewGeneration(
        crew=drafts.build_crew(answer, name, agents, tasks, model),
        agents=agents,
        tasks=tasks,
        execution_id=execution.id,
        status=execution.status,
    )


async def get_name_generation(tx: Tx, execution: Execution) -> NameGeneration:
    """Return the name of a generation. Errors: as for agents."""
    await _get_spec(tx, execution, "name")
    name = drafts.clean_run_name(_get_output(execution).get("name")) if _has_answer(execution) else None
    return NameGeneration(name=name, execution_id=execution.id, status=execution.status)


async def _get_spec(tx: Tx, execution: Execution, kind: GenerationKind) -> AgentSpec:
    spec = await tx.executions.get_spec(execution.id) if execution.kind == "generation" else None
    if spec is None or spec.name != _AGENT_NAMES[kind]:
        raise NotFound(_AGENT_NAMES[kind].replace("-", " "), execution.id)
    return spec


def _has_answer(execution: Execution) -> bool:
    """Tell whether the model has answered. Errors: the reason of a failed or cancelled generation."""
    if execution.status not in TERMINAL_STATUSES:
        return False
    message = execution.error_message or "The model did not answer."
    if execution.status == "cancelled":
        raise Conflict(f"The generation was cancelled: {message}")
    if execution.error_type is None:
        return True
    if execution.error_type == "budget_exceeded":
        raise DomainError("budget_exceeded", message)
    if execution.error_type in _TRANSIENT_ERROR_TYPES:
        raise DomainError("model_unavailable", message)
    raise InvalidField("model", f"{execution.model!r} gave no usable answer ({execution.error_type}). {message}")


def _read_answer(execution: Execution, kind: GenerationKind) -> dict[str, Any]:
    """Return the model's answer. Errors: `invalid_field` for an answer that only repeats the prompt's example."""
    answer = _get_output(execution)
    parts: list[tuple[GenerationKind, dict[str, Any]]] = [(kind, answer)]
    parts += [("agent", part) for part in _list_objects(answer, "agents")]
    parts += [("task", part) for part in _list_objects(answer, "tasks")]
    if any(prompts.is_example_repeated(part_kind, part) for part_kind, part in parts):
        raise InvalidField("model", f"{execution.model!r} repeated the example in its prompt: use a larger model.")
    return answer


def _get_output(execution: Execution) -> dict[str, Any]:
    output = execution.output_data
    return output if isinstance(output, dict) else {}


def _list_objects(answer: dict[str, Any], field: str) -> list[dict[str, Any]]:
    items = answer.get(field)
    return [item for item in items if isinstance(item, dict)] if isinstance(items, list) else []


async def _list_existing_tools(tx: Tx, *answers: dict[str, Any]) -> set[str]:
    """Return the chosen tools that still exist and are enabled."""
    chosen = drafts.list_texts([tool for answer in answers for tool in drafts.list_texts(answer.get("tools"))])
    try:
        await tools.resolve_tools(tx, chosen)
    except DomainError as error:
        missing_fields = {field_error.field for field_error in error.errors}
        return {tool for number, tool in enumerate(chosen) if f"tools[{number}]" not in missing_fields}
    return set(chosen)


async def _choose_name(name: str, find: Callable[[str], Awaitable[Any]], used_names: set[str]) -> str:
    """Return a free name: this one, or this one with a number. Adds its folded form to `used_names`."""
    for number in range(1, _MAX_NAME_TRIES + 1):
        candidate = name if number == 1 else f"{name} {number}"
        if names.fold_name(candidate) not in used_names and await find(candidate) is None:
            break
    else:
        candidate = f"{name[:20]} {secrets.token_hex(4)}"
    used_names.add(names.fold_name(candidate))
    return candidate


def _create_task_finder(tx: Tx) -> Callable[[str], Awaitable[Any]]:
    async def find_task(name: str) -> Task | None:
        candidates = await tx.tasks.list_by_references(names.list_slug_candidates("task", name))
        return next((task for task in candidates if names.fold_name(task.name) == names.fold_name(name)), None)

    return find_task
