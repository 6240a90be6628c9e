"""Evaluate expressions over a scope in bounded time.

Plain paths are followed here. For other expressions CEL receives only the values that they name, because it converts
all values each time. Loops run here, item by item: CEL's own loops copy the result list for every item, which takes
ten seconds for a thousand small objects.
"""

import math
import re
from collections.abc import Iterable, Mapping
from typing import Any, Final

import msgspec

from domain.expressions.compiler import (
    CompiledExpression,
    LeafExpression,
    LoopPass,
    call_cel,
    compile_expression,
    load_cel,
)
from domain.expressions.parser import SCOPE_NAMES, BadExpression, ValuePath, describe_kind, quote_source

# As JSON.
MAX_RESULT_BYTES: Final = 1024 * 1024
MAX_VALUE_DEPTH: Final = 64
# Work for one evaluation, in units of about 10 ns: the cost of passing values to CEL and back.
MAX_WORK_UNITS: Final = 20_000_000
_CALL_COST: Final = 300
_ITEM_COST: Final = 100
_NUMBER_COST: Final = 40
_TEXT_COST: Final = 60
_LIST_COST: Final = 70
_NAME_COST: Final = 150
# CEL reports this for existing functions that do not take the values.
_WRONG_ARGUMENT: Final = re.compile(r"Undefined variable or function: '(\w+)'")


class _WorkExceeded(BadExpression):
    """Report too much work; no `||` and no other item makes up for it."""


class WorkBudget:
    """Count the work that remains."""

    def __init__(self, work: int = MAX_WORK_UNITS) -> None:
        self.remaining_work = work

    def spend(self, work: int) -> None:
        """Deduct work. Errors: `BadExpression` when it is used up."""
        self.remaining_work -= work
        if self.remaining_work < 0:
            raise _WorkExceeded("It takes too much work: the lists or texts in it are too long.")


def _pass_value(call: Any, *arguments: Any) -> Any:
    """Pass a value to CEL. Errors: `BadExpression` for invalid text: half of a surrogate pair."""
    try:
        return call_cel(call, *arguments)
    except (ValueError, TypeError, RuntimeError, OverflowError):
        raise BadExpression("A value in it is not JSON.") from None


def evaluate_expression(source: str, scope: Mapping[str, Any], budget: WorkBudget | None = None) -> Any:
    """Return the value of an expression: JSON, maybe part of the scope itself. Errors: `BadExpression`."""
    compiled = compile_expression(source)
    try:
        return _evaluate_compiled(compiled, scope, budget or WorkBudget())
    except BadExpression as error:
        raise BadExpression(f"{quote_source(source)}: {error.message}") from None


def evaluate_condition(source: str, scope: Mapping[str, Any]) -> bool:
    """Return the value of an expression that must be true or false. Errors: `BadExpression`."""
    value = evaluate_expression(source, scope)
    if not isinstance(value, bool):
        raise BadExpression(f"{quote_source(source)}: It must be true or false, not {describe_kind(value)}.")
    return value


def _evaluate_compiled(compiled: CompiledExpression, scope: Mapping[str, Any], budget: WorkBudget) -> Any:
    values = dict(scope)
    failed: dict[str, BadExpression] = {}
    for loop in compiled.passes:
        try:
            values[loop.name] = _run_loop(loop, values, failed, budget)
        except _WorkExceeded:
            raise
        except BadExpression as error:
            # An error only if the value is used: `has(inputs.a) && inputs.a.all(x, x > 1)`.
            failed[loop.name] = error
    return _evaluate_leaf(compiled.last, values, failed, budget)


def _run_loop(
    loop: LoopPass, values: Mapping[str, Any], failed: Mapping[str, BadExpression], budget: WorkBudget
) -> Any:
    over = _evaluate_leaf(loop.over, values, failed, budget)
    if not isinstance(over, list | dict):
        raise BadExpression(f"`{loop.kind}` needs a list, not {describe_kind(over)}.")
    bodies = [_LoopBody(body, loop, values, budget) for body in loop.bodies]
    match loop.kind:
        case "filter":
            return [item for item in over if bodies[0].is_match(item)]
        case "exists_one":
            return sum(bodies[0].is_match(item) for item in over) == 1
        case "map":
            return _map_items(over if len(bodies) == 1 else filter(bodies[0].is_match, over), bodies[-1])
        case _:
            return _decide_loop(over, bodies[0], deciding=loop.kind == "exists")


