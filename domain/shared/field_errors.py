"""Report every field at fault at once, with its line in a document: msgspec stops at the first error.

A second pass over refused values collects the errors, and stops after `MAX_FIELD_ERRORS`.
"""

import difflib
import functools
import types
import typing
from collections.abc import Iterator, Mapping
from typing import Any, Final, Literal

import msgspec

from domain.shared.errors import MAX_FIELD_ERRORS, FieldError, InvalidFields, field_error_from_msgspec

# Names that other platforms give to these fields.
_FIELD_SYNONYMS: Final = {
    "input": ("payload", "inputs"),
    "prompt": ("task", "instructions"),
    "system_prompt": ("instructions",),
    "session_id": ("thread_id",),
    "conversation_id": ("thread_id",),
    "delay": ("delay_seconds",),
    "ttl": ("expires_in",),
}
_ENUM_ERROR: Final = "Invalid enum value"


def collect_field_errors(value: Any, kind: Any, within: str = "", strict: bool = True) -> list[FieldError]:
    """Return what is wrong with each field of a decoded value as a `kind`, up to `MAX_FIELD_ERRORS` errors.

    `strict` is msgspec's. Empty for a valid value.
    """
    return list(_limit_errors(_walk_value(value, kind, within, strict)))


def list_field_errors(
    value: Any, kind: Any, error: msgspec.ValidationError, within: str = "", strict: bool = True
) -> list[FieldError]:
    """Return all errors of a decoded value that msgspec refused; at least the one it reported."""
    return collect_field_errors(value, kind, within, strict) or [field_error_from_msgspec(str(error), within)]


def convert_field(value: Any, annotation: Any, field: str) -> Any:
    """Convert the decoded value of one field. Errors: `invalid_field`."""
    errors = list(_check_value(value, annotation, field, strict=True))
    if errors:
        raise InvalidFields(errors)
    return msgspec.convert({"value": value}, _wrap_annotation(annotation)).value


def find_line(lines: Mapping[str, int], path: str) -> int | None:
    """Return the line of a path in a document, or of the innermost value around it; None for the whole document."""
    inner = path
    while inner and inner not in lines:
        inner = inner[: max(inner.rfind("."), inner.rfind("["), 0)]
    return lines.get(inner) if inner or not path else None


def add_line(error: FieldError, line: int | None) -> FieldError:
    """Return the error with its line beside the field: `steps[2].agent (line 7)`."""
    return error if line is None else msgspec.structs.replace(error, field=f"{error.field} (line {line})")


def name_allowed_values(error: FieldError, annotation: Any) -> FieldError:
    """Return an error about a value outside an enumeration with the allowed values; others as they are."""
    allowed = _find_literals(annotation)
    if not error.message.startswith(_ENUM_ERROR) or not allowed:
        return error
    sent = error.message.removeprefix(_ENUM_ERROR).strip().rstrip(".")
    listed = ", ".join(map(repr, allowed))
    return msgspec.structs.replace(error, message=f"must be one of {listed}{f', not {sent}' if sent else ''}.")


def _limit_errors(errors: Iterator[FieldError]) -> Iterator[FieldError]:
    for number, error in enumerate(errors):
        if number == MAX_FIELD_ERRORS:
            return
        yield error


def _walk_value(value: Any, kind: Any, within: str, strict: bool) -> Iterator[FieldError]:
    struct = _select_struct(value, kind)
    if struct is None:
        yield from _check_value(value, kind, within, strict)
        return
    fields = {field.encode_name: field for field in msgspec.structs.fields(struct)}
    prefix = f"{within}." if within else ""
    if struct.__struct_config__.forbid_unknown_fields:
        for name in value:
            if name not in fields:
                message = f"is not a field here{_suggest_field(str(name), list(fields))}"
                yield FieldError(field=f"{prefix}{str(name)[:200]}", message=message)
    for name, field in fields.items():
        if name in value:
            yield from _walk_field(value[name], field, f"{prefix}{name}", strict)
        elif field.required:
            yield FieldError(field=f"{prefix}{name}", message="is required.")


