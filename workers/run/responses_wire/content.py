"""Read the content of messages and of results: text, or a list of parts."""

from typing import Any, Final

from workers.run.wire import GatewayRefusal, drop_notes

# Notes that libraries add to a part and send back with it, and those for a provider's cache.
_PART_NOTES: Final = frozenset({"annotations", "logprobs", "parsed", "prompt_cache_breakpoint", "cache_control"})
_TEXT_FIELDS: Final = {
    "input_text": "text",
    "output_text": "text",
    "text": "text",
    "summary_text": "text",
    "refusal": "refusal",
}


def join_parts(content: str | list[Any], where: str, separator: str = "\n") -> str:
    """Return the text of a content. Errors: `GatewayRefusal` names a part that is no text."""
    if isinstance(content, str):
        return content
    return separator.join(_parse_part(part, f"{where}[{number}]") for number, part in enumerate(content))


def _parse_part(part: Any, where: str) -> str:
    if isinstance(part, str):
        return part
    if not isinstance(part, dict):
        raise GatewayRefusal(400, f"`{where}` must be an object with a `type`.", param=where)
    fields = drop_notes(part, _PART_NOTES)
    kind = fields.pop("type", None)
    field = _TEXT_FIELDS.get(kind) if isinstance(kind, str) else None
    if field is None:
        message = f"`{where}` is of type {str(kind)[:40]!r}; parts of type 'input_text' alone are taken here."
        raise GatewayRefusal(400, message, param=where)
    text = fields.pop(field, None)
    if not isinstance(text, str):
        raise GatewayRefusal(400, f"`{where}.{field}` must be text.", param=f"{where}.{field}")
    if fields:
        name = min(fields)[:64]
        raise GatewayRefusal(400, f"`{where}.{name}` is an unknown field: leave it out.", param=f"{where}.{name}")
    return text
