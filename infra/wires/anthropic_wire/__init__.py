"""Serve Anthropic's messages: parse requests, and render answers whole or as events.

Source: docs.anthropic.com/en/api/messages. A field that does not change the answer is accepted; one that would change
it and is not supported is refused by name. Headers, `anthropic-version` among them, are not read.
"""

from collections.abc import Mapping
from typing import Final

from infra.wires.anthropic_wire.errors import render_error
from infra.wires.anthropic_wire.parser import parse_request
from infra.wires.anthropic_wire.renderer import MessageRenderer
from infra.wires.anthropic_wire.schema import MessageRequest
from infra.wires.common import ReasoningSeal

__all__ = ["MessagesWire", "render_error"]


class MessagesWire:
    """Serve `/v1/messages`, as `infra.wires.common.AnswerWire` describes."""

    # An error of this API has no place for them.
    option_fields: Final[Mapping[str, str]] = {}

    def __init__(self, seal: ReasoningSeal) -> None:
        self._seal = seal

    def parse_request(self, body: bytes) -> tuple[MessageRequest, MessageRenderer]:
        """Return what a body asks for, and what renders the message. Errors: `WireRefusal`."""
        request = parse_request(body, self._seal)
        return request, MessageRenderer(request, self._seal)
