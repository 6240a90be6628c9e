"""Resolve the tasks of a crew: the agent of each, and the tasks whose answers it receives."""

from collections.abc import Iterable
from typing import Any, Final

from domain import schemas, tasks
from domain.crews.roster import CrewRoster, CrewTask, resolve_member
from domain.crews.schema import PLANNING_STEP
from domain.crews.yaml_schema import ANSWER_SCHEMA_FIELDS, YamlTask
from domain.ports import Tx
from domain.shared.errors import DomainError
from domain.tasks import Task

_MODEL_AGENT_FIELDS: Final = ("human_input", "guardrail", "guardrails", "input_files", *ANSWER_SCHEMA_FIELDS)


async def resolve_tasks(tx: Tx, roster: CrewRoster) -> None:
    """Add the tasks of the crew in their order, and everything that is wrong with them."""
    for key, yaml_task in roster.documents.tasks.items.items():
        roster.tasks.append(_build_yaml_task(roster, key, yaml_task))
    for number, task in enumerate(await tasks.find_tasks(tx, roster.settings.tasks)):
        _add_listed_task(roster, number, task)
    if not roster.tasks and not roster.settings.tasks and not roster.documents.tasks.is_unreadable:
        roster.add_error("tasks_yaml", "a crew needs at least one task.")
    for crew_task in roster.tasks:
        if crew_task.key == PLANNING_STEP and roster.settings.planning:
            message = f"{PLANNING_STEP!r} is the key of the planning step; rename the task or turn planning off."
            roster.add_error(crew_task.path, message)
        _check_task(roster, crew_task)
        await _resolve_agent(tx, roster, crew_task)
    _resolve_contexts(roster)


def _build_yaml_task(roster: CrewRoster, key: str, yaml_task: YamlTask) -> CrewTask:
    path, present_fields = f"tasks_yaml.{key}", roster.documents.tasks.present_fields
    if yaml_task.description is None and f"{key}.description" not in present_fields:
        roster.add_error(f"{path}.description", "is required.")
    if yaml_task.agent is None and f"{key}.agent" not in present_fields and not roster.is_hierarchical:
        roster.add_error(f"{path}.agent", "is required: name the agent that does this task.")
    return CrewTask(
        key=key,
        path=path,
        name=yaml_task.name or key,
        description=yaml_task.description or "",
        expected_output=yaml_task.expected_output,
        agent=yaml_task.agent,
        context_references=yaml_task.context,
        tools=yaml_task.tools,
        async_execution=yaml_task.async_execution,
        markdown=yaml_task.markdown,
        output_file=yaml_task.output_file,
        fields=yaml_task,
        answer_schema=_read_answer_schema(roster, path, yaml_task),
    )


def _read_answer_schema(roster: CrewRoster, path: str, yaml_task: YamlTask) -> dict[str, Any] | None:
    sent = {name: getattr(yaml_task, name) for name in ANSWER_SCHEMA_FIELDS if getattr(yaml_task, name) is not None}
    if len(sent) > 1:
        roster.add_error(f"{path}.{list(sent)[1]}", f"means the same as {next(iter(sent))}; send one of them.")
    for name, schema in sent.items():
        try:
            return schemas.parse_schema(schema, f"{path}.{name}")
        except DomainError as error:
            for field_error in error.errors:
                roster.add_error(field_error.field, field_error.message)
    return None


def _add_listed_task(roster: CrewRoster, number: int, task: Task | None) -> None:
    path = f"tasks[{number}]"
    if task is None:
        roster.add_error(path, tasks.explain_unknown_task(roster.settings.tasks[number]))
        return
    namesake = next((crew_task for crew_task in roster.tasks if crew_task.key == task.slug), None)
    if namesake is not None:
        roster.add_error(path, f"duplicate key {task.slug!r}: {namesake.path} has it already.")
        return
    if task.agent is None and not roster.is_hierarchical:
        roster.add_error(f"{path}.agent", f"is required: name the agent that does {task.name!r}.")
    crew_task = CrewTask(
        key=task.slug,
        path=path,
        name=task.name,
        description=task.description,
        expected_output=task.expected_output,
        agent=task.agent,
        context_references=task.context,
        tools=task.tools,
        async_execution=task.async_execution,
        markdown=task.markdown,
        output_file=task.output_file,
        output_json=task.output_json,
        task_id=task.id,
    )
    roster.tasks.append(crew_task)


