"""Whether a plan hangs together: what its steps wait for, and what their expressions refer to."""

from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from typing import Any, Final

from domain import expressions
from domain.expressions import BadExpression, ExpressionReferences
from domain.plans.schema import MAX_MAP_ITEMS, MAX_PLAN_STEPS, AgentWork, Plan, PlanStep
from domain.shared.errors import FieldError

_OF_ITEMS: Final = frozenset({"item", "index"})


def validate_plan(plan: Plan) -> list[FieldError]:
    """All that is wrong with the plan's own steps, each with its place: `steps[2].depends_on`."""
    if not plan.steps:
        return [FieldError(field="steps", message="must hold at least one step.")]
    if len(plan.steps) > MAX_PLAN_STEPS:
        return [FieldError(field="steps", message=f"are {len(plan.steps)}; {MAX_PLAN_STEPS} are allowed.")]
    known = {step.id for step in plan.steps}
    found = [*_twice(plan), *_unknown(plan, known)]
    circle = None if found else _circle(plan)
    if circle is not None:
        found.append(circle)
    above = {} if found else _above(plan)
    for number, step in enumerate(plan.steps):
        found += _output_file(step, f"steps[{number}].output_file")
        found += _expressions(step, f"steps[{number}]", known, above.get(step.id, known))
    found += _used(
        "outputs", lambda: expressions.check_template(plan.outputs), known, known, frozenset({"inputs", "steps"})
    )
    return found


def _twice(plan: Plan) -> Iterator[FieldError]:
    first: dict[str, int] = {}
    for number, step in enumerate(plan.steps):
        if step.id in first:
            yield FieldError(
                field=f"steps[{number}].id", message=f"{step.id!r} is the id of steps[{first[step.id]}] too."
            )
        first.setdefault(step.id, number)


def _unknown(plan: Plan, known: set[str]) -> Iterator[FieldError]:
    for number, step in enumerate(plan.steps):
        for place, other in enumerate(step.depends_on):
            if other not in known:
                yield FieldError(field=f"steps[{number}].depends_on[{place}]", message=f"there is no step {other!r}.")
            elif other == step.id:
                yield FieldError(field=f"steps[{number}].depends_on[{place}]", message="a step cannot wait for itself.")


def _circle(plan: Plan) -> FieldError | None:
    try:
        list(TopologicalSorter({step.id: step.depends_on for step in plan.steps}).static_order())
    except CycleError as error:
        # It names whom each is waited for by.
        circle = list(reversed(error.args[1]))
        number = next(place for place, step in enumerate(plan.steps) if step.id == circle[0])
        return FieldError(field=f"steps[{number}].depends_on", message=f"is a circle: {' → '.join(circle)}.")
    return None


def _above(plan: Plan) -> dict[str, set[str]]:
    """Of every step those that have been settled when it starts."""
    steps = {step.id: step for step in plan.steps}
    above: dict[str, set[str]] = {}
    for step_id in TopologicalSorter({step.id: step.depends_on for step in plan.steps}).static_order():
        above[step_id] = set(steps[step_id].depends_on).union(*(above[one] for one in steps[step_id].depends_on))
    return above


def _output_file(step: PlanStep, place: str) -> Iterator[FieldError]:
    if step.output_file is None:
        return
    if not isinstance(step.work, AgentWork) or step.work.version_id is not None:
        yield FieldError(field=place, message="is for what a model agent answers.")
    if step.map is not None:
        yield FieldError(field=place, message="is one file; the step answers once for each item of map.")


def _expressions(step: PlanStep, place: str, known: set[str], above: set[str]) -> Iterator[FieldError]:
    inside = frozenset({"inputs", "steps"}) | (_OF_ITEMS if step.map is not None else frozenset())
    outside = frozenset({"inputs", "steps"})
    if step.when is not None:
        yield from _used(f"{place}.when", lambda: expressions.check_expression(step.when or ""), known, above, outside)
    if isinstance(step.map, str):
        yield from _used(f"{place}.map", lambda: expressions.check_expression(str(step.map)), known, above, outside)
    elif step.map is not None:
        if len(step.map) > MAX_MAP_ITEMS:
            yield FieldError(field=f"{place}.map", message=f"has {len(step.map)} items; {MAX_MAP_ITEMS} are allowed.")
        else:
            yield from _used(f"{place}.map", lambda: expressions.check_template(step.map), known, above, outside)
    if step.prompt is not None:
        yield from _used(f"{place}.prompt", lambda: expressions.check_template(step.prompt), known, above, inside)
    yield from _used(f"{place}.inputs", lambda: expressions.check_template(step.inputs), known, above, inside)


def _used(place: str, read: Any, known: set[str], above: set[str], names: frozenset[str]) -> Iterator[FieldError]:
    try:
        uses: ExpressionReferences = read()
    except BadExpression as error:
        yield FieldError(field=f"{place}{getattr(error, 'place', '') or ''}", message=error.message)
        return
    for name in sorted(uses.names - names):
        yield FieldError(field=place, message=f"{name!r} is only there in a step with map.")
    for step_id in sorted(uses.steps - known):
        yield FieldError(field=place, message=f"there is no step {step_id!r}.")
    for step_id in sorted((uses.steps & known) - above):
        yield FieldError(field=place, message=f"refers to the step {step_id!r}, which it does not depend on.")
