"""Parse workflows from JSON or YAML, with all errors at once, and render a workflow as YAML."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Final, Generic, TypeVar

import msgspec
from msgspec import UNSET

from domain.shared import yaml_reader
from domain.shared.errors import DomainError, FieldError, InvalidField, InvalidFields
from domain.shared.field_errors import add_line, find_line, list_field_errors
from domain.shared.json_limits import check_json_body
from domain.shared.names import KEY_RULE
from domain.workflows.schema import PatchWorkflow, Workflow, WorkflowYaml

T = TypeVar("T")
# RFC 9512 registers the first; the others came before it.
YAML_MEDIA_TYPES: Final = ("application/yaml", "application/x-yaml", "text/yaml", "text/x-yaml")
# Sentences in place of regular expressions.
_PATTERN_RULES: Final = {"id": KEY_RULE}


class ParsedBody(msgspec.Struct, Generic[T], frozen=True, kw_only=True):
    """Hold a parsed body, and for YAML the line (from 1) of each place in it: `steps[2].agent`."""

    data: T
    lines: dict[str, int] = {}

    @contextmanager
    def add_line_numbers(self) -> Iterator[None]:
        """Add the lines of fields to errors that leave this block."""
        try:
            yield
        except DomainError as error:
            if not self.lines or not error.errors:
                raise
            raise _add_lines(error, self.lines) from None


def parse_body(body: bytes, media_type: str, kind: type[T]) -> ParsedBody[T]:
    """Parse a workflow, or a change of one: JSON, `{"yaml": …}`, or YAML by its media type.

    Errors: `malformed_request`, `invalid_field` with all fields at fault.
    """
    if media_type in YAML_MEDIA_TYPES:
        try:
            return _parse_yaml_text(body.decode(), kind)
        except UnicodeDecodeError as error:
            raise DomainError("malformed_request", "The body is not UTF-8 text.") from error
    check_json_body(body)
    try:
        value = msgspec.json.decode(body)
    except msgspec.DecodeError as error:
        raise DomainError("malformed_request", f"The body must be a JSON object: {error}") from error
    if not isinstance(value, dict):
        raise DomainError("malformed_request", "The body must be a JSON object.")
    if "yaml" in value:
        return _parse_yaml_text(_convert_body(value, WorkflowYaml).yaml, kind, within="yaml")
    return ParsedBody(data=_convert_body(value, kind))


def _parse_yaml_text(text: str, kind: type[T], within: str = "body") -> ParsedBody[T]:
    document = yaml_reader.parse_yaml(text, within)
    if not isinstance(document.value, dict):
        raise InvalidField(within, "must be a mapping with the fields of a workflow.")
    try:
        return ParsedBody(data=_convert_body(document.value, kind), lines=document.lines)
    except DomainError as error:
        raise _add_lines(error, document.lines) from None


def _convert_body(value: dict[str, Any], kind: type[T]) -> T:
    try:
        return msgspec.convert(value, kind)
    except msgspec.ValidationError as error:
        raise InvalidFields(
            [_explain_pattern(field_error) for field_error in list_field_errors(value, kind, error)]
        ) from None


def _explain_pattern(error: FieldError) -> FieldError:
    rule = _PATTERN_RULES.get(error.field.rpartition(".")[2])
    return error if rule is None or "regex" not in error.message else msgspec.structs.replace(error, message=rule)


def _add_lines(error: DomainError, lines: Mapping[str, int]) -> DomainError:
    field_errors = [add_line(field_error, find_line(lines, field_error.field)) for field_error in error.errors]
    if error.code == "invalid_field":
        return InvalidFields(field_errors)
    return DomainError(error.code, error.detail, field_errors, error.retry_after)


def render_workflow(workflow: Workflow) -> str:
    """Return a workflow as YAML that creates the same workflow."""
    fields = {name: getattr(workflow, name) for name in PatchWorkflow.__struct_fields__}
    for name, default in (
        ("description", None),
        ("status", "active"),
        ("inputs", None),
        ("outputs", None),
        ("output_schema", None),
        ("expose", []),
    ):
        if fields[name] == default:
            del fields[name]
    fields["steps"] = [omit_defaults(step) for step in workflow.steps]
    if workflow.inputs:
        fields["inputs"] = {name: omit_defaults(declaration) for name, declaration in workflow.inputs.items()}
    return yaml_reader.dump_yaml(msgspec.to_builtins(fields))


def omit_defaults(part: msgspec.Struct) -> dict[str, Any]:
    """Return the fields of a step, an input or a retry policy that differ from their defaults."""
    return {
        field.name: omit_defaults(value) if isinstance(value, msgspec.Struct) else value
        for field in msgspec.structs.fields(part)
        if (value := getattr(part, field.name)) is not UNSET
        and value != (field.default if field.default_factory is msgspec.NODEFAULT else field.default_factory())
    }
