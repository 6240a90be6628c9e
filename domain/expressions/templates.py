"""Text with `{{ expressions }}` in it, anywhere in a JSON value."""

import re
from collections.abc import Callable, Mapping
from typing import Any, Final

import msgspec

from domain.expressions.compiler import compile_expression
from domain.expressions.evaluator import MAX_WORK_UNITS, WorkBudget, evaluate_expression
from domain.expressions.parser import (
    MAX_EXPRESSION_LENGTH,
    BadExpression,
    ExpressionReferences,
    quote_source,
    read_token,
)

# Bytes that one call of `render` may make.
MAX_RENDERED_BYTES: Final = 4 * 1024 * 1024
MAX_TEMPLATE_DEPTH: Final = 64
_OPENED: Final = re.compile(r"\{\{|\{%|\{#")


class TemplateExpression(msgspec.Struct, frozen=True):
    """An expression between the texts of a template."""

    source: str


def check_expression(source: str) -> ExpressionReferences:
    """Check one expression, without braces around it. Errors: BadExpression."""
    return compile_expression(source).references


def check_template(value: Any) -> ExpressionReferences:
    """Check all strings of a JSON value. Errors: BadExpression, whose `place` is like `.files[0]`."""
    uses = ExpressionReferences()

    def look(text: str) -> str:
        nonlocal uses
        for part in split_template(text):
            if isinstance(part, TemplateExpression):
                uses |= compile_expression(part.source).references
        return text

    _each(value, look)
    return uses


def render_template(value: Any, scope: Mapping[str, Any]) -> Any:
    """Fill in all strings of a JSON value. One that is only `{{ expr }}` becomes the value itself, which may be a part
    of the scope: do not change it. In text, what is not text is written as JSON. Errors: BadExpression with `place`.
    """
    budget = WorkBudget(4 * MAX_WORK_UNITS)
    left = MAX_RENDERED_BYTES

    def fill(text: str) -> Any:
        nonlocal left
        parts = split_template(text)
        if not any(isinstance(part, TemplateExpression) for part in parts):
            return text
        alone = (
            sum(isinstance(part, TemplateExpression) for part in parts) == 1
            and not "".join(part for part in parts if isinstance(part, str)).strip()
        )
        made: list[str] = []
        for part in parts:
            if isinstance(part, str):
                told, size = part, len(part)
            else:
                one = WorkBudget(min(MAX_WORK_UNITS, budget.remaining_work))
                had = one.remaining_work
                answer = evaluate_expression(part.source, scope, one)
                budget.spend(had - one.remaining_work)
                told, size = _text(answer)
            left -= size
            if left < 0:
                raise BadExpression(f"What the templates make is larger than {MAX_RENDERED_BYTES} bytes.")
            if alone and isinstance(part, TemplateExpression):
                return answer
            made.append(told)
        return "".join(made)

    return _each(value, fill)


def split_template(text: str) -> list[str | TemplateExpression]:
    """The texts and expressions of a template in turn. Errors: BadExpression."""
    parts: list[str | TemplateExpression] = []
    at = 0
    while (match := _OPENED.search(text, at)) is not None:
        if match[0] != "{{":
            raise BadExpression(f"Statements are not part of templates: `{match[0]}` at character {match.start() + 1}.")
        end = _closed(text, match.end())
        parts += [text[at : match.start()], TemplateExpression(text[match.end() : end].strip())]
        at = end + 2
    return [part for part in [*parts, text[at:]] if part != ""]


def _closed(text: str, begin: int) -> int:
    """Where the `}}` of the expression that begins at `begin` stands: not one in quotes, nor one of an object."""
    at, depth = begin, 0
    unclosed = BadExpression(f"`{{{{` at character {begin - 1} is not closed.")
    if text.find("}}", begin) < 0:
        raise unclosed
    while at < len(text) and at - begin <= MAX_EXPRESSION_LENGTH + 100:
        if depth == 0 and text.startswith("}}", at):
            return at
        if text[at].isspace():
            at += 1
            continue
        try:
            word = read_token(text, at)
        except BadExpression as error:
            raise BadExpression(f"{quote_source(text[begin : at + 1])}: {error.message}") from None
        if word is None:
            at += 1
            continue
        if word.kind == "sign":
            depth += (word.text == "{") - (word.text == "}")
            if depth < 0:
                raise unclosed
        at += len(word.text)
    raise unclosed


def _text(value: Any) -> tuple[str, int]:
    try:
        data = value.encode() if isinstance(value, str) else msgspec.json.encode(value)
        return data.decode(), len(data)
    except (UnicodeEncodeError, RecursionError, TypeError, ValueError, OverflowError):
        raise BadExpression("A value is not JSON.") from None


def _each(value: Any, change: Callable[[str], Any], place: str = "", depth: int = 0) -> Any:
    """The value with its strings changed; names of objects stay."""
    if depth > MAX_TEMPLATE_DEPTH:
        raise BadExpression(f"The value is nested deeper than {MAX_TEMPLATE_DEPTH}.", place)
    try:
        if isinstance(value, str):
            return change(value)
        if isinstance(value, dict):
            for key in value:
                if isinstance(key, str) and _OPENED.search(key):
                    raise BadExpression(f"Names of an object cannot be templates: {key[:100]!r}.")
    except BadExpression as error:
        raise BadExpression(error.message, place) from None
    if isinstance(value, dict):
        return {key: _each(item, change, f"{place}.{key}", depth + 1) for key, item in value.items()}
    if isinstance(value, list):
        return [_each(item, change, f"{place}[{index}]", depth + 1) for index, item in enumerate(value)]
    return value
