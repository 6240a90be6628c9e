"""The answer of an expression over a scope, in bounded time.

A plain path is walked here. For the rest CEL is given only the values that the expression names: it converts all it is
given, each time. Loops are run here, body by body: CEL's own copy the list they build for every item, which takes ten
seconds for a thousand small objects.
"""

import math
import re
from collections.abc import Mapping
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

# Bytes of JSON.
MAX_RESULT_BYTES: Final = 1024 * 1024
MAX_VALUE_DEPTH: Final = 64
# What one answer may take, in units of about 10 ns: what it costs to hand a value to CEL, or to get it back.
MAX_WORK_UNITS: Final = 20_000_000
_CALL: Final = 300
_ITEM: Final = 100
_NUMBER: Final = 40
_TEXT: Final = 60
_LIST: Final = 70
_NAME: Final = 150
# Said of functions that exist, when there is none of that name for the kinds of values given.
_UNFIT: Final = re.compile(r"Undefined variable or function: '(\w+)'")


class _Spent(BadExpression):
    """The answer takes too much work; no `||` makes up for it."""


class WorkBudget:
    """How much work is left."""

    def __init__(self, work: int = MAX_WORK_UNITS) -> None:
        self.remaining_work = work

    def spend(self, work: int) -> None:
        self.remaining_work -= work
        if self.remaining_work < 0:
            raise _Spent("It takes too much work: the lists or texts in it are too long.")


def _handed(call: Any, *arguments: Any) -> Any:
    """Give CEL a value. Errors: BadExpression for text that is none, such as half of a surrogate pair."""
    try:
        return call_cel(call, *arguments)
    except (ValueError, TypeError, RuntimeError, OverflowError):
        raise BadExpression("A value in it is not JSON.") from None


def evaluate_expression(source: str, scope: Mapping[str, Any], budget: WorkBudget | None = None) -> Any:
    """The value of an expression: JSON, maybe a part of the scope itself. Errors: BadExpression."""
    parsed = compile_expression(source)
    try:
        return _answer(parsed, scope, budget or WorkBudget())
    except BadExpression as error:
        raise BadExpression(f"{quote_source(source)}: {error.message}") from None


def evaluate_condition(source: str, scope: Mapping[str, Any]) -> bool:
    """The value of an expression that must be true or false. Errors: BadExpression."""
    value = evaluate_expression(source, scope)
    if not isinstance(value, bool):
        raise BadExpression(f"{quote_source(source)}: It must be true or false, not {describe_kind(value)}.")
    return value


def _answer(parsed: CompiledExpression, scope: Mapping[str, Any], budget: WorkBudget) -> Any:
    known = dict(scope)
    failed: dict[str, BadExpression] = {}
    for loop in parsed.passes:
        try:
            known[loop.name] = _passed(loop, known, failed, budget)
        except _Spent:
            raise
        except BadExpression as error:
            # Only an error if it is asked for: `has(inputs.a) && inputs.a.all(x, x > 1)`.
            failed[loop.name] = error
    return _value(parsed.last, known, failed, budget)


def _passed(loop: LoopPass, known: Mapping[str, Any], failed: Mapping[str, BadExpression], budget: WorkBudget) -> Any:
    over = _value(loop.over, known, failed, budget)
    if not isinstance(over, list | dict):
        raise BadExpression(f"`{loop.kind}` needs a list, not {describe_kind(over)}.")
    bodies = [_Body(body, loop, known, budget) for body in loop.bodies]

    def holds(item: Any) -> bool:
        value = bodies[0].of(item)
        if not isinstance(value, bool):
            raise BadExpression(f"The condition of `{loop.kind}` must be true or false, not {describe_kind(value)}.")
        return value

    if loop.kind == "filter":
        return [item for item in over if holds(item)]
    if loop.kind == "exists_one":
        return sum(holds(item) for item in over) == 1
    if loop.kind == "map":
        made: list[Any] = []
        size = 0
        for item in over:
            if len(bodies) == 1 or holds(item):
                made.append(bodies[-1].of(item))
                size += _size(made[-1]) + 1
                if size > MAX_RESULT_BYTES:
                    raise _Spent(f"What `map` makes is larger than {MAX_RESULT_BYTES} bytes.")
        return made
    # As CEL has it: one item that decides makes up for others that have no answer.
    wanted = loop.kind == "exists"
    error: BadExpression | None = None
    for item in over:
        try:
            if holds(item) is wanted:
                return wanted
        except _Spent:
            raise
        except BadExpression as raised:
            error = error or raised
    if error is not None:
        raise error
    return not wanted


