"""`paddock keys rotate`: seals the tenants' keys for outside services anew, while everything runs."""

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
    """How many keys were sealed anew, how many already were, and the ids of those that no key of ours opens."""

    resealed: int
    kept: int
    unreadable: tuple[str, ...]


async def rotate_keys(settings: Settings) -> int:
    """Seal every provider key with the first of PADDOCK_ENCRYPTION_KEYS, and print how it went.

    Returns 1 if a key cannot be opened, else 0. Doing it twice does no harm.
    """
    async with open_resources(settings, "paddock keys") as parts:
        done = await reseal_keys(parts.store, parts.keyring)
    print(f"{done.resealed} sealed anew, {done.kept} were sealed with the first key already")
    if done.unreadable:
        print(
            f"paddock: {len(done.unreadable)} cannot be opened with any of PADDOCK_ENCRYPTION_KEYS and stay as they "
            f"are; put the key that sealed them back on the list: {', '.join(done.unreadable)}",
            file=sys.stderr,
        )
    return 1 if done.unreadable else 0


async def reseal_keys(store: Store, keyring: Keyring) -> RotationResult:
    """Go over all tenants' keys until a pass finds nothing left to do: some may be replaced meanwhile."""
    resealed = 0
    for _ in range(MAX_PASSES):
        moved, missed, kept, unreadable = await _reseal_once(store, keyring)
        resealed += moved
        if not moved and not missed:
            break
    return RotationResult(resealed=resealed, kept=max(0, kept - resealed + moved), unreadable=tuple(unreadable))


async def _reseal_once(store: Store, keyring: Keyring) -> tuple[int, int, int, list[str]]:
    moved = missed = kept = 0
    unreadable: list[str] = []
    last: str | None = None
    while True:
        async with store.system_transaction() as tx:
            found = await tx.provider_keys.list_sealed(last, KEY_BATCH_SIZE)
        if not found:
            return moved, missed, kept, unreadable
        for key_id, sealed in found:
            try:
                fresh = keyring.reseal(sealed)
            except ValueError:
                unreadable.append(key_id)
                continue
            if fresh is None:
                kept += 1
                continue
            # One at a time: whoever changes a key waits for no other, and what was changed since is left alone.
            async with store.system_transaction() as tx:
                replaced = await tx.provider_keys.replace_sealed(key_id, sealed, fresh)
            moved, missed = moved + replaced, missed + (not replaced)
        last = found[-1][0]
