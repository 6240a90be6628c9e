"""Stand-in until the real one is here."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from domain.chat import ModelError


class LocalModel:
    """Stand-in."""

    def __init__(self, door: str | None, url: str | None) -> None:
        """Stand-in."""

    @asynccontextmanager
    async def serving(self) -> AsyncIterator[str]:
        """Stand-in."""
        raise ModelError("unavailable", "The local model is not there yet.")
        yield ""
