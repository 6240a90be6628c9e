"""Text with `{{ expressions }}` in it, anywhere in a JSON value."""

import re
from collections.abc import Callable, Mapping
from typing import Any, Final

import msgspec

from domain.expressions.compiler import parse
from domain.expressions.evaluator import MAX_WORK, Budget, evaluate
from domain.expressions.parser import MAX_LENGTH, BadExpression, Uses, next_word, shown

# Bytes that one call of `render` may make.
MAX_TEXT: Final = 4 * 1024 * 1024
MAX_DEPTH: Final = 64
_OPENED: Final = re.compile(r"\{\{|\{%|\{#")


class Expression(msgspec.Struct, frozen=True):
    """An expression between the texts of a template."""

    source: str


def expression(source: str) -> Uses:
    """Check one expression, without braces around it. Errors: BadExpression."""
    return parse(source).uses


def template(value: Any) -> Uses:
    """Check all strings of a JSON value. Errors: BadExpression, whose `place` is like `.files[0]`."""
    uses = Uses()

    def look(text: str) -> str:
        nonlocal uses
        for part in split(text):
            if isinstance(part, Expression):
                uses |= parse(part.source).uses
        return text

    _each(value, look)
    return uses


def render(value: Any, scope: Mapping[str, Any]) -> Any:
    """Fill in all strings of a JSON value. One that is only `{{ expr }}` becomes the value itself, which may be a part
    of the scope: do not change it. In text, what is not text is written as JSON. Errors: BadExpression with `place`.
    """
    budget = Budget(4 * MAX_WORK)
    left = MAX_TEXT

    def fill(text: str) -> Any:
        nonlocal left
        parts = split(text)
        if not any(isinstance(part, Expression) for part in parts):
            return text
        alone = (
            sum(isinstance(part, Expression) for part in parts) == 1
            and not "".join(part for part in parts if isinstance(part, str)).strip()
        )
        made: list[str] = []
        for part in parts:
            if isinstance(part, str):
                told, size = part, len(part)
            else:
                one = Budget(min(MAX_WORK, budget.left))
                had = one.left
                answer = evaluate(part.source, scope, one)
                budget.spend(had - one.left)
                told, size = _text(answer)
            left -= size
            if left < 0:
                raise BadExpression(f"What the templates make is larger than {MAX_TEXT} bytes.")
            if alone and isinstance(part, Expression):
                return answer
            made.append(told)
        return "".join(made)

    return _each(value, fill)


def split(text: str) -> list[str | Expression]:
    """The texts and expressions of a template in turn. Errors: BadExpression."""
    parts: list[str | Expression] = []
    at = 0
    while (match := _OPENED.search(text, at)) is not None:
        if match[0] != "{{":
            raise BadExpression(f"Statements are not part of templates: `{match[0]}` at character {match.start() + 1}.")
        end = _closed(text, match.end())
        parts += [text[at : match.start()], Expression(text[match.end() : end].strip())]
        at = end + 2
    return [part for part in [*parts, text[at:]] if part != ""]


def _closed(text: str, begin: int) -> int:
    """Where the `}}` of the expression that begins at `begin` stands: not one in quotes, nor one of an object."""
    at, depth = begin, 0
    unclosed = BadExpression(f"`{{{{` at character {begin - 1} is not closed.")
    if text.find("}}", begin) < 0:
        raise unclosed
    while at < len(text) and at - begin <= MAX_LENGTH + 100:
        if depth == 0 and text.startswith("}}", at):
            return at
        if text[at].isspace():
            at += 1
            continue
        try:
            word = next_word(text, at)
        except BadExpression as error:
            raise BadExpression(f"{shown(text[begin : at + 1])}: {error.message}") from None
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
    if depth > MAX_DEPTH:
        raise BadExpression(f"The value is nested deeper than {MAX_DEPTH}.", place)
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
