"""Validate the arguments of a tool call against the tool's JSON Schema. Neither is trusted.

A schema can keep a process busy for hours, or fill its memory: expressions that backtrack or repeat a thousand times,
references that double at each step, alternatives that all report errors. So a check is bounded in its processor time,
in the number and size of its expressions and in the errors it makes, and it runs in a thread of its own kind, one per
tenant at a time. Expressions are matched by RE2, which does not backtrack, bounds its memory and frees the interpreter.

A schema is read as `domain.shared.json_schemas` reads it: the tool checks the rest on its own.
"""

import asyncio
import itertools
import re
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import wraps
from typing import Any, Final
from weakref import WeakValueDictionary

import jsonschema
import msgspec
import structlog
from jsonschema import Draft202012Validator
from jsonschema.exceptions import ValidationError, best_match
from referencing import Registry

from domain.llms import ToolFailed
from domain.shared.json_limits import JsonTooLarge, check_json
from domain.shared.json_numbers import normalize_whole_numbers
from domain.shared.json_schemas import normalize_schema
from domain.shared.unicode_text import repair_json_text

# Seconds of processor time, so that other work makes no check fail.
MAX_CHECK_SECONDS: Final = 1.0
MAX_CHECK_THREADS: Final = 2
MAX_PATTERNS: Final = 64
# Of one compiled expression; those of a check are forgotten when it ends.
MAX_PATTERN_BYTES: Final = 512 * 1024
# Instructions of an expression times characters of a text: the most that one match may have to look at.
MAX_MATCH_STEPS: Final = 16_000_000
_TOO_COMPLEX_TEXT: Final = (
    f"the arguments could not be checked against the tool's schema in {MAX_CHECK_SECONDS:g} s: it is too complex."
)
MAX_SCHEMA_ERRORS: Final = 10_000
MAX_ERROR_CHARACTERS: Final = 32 * 1024 * 1024
# Errors that are compared for the one that says most.
MAX_COMPARED_ERRORS: Final = 10

# ECMAScript writes characters like this, and RE2 does not.
_UNICODE_ESCAPE: Final = re.compile(r"\\u([0-9A-Fa-f]{4})")
_log = structlog.get_logger("paddock.tools")
_pool: Final = ThreadPoolExecutor(MAX_CHECK_THREADS, thread_name_prefix="arguments")
_tenant_locks: Final[WeakValueDictionary[str, asyncio.Lock]] = WeakValueDictionary()
_thread_state: Final = threading.local()


class _CheckTooLong(Exception):
    pass


class _UndecidedMatch(Exception):
    """Signal an expression that cannot be matched, where a match would refuse the arguments."""


class _CheckLimits:
    """Limit what one check may use. `negation_depth` counts the keywords around that turn a match into a refusal."""

    def __init__(self) -> None:
        self._until = time.thread_time() + MAX_CHECK_SECONDS
        self._errors, self._characters = MAX_SCHEMA_ERRORS, MAX_ERROR_CHARACTERS
        self._patterns: dict[str, Any] = {}
        self.negation_depth = 0

    def check_time(self) -> None:
        if time.thread_time() > self._until:
            raise _CheckTooLong

    def count_error(self, error: ValidationError) -> None:
        self._errors -= 1
        self._characters -= len(error.message)
        if self._errors < 0 or self._characters < 0:
            raise _CheckTooLong

    def match_pattern(self, pattern: Any, text: str) -> bool | None:
        """Return whether an expression matches anywhere in a text, None if it cannot be decided."""
        self.check_time()
        compiled = self._compile_pattern(pattern)
        if compiled is None or compiled.programsize * len(text) > MAX_MATCH_STEPS:
            is_match = None
        elif compiled.search(text) is not None:
            return True
        else:
            # `\w` and its kind mean ASCII in some languages, and all of Unicode in others.
            is_match = False if text.isascii() or "\\" not in pattern else None
        if is_match is None and self.negation_depth:
            raise _UndecidedMatch
        return is_match

    def _compile_pattern(self, pattern: Any) -> Any:
        if pattern not in self._patterns:
            if len(self._patterns) >= MAX_PATTERNS:
                return None
            # Imported where it is needed: few schemas have expressions.
            import re2

            options = re2.Options()
            options.max_mem, options.log_errors, options.never_capture = MAX_PATTERN_BYTES, False, True
            try:
                self._patterns[pattern] = re2.compile(_UNICODE_ESCAPE.sub(r"\\x{\1}", pattern), options)
            except (re2.error, UnicodeError):
                self._patterns[pattern] = None
        return self._patterns[pattern]

    def forget_patterns(self) -> None:
        """Free the memory of expressions, which the library would keep for later."""
        if self._patterns:
            import re2

            re2.purge()


async def validate_arguments(schema: dict[str, Any], args: Any, tenant_id: str = "") -> None:
    """Check arguments against a schema. Errors: `ToolFailed`, naming an argument that does not fit.

    A tenant has one check at work at a time, so that its schemas keep no other tenant waiting.
    """
    turn = _tenant_locks.get(tenant_id)
    if turn is None:
        turn = _tenant_locks[tenant_id] = asyncio.Lock()
    async with turn:
        try:
            problem = await asyncio.get_running_loop().run_in_executor(_pool, _find_first_error, schema, args)
        except _CheckTooLong:
            raise ToolFailed(_TOO_COMPLEX_TEXT) from None
    if problem is not None:
        raise ToolFailed(problem)


