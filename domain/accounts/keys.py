"""API keys: 256 random bits shown once, stored as their SHA-256, with scopes, expiry and usage."""

from datetime import datetime
from typing import Annotated, Final, Protocol

import msgspec
from msgspec import UNSET, Meta, UnsetType

from domain.ports import Tx
from domain.shared import ids
from domain.shared.access import ALL_SCOPES, SCOPES_BY_ROLE, Caller, Role, limit_scopes
from domain.shared.errors import Conflict, InvalidField, NotFound
from domain.shared.pages import Listing, Page
from domain.shared.times import TimeInput, read_time

Name = Annotated[str, Meta(min_length=1, max_length=200, pattern=r"^[^\x00]*$", examples=["My CLI Key"])]
Description = Annotated[str, Meta(max_length=2000, pattern=r"^[^\x00]*$")]
PerMinute = Annotated[int, Meta(ge=1, le=1_000_000, examples=[600])]


MAX_KEYS_PER_USER: Final = 100


class ApiKey(msgspec.Struct, kw_only=True):
    """A key as the API shows it. `usage_count` and `last_used_at` trail by a few seconds."""

    id: str
    name: str
    description: str | None
    key_prefix: str
    scopes: list[str]
    rate_limit_per_minute: int | None
    expires_at: datetime | None
    is_active: bool
    last_used_at: datetime | None
    usage_count: int
    user_id: str
    tenant_id: str
    created_at: datetime
    updated_at: datetime


class CreatedApiKey(ApiKey, kw_only=True):
    """A key at its creation: the only answer that ever holds `key`."""

    key: str


