"""`paddock keys rotate`, for real: a new key of encryption while keys are being used, and one that is lost."""

import asyncio
import os
import sys
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import msgspec
import pytest

from domain import provider_keys, secrets
from domain.provider_keys import NewProviderKey, PatchProviderKey
from domain.secrets import NewSecret
from domain.shared import ids
from domain.shared.access import Caller
from domain.shared.secrets import Secret
from infra.wiring import Resources, open_resources
from scripts.key_rotation import KEY_BATCH_SIZE, SEALED_TEXTS, reseal_texts
from scripts.system import System
from tests.support.isolated_database import IsolatedDatabase, open_isolated_database

ROOT = Path(__file__).resolve().parents[2]
OLD, NEW, LOST = "old-" + "o" * 40, "new-" + "n" * 40, "lost" + "l" * 40


class World:
    """A database of its own, and processes that know different keys."""

    def __init__(self, system: System, beside: IsolatedDatabase, stack: AsyncExitStack) -> None:
        self._system, self._beside, self._stack = system, beside, stack

    async def process(self, *keys: str) -> Resources:
        changes = {"database_url": Secret(self._beside.url), "encryption_keys": tuple(map(Secret, keys))}
        settings = msgspec.structs.replace(self._system.settings, **changes)
        return await self._stack.enter_async_context(open_resources(settings, "tests"))

    async def tenant(self) -> Caller:
        return await self._beside.add_tenant()

    async def rotate(self, *keys: str) -> tuple[int, str, str]:
        """The command itself: its status and what it wrote."""
        environment = {"PADDOCK_DATABASE_URL": self._beside.url, "PADDOCK_ENCRYPTION_KEYS": ",".join(keys)}
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "scripts.cli", "keys", "rotate"),
            cwd=ROOT,
            env={**os.environ, **self._system.environment, **environment},
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
        )
        out, err = await process.communicate()
        return process.returncode or 0, out.decode(), err.decode()


@pytest.fixture
async def world(system: System):
    async with open_isolated_database(system) as beside, AsyncExitStack() as stack:
        yield World(system, beside, stack)


async def _keep(resources: Resources, caller: Caller, name: str, key: str) -> str:
    async with resources.store.transaction(caller) as tx:
        data = NewProviderKey(name=name, service="openai", key=key)
        return (await provider_keys.create_provider_key(tx, caller, data, resources.keyring.seal)).id


async def _keep_secret(resources: Resources, caller: Caller, name: str, value: str) -> str:
    async with resources.store.transaction(caller) as tx:
        data = NewSecret(name=name, value=value)
        return (await secrets.create_secret(tx, caller, data, resources.keyring.seal)).id


async def _open_secret(resources: Resources, caller: Caller, name: str) -> str:
    async with resources.store.transaction(caller) as tx:
        (secret,) = await tx.secrets.list_sealed_by_names([name])
        return resources.keyring.open(secret.sealed).decode()


def _report(keys: tuple[int, int], texts: tuple[int, int]) -> str:
    """What the command prints: how many keys and secrets were sealed again, and how many were already."""
    return "".join(
        f"{kind} sealed again: {resealed}; already sealed with the first key: {unchanged}\n"
        for kind, (resealed, unchanged) in (("keys", keys), ("secrets", texts))
    )


async def _open_key(resources: Resources, caller: Caller, slug: str) -> str:
    async with resources.store.transaction(caller) as tx:
        return resources.keyring.open(await provider_keys.get_sealed_key(tx, slug)).decode()


