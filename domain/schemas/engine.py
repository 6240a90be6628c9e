"""Check values with `jsonschema`, within the limits of `limits`, and without fetching anything."""

import threading
from collections.abc import Callable, Iterator, Mapping
from decimal import Decimal
from functools import wraps
from typing import Any, Final
from urllib.parse import unquote

import msgspec
from jsonschema import Draft202012Validator
from jsonschema.exceptions import ValidationError

from domain.schemas.formats import has_format
from domain.schemas.limits import CheckLimits
from domain.shared.json_schema_parts import resolve_pointer

_thread_state: Final = threading.local()


class SchemaChecker:
    """Apply the keywords of one schema document, as a validator of `jsonschema` does.

    It is passed to the library's functions in place of one. The library makes a new validator for each part of a value,
    and looks for other documents in each part of a schema. Here all is in one document, so one checker is enough.
    """

    def __init__(self, root: dict[str, Any], checks: Mapping[str, Callable[..., Any]], limits: CheckLimits) -> None:
        self._root, self._checks, self._limits = root, checks, limits
        self._targets: dict[str, Any] = {}

    def is_type(self, instance: Any, name: str) -> bool:
        """Return whether a value has a type."""
        return bool(_TYPE_CHECKER.is_type(instance, name))

    def descend(
        self, instance: Any, schema: Any, path: str | int | None = None, schema_path: str | int | None = None
    ) -> Iterator[ValidationError]:
        """Yield what is wrong with a value, or with the part of one at `path`."""
        if schema is True:
            return
        if schema is False:
            yield ValidationError("is not allowed.", schema=schema, path=() if path is None else (path,))
            return
        limits = self._limits
        limits.check_time()
        for keyword, value in schema.items():
            check = self._checks.get(keyword)
            if check is None:
                continue
            for error in check(self, value, instance, schema) or ():
                limits.count_error(error)
                error._set(
                    validator=keyword,
                    validator_value=value,
                    instance=instance,
                    schema=schema,
                    type_checker=_TYPE_CHECKER,
                )
                if keyword not in ("if", "$ref"):
                    error.schema_path.appendleft(keyword)
                if path is not None:
                    error.path.appendleft(path)
                if schema_path is not None:
                    error.schema_path.appendleft(schema_path)
                yield error

    def evolve(self, schema: Any) -> "PartChecker":
        """Return what checks values against a part of the document."""
        return PartChecker(self, schema)

    def find_target(self, reference: str) -> Any:
        """Return the schema that a reference leads to. Errors: `LookupError`, `ValueError`."""
        if reference not in self._targets:
            self._targets[reference] = resolve_pointer(self._root, unquote(reference.removeprefix("#")))
        return self._targets[reference]

    def _validate_reference(self, ref: str, instance: Any) -> Iterator[ValidationError]:
        return self.descend(instance, self.find_target(ref))


class PartChecker:
    """Check values against a part of a document."""

    def __init__(self, checker: SchemaChecker, schema: Any) -> None:
        self._checker, self._schema = checker, schema

    def is_valid(self, instance: Any) -> bool:
        """Return whether a value fits."""
        return next(self._checker.descend(instance, self._schema), None) is None


def iterate_errors(schema: dict[str, Any], value: Any, limits: CheckLimits) -> Iterator[ValidationError]:
    """Yield the errors of a value, in this thread alone.

    Errors: `CheckTooLong`, `UndecidedMatch`, `RecursionError`, and what else the library raises for odd schemas.
    """
    _thread_state.work = limits
    checks = _STRICT_CHECKS if limits.is_strict else _LENIENT_CHECKS
    try:
        yield from SchemaChecker(schema, checks, limits).descend(value, schema)
    finally:
        limits.forget_patterns()


def match_pattern(pattern: str, text: str) -> bool | None:
    """Return whether an expression matches within the check of this thread."""
    work: CheckLimits = _thread_state.work
    return work.match_pattern(pattern, text)