def _check_task(roster: CrewRoster, task: CrewTask) -> None:
    if not task.expected_output and f"{task.key}.expected_output" not in roster.documents.tasks.present_fields:
        roster.add_warning(f"{task.path}.expected_output", "is missing: describe the finished result.")
    if task.output_file is not None:
        try:
            task.output_file = tasks.validate_output_path(task.output_file)
        except DomainError as error:
            roster.add_error(f"{task.path}.output_file", error.errors[0].message)
    for name, path in (task.fields.input_files if task.fields is not None else {}).items():
        try:
            tasks.validate_output_path(path)
        except DomainError as error:
            roster.add_error(f"{task.path}.input_files.{name}", error.errors[0].message)
    for name in ("description", "expected_output", "output_file"):
        roster.warn_about_placeholders(f"{task.path}.{name}", getattr(task, name))


async def _resolve_agent(tx: Tx, roster: CrewRoster, task: CrewTask) -> None:
    """Replace the reference to the task's agent by a member's key."""
    reference, field = task.agent, f"{task.path}.agent"
    if reference is None or (reference in roster.members and roster.members[reference].is_from_yaml):
        member = roster.members.get(reference or "")
    elif roster.documents.agents.is_unreadable:
        # The agent may be in the document.
        member = None
    else:
        member = await resolve_member(tx, roster, reference, field)
    task.agent = None if member is None else member.key
    if member is None:
        return
    if member is roster.manager:
        roster.add_error(field, f"{reference!r} is the manager, which delegates tasks; name another agent.")
    if member.agent.kind == "code":
        message = f"is for model agents; {member.agent.name!r} runs uploaded code."
        for name in ("tools", "output_file"):
            if getattr(task, name):
                roster.add_error(f"{task.path}.{name}", message)
        for name in _MODEL_AGENT_FIELDS:
            if getattr(task.fields, name, None):
                roster.add_error(f"{task.path}.{name}", message)


def _resolve_contexts(roster: CrewRoster) -> None:
    """Replace context references by task keys; each must name an earlier task."""
    by_reference = {reference: task for task in roster.tasks for reference in (task.name, task.task_id) if reference}
    by_reference |= {task.key: task for task in roster.tasks}
    positions = {task.key: number for number, task in enumerate(roster.tasks)}
    links: list[tuple[CrewTask, str, str]] = []
    for task in roster.tasks:
        if task.context_references is None:
            continue
        task.context = []
        for number, reference in enumerate(task.context_references):
            field = f"{task.path}.context[{number}]"
            other = by_reference.get(reference)
            if other is not None and other.key not in task.context:
                task.context.append(other.key)
                links.append((task, other.key, field))
            elif other is None and not roster.documents.tasks.is_unreadable:
                roster.add_error(field, f"there is no task {reference!r} in this crew.")
    contexts = {task.key: task.context or [] for task in roster.tasks}
    for task, other_key, field in links:
        # Every cycle has a link to the task itself or to a later one.
        if positions[other_key] >= positions[task.key]:
            path = _find_path(contexts, other_key, task.key)
            cycle = f"makes a cycle: {' → '.join([task.key, *path])}." if path else ""
            roster.add_error(field, cycle or f"{other_key!r} comes later; name tasks that come before this one.")


def _find_path(contexts: dict[str, list[str]], begin: str, end: str) -> list[str]:
    """Return the shortest path along contexts, both ends included; empty if `end` is not reachable."""
    paths: dict[str, list[str]] = {begin: [begin]}
    frontier: Iterable[str] = [begin]
    while frontier:
        if end in paths:
            return paths[end]
        next_frontier: list[str] = []
        for key in frontier:
            for other in contexts[key]:
                if other not in paths:
                    paths[other] = [*paths[key], other]
                    next_frontier.append(other)
        frontier = next_frontier
    return []
