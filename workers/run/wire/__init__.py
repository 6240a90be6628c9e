"""Hold what all wires of the gateway share: requests as the domain has them, refusals, and the reading of bodies."""

from workers.run.wire.blocks import AnswerBlock, BlockEvent, BlockSequence
from workers.run.wire.conversation import AssistantBuilder
from workers.run.wire.errors import GatewayRefusal, refuse_unknown_model, render_refusal
from workers.run.wire.parser import FieldRules, convert_fields, decode_body, drop_notes, drop_nulls
from workers.run.wire.schema import AnswerRenderer, AnswerRequest, AnswerWire, ReasoningSeal
from workers.run.wire.tool_choice import choose_tools

__all__ = [
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
    "choose_tools",
    "convert_fields",
    "decode_body",
    "drop_notes",
    "drop_nulls",
    "refuse_unknown_model",
    "render_refusal",
]
