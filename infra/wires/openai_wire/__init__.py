"""Serve OpenAI's chat completions: parse requests, and render answers whole or in chunks.

Source: platform.openai.com/docs/api-reference/chat. A field that does not change the answer is accepted; one that
would change it and is not supported is refused by name.
"""

from typing import Final

from infra.wires.openai_wire.parser import parse_fields, parse_request
from infra.wires.openai_wire.renderer import CompletionRenderer
from infra.wires.openai_wire.schema import CompletionRequest

__all__ = ["ChatWire", "CompletionRenderer", "CompletionRequest", "parse_fields", "parse_request"]


class ChatWire:
    """Serve `/v1/chat/completions`, as `infra.wires.common.AnswerWire` describes."""

    option_fields: Final = {"thinking": "reasoning_effort", "image": "messages"}

    def parse_request(self, body: bytes) -> tuple[CompletionRequest, CompletionRenderer]:
        """Return what a body asks for, and what renders the answer. Errors: `WireRefusal`."""
        request = parse_request(body)
        return request, CompletionRenderer(request)
