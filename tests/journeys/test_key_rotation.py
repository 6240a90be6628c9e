"""Test `paddock keys rotate`: a new encryption key during use, and a key that is lost."""

import asyncio
import os
import sys
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import msgspec
import pytest

from domain import provider_keys
from domain.provider_keys import NewProviderKey, PatchProviderKey
from domain.shared import ids
from domain.shared.access import Caller
from domain.shared.secrets import Secret
from infra.wiring import Resources, open_resources
from scripts.key_rotation import KEY_BATCH_SIZE, reseal_keys
from scripts.system import System
from tests.support.isolated_database import IsolatedDatabase, open_isolated_database

ROOT = Path(__file__).resolve().parents[2]
OLD_KEY, NEW_KEY, LOST_KEY = "old-" + "o" * 40, "new-" + "n" * 40, "lost" + "l" * 40


class RotationEnvironment:
    """Provide an isolated database and processes with different encryption keys."""

    def __init__(self, system: System, beside: IsolatedDatabase, stack: AsyncExitStack) -> None:
        self._system, self._beside, self._stack = system, beside, stack

    async def open_process(self, *keys: str) -> Resources:
        changes = {"database_url": Secret(self._beside.url), "encryption_keys": tuple(map(Secret, keys))}
        settings = msgspec.structs.replace(self._system.settings, **changes)
        return await self._stack.enter_async_context(open_resources(settings, "tests"))

    async def add_tenant(self) -> Caller:
        return await self._beside.add_tenant()

    async def run_rotation(self, *keys: str) -> tuple[int, str, str]:
        """Run the command; return its status, output and errors."""
        variables = {"PADDOCK_DATABASE_URL": self._beside.url, "PADDOCK_ENCRYPTION_KEYS": ",".join(keys)}
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "scripts.cli", "keys", "rotate"),
            cwd=ROOT,
            env={**os.environ, **self._system.environment, **variables},
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
        )
        out, err = await process.communicate()
        return process.returncode or 0, out.decode(), err.decode()


@pytest.fixture
async def environment(system: System):
    async with open_isolated_database(system) as beside, AsyncExitStack() as stack:
        yield RotationEnvironment(system, beside, stack)


async def _create_key(resources: Resources, caller: Caller, name: str, key: str) -> str:
    async with resources.store.transaction(caller) as tx:
        data = NewProviderKey(name=name, service="openai", key=key)
        return (await provider_keys.create_provider_key(tx, caller, data, resources.keyring.seal)).id


async def _open_key(resources: Resources, caller: Caller, slug: str) -> str:
    async with resources.store.transaction(caller) as tx:
        return resources.keyring.open(await provider_keys.get_sealed_key(tx, slug)).decode()


async def test_rotation_reseals_all_keys_during_use(environment: RotationEnvironment) -> None:
    first, second = await environment.add_tenant(), await environment.add_tenant()
    old_process = await environment.open_process(OLD_KEY)
    key_count = KEY_BATCH_SIZE // 2 + 5
    for caller in (first, second):
        for number in range(key_count):
            await _create_key(old_process, caller, f"key {number}", f"sk-{caller.tenant_id}-{number}")

    mixed_process = await environment.open_process(NEW_KEY, OLD_KEY)
    rotating = asyncio.create_task(environment.run_rotation(NEW_KEY, OLD_KEY))
    read_count = 0
    while not rotating.done():
        for caller in (first, second):
            number = read_count % key_count
            assert await _open_key(mixed_process, caller, f"key_{number}") == f"sk-{caller.tenant_id}-{number}"
            read_count += 1
    status, out, err = await rotating
    assert (status, out) == (0, f"keys sealed again: {2 * key_count}; already sealed with the first key: 0\n"), err
    assert read_count > 10
    assert await environment.run_rotation(NEW_KEY, OLD_KEY) == (
        0,
        f"keys sealed again: 0; already sealed with the first key: {2 * key_count}\n",
        "",
    )

    # Without the old encryption key every provider key can still be opened.
    new_process = await environment.open_process(NEW_KEY)
    for caller in (first, second):
        for number in range(key_count):
            assert await _open_key(new_process, caller, f"key_{number}") == f"sk-{caller.tenant_id}-{number}"
    with pytest.raises(ValueError, match="PADDOCK_ENCRYPTION_KEYS"):
        await _open_key(old_process, first, "key_0")


async def test_rotation_reseals_keys_of_the_default_key(environment: RotationEnvironment) -> None:
    caller = await environment.add_tenant()
    await _create_key(await environment.open_process(), caller, "first", "sk-first")
    assert (await environment.run_rotation(NEW_KEY))[:2] == (
        0,
        "keys sealed again: 1; already sealed with the first key: 0\n",
    )
    assert await _open_key(await environment.open_process(NEW_KEY), caller, "first") == "sk-first"


async def test_rotation_reports_and_keeps_unreadable_keys(environment: RotationEnvironment) -> None:
    caller, other = await environment.add_tenant(), await environment.add_tenant()
    lost = await _create_key(await environment.open_process(LOST_KEY), caller, "lost", "sk-lost")
    await _create_key(await environment.open_process(OLD_KEY), other, "known", "sk-known")
    status, out, err = await environment.run_rotation(NEW_KEY, OLD_KEY)
    assert status == 1
    assert out == "keys sealed again: 1; already sealed with the first key: 0\n"
    assert lost in err
    assert "sk-" not in out + err
    assert await _open_key(await environment.open_process(NEW_KEY), other, "known") == "sk-known"
    assert await _open_key(await environment.open_process(LOST_KEY), caller, "lost") == "sk-lost"
    assert (await environment.run_rotation(NEW_KEY, OLD_KEY, LOST_KEY))[:2] == (
        0,
        "keys sealed again: 1; already sealed with the first key: 1\n",
    )
    assert await _open_key(await environment.open_process(NEW_KEY), caller, "lost") == "sk-lost"


async def test_rotation_keeps_a_concurrently_replaced_key(environment: RotationEnvironment) -> None:
    caller = await environment.add_tenant()
    old_process, mixed_process = (
        await environment.open_process(OLD_KEY),
        await environment.open_process(NEW_KEY, OLD_KEY),
    )
    await _create_key(old_process, caller, "busy", "sk-before")

    class InterferingStore:
        """Replace the key from an old process between the rotation's read and its write."""

        has_replaced = False

        @asynccontextmanager
        async def system_transaction(self) -> AsyncIterator[Any]:
            async with mixed_process.store.system_transaction() as tx:
                yield tx
            if not self.has_replaced:
                self.has_replaced = True
                async with old_process.store.transaction(caller) as tx:
                    await provider_keys.patch_provider_key(
                        tx, "busy", PatchProviderKey(key="sk-after"), old_process.keyring.seal
                    )

    outcome = await reseal_keys(InterferingStore(), mixed_process.keyring)  # type: ignore[arg-type]
    assert (outcome.resealed, outcome.unchanged, outcome.unreadable) == (1, 0, ())
    assert await _open_key(await environment.open_process(NEW_KEY), caller, "busy") == "sk-after"
    async with mixed_process.store.system_transaction() as tx:
        assert not await tx.provider_keys.replace_sealed(ids.generate_id("pkey"), b"", b"x")
