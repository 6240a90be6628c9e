"""Check values against JSON Schemas: arguments of tools, inputs of runs, and their outputs.

A check runs in a thread of its own kind, one per tenant at a time, within the limits of `limits`. A schema of a tool
is read as `domain.shared.json_schemas` reads it: the tool checks the rest on its own. A schema that `parse_schema`
accepted is applied in full; what cannot be decided within the limits is refused.
"""

import asyncio
import itertools
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Final
from weakref import WeakValueDictionary

import structlog
from jsonschema.exceptions import best_match

from domain.schemas.engine import iterate_errors
from domain.schemas.limits import MAX_CHECK_SECONDS, CheckLimits, CheckTooLong, UndecidedMatch
from domain.schemas.renderer import render_error, show_value
from domain.shared.errors import MAX_FIELD_ERRORS, FieldError, InvalidFields
from domain.shared.json_schemas import normalize_schema

# A slow check of one tenant leaves room for quick ones of others.
MAX_CHECK_THREADS: Final = 4
# Errors that are compared for the one that says most.
MAX_COMPARED_ERRORS: Final = 10
# Keywords at the top that name the document and its language.
_DOCUMENT_KEYWORDS: Final = ("$id", "$schema")

_log = structlog.get_logger("paddock.schemas")
_pool: Final = ThreadPoolExecutor(MAX_CHECK_THREADS, thread_name_prefix="schemas")
_tenant_locks: Final[WeakValueDictionary[str, asyncio.Lock]] = WeakValueDictionary()


def _get_turn(tenant_id: str) -> asyncio.Lock:
    """Return the lock of a tenant, so that its schemas keep no other tenant waiting."""
    turn = _tenant_locks.get(tenant_id)
    if turn is None:
        turn = _tenant_locks[tenant_id] = asyncio.Lock()
    return turn


async def find_argument_problem(schema: dict[str, Any], args: Any, tenant_id: str) -> str | None:
    """Return what is wrong with a tool's arguments, None for nothing or where it cannot be decided."""
    async with _get_turn(tenant_id):
        return await asyncio.get_running_loop().run_in_executor(_pool, _find_argument_problem, schema, args)


def _find_argument_problem(schema: dict[str, Any], args: Any) -> str | None:
    try:
        errors = iterate_errors(normalize_schema(schema), args, CheckLimits(is_strict=False))
        worst_error = best_match(itertools.islice(errors, MAX_COMPARED_ERRORS))
    except (UndecidedMatch, RecursionError):
        return None
    except CheckTooLong:
        seconds = f"{MAX_CHECK_SECONDS:g} s"
        return f"the arguments could not be checked against the tool's schema in {seconds}: it is too complex."
    except Exception as error:  # the library may raise anything for keywords that no draft knows
        _log.warning("arguments are not checked", error=type(error).__name__, detail=str(error)[:200])
        return None
    if worst_error is None:
        return None
    place = ".".join(str(part)[:200] for part in itertools.islice(worst_error.absolute_path, 32))
    return f"{place or 'arguments'}: {worst_error.message}"[:1000]


async def list_value_errors(schema: dict[str, Any], value: Any, root: str, tenant_id: str) -> list[FieldError]:
    """Return what is wrong with a value, each with its place within `root`; at most `MAX_FIELD_ERRORS`.

    `schema` is one that `parse_schema` accepted.
    """
    if not schema:
        return []
    async with _get_turn(tenant_id):
        return await asyncio.get_running_loop().run_in_executor(_pool, _list_value_errors, schema, value, root)


async def check_value(schema: dict[str, Any] | None, value: Any, root: str, tenant_id: str) -> None:
    """Check a value against the schema of a run's input, if it has one. Errors: `invalid_field`, naming each place."""
    errors = [] if schema is None else await list_value_errors(schema, value, root, tenant_id)
    if errors:
        raise InvalidFields(errors)


def _list_value_errors(schema: dict[str, Any], value: Any, root: str) -> list[FieldError]:
    content = {name: part for name, part in schema.items() if name not in _DOCUMENT_KEYWORDS}
    errors: dict[FieldError, None] = {}
    try:
        for error in iterate_errors(content, value, CheckLimits(is_strict=True)):
            errors |= dict.fromkeys(render_error(error, root))
            if len(errors) >= MAX_FIELD_ERRORS:
                break
    except CheckTooLong:
        message = f"could not be checked against its schema in {MAX_CHECK_SECONDS:g} s. Send less at a time."
        return [FieldError(field=root, message=message)]
    except UndecidedMatch:
        return [FieldError(field=root, message="holds text that is too long for a pattern of its schema.")]
    except RecursionError:
        return [FieldError(field=root, message="nests too deeply to be checked against its schema.")]
    except Exception as error:
        _log.warning("a value cannot be checked", error=type(error).__name__, detail=str(error)[:200])
        return [FieldError(field=root, message="could not be checked against its schema.")]
    return list(errors)[:MAX_FIELD_ERRORS]


async def find_output_problem(schema: dict[str, Any] | None, output: Any, tenant_id: str) -> str | None:
    """Return what is wrong with the output of a run, with each place in it and its beginning; None for nothing."""
    errors = [] if schema is None else await list_value_errors(schema, output, "output", tenant_id)
    return f"{describe_errors(errors)} The output begins: {show_value(output)}" if errors else None


def describe_errors(errors: list[FieldError]) -> str:
    """Return errors as one text, a sentence each."""
    return " ".join(f"{error.field}: {error.message}" for error in errors)
