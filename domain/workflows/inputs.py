"""Validate the inputs of a workflow: their declarations, and the values that a run receives."""

from collections.abc import Mapping
from typing import Any, Final

from msgspec import UNSET

from domain.shared.errors import FieldError, InvalidFields
from domain.shared.json_limits import JsonTooLarge, check_json_value
from domain.workflows.schema import InputType, WorkflowInput

_TYPE_NAMES: Final[dict[InputType, str]] = {
    "string": "a text",
    "number": "a number",
    "integer": "a whole number",
    "boolean": "true or false",
    "array": "a list",
    "object": "an object",
}


def validate_declarations(inputs: Mapping[str, WorkflowInput] | None) -> list[FieldError]:
    """Return what is wrong with the input declarations of a workflow."""
    errors = []
    for name, declaration in (inputs or {}).items():
        if "\0" in name:
            errors.append(FieldError(field="inputs", message=f"{name!r} holds U+0000, which no name may hold."))
        message = _check_default(declaration)
        if message is not None:
            errors.append(FieldError(field=f"inputs.{name}.default", message=message))
    return errors


def _check_default(declaration: WorkflowInput) -> str | None:
    if declaration.default is UNSET:
        return None
    unstorable = explain_unstorable(declaration.default)
    if unstorable is not None:
        return unstorable
    if declaration.required:
        return "has no effect: the input is required."
    if not has_type(declaration.default, declaration.type):
        return _format_type_error(declaration.type)
    if _contains_text(declaration.default, "{{"):
        return "must not hold {{: a default is no template."
    return None


def resolve_inputs(inputs: Mapping[str, WorkflowInput] | None, values: dict[str, Any]) -> dict[str, Any]:
    """Return the values of a run with defaults for those left out. Errors: `invalid_field`, each as `inputs.x`."""
    errors = validate_inputs(inputs, values)
    if errors:
        raise InvalidFields(errors)
    return values | find_defaults(inputs, values)


def find_defaults(inputs: Mapping[str, WorkflowInput] | None, values: Mapping[str, Any]) -> dict[str, Any]:
    """Return the defaults of inputs that have no value."""
    return {
        name: declaration.default
        for name, declaration in (inputs or {}).items()
        if declaration.default is not UNSET and name not in values
    }


def validate_inputs(
    inputs: Mapping[str, WorkflowInput] | None,
    values: Mapping[str, Any],
    within: str = "inputs",
    allow_templates: bool = False,
) -> list[FieldError]:
    """Return what is wrong with values. A workflow without declared inputs accepts all values.

    With `allow_templates` a template is accepted for every type.
    """
    if inputs is None:
        return []
    errors = [
        FieldError(field=f"{within}.{name}", message="is not an input of this workflow.")
        for name in values
        if name not in inputs
    ]
    for name, declaration in inputs.items():
        field = f"{within}.{name}"
        if name not in values:
            if declaration.required:
                errors.append(FieldError(field=field, message="is required."))
        elif not (has_type(values[name], declaration.type) or (allow_templates and _is_template(values[name]))):
            errors.append(FieldError(field=field, message=_format_type_error(declaration.type)))
    return errors


def has_type(value: Any, input_type: InputType | None) -> bool:
    """Tell whether a JSON value is of a type, as JSON Schema defines it: 1.0 is an integer, true is no number."""
    match input_type:
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
    """Return why a value cannot be part of a workflow, which is also read and written as YAML; None if it can."""
    try:
        check_json_value(value)
    except JsonTooLarge as error:
        return error.reason
    return "holds U+0000, which no text of a workflow may hold." if _contains_text(value, "\0") else None


def _contains_text(value: Any, text: str) -> bool:
    """Tell whether a string in a JSON value, or a name of an object, contains a text."""
    open_values = [value]
    while open_values:
        part = open_values.pop()
        if isinstance(part, str) and text in part:
            return True
        open_values += [*part, *part.values()] if isinstance(part, dict) else part if isinstance(part, list) else []
    return False


def _is_template(value: Any) -> bool:
    return isinstance(value, str) and value.strip().startswith("{{") and value.strip().endswith("}}")


def _format_type_error(input_type: InputType | None) -> str:
    return f"must be {_TYPE_NAMES[input_type or 'string']}."
