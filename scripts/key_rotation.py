"""Seal the tenants' provider keys and secrets again with the first encryption key, while the system runs."""

import sys
from collections.abc import Callable
from typing import Final, Protocol

import msgspec

from domain.ports import Store, Tx
from infra.credentials import Keyring
from infra.settings import Settings
from infra.wiring import open_resources

KEY_BATCH_SIZE: Final = 200
MAX_PASSES: Final = 20


class SealedTexts(Protocol):
    """Store sealed texts of all tenants, by id."""

    async def list_sealed(self, after: str | None, most: int) -> list[tuple[str, bytes]]: ...
    async def replace_sealed(self, text_id: str, old: bytes, new: bytes, /) -> bool: ...


# Where sealed texts are, by what they are called.
SEALED_TEXTS: Final[dict[str, Callable[[Tx], SealedTexts]]] = {
    "keys": lambda tx: tx.provider_keys,
    "secrets": lambda tx: tx.secrets,
}


class RotationResult(msgspec.Struct, frozen=True, kw_only=True):
    """Count the texts sealed again and those left as they were; list the ids of those that no encryption key opens."""

    resealed: int
    unchanged: int
    unreadable: tuple[str, ...]


async def rotate_keys(settings: Settings) -> int:
    """Seal every provider key and secret with the first of PADDOCK_ENCRYPTION_KEYS, and print the results.

    Returns the exit code: 1 if one cannot be opened, else 0. Running it twice does no harm.
    """
    has_failed = False
    async with open_resources(settings, "paddock keys") as parts:
        for kind, get_texts in SEALED_TEXTS.items():
            result = await reseal_texts(parts.store, parts.keyring, get_texts)
            print(f"{kind} sealed again: {result.resealed}; already sealed with the first key: {result.unchanged}")
            if result.unreadable:
                has_failed = True
                print(
                    f"paddock: {len(result.unreadable)} {kind} cannot be opened with any of PADDOCK_ENCRYPTION_KEYS "
                    "and stay as they are; add the encryption key that sealed them to the list again: "
                    f"{', '.join(result.unreadable)}",
                    file=sys.stderr,
                )
    return 1 if has_failed else 0


async def reseal_texts(store: Store, keyring: Keyring, get_texts: Callable[[Tx], SealedTexts]) -> RotationResult:
    """Seal the texts of all tenants again. Repeats until a pass changes nothing, as some may be replaced meanwhile."""
    resealed = 0
    for _ in range(MAX_PASSES):
        changed, missed, unchanged, unreadable = await _reseal_once(store, keyring, get_texts)
        resealed += changed
        if not changed and not missed:
            break
    unchanged_count = max(0, unchanged - resealed + changed)
    return RotationResult(resealed=resealed, unchanged=unchanged_count, unreadable=tuple(unreadable))


async def _reseal_once(
    store: Store, keyring: Keyring, get_texts: Callable[[Tx], SealedTexts]
) -> tuple[int, int, int, list[str]]:
    """Seal all texts again once. Returns how many were changed, missed and left unchanged, and the unreadable ids."""
    changed = missed = unchanged = 0
    unreadable: list[str] = []
    last: str | None = None
    while True:
        async with store.system_transaction() as tx:
            batch = await get_texts(tx).list_sealed(last, KEY_BATCH_SIZE)
        if not batch:
            return changed, missed, unchanged, unreadable
        for text_id, sealed in batch:
            try:
                fresh = keyring.reseal(sealed)
            except ValueError:
                unreadable.append(text_id)
                continue
            if fresh is None:
                unchanged += 1
                continue
            # One transaction per text: a tenant who changes one waits for no other, and one changed since is kept.
            async with store.system_transaction() as tx:
                replaced = await get_texts(tx).replace_sealed(text_id, sealed, fresh)
            changed, missed = changed + replaced, missed + (not replaced)
        last = batch[-1][0]
