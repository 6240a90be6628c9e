"""Keep the reasoning of models on the server."""

from typing import Final

from domain.llms import ReasoningItem


class NoReasoningSeal:
    """Seal no reasoning: threads have it, and callers of agents neither get it nor send it back."""

    def seal_reasoning(self, item: ReasoningItem) -> str:
        """Return nothing of an item."""
        return ""

    def open_reasoning(self, sealed: str) -> ReasoningItem | None:
        """Return None: nothing was sealed."""
        return None


NO_SEAL: Final = NoReasoningSeal()
