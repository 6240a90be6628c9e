"""The tasks of a crew: who does each, and what comes with it."""

from collections.abc import Iterable

from domain import tasks
from domain.crews.parser import YamlTask
from domain.crews.roster import CrewRoster, CrewTask, resolve_member
from domain.crews.schema import PLANNING_STEP
from domain.ports import Tx
from domain.shared.errors import DomainError
from domain.tasks import Task


async def resolve_tasks(tx: Tx, cast: CrewRoster) -> None:
    """The tasks of the crew, in their order, and all that is wrong with them."""
    for key, said in cast.documents.tasks.items.items():
        cast.tasks.append(_written(cast, key, said))
    for number, task in enumerate(await tasks.find_tasks(tx, cast.settings.tasks)):
        _listed(cast, number, task)
    if not cast.tasks and not cast.settings.tasks and not cast.documents.tasks.is_unreadable:
        cast.add_error("tasks_yaml", "a crew needs a task.")
    for duty in cast.tasks:
        if duty.key == PLANNING_STEP and cast.settings.planning:
            cast.add_error(duty.path, f"{PLANNING_STEP!r} is the step that plans, since planning is on.")
        _check(cast, duty)
        await _assign(tx, cast, duty)
    _connect(cast)


def _written(cast: CrewRoster, key: str, said: YamlTask) -> CrewTask:
    place, there = f"tasks_yaml.{key}", cast.documents.tasks.present_fields
    if said.description is None and f"{key}.description" not in there:
        cast.add_error(f"{place}.description", "is required.")
    if said.agent is None and f"{key}.agent" not in there and not cast.is_hierarchical:
        cast.add_error(f"{place}.agent", "is required: who does this?")
    if said.human_input:
        told = "nobody is asked while a crew runs. A step of a workflow can wait for an approval, and can be a crew."
        cast.add_error(f"{place}.human_input", told)
    return CrewTask(
        key=key,
        path=place,
        name=said.name or key,
        description=said.description or "",
        expected_output=said.expected_output,
        agent=said.agent,
        context_references=said.context,
        tools=said.tools,
        async_execution=said.async_execution,
        markdown=said.markdown,
        output_file=said.output_file,
    )


def _listed(cast: CrewRoster, number: int, task: Task | None) -> None:
    place = f"tasks[{number}]"
    if task is None:
        cast.add_error(place, tasks.explain_unknown_task(cast.settings.tasks[number]))
        return
    taken = next((one for one in cast.tasks if one.key == task.slug), None)
    if taken is not None:
        cast.add_error(place, f"{task.slug!r} is {taken.path} already.")
        return
    if task.agent is None and not cast.is_hierarchical:
        cast.add_error(f"{place}.agent", f"is required: who does {task.name!r}?")
    duty = CrewTask(
        key=task.slug,
        path=place,
        name=task.name,
        description=task.description,
        expected_output=task.expected_output,
        agent=task.agent,
        context_references=task.context,
        tools=task.tools,
        async_execution=task.async_execution,
        markdown=task.markdown,
        output_file=task.output_file,
        task_id=task.id,
    )
    cast.tasks.append(duty)


def _check(cast: CrewRoster, duty: CrewTask) -> None:
    if not duty.expected_output and f"{duty.key}.expected_output" not in cast.documents.tasks.present_fields:
        cast.add_warning(f"{duty.path}.expected_output", "is missing: nothing says when the task is done.")
    if duty.output_file is not None:
        try:
            duty.output_file = tasks.validate_output_path(duty.output_file)
        except DomainError as error:
            cast.add_error(f"{duty.path}.output_file", error.errors[0].message)
    for name in ("description", "expected_output", "output_file"):
        cast.warn_about_placeholders(f"{duty.path}.{name}", getattr(duty, name))


async def _assign(tx: Tx, cast: CrewRoster, duty: CrewTask) -> None:
    """Put the key of a member for what the task calls its agent."""
    wanted, field = duty.agent, f"{duty.path}.agent"
    if wanted is None or (wanted in cast.members and cast.members[wanted].is_from_yaml):
        member = cast.members.get(wanted or "")
    elif cast.documents.agents.is_unreadable:
        # It may be one of those.
        member = None
    else:
        member = await resolve_member(tx, cast, wanted, field)
    duty.agent = None if member is None else member.key
    if member is None:
        return
    if member is cast.manager:
        cast.add_error(field, f"{wanted!r} is the manager, who has the others do the tasks.")
    if member.agent.kind == "code":
        told = f"is for model agents; {member.agent.name!r} runs uploaded code."
        for name in ("tools", "output_file"):
            if getattr(duty, name):
                cast.add_error(f"{duty.path}.{name}", told)


def _connect(cast: CrewRoster) -> None:
    """Put keys for the tasks that each names as its context, which must come before it."""
    known = {reference: one for one in cast.tasks for reference in (one.name, one.task_id) if reference}
    known |= {one.key: one for one in cast.tasks}
    position = {one.key: number for number, one in enumerate(cast.tasks)}
    places: list[tuple[CrewTask, str, str]] = []
    for duty in cast.tasks:
        if duty.context_references is None:
            continue
        duty.context = []
        for number, reference in enumerate(duty.context_references):
            field = f"{duty.path}.context[{number}]"
            other = known.get(reference)
            if other is not None and other.key not in duty.context:
                duty.context.append(other.key)
                places.append((duty, other.key, field))
            elif other is None and not cast.documents.tasks.is_unreadable:
                cast.add_error(field, f"there is no task {reference!r} in this crew.")
    needs = {duty.key: duty.context or [] for duty in cast.tasks}
    for duty, other_key, field in places:
        # Whatever goes round comes past such a place.
        if position[other_key] >= position[duty.key]:
            way = _way(needs, other_key, duty.key)
            circle = f"makes a circle: {' → '.join([duty.key, *way])}." if way else ""
            cast.add_error(field, circle or f"{other_key!r} comes later; a task can be given what came before it.")


def _way(needs: dict[str, list[str]], begin: str, end: str) -> list[str]:
    """The shortest way along what is needed, both ends included; empty if there is none."""
    ways: dict[str, list[str]] = {begin: [begin]}
    edge: Iterable[str] = [begin]
    while edge:
        if end in ways:
            return ways[end]
        further: list[str] = []
        for one in edge:
            for other in needs[one]:
                if other not in ways:
                    ways[other] = [*ways[one], other]
                    further.append(other)
        edge = further
    return []
