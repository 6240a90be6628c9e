"""Starting generations, and what comes of them."""

import secrets
from collections.abc import Awaitable, Callable
from typing import Any, Final

import msgspec

from domain import llms, tools
from domain.agents import AgentSpec, build_unlisted_agent
from domain.executions import Execution
from domain.executions.schema import MODEL_AGENT_TIMEOUT_SECONDS
from domain.executions.service import add_execution, build_execution
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

# A task is offered the newest agents of the tenant.
MAX_OFFERED_AGENTS: Final = 20
_TRIES: Final = 20
# Errors that another call may not meet.
_PASSING: Final = frozenset(
    {"rate_limited", "unavailable", "timeout", "cut_off", "worker_lost", "internal_error", "model_unavailable"}
)
_NAMES: Final[dict[GenerationKind, str]] = {
    "agent": "agent-generation",
    "task": "task-generation",
    "crew": "crew-generation",
    "name": "name-generation",
}


async def start_generation(tx: Tx, caller: Caller, kind: GenerationKind, data: GenerationStart) -> Execution:
    """Write a pending execution that thinks up an agent, a task or a crew, and ring for it.

    Errors: `invalid_field` for an unknown model, for unknown and disabled tools.
    """
    model = (await llms.resolve_model(tx, data.model)).model
    offered = await _offered(tx, caller, data.tools)
    found = await tx.agents.list_page(Page(limit=MAX_OFFERED_AGENTS), "ready", None) if kind == "task" else None
    agents = [] if found is None else [one.name for one in found.items]
    return await _started(tx, caller, kind, data.model, model, data.description, offered, agents)