class _Body:
    """What a loop does with each item. What does not change from one to the next is handed to CEL once."""

    def __init__(self, leaf: LeafExpression, loop: LoopPass, known: Mapping[str, Any], budget: WorkBudget) -> None:
        self.leaf, self.variable, self.known, self.budget = leaf, loop.variable, known, budget
        self.context: Any = None
        self.work = 0
        if leaf.path is None:
            outer = {keys: times for keys, times in leaf.paths.items() if keys[0] != loop.variable}
            self.own = {keys: times for keys, times in leaf.paths.items() if keys[0] == loop.variable}
            given, work = _given(outer, known, budget)
            self.context = _handed(load_cel().Context, given)
            # Compared, values are read at most. Added, they are copied.
            self.work = work * (1 + leaf.adds) if leaf.adds else work // 4

    def of(self, item: Any) -> Any:
        self.budget.spend(_ITEM)
        if self.leaf.path is not None:
            inner = {self.variable: item} if self.leaf.path[0] == self.variable else self.known
            return _walked(self.leaf.path, inner, {})
        given, work = _given(self.own, {self.variable: item}, self.budget)
        for name, value in given.items():
            _handed(self.context.add_variable, name, value)
        return _run(self.leaf, self.context, work * (1 + self.leaf.adds) + self.work, self.known, {}, self.budget)


def _value(
    leaf: LeafExpression, known: Mapping[str, Any], failed: Mapping[str, BadExpression], budget: WorkBudget
) -> Any:
    if leaf.path is not None:
        return _walked(leaf.path, known, failed)
    given, work = _given(leaf.paths, known, budget)
    return _run(leaf, given, work * (1 + leaf.adds), known, failed, budget)


