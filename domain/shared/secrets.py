"""Hold secrets in memory."""


class Secret:
    """Hold text that must not be shown: msgspec cannot encode it, and its repr shows only stars."""

    __slots__ = ("_text",)

    def __init__(self, text: str) -> None:
        self._text = text

    def reveal(self) -> str:
        """Return the text, for the one place that needs it."""
        return self._text

    def __repr__(self) -> str:
        return "Secret('***')"
