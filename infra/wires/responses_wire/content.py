"""Read the content of messages and of results: text, or a list of parts."""

from typing import Any

from domain.llms import MessagePart, MessageText
from infra.wires.common import read_part
from infra.wires.responses_wire import fields as field_tables


def read_parts(content: str | list[Any], where: str, takes_images: bool = False) -> list[MessagePart]:
    """Return the parts of a content. Errors: `WireRefusal` names a part that is not taken."""
    if isinstance(content, str):
        return [MessageText(text=content)]
    return [
        read_part(part, f"{where}[{number}]", field_tables.PART_RULES, takes_images)
        for number, part in enumerate(content)
    ]


def join_texts(parts: list[MessagePart], separator: str) -> str:
    """Return the text of parts that are texts."""
    return separator.join(part.text for part in parts if isinstance(part, MessageText))
