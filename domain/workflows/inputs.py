"""What a workflow is given when it is started, against what it says it takes."""

from collections.abc import Mapping
from typing import Any, Final

from msgspec import UNSET

from domain.shared.errors import FieldError, InvalidFields
from domain.shared.json_limits import JsonTooLarge, check_json_value
from domain.workflows.schema import InputType, WorkflowInput

_WORDS: Final[dict[InputType, str]] = {
    "string": "a text",
    "number": "a number",
    "integer": "a whole number",
    "boolean": "true or false",
    "array": "a list",
    "object": "an object",
}


def validate_declarations(inputs: Mapping[str, WorkflowInput] | None) -> list[FieldError]:
    """What is wrong with what a workflow says of its inputs."""
    found = []
    for name, one in (inputs or {}).items():
        if "\0" in name:
            found.append(FieldError(field="inputs", message=f"{name!r} holds U+0000, which no name can."))
        if one.default is UNSET:
            continue
        wrong = explain_unstorable(one.default)
        if wrong is not None:
            pass
        elif one.required:
            wrong = "is never used of what is required."
        elif not has_type(one.default, one.type):
            wrong = _wanted(one.type)
        elif _holds_templates(one.default):
            wrong = "must not hold {{: it is taken as it stands."
        if wrong is not None:
            found.append(FieldError(field=f"inputs.{name}.default", message=wrong))
    return found


def resolve_inputs(inputs: Mapping[str, WorkflowInput] | None, sent: dict[str, Any]) -> dict[str, Any]:
    """What was sent, with defaults for what was not. Errors: `invalid_field` naming each as `inputs.x`."""
    found = validate_inputs(inputs, sent)
    if found:
        raise InvalidFields(found)
    return sent | find_defaults(inputs, sent)


def find_defaults(inputs: Mapping[str, WorkflowInput] | None, sent: Mapping[str, Any]) -> dict[str, Any]:
    """What stands in for what was not sent."""
    return {name: one.default for name, one in (inputs or {}).items() if one.default is not UNSET and name not in sent}


def validate_inputs(
    inputs: Mapping[str, WorkflowInput] | None,
    sent: Mapping[str, Any],
    within: str = "inputs",
    allow_templates: bool = False,
) -> list[FieldError]:
    """What is wrong with what was sent. Without declared inputs anything goes.

    With `templates`, a text that is one is whatever it will be.
    """
    if inputs is None:
        return []
    found = [
        FieldError(field=f"{within}.{name}", message="is not an input of this workflow.")
        for name in sent
        if name not in inputs
    ]
    for name, one in inputs.items():
        if name not in sent:
            if one.required:
                found.append(FieldError(field=f"{within}.{name}", message="is required."))
        elif not (has_type(sent[name], one.type) or (allow_templates and _is_template(sent[name]))):
            found.append(FieldError(field=f"{within}.{name}", message=_wanted(one.type)))
    return found


def has_type(value: Any, kind: InputType | None) -> bool:
    """Whether a JSON value is of a type, as JSON Schema has it: 1.0 is an integer, and true no number."""
    match kind:
        case None:
            return True
        case "boolean":
            return isinstance(value, bool)
        case "integer":
            return not isinstance(value, bool) and (
                isinstance(value, int) or (isinstance(value, float) and value.is_integer())
            )
        case "number":
            return not isinstance(value, bool) and isinstance(value, int | float)
        case "string":
            return isinstance(value, str)
        case "array":
            return isinstance(value, list)
        case "object":
            return isinstance(value, dict)


def explain_unstorable(value: Any) -> str | None:
    """Why a value cannot be part of a workflow, which comes and goes as YAML too; None if it can."""
    try:
        check_json_value(value)
    except JsonTooLarge as error:
        return error.reason
    return "holds U+0000, which no text of a workflow can." if _holds(value, "\0") else None


def _holds_templates(value: Any) -> bool:
    return _holds(value, "{{")


def _holds(value: Any, sought: str) -> bool:
    open_values = [value]
    while open_values:
        one = open_values.pop()
        if isinstance(one, str) and sought in one:
            return True
        open_values += [*one, *one.values()] if isinstance(one, dict) else one if isinstance(one, list) else []
    return False


def _is_template(value: Any) -> bool:
    return isinstance(value, str) and value.strip().startswith("{{") and value.strip().endswith("}}")


def _wanted(kind: InputType | None) -> str:
    return f"must be {_WORDS[kind or 'string']}."
