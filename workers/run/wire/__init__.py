"""Hold what all wires of the gateway share: requests as the domain has them, refusals, and the reading of bodies."""

from workers.run.wire.blocks import AnswerBlock, BlockEvent, BlockSequence
from workers.run.wire.content import (
    IMAGE_KINDS,
    build_message,
    check_images,
    find_last_mark,
    read_cache_mark,
    read_image,
    read_part_mark,
)
from workers.run.wire.conversation import AssistantBuilder
from workers.run.wire.errors import GatewayRefusal, refuse_unknown_model, render_refusal
from workers.run.wire.parser import (
    FieldRules,
    build_thinking,
    convert_fields,
    decode_body,
    drop_notes,
    drop_nulls,
    is_never,
)
from workers.run.wire.schema import AnswerRenderer, AnswerRequest, AnswerWire, ReasoningSeal
from workers.run.wire.tool_choice import ToolChoice, choose_tools

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
    "GatewayRefusal",
    "ReasoningSeal",
    "ToolChoice",
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
    "read_part_mark",
    "refuse_unknown_model",
    "render_refusal",
]
