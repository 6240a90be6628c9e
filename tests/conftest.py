"""Share one running system: Postgres, Valkey, SeaweedFS, the API and the workers as processes."""

import contextlib
import os
import secrets
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import timedelta
from pathlib import Path

import pytest

from domain.shared.jobs import ALL_LANES
from infra.embedded.child_process import EmbeddedServiceError
from infra.embedded.ports import find_free_ports
from infra.wiring import Resources, open_resources
from scripts.system import System
from tests.support.clients import TenantClient, add_tenant
from tests.support.fake_provider import FakeProvider, run_fake_provider

# Short intervals, so that tests of lost workers end soon.
FAST_SETTINGS = {
    "PADDOCK_LEASE_SECONDS": "2",
    "PADDOCK_UPKEEP_SECONDS": "0.3",
    # Where the providers of models and tools of tests listen.
    "PADDOCK_PRIVATE_HOSTS": "127.0.0.1",
}


@asynccontextmanager
async def run_system(**environment: str) -> AsyncIterator[System]:
    """Run another system on free ports, with its data in a temporary folder."""
    before = dict(os.environ)
    os.environ.update({**FAST_SETTINGS, **environment})
    try:
        with tempfile.TemporaryDirectory(prefix="paddock-test-") as folder:
            lines: list[str] = []
            system = System(Path(folder) / "data", find_free_ports(1)[0], 1, lines.append)
            system.lines = lines  # type: ignore[attr-defined]
            async with contextlib.AsyncExitStack() as stack:
                try:
                    await stack.enter_async_context(system.run())
                except EmbeddedServiceError as error:
                    error.add_note("\n".join(lines[-40:]))
                    raise
                try:
                    yield system
                finally:
                    _kill_storage_at_once(system)
    finally:
        os.environ.clear()
        os.environ.update(before)


def _kill_storage_at_once(system: System) -> None:
    """Let SeaweedFS be killed when the system stops: it takes three seconds to end, and its data is thrown away."""
    _, _, seaweed = system.services
    if seaweed is not None and seaweed.child is not None:
        seaweed.child.stop_seconds = 0.0


@pytest.fixture(scope="session")
async def system() -> AsyncIterator[System]:
    async with run_system() as system:
        yield system


@pytest.fixture(scope="session")
async def resources(system: System) -> AsyncIterator[Resources]:
    """Open the resources of the running system in this process, as a worker does."""
    async with open_resources(
        system.settings, "tests", lanes=ALL_LANES, row_changes=ALL_LANES, revocations=ALL_LANES
    ) as resources:
        yield resources


@pytest.fixture(scope="session")
async def provider() -> AsyncIterator[FakeProvider]:
    """Run a provider of models on this machine."""
    async with run_fake_provider() as provider:
        yield provider


@pytest.fixture(scope="session")
async def credentials(resources: Resources) -> tuple[str, str]:
    """Return one password and its hash for all tenants that tests add: hashing costs a quarter of a second of processor."""
    password = secrets.token_urlsafe(12)
    return password, await resources.passwords.hash_password(password)


@pytest.fixture
async def acme(system: System, resources: Resources, credentials: tuple[str, str]) -> AsyncIterator[TenantClient]:
    """Yield a tenant of its own for each test, with its admin logged in."""
    async with add_tenant(resources, system.url, credentials) as tenant:
        yield tenant


@pytest.fixture
async def other_tenant(
    system: System, resources: Resources, credentials: tuple[str, str]
) -> AsyncIterator[TenantClient]:
    """Yield another tenant, which must see nothing of the first."""
    async with add_tenant(resources, system.url, credentials) as tenant:
        yield tenant


@pytest.fixture(scope="session")
async def shared_tenant(
    system: System, resources: Resources, credentials: tuple[str, str]
) -> AsyncIterator[TenantClient]:
    """Yield a tenant that keeps a few built agents for all tests that only need to run something.

    Its token outlives the whole run, which may take longer than a token of production lives.
    """
    async with add_tenant(resources, system.url, credentials, timedelta(hours=10)) as tenant:
        for example in ("hello", "summarizer"):
            await tenant.deploy_example(example)
        yield tenant


# The marker of a folder or file whose tests need more than their fixtures show.
MARKERS_BY_PATH = {
    "tests/attacks/": "sandbox",
    "tests/cases/test_sandbox.py": "sandbox",
    "tests/contracts/test_local_model.py": "model",
    "tests/embedded/": "own_installation",
    "tests/generated_clients/": "generated_clients",
    "tests/journeys/": "own_installation",
}
SLOW_MARKERS = {*MARKERS_BY_PATH.values(), "installation", "slow"}
SYSTEM_STARTERS = {"run_system", "System", "run_second_api", "bounded"}
# The longest files first, so that no process is left alone with one in the end.
LONGEST_FIRST = (
    # Attacks on memory are watched less often while other attacks take the processors, so their files lie apart.
    "tests/attacks/test_forkserver.py",
    "tests/generated_clients/",
    "tests/journeys/",
    "tests/contracts/test_local_model.py",
    "tests/attacks/test_bubblewrap.py",
    "tests/workers/",
    "tests/attacks/test_gateway.py",
    "tests/attacks/test_executions.py",
    "tests/contracts/",
    "tests/api/",
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark every test by what it needs, and put the longest files first."""
    for item in items:
        path = item.nodeid.split("::")[0]
        fixtures = set(getattr(item, "fixturenames", ()))
        called = set(item.function.__code__.co_names) if isinstance(item, pytest.Function) else set()
        if "system" in fixtures:
            item.add_marker("installation")
        if SYSTEM_STARTERS & (called | fixtures):
            item.add_marker("own_installation")
        if {"readable_folder", "sandbox", "warm_sandbox"} & fixtures:
            item.add_marker("sandbox")
        for prefix, need in MARKERS_BY_PATH.items():
            if path.startswith(prefix):
                item.add_marker(need)
        if not {mark.name for mark in item.iter_markers()} & SLOW_MARKERS:
            item.add_marker("fast")
    order = {prefix: place for place, prefix in enumerate(LONGEST_FIRST)}
    items.sort(
        key=lambda item: next((place for prefix, place in order.items() if item.nodeid.startswith(prefix)), len(order))
    )


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]):
    """Add the last log lines of the system to the report of a failed test."""
    report = yield
    if report.when == "call" and report.failed and "system" in getattr(item, "funcargs", {}):
        lines = [line for line in item.funcargs["system"].lines if " request method=" not in line]
        report.sections.append(("log of the system", "\n".join(lines[-80:])))
    return report
