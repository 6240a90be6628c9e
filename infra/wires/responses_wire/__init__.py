"""Serve OpenAI's Responses: parse requests, and render answers whole or as typed events.

Source: platform.openai.com/docs/api-reference/responses. Nothing is stored beyond the run. A field that does not change
the answer is accepted; one that would change it and is not supported is refused by name.
"""

from typing import Final

from infra.wires.common import ReasoningSeal
from infra.wires.responses_wire.input_items import InputReader
from infra.wires.responses_wire.parser import RequestParser
from infra.wires.responses_wire.renderer import ResponseRenderer
from infra.wires.responses_wire.response_log import ResponseLog
from infra.wires.responses_wire.schema import ResponseRequest

__all__ = ["InputReader", "RequestParser", "ResponseLog", "ResponseRenderer", "ResponseRequest", "ResponsesWire"]


class ResponsesWire:
    """Serve `/v1/responses` for one run, as `infra.wires.common.AnswerWire` describes."""

    option_fields: Final = {"thinking": "reasoning", "verbosity": "text.verbosity", "image": "input"}

    def __init__(self, seal: ReasoningSeal) -> None:
        self._seal, self._log = seal, ResponseLog()
        self._parser = RequestParser(seal, self._log)

    def parse_request(self, body: bytes) -> tuple[ResponseRequest, ResponseRenderer]:
        """Return what a body asks for, and what renders the response. Errors: `WireRefusal`."""
        request = self._parser.parse_request(body)
        return request, ResponseRenderer(request, self._seal, self._log)
