"""Validate a plan: the dependencies of its steps, and what their expressions refer to."""

from collections.abc import Callable, Iterator
from graphlib import CycleError, TopologicalSorter
from typing import Final

from domain import expressions
from domain.expressions import BadExpression, ExpressionReferences
from domain.plans.schema import MAX_MAP_ITEMS, MAX_PLAN_STEPS, AgentWork, Plan, PlanStep
from domain.shared.errors import FieldError

_PLAN_NAMES: Final = frozenset({"inputs", "steps"})
_ITEM_NAMES: Final = frozenset({"item", "index"})


def validate_plan(plan: Plan) -> list[FieldError]:
    """Return everything that is wrong with the plan's own steps, each with its place: `steps[2].depends_on`."""
    if not plan.steps:
        return [FieldError(field="steps", message="must hold at least one step.")]
    if len(plan.steps) > MAX_PLAN_STEPS:
        message = f"has {len(plan.steps)} steps; at most {MAX_PLAN_STEPS} are allowed."
        return [FieldError(field="steps", message=message)]
    step_ids = {step.id for step in plan.steps}
    errors = [*_check_duplicate_ids(plan), *_check_dependencies(plan, step_ids)]
    cycle = None if errors else _find_cycle(plan)
    if cycle is not None:
        errors.append(cycle)
    ancestors = {} if errors else _find_ancestors(plan)
    for number, step in enumerate(plan.steps):
        references = _ReferenceCheck(step_ids, ancestors.get(step.id, step_ids))
        errors += _check_output_file(step, f"steps[{number}].output_file")
        errors += _check_step_expressions(step, f"steps[{number}]", references)
    outputs = _ReferenceCheck(step_ids, step_ids)
    errors += outputs.check("outputs", lambda: expressions.check_template(plan.outputs), _PLAN_NAMES)
    return errors


def _check_duplicate_ids(plan: Plan) -> Iterator[FieldError]:
    first_numbers: dict[str, int] = {}
    for number, step in enumerate(plan.steps):
        first = first_numbers.setdefault(step.id, number)
        if first != number:
            message = f"duplicate id {step.id!r}: steps[{first}] has it already."
            yield FieldError(field=f"steps[{number}].id", message=message)


def _check_dependencies(plan: Plan, step_ids: set[str]) -> Iterator[FieldError]:
    for number, step in enumerate(plan.steps):
        for index, dependency in enumerate(step.depends_on):
            field = f"steps[{number}].depends_on[{index}]"
            if dependency not in step_ids:
                yield FieldError(field=field, message=f"there is no step {dependency!r}.")
            elif dependency == step.id:
                yield FieldError(field=field, message="a step cannot depend on itself.")


def _find_cycle(plan: Plan) -> FieldError | None:
    try:
        list(TopologicalSorter({step.id: step.depends_on for step in plan.steps}).static_order())
    except CycleError as error:
        # graphlib lists each step before the step that depends on it.
        cycle = list(reversed(error.args[1]))
        number = next(number for number, step in enumerate(plan.steps) if step.id == cycle[0])
        return FieldError(field=f"steps[{number}].depends_on", message=f"makes a cycle: {' → '.join(cycle)}.")
    return None


def _find_ancestors(plan: Plan) -> dict[str, set[str]]:
    """Return for every step the steps that are settled before it starts."""
    steps = {step.id: step for step in plan.steps}
    ancestors: dict[str, set[str]] = {}
    for step_id in TopologicalSorter({step.id: step.depends_on for step in plan.steps}).static_order():
        direct = steps[step_id].depends_on
        ancestors[step_id] = set(direct).union(*(ancestors[dependency] for dependency in direct))
    return ancestors


def _check_output_file(step: PlanStep, field: str) -> Iterator[FieldError]:
    if step.output_file is None:
        return
    if not isinstance(step.work, AgentWork) or step.work.version_id is not None:
        yield FieldError(field=field, message="is for answers of model agents.")
    if step.map is not None:
        yield FieldError(field=field, message="is one file; a mapped step has an answer for each item.")


def _check_step_expressions(step: PlanStep, place: str, references: "_ReferenceCheck") -> Iterator[FieldError]:
    item_names = _PLAN_NAMES | (_ITEM_NAMES if step.map is not None else frozenset())
    if step.when is not None:
        yield from references.check(f"{place}.when", lambda: expressions.check_expression(step.when or ""), _PLAN_NAMES)
    if isinstance(step.map, str):
        yield from references.check(f"{place}.map", lambda: expressions.check_expression(str(step.map)), _PLAN_NAMES)
    elif step.map is not None and len(step.map) > MAX_MAP_ITEMS:
        message = f"has {len(step.map)} items; at most {MAX_MAP_ITEMS} are allowed."
        yield FieldError(field=f"{place}.map", message=message)
    elif step.map is not None:
        yield from references.check(f"{place}.map", lambda: expressions.check_template(step.map), _PLAN_NAMES)
    if step.prompt is not None:
        yield from references.check(f"{place}.prompt", lambda: expressions.check_template(step.prompt), item_names)
    yield from references.check(f"{place}.inputs", lambda: expressions.check_template(step.inputs), item_names)


class _ReferenceCheck:
    """Check what expressions refer to, given all steps of the plan and those that are settled by then."""

    def __init__(self, step_ids: set[str], settled_ids: set[str]) -> None:
        self._step_ids, self._settled_ids = step_ids, settled_ids

    def check(
        self, place: str, read_references: Callable[[], ExpressionReferences], names: frozenset[str]
    ) -> Iterator[FieldError]:
        """Yield errors for unreadable expressions, and for names and steps they cannot refer to."""
        try:
            references = read_references()
        except BadExpression as error:
            yield FieldError(field=f"{place}{error.path}", message=error.message)
            return
        for name in sorted(references.names - names):
            yield FieldError(field=place, message=f"{name!r} is available only in a step with map.")
        for step_id in sorted(references.steps - self._step_ids):
            yield FieldError(field=place, message=f"there is no step {step_id!r}.")
        for step_id in sorted((references.steps & self._step_ids) - self._settled_ids):
            yield FieldError(field=place, message=f"refers to the step {step_id!r}, which it does not depend on.")
