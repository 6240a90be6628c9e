"""Secrets in memory: text that must not be shown."""


class Secret:
    """Text that must not be shown: msgspec cannot encode it, and printing it shows stars."""

    __slots__ = ("_text",)

    def __init__(self, text: str) -> None:
        self._text = text

    def reveal(self) -> str:
        """The text itself, for the one place that needs it."""
        return self._text

    def __repr__(self) -> str:
        return "Secret('***')"