def find_extra_names(instance: dict[str, Any], schema: dict[str, Any]) -> list[str]:
    """Return the names of an object that are neither in `properties` nor matched by `patternProperties`."""
    extra = [name for name in instance if name not in schema.get("properties", {})]
    for pattern in schema.get("patternProperties", {}):
        extra = [name for name in extra if match_pattern(pattern, name) is False]
    return extra


def _mark_negated(check: Callable[..., Any]) -> Callable[..., Any]:
    """Mark a keyword that refuses a value because a part of the schema accepts it."""

    @wraps(check)
    def run_negated(validator: Any, value: Any, instance: Any, schema: Any) -> Iterator[ValidationError]:
        work: CheckLimits = _thread_state.work
        work.negation_depth += 1
        try:
            errors = list(check(validator, value, instance, schema) or ())
        finally:
            work.negation_depth -= 1
        yield from errors

    return run_negated


def _check_pattern(_: Any, pattern: Any, instance: Any, __: Any) -> Iterator[ValidationError]:
    if isinstance(instance, str) and match_pattern(pattern, instance) is False:
        yield ValidationError(f"{instance[:200]!r} does not match {pattern!r}")


def _check_pattern_properties(validator: Any, patterns: Any, instance: Any, _: Any) -> Iterator[ValidationError]:
    if isinstance(instance, dict):
        for pattern, schema in patterns.items():
            for name, value in instance.items():
                if match_pattern(pattern, name):
                    yield from validator.descend(value, schema, path=name, schema_path=pattern)


def _check_additional_properties(validator: Any, others: Any, instance: Any, schema: Any) -> Iterator[ValidationError]:
    if not isinstance(instance, dict) or others is True:
        return
    extra = find_extra_names(instance, schema)
    if isinstance(others, dict):
        for name in extra:
            yield from validator.descend(instance[name], others, path=name)
    elif extra:
        names = ", ".join(repr(name[:200]) for name in extra[:10])
        yield ValidationError(f"Additional properties are not allowed ({names} unexpected)")


def _check_format(_: Any, name: Any, instance: Any, __: Any) -> Iterator[ValidationError]:
    if isinstance(instance, str) and isinstance(name, str) and not has_format(instance, name):
        yield ValidationError(f"{instance[:200]!r} is no {name}")


def _check_unique_items(_: Any, is_unique: Any, instance: Any, __: Any) -> Iterator[ValidationError]:
    if is_unique and isinstance(instance, list):
        seen = set()
        for place, item in enumerate(instance):
            key = msgspec.json.encode(_fold_whole_numbers(item), order="deterministic")
            if key in seen:
                yield ValidationError("is the same as an item before it", path=[place])
                return
            seen.add(key)


def _fold_whole_numbers(value: Any) -> Any:
    """Return a value whose equal numbers have one form: 1.0 is 1."""
    if isinstance(value, float) and value.is_integer():
        return int(value)
    if isinstance(value, list):
        return [_fold_whole_numbers(item) for item in value]
    if isinstance(value, dict):
        return {name: _fold_whole_numbers(item) for name, item in value.items()}
    return value


def _check_multiple(_: Any, factor: Any, instance: Any, __: Any) -> Iterator[ValidationError]:
    """Check in decimals, as numbers are written: 0.3 is three times 0.1."""
    if isinstance(instance, bool) or not isinstance(instance, int | float):
        return
    if isinstance(instance, int) and isinstance(factor, int):
        is_multiple = instance % factor == 0
    else:
        number, step = Decimal(repr(instance)), Decimal(repr(factor))
        # With exponents this far apart a remainder has too many digits to be computed.
        is_multiple = number.adjusted() - step.adjusted() < 25 and not number % step
    if not is_multiple:
        yield ValidationError(f"{instance!r} is not a multiple of {factor}")


