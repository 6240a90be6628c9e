"""Provide the fixtures of the cases."""

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack
from pathlib import Path

import pytest

from tests.support.case_inputs import serve_folder


@pytest.fixture
async def serve_case() -> AsyncIterator[Callable[[Path], Awaitable[str]]]:
    """Yield a function that starts `inputs/fake.py` on a folder (APIs of OpenAI and Anthropic, MCP, `/echo`, `/form`, `/log`) and returns its URL."""
    async with AsyncExitStack() as stack:

        async def serve(folder: Path) -> str:
            return await stack.enter_async_context(serve_folder(folder))

        yield serve
