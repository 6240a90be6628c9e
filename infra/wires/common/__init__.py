"""Hold what all wires of the gateway share: requests as the domain has them, refusals, and the reading of bodies."""

from infra.wires.common.blocks import AnswerBlock, BlockEvent, BlockSequence
from infra.wires.common.content import (
    IMAGE_KINDS,
    PartRules,
    build_message,
    check_images,
    find_last_mark,
    read_cache_mark,
    read_image,
    read_part,
    read_part_mark,
    read_text,
)
from infra.wires.common.conversation import AssistantBuilder
from infra.wires.common.errors import WireRefusal
from infra.wires.common.parser import (
    FieldRules,
    build_thinking,
    convert_fields,
    decode_body,
    drop_notes,
    drop_nulls,
    is_never,
)
from infra.wires.common.schema import AnswerRenderer, AnswerRequest, AnswerWire, ReasoningSeal
from infra.wires.common.tool_choice import ToolChoice, choose_tools

__all__ = [
    "IMAGE_KINDS",
    "AnswerBlock",
    "AnswerRenderer",
    "AnswerRequest",
    "AnswerWire",
    "AssistantBuilder",
    "BlockEvent",
    "BlockSequence",
    "FieldRules",
    "PartRules",
    "ReasoningSeal",
    "ToolChoice",
    "WireRefusal",
    "build_message",
    "build_thinking",
    "check_images",
    "choose_tools",
    "convert_fields",
    "decode_body",
    "drop_notes",
    "drop_nulls",
    "find_last_mark",
    "is_never",
    "read_cache_mark",
    "read_image",
    "read_part",
    "read_part_mark",
    "read_text",
]
