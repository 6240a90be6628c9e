"""Share fixtures between the contract tests."""

import os
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from infra.http import Outbound
from infra.llm import PydanticLlm
from tests.support.fake_provider import FakeProvider, run_fake_provider
from tests.support.model_calls import FakeLocalModel
from tests.support.provider_targets import WireServer, run_wire_server


@pytest.fixture
def readable_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return an empty folder that a sandbox's user can read."""
    folder = tmp_path_factory.mktemp("code")
    for parent in (folder, *folder.parents):
        if parent.stat().st_uid == os.geteuid() and str(parent).startswith("/tmp/"):
            parent.chmod(0o755)
    return folder


@pytest.fixture
async def fake_provider() -> AsyncIterator[FakeProvider]:
    async with run_fake_provider() as fake_provider:
        yield fake_provider


@pytest.fixture
async def llm(fake_provider: FakeProvider) -> AsyncIterator[PydanticLlm]:
    llm = PydanticLlm(Outbound(("127.0.0.1",)), FakeLocalModel(fake_provider.url))
    yield llm
    await llm.close()


@pytest.fixture
async def wire() -> AsyncIterator[WireServer]:
    async with run_wire_server() as server:
        yield server
