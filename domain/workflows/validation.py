"""What can never be, whatever a workflow is given: inputs that it does not take, lists and conditions that are none."""

from collections.abc import Callable, Iterator, Mapping

from domain import expressions
from domain.expressions import BadExpression, ExpressionReferences
from domain.plans import Plan, PlanStep
from domain.shared.errors import FieldError
from domain.workflows.schema import WorkflowInput


def validate_expressions(plan: Plan, inputs: Mapping[str, WorkflowInput] | None) -> list[FieldError]:
    """All of it, each with its place. What cannot be read is left to those who say so."""
    found: list[FieldError] = []
    for number, step in enumerate(plan.steps):
        place = f"steps[{number}]"
        found += _constant(step, place)
        if inputs is not None:
            found += _of_step(step, place, inputs)
    if inputs is not None:
        found += _untaken("outputs", lambda: expressions.check_template(plan.outputs), inputs)
    return found


def _of_step(step: PlanStep, place: str, inputs: Mapping[str, WorkflowInput]) -> Iterator[FieldError]:
    if step.when is not None:
        yield from _untaken(f"{place}.when", lambda: expressions.check_expression(step.when or ""), inputs)
    if isinstance(step.map, str):
        yield from _untaken(f"{place}.map", lambda: expressions.check_expression(str(step.map)), inputs)
    elif step.map is not None:
        yield from _untaken(f"{place}.map", lambda: expressions.check_template(step.map), inputs)
    if step.prompt is not None:
        yield from _untaken(f"{place}.prompt", lambda: expressions.check_template(step.prompt), inputs)
    yield from _untaken(f"{place}.inputs", lambda: expressions.check_template(step.inputs), inputs)


def _untaken(
    place: str, read: Callable[[], ExpressionReferences], inputs: Mapping[str, WorkflowInput]
) -> Iterator[FieldError]:
    try:
        unknown = read().inputs - inputs.keys()
    except BadExpression:
        return
    taken = f"it takes {', '.join(list(inputs)[:20])}" if inputs else "it takes none"
    for name in sorted(unknown):
        yield FieldError(field=place, message=f"refers to the input {name[:100]!r}, which is not declared; {taken}.")


def _constant(step: PlanStep, place: str) -> Iterator[FieldError]:
    """An expression that looks at nothing comes to the same in every run."""
    if step.when is not None and _is_constant(step.when):
        try:
            expressions.evaluate_condition(step.when, {})
        except BadExpression as error:
            yield FieldError(field=f"{place}.when", message=error.message)
    if isinstance(step.map, str) and _is_constant(step.map):
        try:
            items = expressions.evaluate_expression(step.map, {})
        except BadExpression as error:
            yield FieldError(field=f"{place}.map", message=error.message)
            return
        if not isinstance(items, list):
            yield FieldError(field=f"{place}.map", message="must be a list, and is none in any run.")


def _is_constant(source: str) -> bool:
    """Whether it looks at nothing, and calls nothing either: what takes long is not done at the door."""
    try:
        return "(" not in source and not expressions.check_expression(source).names
    except BadExpression:
        return False
