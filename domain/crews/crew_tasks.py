"""The tasks of a crew: who does each, and what comes with it."""

from collections.abc import Iterable

from domain import tasks
from domain.crews.parser import YamlTask
from domain.crews.roster import Cast, Duty, hired
from domain.crews.schema import PLANNING
from domain.ports import Tx
from domain.shared.errors import DomainError
from domain.tasks import Task


async def gather(tx: Tx, cast: Cast) -> None:
    """The tasks of the crew, in their order, and all that is wrong with them."""
    for key, said in cast.reading.tasks.items.items():
        cast.duties.append(_written(cast, key, said))
    for number, task in enumerate(await tasks.named(tx, cast.settings.tasks)):
        _listed(cast, number, task)
    if not cast.duties and not cast.settings.tasks and not cast.reading.tasks.unread:
        cast.wrong("tasks_yaml", "a crew needs a task.")
    for duty in cast.duties:
        if duty.key == PLANNING and cast.settings.planning:
            cast.wrong(duty.place, f"{PLANNING!r} is the step that plans, since planning is on.")
        _check(cast, duty)
        await _assign(tx, cast, duty)
    _connect(cast)


def _written(cast: Cast, key: str, said: YamlTask) -> Duty:
    place, there = f"tasks_yaml.{key}", cast.reading.tasks.there
    if said.description is None and f"{key}.description" not in there:
        cast.wrong(f"{place}.description", "is required.")
    if said.agent is None and f"{key}.agent" not in there and not cast.hierarchical:
        cast.wrong(f"{place}.agent", "is required: who does this?")
    if said.human_input:
        told = "nobody is asked while a crew runs. A step of a workflow can wait for an approval, and can be a crew."
        cast.wrong(f"{place}.human_input", told)
    return Duty(
        key=key,
        place=place,
        name=said.name or key,
        description=said.description or "",
        expected_output=said.expected_output,
        agent=said.agent,
        wanted_context=said.context,
        tools=said.tools,
        async_execution=said.async_execution,
        markdown=said.markdown,
        output_file=said.output_file,
    )


def _listed(cast: Cast, number: int, task: Task | None) -> None:
    place = f"tasks[{number}]"
    if task is None:
        cast.wrong(place, tasks.unknown_task(cast.settings.tasks[number]))
        return
    taken = next((one for one in cast.duties if one.key == task.slug), None)
    if taken is not None:
        cast.wrong(place, f"{task.slug!r} is {taken.place} already.")
        return
    if task.agent is None and not cast.hierarchical:
        cast.wrong(f"{place}.agent", f"is required: who does {task.name!r}?")
    duty = Duty(
        key=task.slug,
        place=place,
        name=task.name,
        description=task.description,
        expected_output=task.expected_output,
        agent=task.agent,
        wanted_context=task.context,
        tools=task.tools,
        async_execution=task.async_execution,
        markdown=task.markdown,
        output_file=task.output_file,
        task_id=task.id,
    )
    cast.duties.append(duty)


def _check(cast: Cast, duty: Duty) -> None:
    if not duty.expected_output and f"{duty.key}.expected_output" not in cast.reading.tasks.there:
        cast.warn(f"{duty.place}.expected_output", "is missing: nothing says when the task is done.")
    if duty.output_file is not None:
        try:
            duty.output_file = tasks.checked_path(duty.output_file)
        except DomainError as error:
            cast.wrong(f"{duty.place}.output_file", error.errors[0].message)
    for name in ("description", "expected_output", "output_file"):
        cast.warn_of_unfilled(f"{duty.place}.{name}", getattr(duty, name))


async def _assign(tx: Tx, cast: Cast, duty: Duty) -> None:
    """Put the key of a member for what the task calls its agent."""
    wanted, field = duty.agent, f"{duty.place}.agent"
    if wanted is None or (wanted in cast.members and cast.members[wanted].written):
        member = cast.members.get(wanted or "")
    elif cast.reading.agents.unread:
        # It may be one of those.
        member = None
    else:
        member = await hired(tx, cast, wanted, field)
    duty.agent = None if member is None else member.key
    if member is None:
        return
    if member is cast.manager:
        cast.wrong(field, f"{wanted!r} is the manager, who has the others do the tasks.")
    if member.agent.kind == "code":
        told = f"is for model agents; {member.agent.name!r} runs uploaded code."
        for name in ("tools", "output_file"):
            if getattr(duty, name):
                cast.wrong(f"{duty.place}.{name}", told)


def _connect(cast: Cast) -> None:
    """Put keys for the tasks that each names as its context, which must come before it."""
    known = {reference: one for one in cast.duties for reference in (one.name, one.task_id) if reference}
    known |= {one.key: one for one in cast.duties}
    position = {one.key: number for number, one in enumerate(cast.duties)}
    places: list[tuple[Duty, str, str]] = []
    for duty in cast.duties:
        if duty.wanted_context is None:
            continue
        duty.context = []
        for number, reference in enumerate(duty.wanted_context):
            field = f"{duty.place}.context[{number}]"
            other = known.get(reference)
            if other is not None and other.key not in duty.context:
                duty.context.append(other.key)
                places.append((duty, other.key, field))
            elif other is None and not cast.reading.tasks.unread:
                cast.wrong(field, f"there is no task {reference!r} in this crew.")
    needs = {duty.key: duty.context or [] for duty in cast.duties}
    for duty, other_key, field in places:
        # Whatever goes round comes past such a place.
        if position[other_key] >= position[duty.key]:
            way = _way(needs, other_key, duty.key)
            circle = f"makes a circle: {' → '.join([duty.key, *way])}." if way else ""
            cast.wrong(field, circle or f"{other_key!r} comes later; a task can be given what came before it.")


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