def _map_items(items: Iterable[Any], body: "_LoopBody") -> list[Any]:
    """Return the value of the body for each item. Errors: `BadExpression`."""
    results: list[Any] = []
    size = 0
    for item in items:
        results.append(body.evaluate(item))
        size += _measure_result(results[-1]) + 1
        if size > MAX_RESULT_BYTES:
            raise _WorkExceeded(f"The result of `map` is larger than {MAX_RESULT_BYTES} bytes.")
    return results


def _decide_loop(items: Iterable[Any], condition: "_LoopBody", deciding: bool) -> bool:
    """Return `deciding` if the condition has that value for any item, else its opposite. Errors: `BadExpression`."""
    # As in CEL, one deciding item makes up for items with errors.
    error: BadExpression | None = None
    for item in items:
        try:
            if condition.is_match(item) is deciding:
                return deciding
        except _WorkExceeded:
            raise
        except BadExpression as raised:
            error = error or raised
    if error is not None:
        raise error
    return not deciding


class _LoopBody:
    """Evaluate the body of a loop for each item. Values that stay the same are passed to CEL once."""

    def __init__(self, leaf: LeafExpression, loop: LoopPass, values: Mapping[str, Any], budget: WorkBudget) -> None:
        self.leaf, self.kind, self.variable = leaf, loop.kind, loop.variable
        self.values, self.budget = values, budget
        self.context: Any = None
        self.work = 0
        if leaf.path is None:
            outer = {keys: times for keys, times in leaf.paths.items() if keys[0] != loop.variable}
            self.item_paths = {keys: times for keys, times in leaf.paths.items() if keys[0] == loop.variable}
            variables, work = _select_values(outer, values, budget)
            self.context = _pass_value(load_cel().Context, variables)
            # Comparing reads values at most; adding copies them.
            self.work = work * (1 + leaf.adds) if leaf.adds else work // 4

    def evaluate(self, item: Any) -> Any:
        """Return the value of the body for an item. Errors: `BadExpression`."""
        self.budget.spend(_ITEM_COST)
        if self.leaf.path is not None:
            inner = {self.variable: item} if self.leaf.path[0] == self.variable else self.values
            return _follow_path(self.leaf.path, inner, {})
        variables, work = _select_values(self.item_paths, {self.variable: item}, self.budget)
        for name, value in variables.items():
            _pass_value(self.context.add_variable, name, value)
        return _run_program(
            self.leaf, self.context, work * (1 + self.leaf.adds) + self.work, self.values, {}, self.budget
        )

    def is_match(self, item: Any) -> bool:
        """Return the value of a condition for an item. Errors: `BadExpression`."""
        value = self.evaluate(item)
        if not isinstance(value, bool):
            raise BadExpression(f"The condition of `{self.kind}` must be true or false, not {describe_kind(value)}.")
        return value


def _evaluate_leaf(
    leaf: LeafExpression, values: Mapping[str, Any], failed: Mapping[str, BadExpression], budget: WorkBudget
) -> Any:
    if leaf.path is not None:
        return _follow_path(leaf.path, values, failed)
    variables, work = _select_values(leaf.paths, values, budget)
    return _run_program(leaf, variables, work * (1 + leaf.adds), values, failed, budget)


