"""Describe in plain words, and with the place, what is wrong with a value that breaks its schema."""

from collections.abc import Callable, Iterator
from typing import Any, Final

import msgspec
from jsonschema.exceptions import ValidationError, relevance

from domain.schemas.engine import find_extra_names
from domain.schemas.places import format_place, join_place
from domain.shared.errors import FieldError

MAX_SHOWN_CHARACTERS: Final = 200
_TYPE_NAMES: Final = {
    "string": "text",
    "number": "a number",
    "integer": "a whole number",
    "boolean": "true or false",
    "array": "a list",
    "object": "an object",
    "null": "null",
}


def render_error(outer_error: ValidationError, root: str) -> Iterator[FieldError]:
    """Yield what an error means; one about an object may name several of its fields."""
    error: Any = _find_cause(outer_error)
    place, keyword = format_place(root, error.absolute_path), error.validator
    if keyword == "required":
        for name in error.validator_value:
            if name not in error.instance:
                yield FieldError(field=join_place(place, name), message="is required.")
    elif keyword == "additionalProperties" and not error.validator_value:
        for name in find_extra_names(error.instance, error.schema):
            yield FieldError(field=join_place(place, name), message="is not a known field.")
    elif keyword == "dependentRequired":
        for name, others in error.validator_value.items():
            missing = [other for other in others if name in error.instance and other not in error.instance]
            yield from (
                FieldError(field=join_place(place, item), message=f"is required with {name}.") for item in missing
            )
    else:
        render = _KEYWORD_RENDERERS.get(str(keyword))
        message = error.message if render is None else render(error)
        yield FieldError(field=place, message=message[:1000])


def _find_cause(error: ValidationError) -> ValidationError:
    """Return the error within an alternative that says most: that of the alternative that the value comes closest to.

    The alternatives of an error are compared by the depth of their first error; those whose type is another one count
    for nothing.
    """
    while error.validator in ("anyOf", "oneOf") and error.context:
        branches: dict[Any, list[ValidationError]] = {}
        for inner in error.context:
            branches.setdefault(inner.schema_path[0], []).append(inner)
        fitting = [
            errors
            for errors in branches.values()
            if not any(inner.validator in ("type", "const", "enum") and not inner.path for inner in errors)
            and not any(inner.validator == "const" for inner in errors)
        ]
        if len(fitting) != 1:
            return error
        error = max(fitting[0], key=relevance)
    return error


def show_value(value: Any) -> str:
    """Return a value as JSON, cut to what fits into a sentence."""
    try:
        text = msgspec.json.encode(value).decode()
    except (msgspec.MsgspecError, RecursionError, TypeError, ValueError, OverflowError):
        text = repr(value)
    return text if len(text) <= MAX_SHOWN_CHARACTERS else text[: MAX_SHOWN_CHARACTERS - 1] + "…"


def _render_type(error: Any) -> str:
    types: list[str] = error.validator_value if isinstance(error.validator_value, list) else [error.validator_value]
    return f"must be {' or '.join(_TYPE_NAMES[name] for name in types)}, not {show_value(error.instance)}."


def _render_enum(error: Any) -> str:
    values = error.validator_value
    listed = ", ".join(show_value(value) for value in values[:10])
    more = f" or one of {len(values) - 10} more" if len(values) > 10 else ""
    return f"must be one of {listed}{more}, not {show_value(error.instance)}."


def _render_alternatives(error: Any) -> str:
    if error.validator == "oneOf" and not error.context:
        return "fits more than one of the schema's alternatives; it must fit exactly one."
    return f"fits none of the schema's {len(error.validator_value)} alternatives: {show_value(error.instance)}."


def _render_count(words: str, unit: str) -> Callable[[Any], str]:
    def render(error: Any) -> str:
        limit = error.validator_value
        plural = unit if limit == 1 else "properties" if unit == "property" else f"{unit}s"
        return f"must have {words} {limit} {plural}; it has {len(error.instance)}."

    return render


def _render_bound(words: str) -> Callable[[Any], str]:
    return lambda error: f"must be {words} {show_value(error.validator_value)}, not {show_value(error.instance)}."


_KEYWORD_RENDERERS: Final[dict[str, Callable[[Any], str]]] = {
    "type": _render_type,
    "enum": _render_enum,
    "const": lambda error: f"must be {show_value(error.validator_value)}, not {show_value(error.instance)}.",
    "pattern": lambda error: f"must match {error.validator_value}, unlike {show_value(error.instance)}.",
    "format": lambda error: f"must be a valid {error.validator_value}, unlike {show_value(error.instance)}.",
    "minLength": _render_count("at least", "character"),
    "maxLength": _render_count("at most", "character"),
    "minItems": _render_count("at least", "item"),
    "maxItems": _render_count("at most", "item"),
    "minProperties": _render_count("at least", "property"),
    "maxProperties": _render_count("at most", "property"),
    "minimum": _render_bound("at least"),
    "maximum": _render_bound("at most"),
    "exclusiveMinimum": _render_bound("more than"),
    "exclusiveMaximum": _render_bound("less than"),
    "multipleOf": _render_bound("a multiple of"),
    "uniqueItems": lambda _: "is the same as an item before it.",
    "anyOf": _render_alternatives,
    "oneOf": _render_alternatives,
    "contains": lambda _: "holds too few or too many items of the kind that the schema counts.",
    "not": lambda _: "is what the schema excludes.",
    **dict.fromkeys(("items", "properties", "patternProperties", "prefixItems"), lambda _: "is not allowed."),
    "unevaluatedItems": lambda _: "is not allowed.",
    "unevaluatedProperties": lambda _: "is not a known field.",
    "None": lambda _: "is not allowed.",
}