async def test_old_keys_give_way_to_new_ones_while_everything_runs(world: World) -> None:
    first_tenant, second_tenant = await world.tenant(), await world.tenant()
    old = await world.process(OLD)
    many = KEY_BATCH_SIZE // 2 + 5
    for caller in (first_tenant, second_tenant):
        for number in range(many):
            await _keep(old, caller, f"key {number}", f"sk-{caller.tenant_id}-{number}")
        await _keep_secret(old, caller, "TOKEN", f"token-{caller.tenant_id}")

    both = await world.process(NEW, OLD)
    rotating = asyncio.create_task(world.rotate(NEW, OLD))
    read = 0
    while not rotating.done():
        for caller in (first_tenant, second_tenant):
            number = read % many
            assert await _open_key(both, caller, f"key_{number}") == f"sk-{caller.tenant_id}-{number}"
            read += 1
    status, out, err = await rotating
    assert (status, out) == (0, _report((2 * many, 0), (2, 0))), err
    assert read > 10
    assert await world.rotate(NEW, OLD) == (0, _report((0, 2 * many), (0, 2)), "")

    # The old key is gone from the list, and nothing with it.
    new = await world.process(NEW)
    for caller in (first_tenant, second_tenant):
        for number in range(many):
            assert await _open_key(new, caller, f"key_{number}") == f"sk-{caller.tenant_id}-{number}"
        assert await _open_secret(new, caller, "TOKEN") == f"token-{caller.tenant_id}"
    with pytest.raises(ValueError, match="PADDOCK_ENCRYPTION_KEYS"):
        await _open_key(old, first_tenant, "key_0")


async def test_the_key_made_of_the_secret_key_gives_way_too(world: World) -> None:
    caller = await world.tenant()
    await _keep(await world.process(), caller, "first", "sk-first")
    await _keep_secret(await world.process(), caller, "FIRST", "token-first")
    assert (await world.rotate(NEW))[:2] == (0, _report((1, 0), (1, 0)))
    assert await _open_key(await world.process(NEW), caller, "first") == "sk-first"
    assert await _open_secret(await world.process(NEW), caller, "FIRST") == "token-first"


async def test_what_cannot_be_opened_is_named_and_left_alone(world: World) -> None:
    caller, other = await world.tenant(), await world.tenant()
    lost = await _keep(await world.process(LOST), caller, "lost", "sk-lost")
    await _keep(await world.process(OLD), other, "known", "sk-known")
    lost_secret = await _keep_secret(await world.process(LOST), caller, "LOST", "token-lost")
    await _keep_secret(await world.process(OLD), other, "KNOWN", "token-known")
    status, out, err = await world.rotate(NEW, OLD)
    assert status == 1
    assert out == _report((1, 0), (1, 0))
    assert lost in err
    assert lost_secret in err
    assert "sk-" not in out + err
    assert "token-" not in out + err
    assert await _open_key(await world.process(NEW), other, "known") == "sk-known"
    assert await _open_key(await world.process(LOST), caller, "lost") == "sk-lost"
    assert (await world.rotate(NEW, OLD, LOST))[:2] == (0, _report((1, 1), (1, 1)))
    assert await _open_key(await world.process(NEW), caller, "lost") == "sk-lost"


async def test_a_key_that_is_replaced_meanwhile_stays_replaced(world: World) -> None:
    caller = await world.tenant()
    old, both = await world.process(OLD), await world.process(NEW, OLD)
    await _keep(old, caller, "busy", "sk-before")

    class Meddled:
        """The store, which lets an old process replace the key between its reading and its writing."""

        done = False

        @asynccontextmanager
        async def system_transaction(self) -> AsyncIterator[Any]:
            async with both.store.system_transaction() as tx:
                yield tx
            if not self.done:
                self.done = True
                async with old.store.transaction(caller) as tx:
                    await provider_keys.patch_provider_key(
                        tx, "busy", PatchProviderKey(key="sk-after"), old.keyring.seal
                    )

    done = await reseal_texts(Meddled(), both.keyring, SEALED_TEXTS["keys"])  # type: ignore[arg-type]
    assert (done.resealed, done.unchanged, done.unreadable) == (1, 0, ())
    assert await _open_key(await world.process(NEW), caller, "busy") == "sk-after"
    async with both.store.system_transaction() as tx:
        assert not await tx.provider_keys.replace_sealed(ids.generate_id("pkey"), b"", b"x")
