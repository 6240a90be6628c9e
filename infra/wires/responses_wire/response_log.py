"""Keep the responses of a run, so that a later request can continue from one by its id."""

from collections import OrderedDict
from typing import Final

import msgspec

from domain.llms import ChatMessage
from infra.wires.common import WireRefusal

# Bytes of requests and answers that are kept. The oldest are dropped first.
MAX_LOG_BYTES: Final = 8 << 20
# Bytes counted for each response besides its messages.
ENTRY_OVERHEAD_BYTES: Final = 512


class LoggedResponse(msgspec.Struct, frozen=True):
    """Hold what one response adds to the conversation, and which response it continues from."""

    messages: tuple[ChatMessage, ...]
    previous_response_id: str | None
    size: int


class ResponseLog:
    """Keep the responses of one run. Nothing of them is left when the run ends."""

    def __init__(self) -> None:
        self._responses: OrderedDict[str, LoggedResponse] = OrderedDict()
        self._size = 0

    def load_conversation(self, response_id: str) -> tuple[ChatMessage, ...]:
        """Return all messages up to the end of a response. Errors: `WireRefusal` if one of them is not kept."""
        chain: list[LoggedResponse] = []
        next_id: str | None = response_id
        while next_id is not None:
            if (response := self._responses.get(next_id)) is None:
                raise WireRefusal(
                    400,
                    f"The response {response_id[:128]!r} is not kept. Those of this run are, unless they were asked "
                    "for with `store` false, or are too old. Send the whole conversation as `input`.",
                    "previous_response_not_found",
                    "previous_response_id",
                )
            chain.append(response)
            next_id = response.previous_response_id
        return tuple(message for response in reversed(chain) for message in response.messages)

    def save_response(self, response_id: str, response: LoggedResponse) -> None:
        """Keep a response, and drop the oldest if all are too large."""
        self._responses[response_id] = response
        self._size += response.size + ENTRY_OVERHEAD_BYTES
        while self._size > MAX_LOG_BYTES:
            _, oldest = self._responses.popitem(last=False)
            self._size -= oldest.size + ENTRY_OVERHEAD_BYTES
