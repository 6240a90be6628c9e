"""Serve OpenAI's Responses: parse requests, and render answers whole or as typed events.

Source: platform.openai.com/docs/api-reference/responses. Nothing is stored beyond the run. A field that does not change
the answer is accepted; one that would change it and is not supported is refused by name.
"""

from typing import Final

from workers.run.responses_wire.parser import RequestParser
from workers.run.responses_wire.renderer import ResponseRenderer
from workers.run.responses_wire.response_log import ResponseLog
from workers.run.responses_wire.schema import ResponseRequest
from workers.run.wire import ReasoningSeal

__all__ = ["ResponseLog", "ResponsesWire"]


class ResponsesWire:
    """Serve `/v1/responses` for one run, as `workers.run.wire.AnswerWire` describes."""

    option_fields: Final = {"thinking": "reasoning", "verbosity": "text.verbosity", "image": "input"}

    def __init__(self, seal: ReasoningSeal) -> None:
        self._seal, self._log = seal, ResponseLog()
        self._parser = RequestParser(seal, self._log)

    def parse_request(self, body: bytes) -> tuple[ResponseRequest, ResponseRenderer]:
        """Return what a body asks for, and what renders the response. Errors: `GatewayRefusal`."""
        request = self._parser.parse_request(body)
        return request, ResponseRenderer(request, self._seal, self._log)
