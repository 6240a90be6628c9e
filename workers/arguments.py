"""Whether the arguments of a tool call fit the tool's JSON Schema. Both are strangers' words.

A schema can keep a process busy for hours: a regular expression that backtracks, references that double at each step.
So expressions are matched by an engine that does not backtrack (Rust's, which holds no lookaround), no reference leads
anywhere but into the schema itself, and whoever takes too long is not checked to the end.
"""

import asyncio
import itertools
import time
from collections.abc import Callable, Iterator
from contextvars import ContextVar
from functools import lru_cache, wraps
from typing import Any, Final

import jsonschema
from jsonschema import Draft202012Validator
from jsonschema.exceptions import ValidationError, best_match
from pydantic_core import SchemaError, SchemaValidator, core_schema
from pydantic_core import ValidationError as NoMatch
from referencing import Registry

from domain.chat import ToolFailed

SECONDS: Final = 2.0
# Expressions and texts longer than this are not matched: together they would take too long even so.
LONGEST_PATTERN: Final = 500
LONGEST_TEXT: Final = 16 * 1024
# How many errors are looked at for the one that tells most.
ERRORS: Final = 10

_deadline: ContextVar[float] = ContextVar("_deadline")


class _TooLong(Exception):
    pass


async def checked(schema: dict[str, Any], args: dict[str, Any]) -> None:
    """Errors: `ToolFailed`, naming an argument that does not fit, or telling that the schema itself is no good."""
    try:
        wrong = await asyncio.to_thread(_first_wrong, schema, args)
    except _TooLong:
        raise ToolFailed(f"the arguments could not be checked against the tool's schema in {SECONDS:g} s.") from None
    except Exception as error:  # whatever a library makes of a schema that is none
        told = f"the tool's own schema is broken: {type(error).__name__}: {error}"
        raise ToolFailed(told[:500]) from error
    if wrong is not None:
        place = ".".join(str(part) for part in wrong.absolute_path)
        raise ToolFailed(f"{place or 'arguments'}: {wrong.message}"[:1000])


def _first_wrong(schema: dict[str, Any], args: dict[str, Any]) -> ValidationError | None:
    _deadline.set(time.monotonic() + SECONDS)
    found = _Validator(schema, registry=Registry()).iter_errors(args)
    wrong: ValidationError | None = best_match(itertools.islice(found, ERRORS))
    return wrong


def _timed(check: Callable[..., Any]) -> Callable[..., Any]:
    @wraps(check)
    def timed(validator: Any, value: Any, instance: Any, schema: Any) -> Any:
        if time.monotonic() > _deadline.get():
            raise _TooLong
        return check(validator, value, instance, schema)

    return timed


@lru_cache(maxsize=512)
def _expression(pattern: str) -> SchemaValidator | None:
    try:
        return SchemaValidator(core_schema.str_schema(pattern=pattern, regex_engine="rust-regex"))
    except SchemaError:
        return None


def _matches(pattern: Any, text: str) -> bool:
    """Whether it matches anywhere in a text, which is taken for granted where it cannot be told."""
    if not isinstance(pattern, str) or len(pattern) > LONGEST_PATTERN or len(text) > LONGEST_TEXT:
        return True
    known = _expression(pattern)
    if known is None:
        return True
    try:
        known.validate_python(text)
    except NoMatch:
        return False
    return True


def _pattern(_: Any, pattern: Any, instance: Any, __: Any) -> Iterator[ValidationError]:
    if isinstance(instance, str) and not _matches(pattern, instance):
        yield ValidationError(f"{instance[:200]!r} does not match {pattern!r}")


def _pattern_properties(validator: Any, patterns: Any, instance: Any, _: Any) -> Iterator[ValidationError]:
    if isinstance(instance, dict):
        for pattern, schema in patterns.items():
            for name, value in instance.items():
                if _matches(pattern, name):
                    yield from validator.descend(value, schema, path=name, schema_path=pattern)


def _additional_properties(validator: Any, others: Any, instance: Any, schema: Any) -> Iterator[ValidationError]:
    if not isinstance(instance, dict):
        return
    known, patterns = schema.get("properties", {}), schema.get("patternProperties", {})
    extra = [name for name in instance if name not in known and not any(_matches(one, name) for one in patterns)]
    if isinstance(others, dict):
        for name in extra:
            yield from validator.descend(instance[name], others, path=name)
    elif not others and extra:
        shown = ", ".join(repr(name[:200]) for name in extra[:10])
        yield ValidationError(f"Additional properties are not allowed ({shown} unexpected)")


# Left to whoever gets the call: what compares all pairs, or matches expressions of its own accord.
_UNCHECKED: Final = ("uniqueItems", "unevaluatedProperties", "unevaluatedItems")
_OURS: Final[dict[str, Callable[..., Any]]] = {
    "pattern": _pattern,
    "patternProperties": _pattern_properties,
    "additionalProperties": _additional_properties,
}
_CHECKS: Final = {
    name: _timed(check)
    for name, check in ({**dict(Draft202012Validator.VALIDATORS), **_OURS}).items()
    if name not in _UNCHECKED
}
_Validator: Final = jsonschema.validators.create(
    meta_schema=Draft202012Validator.META_SCHEMA,
    validators=_CHECKS,
    type_checker=Draft202012Validator.TYPE_CHECKER,
)
