"""Build the messages of a conversation out of the items and blocks in which a client sends them."""

from domain.llms import CacheTtl, ChatMessage, ModelToolCall, ProviderParts, ReasoningItem


class AssistantBuilder:
    """Collect one answer that a client sends back, in the order of its parts."""

    def __init__(self) -> None:
        self._texts: list[str] = []
        self._calls: list[ModelToolCall] = []
        self._items: list[ReasoningItem] = []
        self._parts: list[dict[str, object]] = []
        self._cache: CacheTtl | None = None

    @property
    def is_empty(self) -> bool:
        """Return whether nothing was added."""
        return not self._parts

    def add_text(self, text: str) -> None:
        """Add a piece of the text."""
        self._texts.append(text)
        self._parts.append({"text": text})

    def add_call(self, call: ModelToolCall) -> None:
        """Add a tool call."""
        self._parts.append({"call": len(self._calls)})
        self._calls.append(call)

    def add_reasoning(self, item: ReasoningItem) -> None:
        """Add reasoning. Items of another writer than the first one's are left out: no provider takes both."""
        if not self._items or self._items[0].writer == item.writer:
            self._items.append(item)
            self._parts.append({"item": item.item})

    def add_mark(self, cache: CacheTtl | None) -> None:
        """Have the answer marked for the provider's cache, at its end."""
        self._cache = cache or self._cache

    def build_message(self) -> ChatMessage:
        """Return the answer as a message."""
        provider_parts = None
        if self._items:
            provider_parts = ProviderParts(writer=self._items[0].writer, parts=tuple(self._parts))
        return ChatMessage(
            role="assistant",
            content="".join(self._texts),
            tool_calls=tuple(self._calls),
            provider_parts=provider_parts,
            cache=self._cache,
        )