def _run(
    leaf: LeafExpression,
    given: Any,
    work: int,
    known: Mapping[str, Any],
    failed: Mapping[str, BadExpression],
    budget: WorkBudget,
) -> Any:
    budget.spend(_CALL + work + leaf.patterns * (1 + work // 65536))
    try:
        value = call_cel(leaf.program.execute, given)
    except MemoryError:
        raise
    except Exception as error:
        for keys in leaf.paths:
            if keys[0] in failed:
                raise failed[keys[0]] from None
            if keys[0] in SCOPE_NAMES and keys[0] not in known:
                raise BadExpression(f"There is no `{keys[0]}` here.") from None
        raise BadExpression(_told(error)) from None
    if isinstance(value, bool):
        return value
    value = _json(value)
    budget.spend(_weight(value, budget.remaining_work))
    if _size(value) > MAX_RESULT_BYTES:
        raise _Spent(f"The answer is larger than {MAX_RESULT_BYTES} bytes.")
    return value


def _walked(keys: ValuePath, known: Mapping[str, Any], failed: Mapping[str, BadExpression]) -> Any:
    root = str(keys[0])
    if root in failed:
        raise failed[root]
    if root not in known:
        raise BadExpression(f"There is no `{root}` here.")
    value = known[root]
    for at, key in enumerate(keys[1:], 1):
        if isinstance(value, dict) and isinstance(key, str):
            if key not in value:
                raise BadExpression(f"There is no `{_below(keys, at + 1)}`.")
        elif isinstance(value, list) and isinstance(key, int):
            if key >= len(value):
                raise BadExpression(f"There is no `{_below(keys, at + 1)}`: the list has {len(value)} items.")
        else:
            raise BadExpression(f"`{_below(keys, at)}` is {describe_kind(value)}, and has no {key!r}.")
        value = value[key]
    return value


def _below(keys: ValuePath, end: int) -> str:
    told = str(keys[0]) if not str(keys[0]).startswith("__") else "it"
    for key in keys[1:end]:
        told += f".{key}" if isinstance(key, str) and key.isidentifier() else f"[{key!r}]"
    return told


def _given(
    paths: Mapping[tuple[str, ...], int], known: Mapping[str, Any], budget: WorkBudget
) -> tuple[dict[str, Any], int]:
    """What CEL is given of the values known, and the work to go through each as often as it is named."""
    given: dict[str, Any] = {}
    work = 0
    # Whole values come last, and take the place of parts of them.
    for keys in sorted(paths, key=len, reverse=True):
        source, into = known, given
        for at, key in enumerate(keys):
            if key not in source:
                break
            value = source[key]
            if at + 1 < len(keys) and isinstance(value, dict):
                source, into = value, into.setdefault(key, {})
                continue
            work += _weight(value, budget.remaining_work) * paths[keys]
            if work > budget.remaining_work:
                budget.spend(work)
            into[key] = value
            break
    return given, work


def _weight(value: Any, most: int) -> int:
    """The work to hand a value to CEL, or something above `most`. Errors: BadExpression for what CEL would alter."""
    work = 0
    left: list[tuple[Any, int]] = [(value, 0)]
    while left and work <= most:
        one, depth = left.pop()
        if depth > MAX_VALUE_DEPTH:
            raise BadExpression(f"A value in it is nested deeper than {MAX_VALUE_DEPTH}.")
        if isinstance(one, str):
            work += _TEXT + len(one) // 2
        elif isinstance(one, dict | list) and len(one) * _NUMBER > most:
            return most + 1
        elif isinstance(one, dict):
            work += _LIST + _NAME * len(one) + sum(len(key) // 2 for key in one)
            left += [(item, depth + 1) for item in one.values()]
        elif isinstance(one, list):
            work += _LIST
            left += [(item, depth + 1) for item in one]
        else:
            work += _NUMBER
            if isinstance(one, int) and not -(2**63) <= one < 2**63:
                raise BadExpression("A whole number in it has more than 64 bits.")
    return work


def _size(value: Any) -> int:
    try:
        return len(msgspec.json.encode(value))
    except (UnicodeEncodeError, RecursionError, TypeError, ValueError, OverflowError):
        raise BadExpression("A value in it is not JSON.") from None


def _told(error: Exception) -> str:
    text = str(error)
    if isinstance(error, KeyError):
        return f"There is no {error.args[0] if error.args else text!r}."
    if isinstance(error, IndexError):
        return f"The list is too short ({text[:100]})."
    if (unfit := _UNFIT.match(text)) is not None:
        return f"`{unfit[1]}` does not take a value of this kind."
    if "No such overload" in text or isinstance(error, TypeError):
        return f"The kinds of values do not fit: {text.split('. ')[0][:200].rstrip('.')}."
    if text == "panic" or text.startswith("Conversion Error"):
        return "It has no answer."
    return f"{text.split('. ')[0][:200].rstrip('.')}."


def _json(value: Any, depth: int = 0) -> Any:
    """An answer of CEL as JSON, keys in order of the alphabet since CEL keeps none."""
    if depth > MAX_VALUE_DEPTH:
        raise BadExpression(f"The answer is nested deeper than {MAX_VALUE_DEPTH}.")
    if value is None or isinstance(value, bool | int | str):
        return value
    if isinstance(value, float):
        if not math.isfinite(value):
            raise BadExpression("The answer is not a finite number.")
        return value
    if isinstance(value, list):
        return [_json(item, depth + 1) for item in value]
    if isinstance(value, dict):
        if not all(isinstance(key, str) for key in value):
            raise BadExpression("The answer is an object whose names are not all text.")
        return {key: _json(value[key], depth + 1) for key in sorted(value)}
    raise BadExpression(f"The answer is a {type(value).__name__}, which JSON does not have; make it text: string(…).")
