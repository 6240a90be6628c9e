"""What the cases share."""

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack
from pathlib import Path

import pytest

from tests.support.case_inputs import serve_folder


@pytest.fixture
async def serve_case() -> AsyncIterator[Callable[[Path], Awaitable[str]]]:
    """Start `inputs/fake.py` on a folder (OpenAI's and Anthropic's wire, MCP, `/echo`, `/form`, `/log`); its address."""
    async with AsyncExitStack() as stack:

        async def serve(folder: Path) -> str:
            return await stack.enter_async_context(serve_folder(folder))

        yield serve
