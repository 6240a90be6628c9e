"""Reading what was sent, JSON or YAML, with every mistake at once, and writing a workflow as YAML."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Final, Generic, TypeVar

import msgspec
from msgspec import UNSET

from domain.shared import yaml_reader
from domain.shared.errors import DomainError, FieldError, InvalidField, InvalidFields, field_error_from_msgspec
from domain.shared.field_errors import collect_field_errors
from domain.shared.json_limits import check_json_body
from domain.shared.names import KEY_RULE
from domain.workflows.schema import PatchWorkflow, Workflow, WorkflowYaml

T = TypeVar("T")
# What YAML calls itself; RFC 9512 settled on the first.
YAML_MEDIA_TYPES: Final = ("application/yaml", "application/x-yaml", "text/yaml", "text/x-yaml")


# In place of the patterns that say the same.
_RULES: Final = {"id": KEY_RULE}


class ParsedBody(msgspec.Struct, Generic[T], frozen=True, kw_only=True):
    """What was sent, and for a YAML document the line of each place in it (`steps[2].agent`), counted from 1."""

    data: T
    lines: dict[str, int] = {}

    @contextmanager
    def add_line_numbers(self) -> Iterator[None]:
        """Errors that leave this block tell the lines of the places that they name."""
        try:
            yield
        except DomainError as error:
            if not self.lines or not error.errors:
                raise
            raise _placed(error, self.lines) from None


def parse_body(sent: bytes, media: str, kind: type[T]) -> ParsedBody[T]:
    """A workflow, or what to change of one: JSON, `{"yaml": …}`, or by its media type a YAML document.

    Errors: `malformed_request`, `invalid_field` with all that is wrong with it.
    """
    if media in YAML_MEDIA_TYPES:
        try:
            return _parsed(sent.decode(), kind)
        except UnicodeDecodeError as error:
            raise DomainError("malformed_request", "The body is not UTF-8 text.") from error
    check_json_body(sent)
    try:
        value = msgspec.json.decode(sent)
    except msgspec.DecodeError as error:
        raise DomainError("malformed_request", f"The body must be a JSON object: {error}") from error
    if not isinstance(value, dict):
        raise DomainError("malformed_request", "The body must be a JSON object.")
    if "yaml" in value:
        return _parsed(_made(value, WorkflowYaml).yaml, kind, within="yaml")
    return ParsedBody(data=_made(value, kind))


def _parsed(text: str, kind: type[T], within: str = "body") -> ParsedBody[T]:
    document = yaml_reader.parse_yaml(text, within)
    if not isinstance(document.value, dict):
        raise InvalidField(within, "must be a mapping that begins with the name of the workflow.")
    try:
        return ParsedBody(data=_made(document.value, kind), lines=document.lines)
    except DomainError as error:
        raise _placed(error, document.lines) from None


def _made(value: dict[str, Any], kind: type[T]) -> T:
    """Errors: `invalid_field`, with a mistake for each field that has one."""
    try:
        return msgspec.convert(value, kind)
    except msgspec.ValidationError as error:
        found = collect_field_errors(value, kind) or [field_error_from_msgspec(str(error))]
        raise InvalidFields([_in_our_words(one) for one in found]) from None


def _in_our_words(error: FieldError) -> FieldError:
    rule = _RULES.get(error.field.rpartition(".")[2])
    return error if rule is None or "regex" not in error.message else msgspec.structs.replace(error, message=rule)


def _placed(error: DomainError, lines: dict[str, int]) -> DomainError:
    found = [_lined(one, lines) for one in error.errors]
    if error.code == "invalid_field":
        return InvalidFields(found)
    return DomainError(error.code, error.detail, found, error.retry_after)


def _lined(error: FieldError, lines: dict[str, int]) -> FieldError:
    """The error with the line of its place, or of what that is in."""
    place = error.field
    while place and place not in lines:
        place = place[: max(place.rfind("."), place.rfind("["), 0)]
    return error if not place else msgspec.structs.replace(error, field=f"{error.field} (line {lines[place]})")


def render_workflow(workflow: Workflow) -> str:
    """A workflow as YAML that makes the same one again where it is posted."""
    told = {name: getattr(workflow, name) for name in PatchWorkflow.__struct_fields__}
    for name, plain in (("description", None), ("status", "active"), ("inputs", None), ("outputs", None)):
        if told[name] == plain:
            del told[name]
    told["steps"] = [omit_defaults(step) for step in workflow.steps]
    if workflow.inputs:
        told["inputs"] = {name: omit_defaults(one) for name, one in workflow.inputs.items()}
    return yaml_reader.dump_yaml(msgspec.to_builtins(told))


def omit_defaults(part: msgspec.Struct) -> dict[str, Any]:
    """What somebody said of a step, an input or a retry: its fields without those that are as they would be anyway."""
    return {
        field.name: omit_defaults(value) if isinstance(value, msgspec.Struct) else value
        for field in msgspec.structs.fields(part)
        if (value := getattr(part, field.name)) is not UNSET
        and value != (field.default if field.default_factory is msgspec.NODEFAULT else field.default_factory())
    }
