"""Seal the tenants' provider keys again with the first encryption key, while the system runs."""

import sys
from typing import Final

import msgspec

from domain.ports import Store
from infra.credentials import Keyring
from infra.settings import Settings
from infra.wiring import open_resources

KEY_BATCH_SIZE: Final = 200
MAX_PASSES: Final = 20


class RotationResult(msgspec.Struct, frozen=True, kw_only=True):
    """Count the keys sealed again and those left as they were; list the ids of keys that no encryption key opens."""

    resealed: int
    unchanged: int
    unreadable: tuple[str, ...]


async def rotate_keys(settings: Settings) -> int:
    """Seal every provider key with the first of PADDOCK_ENCRYPTION_KEYS, and print the result.

    Returns the exit code: 1 if a key cannot be opened, else 0. Running it twice does no harm.
    """
    async with open_resources(settings, "paddock keys") as parts:
        result = await reseal_keys(parts.store, parts.keyring)
    print(f"keys sealed again: {result.resealed}; already sealed with the first key: {result.unchanged}")
    if result.unreadable:
        print(
            f"paddock: {len(result.unreadable)} keys cannot be opened with any of PADDOCK_ENCRYPTION_KEYS and stay as "
            f"they are; add the encryption key that sealed them to the list again: {', '.join(result.unreadable)}",
            file=sys.stderr,
        )
    return 1 if result.unreadable else 0


async def reseal_keys(store: Store, keyring: Keyring) -> RotationResult:
    """Seal all tenants' keys again. Repeats until a pass changes nothing, as keys may be replaced meanwhile."""
    resealed = 0
    for _ in range(MAX_PASSES):
        changed, missed, unchanged, unreadable = await _reseal_once(store, keyring)
        resealed += changed
        if not changed and not missed:
            break
    unchanged_count = max(0, unchanged - resealed + changed)
    return RotationResult(resealed=resealed, unchanged=unchanged_count, unreadable=tuple(unreadable))


async def _reseal_once(store: Store, keyring: Keyring) -> tuple[int, int, int, list[str]]:
    """Seal all keys again once. Returns how many were changed, missed and left unchanged, and the unreadable ids."""
    changed = missed = unchanged = 0
    unreadable: list[str] = []
    last: str | None = None
    while True:
        async with store.system_transaction() as tx:
            batch = await tx.provider_keys.list_sealed(last, KEY_BATCH_SIZE)
        if not batch:
            return changed, missed, unchanged, unreadable
        for key_id, sealed in batch:
            try:
                fresh = keyring.reseal(sealed)
            except ValueError:
                unreadable.append(key_id)
                continue
            if fresh is None:
                unchanged += 1
                continue
            # One transaction per key: a tenant who changes a key waits for no other, and a key changed since is kept.
            async with store.system_transaction() as tx:
                replaced = await tx.provider_keys.replace_sealed(key_id, sealed, fresh)
            changed, missed = changed + replaced, missed + (not replaced)
        last = batch[-1][0]