class NewApiKey(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """What to create. No `scopes`: all that the creator's role allows except `admin`."""

    name: Name
    description: Description | None = None
    scopes: Annotated[list[str], Meta(examples=[["read:agents", "run:agents"]])] | None = None
    rate_limit_per_minute: PerMinute | None = None
    expires_at: TimeInput | None = None


class PatchApiKey(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """What may change of a key. The key itself never does."""

    name: Name | UnsetType = UNSET
    description: Description | None | UnsetType = UNSET
    scopes: list[str] | UnsetType = UNSET
    rate_limit_per_minute: PerMinute | None | UnsetType = UNSET
    expires_at: TimeInput | None | UnsetType = UNSET


class ApiKeyIdentity(msgspec.Struct, kw_only=True):
    """What is known of a presented key, found before any tenant is bound."""

    key_id: str
    user_id: str
    tenant_id: str
    role: Role
    plan: str
    scopes: list[str]
    rate_limit_per_minute: int | None
    expires_at: datetime | None
    is_active: bool
    key_hash: bytes


class ApiKeys(Protocol):
    """The API keys of the bound tenant; `find` and `count_use` work before one is bound."""

    async def find(self, key_hashes: list[bytes]) -> dict[bytes, ApiKeyIdentity]:
        """The keys there are among these, by their hash."""
        ...

    async def count_use(self, uses: dict[str, tuple[int, datetime]]) -> None: ...
    async def count_active(self, user_id: str, now: datetime) -> int: ...
    async def add(self, key: ApiKey, key_hash: bytes) -> None: ...
    async def get(self, key_id: str, owner: str | None, lock: bool = False) -> ApiKey | None: ...
    async def list_page(self, owner: str | None, page: Page) -> Listing[ApiKey]: ...
    async def save(self, key: ApiKey) -> None: ...
    async def delete(self, key_id: str) -> None: ...


def caller_from_api_key(identity: ApiKeyIdentity, now: datetime) -> Caller | None:
    """The caller a presented key stands for, or None if the key is revoked, expired or its owner shut out."""
    if not identity.is_active or (identity.expires_at is not None and identity.expires_at <= now):
        return None
    return Caller(
        tenant_id=identity.tenant_id,
        user_id=identity.user_id,
        role=identity.role,
        scopes=limit_scopes(identity.role, frozenset(identity.scopes)),
        plan=identity.plan,
        key_id=identity.key_id,
        key_rate_limit=identity.rate_limit_per_minute,
    )


def check_key_scopes(caller: Caller, asked: list[str] | None) -> list[str]:
    """The scopes a new key gets: never one its creator does not hold."""
    # An admin may give whatever its role holds, also by a key that carries nothing but `admin`.
    held = SCOPES_BY_ROLE[caller.role] if caller.is_admin else caller.scopes
    if asked is None:
        return sorted(held - {"admin"})
    for scope in asked:
        if scope not in ALL_SCOPES:
            raise InvalidField("scopes", f"{scope!r} is not a scope; there are: {', '.join(sorted(ALL_SCOPES))}.")
        if scope not in held:
            raise InvalidField("scopes", f"{scope!r} is not yours to give.")
    return sorted(set(asked))


def _checked_expiry(at: TimeInput | None, now: datetime) -> datetime | None:
    if at is None:
        return None
    # A key that holds until a day holds on that day.
    checked = read_time("expires_at", at, is_end=True)
    if checked <= now:
        raise InvalidField("expires_at", "is in the past.")
    return checked


async def create_api_key(tx: Tx, caller: Caller, data: NewApiKey, key: str, key_hash: bytes) -> CreatedApiKey:
    """Make a key.

    Errors: `invalid_field` for unknown or ungranted scopes and past expiries, `conflict` for more than
    `MAX_KEYS_PER_USER`.
    """
    # Held until the commit, so that keys of one user are counted one after the other.
    await tx.accounts.get_user(caller.user_id, lock=True)
    if await tx.api_keys.count_active(caller.user_id, tx.now) >= MAX_KEYS_PER_USER:
        raise Conflict(f"A user may have {MAX_KEYS_PER_USER} keys in force; revoke or delete one that is not needed.")
    made = CreatedApiKey(
        id=ids.generate_id("key"),
        name=data.name,
        description=data.description,
        key_prefix=key[:12],
        scopes=check_key_scopes(caller, data.scopes),
        rate_limit_per_minute=data.rate_limit_per_minute,
        expires_at=_checked_expiry(data.expires_at, tx.now),
        is_active=True,
        last_used_at=None,
        usage_count=0,
        user_id=caller.user_id,
        tenant_id=caller.tenant_id,
        created_at=tx.now,
        updated_at=tx.now,
        key=key,
    )
    await tx.api_keys.add(made, key_hash)
    return made


async def get_api_key(tx: Tx, caller: Caller, key_id: str, lock: bool = False) -> ApiKey:
    """One's own key, or any of the tenant for an admin. Errors: `not_found`."""
    found = await tx.api_keys.get(key_id, _owner(caller), lock)
    if found is None:
        raise NotFound("API key", key_id)
    return found


async def list_api_keys(tx: Tx, caller: Caller, page: Page) -> Listing[ApiKey]:
    """One's own keys, or all of the tenant for an admin."""
    return await tx.api_keys.list_page(_owner(caller), page)


async def patch_api_key(tx: Tx, caller: Caller, key_id: str, data: PatchApiKey) -> ApiKey:
    """Change what was sent. A revoked key stays as it is."""
    key = await get_api_key(tx, caller, key_id, lock=True)
    if not key.is_active:
        raise Conflict("A revoked key cannot be changed; create a new one.")
    if data.name is not UNSET:
        key.name = data.name
    if data.description is not UNSET:
        key.description = data.description
    if data.scopes is not UNSET:
        key.scopes = check_key_scopes(caller, data.scopes)
    if data.rate_limit_per_minute is not UNSET:
        key.rate_limit_per_minute = data.rate_limit_per_minute
    if data.expires_at is not UNSET:
        key.expires_at = _checked_expiry(data.expires_at, tx.now)
    key.updated_at = tx.now
    await tx.api_keys.save(key)
    return key


async def revoke_api_key(tx: Tx, caller: Caller, key_id: str) -> ApiKey:
    """Make a key useless from the next request on, and keep it on the list. Twice is fine."""
    key = await get_api_key(tx, caller, key_id, lock=True)
    key.is_active, key.updated_at = False, tx.now
    await tx.api_keys.save(key)
    return key


async def delete_api_key(tx: Tx, caller: Caller, key_id: str) -> None:
    """Remove a key for good. Errors: `not_found`."""
    await get_api_key(tx, caller, key_id)
    await tx.api_keys.delete(key_id)


def _owner(caller: Caller) -> str | None:
    return None if caller.is_admin else caller.user_id