def _list_evaluated_names(validator: Any, instance: dict[str, Any], schema: Any) -> set[str]:
    """Return the names that a schema, or one that applies beside it, says something about."""
    if not isinstance(schema, dict):
        return set()
    work: CheckLimits = _thread_state.work
    work.check_time()
    if "additionalProperties" in schema or "unevaluatedProperties" in schema:
        return set(instance)
    names = set(schema.get("properties", {})) & set(instance)
    for pattern in schema.get("patternProperties", {}):
        names |= {name for name in instance if match_pattern(pattern, name)}
    for applied in _list_applied(validator, instance, schema):
        names |= _list_evaluated_names(validator, instance, applied)
    return names


def _count_evaluated_items(validator: Any, instance: list[Any], schema: Any) -> set[int]:
    if not isinstance(schema, dict):
        return set()
    work: CheckLimits = _thread_state.work
    work.check_time()
    everything = set(range(len(instance)))
    if "items" in schema or "unevaluatedItems" in schema:
        return everything
    places = set(range(min(len(instance), len(schema.get("prefixItems", [])))))
    if "contains" in schema:
        inner = validator.evolve(schema=schema["contains"])
        places |= {place for place in everything - places if inner.is_valid(instance[place])}
    for applied in _list_applied(validator, instance, schema):
        places |= _count_evaluated_items(validator, instance, applied)
    return places


def _list_applied(validator: Any, instance: Any, schema: dict[str, Any]) -> Iterator[Any]:
    """Yield the schemas that a value fits and that apply at the same place."""
    if "$ref" in schema:
        yield validator.find_target(schema["$ref"])
    for keyword in ("allOf", "anyOf", "oneOf"):
        yield from (branch for branch in schema.get(keyword, []) if validator.evolve(schema=branch).is_valid(instance))
    if "if" in schema:
        fits = validator.evolve(schema=schema["if"]).is_valid(instance)
        yield from (schema[word] for word in (("if", "then") if fits else ("else",)) if word in schema)
    if isinstance(instance, dict):
        yield from (branch for name, branch in schema.get("dependentSchemas", {}).items() if name in instance)


def _check_unevaluated_properties(validator: Any, others: Any, instance: Any, schema: Any) -> Iterator[ValidationError]:
    if not isinstance(instance, dict) or others is True:
        return
    rest = {name: part for name, part in schema.items() if name != "unevaluatedProperties"}
    evaluated = _list_evaluated_names(validator, instance, rest)
    for name in instance:
        if name not in evaluated:
            yield from validator.descend(instance[name], others, path=name)


def _check_unevaluated_items(validator: Any, others: Any, instance: Any, schema: Any) -> Iterator[ValidationError]:
    if not isinstance(instance, list) or others is True:
        return
    rest = {name: part for name, part in schema.items() if name != "unevaluatedItems"}
    evaluated = _count_evaluated_items(validator, instance, rest)
    for place, item in enumerate(instance):
        if place not in evaluated:
            yield from validator.descend(item, others, path=place)


_OWN_CHECKS: Final[dict[str, Callable[..., Any]]] = {
    "pattern": _check_pattern,
    "patternProperties": _check_pattern_properties,
    "additionalProperties": _check_additional_properties,
    **{name: _mark_negated(Draft202012Validator.VALIDATORS[name]) for name in ("not", "if", "oneOf")},
}
# Left to the tool that gets the call: keywords that compare all pairs, or match expressions on their own.
_LENIENT_OMISSIONS: Final = ("uniqueItems", "unevaluatedProperties", "unevaluatedItems", "format", "$dynamicRef")
_TYPE_CHECKER: Final = Draft202012Validator.TYPE_CHECKER
_COMMON_CHECKS: Final = {**dict(Draft202012Validator.VALIDATORS), **_OWN_CHECKS}
_LENIENT_CHECKS: Final = {name: check for name, check in _COMMON_CHECKS.items() if name not in _LENIENT_OMISSIONS}
_STRICT_CHECKS: Final[dict[str, Callable[..., Any]]] = {
    **_LENIENT_CHECKS,
    "format": _check_format,
    "uniqueItems": _check_unique_items,
    "multipleOf": _check_multiple,
    "unevaluatedProperties": _check_unevaluated_properties,
    "unevaluatedItems": _check_unevaluated_items,
}
