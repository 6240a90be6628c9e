"""Define what a wire makes of a request, and how it renders the answer."""

from collections.abc import Mapping
from typing import Any, Protocol

import msgspec

from domain.llms import ChatMessage, ModelOptions, ModelReply, ReasoningItem, ReplyPart, ToolSpec
from infra.wires.common.errors import WireRefusal


class AnswerRequest(msgspec.Struct, frozen=True, kw_only=True):
    """Hold a parsed request for an answer of a model. `model` is a name in the manifest."""

    model: str
    messages: tuple[ChatMessage, ...]
    tools: tuple[ToolSpec, ...]
    options: ModelOptions
    stream: bool


class ReasoningSeal(Protocol):
    """Seal reasoning for an agent to hold and give back: it can neither read nor change what its provider gets."""

    def seal_reasoning(self, item: ReasoningItem) -> str:
        """Return an item as text of ASCII."""
        ...

    def open_reasoning(self, sealed: str) -> ReasoningItem | None:
        """Return a sealed item, None for what was not sealed here for this tenant."""
        ...


class AnswerRenderer(Protocol):
    """Render one answer, whole or as the events of a stream.

    A whole answer is `add_part` for each part and then `render_whole`. A stream is `render_first`, `render_part` for
    each part, and then `render_last` or `render_failure`. What is returned may be empty.
    """

    def add_part(self, part: ReplyPart) -> None: ...
    def render_whole(self, reply: ModelReply) -> dict[str, Any]: ...
    def render_first(self) -> bytes: ...
    def render_part(self, part: ReplyPart) -> bytes: ...
    def render_last(self, reply: ModelReply) -> bytes: ...
    def render_failure(self, refusal: WireRefusal) -> bytes: ...


class AnswerWire(Protocol):
    """Serve one API. A wire may keep what belongs to one run.

    `option_fields` has the fields of a request for those options of `ModelError.option` that are not called the same.
    """

    @property
    def option_fields(self) -> Mapping[str, str]: ...

    def parse_request(self, body: bytes) -> tuple[AnswerRequest, AnswerRenderer]:
        """Return what a body asks for, and what renders its answer; maybe in a thread. Errors: `WireRefusal`."""
        ...
