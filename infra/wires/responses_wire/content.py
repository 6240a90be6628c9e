"""Read the content of messages and of results: text, or a list of parts."""

from typing import Any

from domain.llms import MessagePart, MessageText
from infra.wires.common import IMAGE_KINDS, WireRefusal, drop_notes, read_cache_mark, read_image
from infra.wires.responses_wire import fields as field_tables


def read_parts(content: str | list[Any], where: str, takes_images: bool = False) -> list[MessagePart]:
    """Return the parts of a content. Errors: `WireRefusal` names a part that is not taken."""
    if isinstance(content, str):
        return [MessageText(text=content)]
    return [_parse_part(part, f"{where}[{number}]", takes_images) for number, part in enumerate(content)]


def join_texts(parts: list[MessagePart], separator: str) -> str:
    """Return the text of parts that are texts."""
    return separator.join(part.text for part in parts if isinstance(part, MessageText))


def _parse_part(part: Any, where: str, takes_images: bool) -> MessagePart:
    if isinstance(part, str):
        return MessageText(text=part)
    if not isinstance(part, dict):
        raise WireRefusal(400, f"`{where}` must be an object with a `type`.", param=where)
    fields = drop_notes(part, field_tables.PART_NOTES)
    kind = fields.pop("type", None)
    if takes_images and isinstance(kind, str) and kind in IMAGE_KINDS:
        return read_image(kind, fields, where)
    field = field_tables.TEXT_PARTS.get(kind) if isinstance(kind, str) else None
    if field is None:
        types = "'input_text' and 'input_image' are" if takes_images else "'input_text' alone are"
        message = f"`{where}` is of type {str(kind)[:40]!r}; parts of type {types} taken here."
        raise WireRefusal(400, message, param=where)
    cache = read_cache_mark(fields, where)
    text = fields.pop(field, None)
    if not isinstance(text, str):
        raise WireRefusal(400, f"`{where}.{field}` must be text.", param=f"{where}.{field}")
    if fields:
        name = min(fields)[:64]
        raise WireRefusal(400, f"`{where}.{name}` is an unknown field: leave it out.", param=f"{where}.{name}")
    return MessageText(text=text, cache=cache)