def _walk_field(value: Any, field: msgspec.structs.FieldInfo, path: str, strict: bool) -> Iterator[FieldError]:
    field_errors = list(_check_value(value, field.type, path, strict))
    # An error of the field itself, for example its length, goes before those of the values in it.
    if field_errors and field_errors[0].field != path:
        for part_path, part, kind in _iterate_parts(value, field.type):
            for error in _walk_value(part, kind, f"{path}{part_path}", strict):
                field_errors = []
                yield error
    if field_errors and field_errors[0].field == f"{path}[...]" and isinstance(value, dict):
        field_errors = list(_name_bad_values(value, field.type, path, strict)) or field_errors
    yield from field_errors


def _name_bad_values(value: dict[str, Any], kind: Any, path: str, strict: bool) -> Iterator[FieldError]:
    """Yield the errors of a mapping's values, each with its key: `env.PORT`."""
    kinds = [typing.get_args(member)[1] for member in _list_members(kind) if typing.get_origin(member) is dict]
    if len(kinds) == 1:
        for name, item in value.items():
            yield from _check_value(item, kinds[0], f"{path}.{str(name)[:200]}", strict)


def _check_value(value: Any, kind: Any, path: str, strict: bool) -> Iterator[FieldError]:
    if msgspec.Raw in _list_members(kind):
        return
    try:
        msgspec.convert({"value": value}, _wrap_annotation(kind), strict=strict)
    except msgspec.ValidationError as error:
        sentence = str(error).replace("`$.value", "`$")
        yield name_allowed_values(field_error_from_msgspec(sentence, path), kind)


def _iterate_parts(value: Any, kind: Any) -> Iterator[tuple[str, Any, Any]]:
    """Yield the objects in a field that are structs: itself, its items or its values; each with its path."""
    if (struct := _select_struct(value, kind)) is not None:
        yield "", value, struct
        return
    members = _list_members(kind)
    if isinstance(value, list):
        items = [typing.get_args(member)[0] for member in members if typing.get_origin(member) is list]
        if len(items) == 1 and any(_is_struct(member) for member in _list_members(items[0])):
            for number, item in enumerate(value):
                yield f"[{number}]", item, items[0]
    elif isinstance(value, dict):
        values = [typing.get_args(member)[1] for member in members if typing.get_origin(member) is dict]
        if len(values) == 1 and any(_is_struct(member) for member in _list_members(values[0])):
            for name, item in value.items():
                yield f".{str(name)[:200]}", item, values[0]


def _select_struct(value: Any, kind: Any) -> Any:
    """Return the only struct that an object can be, or None."""
    if not isinstance(value, dict):
        return None
    members = _list_members(kind)
    structs = [member for member in members if _is_struct(member)]
    has_others = any(member is dict or typing.get_origin(member) is dict or member is Any for member in members)
    return structs[0] if len(structs) == 1 and not has_others else None


def _is_struct(kind: Any) -> bool:
    return isinstance(kind, type) and issubclass(kind, msgspec.Struct)


@functools.cache
def _list_members(kind: Any) -> tuple[Any, ...]:
    """Return the types of a union, without their annotations."""
    origin = typing.get_origin(kind)
    if origin is typing.Annotated:
        return _list_members(typing.get_args(kind)[0])
    if origin in (typing.Union, types.UnionType):
        return tuple(part for member in typing.get_args(kind) for part in _list_members(member))
    return (kind,)


def _find_literals(kind: Any) -> list[Any]:
    """Return the values of the only Literal in a type; empty without one or with several."""
    literals: list[list[Any]] = []
    open_kinds = [kind]
    while open_kinds:
        for member in _list_members(open_kinds.pop()):
            if typing.get_origin(member) is Literal:
                literals.append(list(typing.get_args(member)))
            elif typing.get_origin(member) in (list, dict, tuple):
                open_kinds += typing.get_args(member)
    return literals[0] if len(literals) == 1 else []


@functools.cache
def _wrap_annotation(annotation: Any) -> Any:
    """Return a struct with one field of this type, to find the errors of its value.

    Not the bare type: msgspec 0.22 frees too much after converting to `str` with a pattern or a list.
    """
    return msgspec.defstruct("FieldWrapper", [("value", annotation)])


def _suggest_field(name: str, fields: list[str]) -> str:
    suggestion = next((synonym for synonym in _FIELD_SYNONYMS.get(name, ()) if synonym in fields), None)
    if suggestion is None:
        suggestion = next(iter(difflib.get_close_matches(name[:64], fields, 1, 0.8)), None)
    if suggestion is not None:
        return f"; did you mean `{suggestion}`?"
    # Other platforms take what a run receives at the top level.
    return "; what the run receives goes into `payload`." if "payload" in fields else "."