async def start_name_generation(tx: Tx, caller: Caller, data: NameGenerationStart) -> Execution:
    """Write a pending execution that thinks up a name for a run. Errors: `invalid_field`."""
    model = (await llms.resolve_model(tx, data.model)).model
    most = prompts.LOCAL_READ_LENGTH if model.provider == "local" else prompts.MAX_READ_LENGTH
    said = [one.strip() for one in (data.description, data.agents_yaml, data.tasks_yaml) if one and one.strip()]
    if not said:
        raise InvalidField(
            "description", "is required: say what the run is about, here, in agents_yaml or in tasks_yaml."
        )
    read = "\n\n".join(one[: most // len(said)] for one in said)
    return await _started(tx, caller, "name", data.model, model, read, [], [])


async def _offered(tx: Tx, caller: Caller, wanted: list[str] | None) -> list[Tool]:
    if wanted is not None:
        return await tools.resolve_tools(tx, wanted)
    found = await tools.list_tools(tx, caller, Page(limit=MAX_OFFERED_TOOLS), ToolFilter(enabled=True))
    return found.items


async def _started(
    tx: Tx,
    caller: Caller,
    kind: GenerationKind,
    model_name: str,
    model: llms.Model,
    text: str,
    offered: list[Tool],
    agents: list[str],
) -> Execution:
    local = model.provider == "local"
    agent = build_unlisted_agent(
        _NAMES[kind],
        caller.user_id,
        caller.tenant_id,
        tx.now,
        instructions=prompts.build_instructions(kind, offered, agents, local),
        model=model_name,
        temperature=prompts.LOCAL_TEMPERATURE if local else None,
        max_tokens=prompts.LOCAL_ANSWER_TOKENS if local else prompts.MAX_ANSWER_TOKENS,
        max_steps=1,
    )
    spec = AgentSpec.from_agent(agent, answer_schema=prompts.build_answer_schema(kind, local, offered, agents))
    made = msgspec.structs.replace(
        build_execution(
            tx, caller.tenant_id, caller.user_id, caller.key_id, spec.name, {"task": prompts.build_question(kind, text)}
        ),
        kind="generation",
        lane="llm",
        mode="sandbox",
        model=model_name,
        timeout=MODEL_AGENT_TIMEOUT_SECONDS,
    )
    return await add_execution(tx, made, spec)


async def get_agent_generation(tx: Tx, execution: Execution) -> AgentGeneration:
    """The agent that a generation came to. Errors: `not_found`, and what became of the generation."""
    spec = await _spec(tx, execution, "agent")
    agent = None
    if _has_ended(execution):
        said = _thought_up(execution, "agent")
        called = await _free(drafts.clean_name(said.get("name"), "Agent"), tx.agents.find, set())
        agent = drafts.build_agent(said, called, spec.model or "", await _known(tx, said))
    return AgentGeneration(agent=agent, execution_id=execution.id, status=execution.status)


async def get_task_generation(tx: Tx, execution: Execution) -> TaskGeneration:
    """The task that a generation came to. Errors: as for agents."""
    await _spec(tx, execution, "task")
    task = None
    if _has_ended(execution):
        said = _thought_up(execution, "task")
        called = await _free(drafts.clean_name(said.get("name"), "Task"), _task_alike(tx), set())
        by = said.get("agent")
        known = isinstance(by, str) and await tx.agents.find(by) is not None
        task = drafts.build_task(said, called, by if known else None, await _known(tx, said))
    return TaskGeneration(task=task, execution_id=execution.id, status=execution.status)


async def get_crew_generation(tx: Tx, execution: Execution) -> CrewGeneration:
    """The crew that a generation came to, with its agents and tasks. Errors: as for agents."""
    spec = await _spec(tx, execution, "crew")
    if not _has_ended(execution):
        return CrewGeneration(crew=None, agents=[], tasks=[], execution_id=execution.id, status=execution.status)
    said = _thought_up(execution, "crew")
    model, known = spec.model or "", await _known(tx, said, *_objects(said, "agents"), *_objects(said, "tasks"))
    agents: list[AgentDraft] = []
    tasks: list[TaskDraft] = []
    members, taken = [], set[str]()
    for one in _objects(said, "agents") or [{}]:
        members.append(drafts.clean_name(one.get("name"), "Agent"))
        called = await _free(members[-1], tx.agents.find, taken)
        agents.append(drafts.build_agent(one, called, model, known))
    taken = set()
    for place, one in enumerate(_objects(said, "tasks") or [{}]):
        called = await _free(drafts.clean_name(one.get("name"), "Task"), _task_alike(tx), taken)
        by = agents[drafts.match_member(one.get("agent"), members, place)].name
        tasks.append(drafts.build_task(one, called, by, known))
    called = await _free(drafts.clean_name(said.get("name"), "Crew"), tx.crews.find, set())
    return CrewGeneration(
        crew=drafts.build_crew(said, called, agents, tasks, model),
        agents=agents,
        tasks=tasks,
        execution_id=execution.id,
        status=execution.status,
    )


async def get_name_generation(tx: Tx, execution: Execution) -> NameGeneration:
    """The name that a generation came to. Errors: as for agents."""
    await _spec(tx, execution, "name")
    name = drafts.clean_run_name(_object(execution).get("name")) if _has_ended(execution) else None
    return NameGeneration(name=name, execution_id=execution.id, status=execution.status)


async def _spec(tx: Tx, execution: Execution, kind: GenerationKind) -> AgentSpec:
    spec = await tx.executions.get_spec(execution.id) if execution.kind == "generation" else None
    if spec is None or spec.name != _NAMES[kind]:
        raise NotFound(_NAMES[kind].replace("-", " "), execution.id)
    return spec


def _has_ended(execution: Execution) -> bool:
    """Whether there is an answer. Errors: why there will be none."""
    if execution.status not in TERMINAL_STATUSES:
        return False
    told = execution.error_message or "The model did not answer."
    if execution.status == "cancelled":
        raise Conflict(f"The generation was cancelled: {told}")
    if execution.error_type is None:
        return True
    if execution.error_type == "budget_exceeded":
        raise DomainError("budget_exceeded", told)
    if execution.error_type in _PASSING:
        raise DomainError("model_unavailable", told)
    raise InvalidField(
        "model", f"{execution.model!r} came to no answer that can be used ({execution.error_type}). {told}"
    )


def _thought_up(execution: Execution, kind: GenerationKind) -> dict[str, Any]:
    """What the model said. Errors: `invalid_field` where that is nothing but the example that it was shown."""
    said = _object(execution)
    parts: list[tuple[GenerationKind, dict[str, Any]]] = [(kind, said)]
    parts += [("agent", one) for one in _objects(said, "agents")]
    parts += [("task", one) for one in _objects(said, "tasks")]
    if any(prompts.is_example_repeated(part, one) for part, one in parts):
        told = f"{execution.model!r} repeated the example that it was shown, and thought nothing up"
        raise InvalidField("model", f"{told}: ask a larger model.")
    return said


def _object(execution: Execution) -> dict[str, Any]:
    said = execution.output_data
    return said if isinstance(said, dict) else {}


def _objects(said: dict[str, Any], field: str) -> list[dict[str, Any]]:
    found = said.get(field)
    return [one for one in found if isinstance(one, dict)] if isinstance(found, list) else []


async def _known(tx: Tx, *said: dict[str, Any]) -> set[str]:
    """Those of the tools chosen that the tenant still has, and has not disabled."""
    wanted = drafts.list_texts([tool for one in said for tool in drafts.list_texts(one.get("tools"))])
    try:
        await tools.resolve_tools(tx, wanted)
    except DomainError as error:
        gone = {one.field for one in error.errors}
        return {tool for number, tool in enumerate(wanted) if f"tools[{number}]" not in gone}
    return set(wanted)


async def _free(name: str, find: Callable[[str], Awaitable[Any]], taken: set[str]) -> str:
    """A name that nobody has: this one, or with a number behind it. `taken` are folded names, this one from now on."""
    for number in range(1, _TRIES + 1):
        called = name if number == 1 else f"{name} {number}"
        if names.fold_name(called) not in taken and await find(called) is None:
            break
    else:
        called = f"{name[:20]} {secrets.token_hex(4)}"
    taken.add(names.fold_name(called))
    return called


def _task_alike(tx: Tx) -> Callable[[str], Awaitable[Any]]:
    async def find(name: str) -> Task | None:
        found = await tx.tasks.list_by_references(names.list_slug_candidates("task", name))
        return next((one for one in found if names.fold_name(one.name) == names.fold_name(name)), None)

    return find
