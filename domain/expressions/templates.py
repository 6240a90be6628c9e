"""Check and render templates: texts with `{{ expressions }}`, anywhere in a JSON value."""

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

# For one call of `render_template`.
MAX_RENDERED_BYTES: Final = 4 * 1024 * 1024
MAX_TEMPLATE_DEPTH: Final = 64
_OPENING_BRACES: Final = re.compile(r"\{\{|\{%|\{#")


class TemplateExpression(msgspec.Struct, frozen=True):
    """Hold an expression between the texts of a template."""

    source: str


def check_expression(source: str) -> ExpressionReferences:
    """Check one expression without braces, and return what it refers to. Errors: `BadExpression`."""
    return compile_expression(source).references


def check_template(value: Any) -> ExpressionReferences:
    """Check all strings of a JSON value, and return what they refer to. Errors: `BadExpression` with a `path`."""
    references = ExpressionReferences()

    def check_text(text: str) -> str:
        nonlocal references
        for part in split_template(text):
            if isinstance(part, TemplateExpression):
                references |= compile_expression(part.source).references
        return text

    _map_strings(value, check_text)
    return references


def render_template(value: Any, scope: Mapping[str, Any]) -> Any:
    """Render all strings of a JSON value. A string that is one `{{ expression }}` becomes its value, which may be part
    of the scope: do not change it. In a longer text other values are written as JSON. Errors: `BadExpression`.
    """
    budget = WorkBudget(4 * MAX_WORK_UNITS)
    remaining_bytes = MAX_RENDERED_BYTES

    def render_text(text: str) -> Any:
        nonlocal remaining_bytes
        parts = split_template(text)
        if not any(isinstance(part, TemplateExpression) for part in parts):
            return text
        is_single = (
            sum(isinstance(part, TemplateExpression) for part in parts) == 1
            and not "".join(part for part in parts if isinstance(part, str)).strip()
        )
        rendered_parts: list[str] = []
        for part in parts:
            if isinstance(part, str):
                rendered, size = part, len(part)
            else:
                part_budget = WorkBudget(min(MAX_WORK_UNITS, budget.remaining_work))
                granted = part_budget.remaining_work
                answer = evaluate_expression(part.source, scope, part_budget)
                budget.spend(granted - part_budget.remaining_work)
                rendered, size = _encode_value(answer)
            remaining_bytes -= size
            if remaining_bytes < 0:
                raise BadExpression(f"The rendered templates are larger than {MAX_RENDERED_BYTES} bytes.")
            if is_single and isinstance(part, TemplateExpression):
                return answer
            rendered_parts.append(rendered)
        return "".join(rendered_parts)

    return _map_strings(value, render_text)


def split_template(text: str) -> list[str | TemplateExpression]:
    """Return the texts and expressions of a template in order. Errors: `BadExpression`."""
    parts: list[str | TemplateExpression] = []
    at = 0
    while (match := _OPENING_BRACES.search(text, at)) is not None:
        if match[0] != "{{":
            raise BadExpression(f"Statements are not part of templates: `{match[0]}` at character {match.start() + 1}.")
        end = _find_closing_braces(text, match.end())
        parts += [text[at : match.start()], TemplateExpression(text[match.end() : end].strip())]
        at = end + 2
    return [part for part in [*parts, text[at:]] if part != ""]


def _find_closing_braces(text: str, begin: int) -> int:
    """Return the position of the `}}` of an expression: not one in quotes, nor one of an object."""
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
            token = read_token(text, at)
        except BadExpression as error:
            raise BadExpression(f"{quote_source(text[begin : at + 1])}: {error.message}") from None
        if token is None:
            at += 1
            continue
        if token.kind == "sign":
            depth += (token.text == "{") - (token.text == "}")
            if depth < 0:
                raise unclosed
        at += len(token.text)
    raise unclosed


def _encode_value(value: Any) -> tuple[str, int]:
    try:
        data = value.encode() if isinstance(value, str) else msgspec.json.encode(value)
        return data.decode(), len(data)
    except (UnicodeEncodeError, RecursionError, TypeError, ValueError, OverflowError):
        raise BadExpression("A value is not JSON.") from None


def _map_strings(value: Any, change: Callable[[str], Any], path: str = "", depth: int = 0) -> Any:
    """Return the value with its strings changed; names of objects stay."""
    if depth > MAX_TEMPLATE_DEPTH:
        raise BadExpression(f"The value is nested deeper than {MAX_TEMPLATE_DEPTH}.", path)
    try:
        if isinstance(value, str):
            return change(value)
        if isinstance(value, dict):
            for key in value:
                if isinstance(key, str) and _OPENING_BRACES.search(key):
                    raise BadExpression(f"Names of an object cannot be templates: {key[:100]!r}.")
    except BadExpression as error:
        raise BadExpression(error.message, path) from None
    if isinstance(value, dict):
        return {key: _map_strings(item, change, f"{path}.{key}", depth + 1) for key, item in value.items()}
    if isinstance(value, list):
        return [_map_strings(item, change, f"{path}[{index}]", depth + 1) for index, item in enumerate(value)]
    return value