def _run_program(
    leaf: LeafExpression,
    context: Any,
    work: int,
    values: Mapping[str, Any],
    failed: Mapping[str, BadExpression],
    budget: WorkBudget,
) -> Any:
    budget.spend(_CALL_COST + work + leaf.patterns * (1 + work // 65536))
    try:
        value = call_cel(leaf.program.execute, context)
    except MemoryError:
        raise
    except Exception as error:
        for keys in leaf.paths:
            if keys[0] in failed:
                raise failed[keys[0]] from None
            if keys[0] in SCOPE_NAMES and keys[0] not in values:
                raise BadExpression(f"There is no `{keys[0]}` here.") from None
        raise BadExpression(_explain_error(error)) from None
    if isinstance(value, bool):
        return value
    value = _convert_result(value)
    budget.spend(_weigh_value(value, budget.remaining_work))
    if _measure_result(value) > MAX_RESULT_BYTES:
        raise _WorkExceeded(f"The result is larger than {MAX_RESULT_BYTES} bytes.")
    return value


def _follow_path(keys: ValuePath, values: Mapping[str, Any], failed: Mapping[str, BadExpression]) -> Any:
    root = str(keys[0])
    if root in failed:
        raise failed[root]
    if root not in values:
        raise BadExpression(f"There is no `{root}` here.")
    value = values[root]
    for index, key in enumerate(keys[1:], 1):
        if isinstance(value, dict) and isinstance(key, str):
            if key not in value:
                raise BadExpression(f"There is no `{_format_path(keys, index + 1)}`.")
        elif isinstance(value, list) and isinstance(key, int):
            if key >= len(value):
                raise BadExpression(f"There is no `{_format_path(keys, index + 1)}`: the list has {len(value)} items.")
        else:
            raise BadExpression(f"`{_format_path(keys, index)}` is {describe_kind(value)}, and has no {key!r}.")
        value = value[key]
    return value


def _format_path(keys: ValuePath, end: int) -> str:
    text = str(keys[0]) if not str(keys[0]).startswith("__") else "it"
    for key in keys[1:end]:
        text += f".{key}" if isinstance(key, str) and key.isidentifier() else f"[{key!r}]"
    return text


def _select_values(
    paths: Mapping[tuple[str, ...], int], values: Mapping[str, Any], budget: WorkBudget
) -> tuple[dict[str, Any], int]:
    """Return the values at the paths, and the work to pass each of them as often as it is named."""
    selected: dict[str, Any] = {}
    work = 0
    # Whole values come last, and replace parts of them.
    for keys in sorted(paths, key=len, reverse=True):
        source, target = values, selected
        for index, key in enumerate(keys):
            if key not in source:
                break
            value = source[key]
            if index + 1 < len(keys) and isinstance(value, dict):
                source, target = value, target.setdefault(key, {})
                continue
            work += _weigh_value(value, budget.remaining_work) * paths[keys]
            if work > budget.remaining_work:
                budget.spend(work)
            target[key] = value
            break
    return selected, work


def _weigh_value(value: Any, limit: int) -> int:
    """Return the work to pass a value to CEL, or more than `limit`. Errors: `BadExpression` for unsafe values."""
    work = 0
    open_values: list[tuple[Any, int]] = [(value, 0)]
    while open_values and work <= limit:
        part, depth = open_values.pop()
        if depth > MAX_VALUE_DEPTH:
            raise BadExpression(f"A value in it is nested deeper than {MAX_VALUE_DEPTH}.")
        if isinstance(part, str):
            work += _TEXT_COST + len(part) // 2
        elif isinstance(part, dict | list) and len(part) * _NUMBER_COST > limit:
            return limit + 1
        elif isinstance(part, dict):
            work += _LIST_COST + _NAME_COST * len(part) + sum(len(key) // 2 for key in part)
            open_values += [(item, depth + 1) for item in part.values()]
        elif isinstance(part, list):
            work += _LIST_COST
            open_values += [(item, depth + 1) for item in part]
        else:
            work += _NUMBER_COST
            if isinstance(part, int) and not -(2**63) <= part < 2**63:
                raise BadExpression("A whole number in it has more than 64 bits.")
    return work


def _measure_result(value: Any) -> int:
    try:
        return len(msgspec.json.encode(value))
    except (UnicodeEncodeError, RecursionError, TypeError, ValueError, OverflowError):
        raise BadExpression("A value in it is not JSON.") from None


def _explain_error(error: Exception) -> str:
    text = str(error)
    if isinstance(error, KeyError):
        return f"There is no {error.args[0] if error.args else text!r}."
    if isinstance(error, IndexError):
        return f"The list is too short ({text[:100]})."
    if (match := _WRONG_ARGUMENT.match(text)) is not None:
        return f"`{match[1]}` does not take a value of this kind."
    if "No such overload" in text or isinstance(error, TypeError):
        return f"The kinds of values do not fit: {text.split('. ')[0][:200].rstrip('.')}."
    if text == "panic" or text.startswith("Conversion Error"):
        return "It has no value."
    return f"{text.split('. ')[0][:200].rstrip('.')}."


def _convert_result(value: Any, depth: int = 0) -> Any:
    """Return a result of CEL as JSON, with sorted keys, since CEL keeps no order."""
    if depth > MAX_VALUE_DEPTH:
        raise BadExpression(f"The result is nested deeper than {MAX_VALUE_DEPTH}.")
    if value is None or isinstance(value, bool | int | str):
        return value
    if isinstance(value, float):
        if not math.isfinite(value):
            raise BadExpression("The result is not a finite number.")
        return value
    if isinstance(value, list):
        return [_convert_result(item, depth + 1) for item in value]
    if isinstance(value, dict):
        if not all(isinstance(key, str) for key in value):
            raise BadExpression("The result is an object with names that are not text.")
        return {key: _convert_result(value[key], depth + 1) for key in sorted(value)}
    raise BadExpression(f"The result is a {type(value).__name__}, which JSON does not have; make it text: string(…).")
