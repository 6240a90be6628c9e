"""Find expressions that fail in every run: references to undeclared inputs, and constants of the wrong type."""

from collections.abc import Callable, Iterator, Mapping

from domain import expressions
from domain.expressions import BadExpression, ExpressionReferences
from domain.plans import Plan, PlanStep
from domain.shared.errors import FieldError
from domain.workflows.schema import WorkflowInput


def validate_expressions(plan: Plan, inputs: Mapping[str, WorkflowInput] | None) -> list[FieldError]:
    """Return the errors, each with its place. `validate_plan` reports unreadable expressions."""
    errors: list[FieldError] = []
    for number, step in enumerate(plan.steps):
        place = f"steps[{number}]"
        errors += _check_constants(step, place)
        if inputs is not None:
            errors += _check_step_inputs(step, place, inputs)
    if inputs is not None:
        errors += _check_inputs("outputs", lambda: expressions.check_template(plan.outputs), inputs)
    return errors


def _check_step_inputs(step: PlanStep, place: str, inputs: Mapping[str, WorkflowInput]) -> Iterator[FieldError]:
    if step.when is not None:
        yield from _check_inputs(f"{place}.when", lambda: expressions.check_expression(step.when or ""), inputs)
    if isinstance(step.map, str):
        yield from _check_inputs(f"{place}.map", lambda: expressions.check_expression(str(step.map)), inputs)
    elif step.map is not None:
        yield from _check_inputs(f"{place}.map", lambda: expressions.check_template(step.map), inputs)
    if step.prompt is not None:
        yield from _check_inputs(f"{place}.prompt", lambda: expressions.check_template(step.prompt), inputs)
    yield from _check_inputs(f"{place}.inputs", lambda: expressions.check_template(step.inputs), inputs)


def _check_inputs(
    place: str, read_references: Callable[[], ExpressionReferences], inputs: Mapping[str, WorkflowInput]
) -> Iterator[FieldError]:
    try:
        unknown_names = read_references().inputs - inputs.keys()
    except BadExpression:
        return
    declared = f"declared are {', '.join(list(inputs)[:20])}" if inputs else "the workflow declares no inputs"
    for name in sorted(unknown_names):
        yield FieldError(field=place, message=f"refers to the input {name[:100]!r}, which is not declared; {declared}.")


def _check_constants(step: PlanStep, place: str) -> Iterator[FieldError]:
    """Check expressions without references, which have the same value in every run."""
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
            yield FieldError(field=f"{place}.map", message="must be a list; it is not in any run.")


def _is_constant(source: str) -> bool:
    """Tell whether an expression has no references and no calls; calls may take long, and are left to the run."""
    try:
        return "(" not in source and not expressions.check_expression(source).names
    except BadExpression:
        return False
