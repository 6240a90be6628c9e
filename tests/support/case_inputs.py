"""Find the inputs of a case, and serve a folder as a provider, an MCP server and an endpoint."""

import asyncio
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from infra.embedded.ports import find_free_ports
from tests.support.clients import wait_for_server

INPUTS_FOLDER = Path(__file__).parents[1] / "cases" / "inputs"


def find_case_folder(name: str) -> Path:
    """Return the folder of a case's inputs."""
    folder = INPUTS_FOLDER / name
    assert folder.is_dir(), folder
    return folder


@asynccontextmanager
async def serve_folder(folder: Path) -> AsyncIterator[str]:
    """Run `inputs/fake.py` on a folder; yields its address."""
    (port,) = find_free_ports(1)
    fake = await asyncio.create_subprocess_exec(sys.executable, str(INPUTS_FOLDER / "fake.py"), str(folder), str(port))
    url = f"http://127.0.0.1:{port}"
    try:
        await wait_for_server(f"{url}/log")
        yield url
    finally:
        fake.kill()
        await fake.wait()
