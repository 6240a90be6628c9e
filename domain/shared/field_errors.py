"""Everything that is wrong with a body at once: msgspec stops at the first mistake, a caller wants to mend them all.

The second pass runs only over what was refused already, and ends after `MAX_ERRORS` mistakes.
"""

import difflib
import functools
import types
import typing
from collections.abc import Iterator
from typing import Any, Final, Literal

import msgspec

from domain.shared.errors import MAX_FIELD_ERRORS, FieldError, field_error_from_msgspec

# What others call a field of ours.
_SYNONYMS: Final = {"input": ("payload", "inputs")}
_ENUM: Final = "Invalid enum value"


def collect_field_errors(value: Any, kind: Any, within: str = "", strict: bool = True) -> list[FieldError]:
    """Return what is wrong with each field of a decoded value that is to be a `kind`, up to `MAX_ERRORS` mistakes.

    `strict` as msgspec has it. Empty for a value that fits.
    """
    return list(_cap(_walk(value, kind, within, strict)))


def name_allowed_values(error: FieldError, annotation: Any) -> FieldError:
    """Return the error with the values that are allowed, where it is about a value that is none of them."""
    allowed = _literals(annotation)
    if not error.message.startswith(_ENUM) or not allowed:
        return error
    sent = error.message.removeprefix(_ENUM).strip().rstrip(".")
    listed = ", ".join(map(repr, allowed))
    return msgspec.structs.replace(error, message=f"must be one of {listed}{f', not {sent}' if sent else ''}.")


def _cap(found: Iterator[FieldError]) -> Iterator[FieldError]:
    for number, error in enumerate(found):
        if number == MAX_FIELD_ERRORS:
            return
        yield error


def _walk(value: Any, kind: Any, within: str, strict: bool) -> Iterator[FieldError]:
    struct = _struct_for(value, kind)
    if struct is None:
        yield from _check_whole(value, kind, within, strict)
        return
    fields = {field.encode_name: field for field in msgspec.structs.fields(struct)}
    place = f"{within}." if within else ""
    if struct.__struct_config__.forbid_unknown_fields:
        for name in value:
            if name not in fields:
                message = f"is not a field here{_hint(str(name), list(fields))}"
                yield FieldError(field=f"{place}{str(name)[:200]}", message=message)
    for name, field in fields.items():
        if name in value:
            yield from _walk_field(value[name], field, f"{place}{name}", strict)
        elif field.required:
            yield FieldError(field=f"{place}{name}", message="is required.")


def _walk_field(value: Any, field: msgspec.structs.FieldInfo, place: str, strict: bool) -> Iterator[FieldError]:
    whole = list(_check_whole(value, field.type, place, strict))
    # What is wrong with the field itself, such as its length, goes before what is in it.
    if whole and whole[0].field != place:
        for path, part, kind in _parts(value, field.type):
            for error in _walk(part, kind, f"{place}{path}", strict):
                whole = []
                yield error
    yield from whole


def _check_whole(value: Any, kind: Any, place: str, strict: bool) -> Iterator[FieldError]:
    if msgspec.Raw in _members(kind):
        return
    try:
        msgspec.convert({"value": value}, _alone(kind), strict=strict)
    except msgspec.ValidationError as error:
        yield name_allowed_values(field_error_from_msgspec(str(error).replace("`$.value", "`$"), place), kind)


def _parts(value: Any, kind: Any) -> Iterator[tuple[str, Any, Any]]:
    """The objects in a field that are structs of ours: it itself, its items, its values; each with its place."""
    if (struct := _struct_for(value, kind)) is not None:
        yield "", value, struct
        return
    members = _members(kind)
    if isinstance(value, list):
        items = [typing.get_args(member)[0] for member in members if typing.get_origin(member) is list]
        if len(items) == 1 and any(_is_struct(member) for member in _members(items[0])):
            for number, item in enumerate(value):
                yield f"[{number}]", item, items[0]
    elif isinstance(value, dict):
        values = [typing.get_args(member)[1] for member in members if typing.get_origin(member) is dict]
        if len(values) == 1 and any(_is_struct(member) for member in _members(values[0])):
            for name, item in value.items():
                yield f".{str(name)[:200]}", item, values[0]


def _struct_for(value: Any, kind: Any) -> Any:
    """The only struct that an object can be meant as, or None."""
    if not isinstance(value, dict):
        return None
    members = _members(kind)
    structs = [member for member in members if _is_struct(member)]
    others = any(member is dict or typing.get_origin(member) is dict or member is Any for member in members)
    return structs[0] if len(structs) == 1 and not others else None


def _is_struct(kind: Any) -> bool:
    return isinstance(kind, type) and issubclass(kind, msgspec.Struct)


@functools.cache
def _members(kind: Any) -> tuple[Any, ...]:
    """The types that a value may have: those of a union, without what is said of them."""
    origin = typing.get_origin(kind)
    if origin is typing.Annotated:
        return _members(typing.get_args(kind)[0])
    if origin in (typing.Union, types.UnionType):
        return tuple(one for member in typing.get_args(kind) for one in _members(member))
    return (kind,)


def _literals(kind: Any) -> list[Any]:
    """The values of the only Literal in a type, or none."""
    found: list[list[Any]] = []
    open_kinds = [kind]
    while open_kinds:
        for member in _members(open_kinds.pop()):
            if typing.get_origin(member) is Literal:
                found.append(list(typing.get_args(member)))
            elif typing.get_origin(member) in (list, dict, tuple):
                open_kinds += typing.get_args(member)
    return found[0] if len(found) == 1 else []


@functools.cache
def _alone(kind: Any) -> Any:
    """An object of one field, to see what is wrong with it.

    Not the bare type: msgspec 0.22 frees too much after converting to `str` with a pattern or a list.
    """
    return msgspec.defstruct("Alone", [("value", kind)])


def _hint(name: str, fields: list[str]) -> str:
    meant = next((one for one in _SYNONYMS.get(name, ()) if one in fields), None)
    if meant is None:
        meant = next(iter(difflib.get_close_matches(name[:64], fields, 1, 0.8)), None)
    return "." if meant is None else f"; did you mean `{meant}`?"