def read_arguments(text: str) -> dict[str, Any]:
    """Return the arguments that a model wrote as JSON, with whole numbers as integers. Errors: `ToolFailed`."""
    try:
        check_json(text.encode("utf-8", "surrogatepass"))
        args = msgspec.json.decode(repair_json_text(text or "{}"))
        if isinstance(args, str) and args.lstrip().startswith("{"):  # some servers encode them twice
            return read_arguments(args)
    except JsonTooLarge as error:
        raise ToolFailed(f"the arguments cannot be read: what was sent {error.reason}") from error
    except (msgspec.MsgspecError, RecursionError, UnicodeError) as error:
        raise ToolFailed(f"the arguments are not JSON: {error}.") from error
    if not isinstance(args, dict):
        raise ToolFailed("the arguments must be a JSON object.")
    return {name: normalize_whole_numbers(value) for name, value in args.items()}


def _find_first_error(schema: dict[str, Any], args: Any) -> str | None:
    work = _thread_state.work = _CheckLimits()
    try:
        errors = _Validator(normalize_schema(schema), registry=Registry()).iter_errors(args)
        worst_error = best_match(itertools.islice(errors, MAX_COMPARED_ERRORS))
    except (_UndecidedMatch, RecursionError):
        return None
    except _CheckTooLong:
        raise
    except Exception as error:  # the library may raise anything for keywords that no draft knows
        _log.warning("arguments are not checked", error=type(error).__name__, detail=str(error)[:200])
        return None
    finally:
        work.forget_patterns()
    if worst_error is None:
        return None
    place = ".".join(str(part)[:200] for part in itertools.islice(worst_error.absolute_path, 32))
    return f"{place or 'arguments'}: {worst_error.message}"[:1000]


def _limit_check(check: Callable[..., Any]) -> Callable[..., Any]:
    @wraps(check)
    def run_limited(validator: Any, value: Any, instance: Any, schema: Any) -> Iterator[ValidationError]:
        work: _CheckLimits = _thread_state.work
        work.check_time()
        for error in check(validator, value, instance, schema) or ():
            work.count_error(error)
            yield error

    return run_limited


def _mark_negated(check: Callable[..., Any]) -> Callable[..., Any]:
    """Mark a keyword that refuses a value because a part of the schema accepts it."""

    @wraps(check)
    def run_negated(validator: Any, value: Any, instance: Any, schema: Any) -> Iterator[ValidationError]:
        work: _CheckLimits = _thread_state.work
        work.negation_depth += 1
        try:
            errors = list(check(validator, value, instance, schema) or ())
        finally:
            work.negation_depth -= 1
        yield from errors

    return run_negated


def _check_pattern(_: Any, pattern: Any, instance: Any, __: Any) -> Iterator[ValidationError]:
    if isinstance(instance, str) and _thread_state.work.match_pattern(pattern, instance) is False:
        yield ValidationError(f"{instance[:200]!r} does not match {pattern!r}")


def _check_pattern_properties(validator: Any, patterns: Any, instance: Any, _: Any) -> Iterator[ValidationError]:
    if isinstance(instance, dict):
        for pattern, schema in patterns.items():
            for name, value in instance.items():
                if _thread_state.work.match_pattern(pattern, name):
                    yield from validator.descend(value, schema, path=name, schema_path=pattern)


def _check_additional_properties(validator: Any, others: Any, instance: Any, schema: Any) -> Iterator[ValidationError]:
    if not isinstance(instance, dict) or others is True:
        return
    extra = [name for name in instance if name not in schema.get("properties", {})]
    for pattern in schema.get("patternProperties", {}):
        extra = [name for name in extra if _thread_state.work.match_pattern(pattern, name) is False]
    if isinstance(others, dict):
        for name in extra:
            yield from validator.descend(instance[name], others, path=name)
    elif extra:
        names = ", ".join(repr(name[:200]) for name in extra[:10])
        yield ValidationError(f"Additional properties are not allowed ({names} unexpected)")


# Left to the tool that gets the call: keywords that compare all pairs, or match expressions on their own.
_UNCHECKED_KEYWORDS: Final = ("uniqueItems", "unevaluatedProperties", "unevaluatedItems", "format", "$dynamicRef")
_OWN_CHECKS: Final[dict[str, Callable[..., Any]]] = {
    "pattern": _check_pattern,
    "patternProperties": _check_pattern_properties,
    "additionalProperties": _check_additional_properties,
    **{name: _mark_negated(Draft202012Validator.VALIDATORS[name]) for name in ("not", "if", "oneOf")},
}
_LIMITED_CHECKS: Final = {
    name: _limit_check(check)
    for name, check in ({**dict(Draft202012Validator.VALIDATORS), **_OWN_CHECKS}).items()
    if name not in _UNCHECKED_KEYWORDS
}
_Validator: Final = jsonschema.validators.create(
    meta_schema=Draft202012Validator.META_SCHEMA,
    validators=_LIMITED_CHECKS,
    type_checker=Draft202012Validator.TYPE_CHECKER,
)
