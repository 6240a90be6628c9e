"""Read the bodies of requests: JSON objects, of which clients send many variants."""

import re
from collections.abc import Callable, Mapping
from typing import Any, Final, TypeVar

import msgspec

from domain.llms import ReasoningEffort, ThinkingOptions
from domain.shared.json_limits import JsonTooLarge, check_json
from domain.shared.unicode_text import repair_json
from infra.wires.common.errors import WireRefusal

_UTF8_BOM: Final = b"\xef\xbb\xbf"
_RequestStruct = TypeVar("_RequestStruct", bound=msgspec.Struct)


class FieldRules(msgspec.Struct, frozen=True, kw_only=True):
    """Define which fields of a request are mere labels, and which are not supported unless they ask for nothing.

    - `ignored`: the answer is the same without these.
    - `neutral_values`: by field, whether a value asks for nothing. Any other value is refused.
    - `alternatives`: by field, what to do instead.
    """

    ignored: frozenset[str]
    neutral_values: Mapping[str, Callable[[Any], bool]]
    alternatives: Mapping[str, str] = {}

    def drop_ignored_fields(self, fields: dict[str, Any]) -> dict[str, Any]:
        """Return the fields that affect the answer. Errors: `WireRefusal` names one that is not supported."""
        for field, is_neutral in self.neutral_values.items():
            if field in fields and not is_neutral(fields[field]):
                instead = self.alternatives.get(field, "leave it out")
                raise WireRefusal(400, f"`{field}` is not supported with this value: {instead}.", param=field)
        dropped = self.ignored | self.neutral_values.keys()
        return {field: value for field, value in fields.items() if field not in dropped}


def is_never(_: Any) -> bool:
    """Return that no value of a field asks for nothing."""
    return False


def build_thinking(effort: ReasoningEffort | None, summary: Any = None) -> ThinkingOptions | None:
    """Return what OpenAI's reasoning effort asks of any model: to think with this effort, or not at all."""
    if effort is None:
        return None if summary is None else ThinkingOptions(summary=summary)
    return ThinkingOptions(mode="disabled" if effort == "none" else "adaptive", effort=effort, summary=summary)


def decode_body(body: bytes) -> dict[str, Any]:
    """Return the JSON object of a body, without the fields that are null. Errors: `WireRefusal`."""
    try:
        check_json(body)
    except JsonTooLarge as error:
        raise WireRefusal(400, f"The body {error.reason}") from None
    try:
        fields = msgspec.json.decode(repair_json(body.removeprefix(_UTF8_BOM)))
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        raise WireRefusal(400, "The body is not JSON.") from None
    if not isinstance(fields, dict):
        raise WireRefusal(400, "The body must be a JSON object.")
    return drop_nulls(fields)


def convert_fields(fields: Any, kind: type[_RequestStruct], where: str = "") -> _RequestStruct:
    """Convert fields that stand at `where` in the body to a Struct. Errors: `WireRefusal` names the field."""
    try:
        return msgspec.convert(fields, kind)
    except msgspec.ValidationError as error:
        param = ".".join(part for part in (where, _find_param(str(error))) if part) or None
        place = f"`{where}`: " if where else ""
        raise WireRefusal(400, f"{place}{error}.", param=param) from None
    except RecursionError:
        raise WireRefusal(400, "The body nests too deep.") from None


def drop_nulls(fields: dict[str, Any]) -> dict[str, Any]:
    """Return the fields that are not null: many clients send null for what they leave out."""
    return {name: value for name, value in fields.items() if value is not None}


def drop_notes(value: Any, notes: frozenset[str]) -> Any:
    """Return an object without its `notes`, which do not change an answer, and without fields that are null."""
    if not isinstance(value, dict):
        return value
    return {name: field for name, field in value.items() if field is not None and name not in notes}


def _find_param(problem: str) -> str | None:
    """Return the field that a validation error is about."""
    unknown = re.search(r"(?:unknown|missing required) field `([^`]*)`", problem)
    place = re.search(r"(?:at|in) `\$\.?([^`]*)`", problem)
    return ".".join(match.group(1) for match in (place, unknown) if match is not None) or None
