"""Manage API keys: 256 random bits, shown once and stored as SHA-256, with scopes, expiry and usage."""

from datetime import datetime
from typing import Annotated, Final, Protocol

import msgspec
from msgspec import UNSET, Meta, UnsetType

from domain.ports import Tx
from domain.shared import ids
from domain.shared.access import ALL_SCOPES, SCOPES_BY_ROLE, Caller, Role, limit_scopes
from domain.shared.errors import Conflict, InvalidField, require_found
from domain.shared.pages import Listing, Page
from domain.shared.times import TimeInput, read_time

ApiKeyName = Annotated[str, Meta(min_length=1, max_length=200, pattern=r"^[^\x00]*$", examples=["My CLI Key"])]
ApiKeyDescription = Annotated[str, Meta(max_length=2000, pattern=r"^[^\x00]*$")]
RequestsPerMinute = Annotated[int, Meta(ge=1, le=1_000_000, examples=[600])]

MAX_KEYS_PER_USER: Final = 100


class ApiKey(msgspec.Struct, kw_only=True):
    """Show an API key without its secret. `usage_count` and `last_used_at` lag a few seconds behind."""

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
    """Show a new API key with its secret `key`. No later answer contains it."""

    key: str


class NewApiKey(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """Create an API key. Without `scopes` it gets all scopes that the creator's role allows except `admin`."""

    name: ApiKeyName
    description: ApiKeyDescription | None = None
    scopes: Annotated[list[str], Meta(examples=[["read:agents", "run:agents"]])] | None = None
    rate_limit_per_minute: RequestsPerMinute | None = None
    expires_at: TimeInput | None = None


class PatchApiKey(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """Change an API key. Its secret never changes."""

    name: ApiKeyName | UnsetType = UNSET
    description: ApiKeyDescription | None | UnsetType = UNSET
    scopes: list[str] | UnsetType = UNSET
    rate_limit_per_minute: RequestsPerMinute | None | UnsetType = UNSET
    expires_at: TimeInput | None | UnsetType = UNSET


class ApiKeyIdentity(msgspec.Struct, kw_only=True):
    """Describe a presented key, looked up before any tenant is bound."""

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
    """Store the API keys of the bound tenant; `find` and `count_use` work before a tenant is bound."""

    async def find(self, key_hashes: list[bytes]) -> dict[bytes, ApiKeyIdentity]:
        """Return the existing keys with these hashes, by hash."""
        ...

    async def count_use(self, uses: dict[str, tuple[int, datetime]]) -> None: ...
    async def count_active(self, user_id: str, now: datetime) -> int: ...
    async def add(self, key: ApiKey, key_hash: bytes) -> None: ...
    async def get(self, key_id: str, owner: str | None, lock: bool = False) -> ApiKey | None: ...
    async def list_page(self, owner: str | None, page: Page) -> Listing[ApiKey]: ...
    async def save(self, key: ApiKey) -> None: ...
    async def delete(self, key_id: str) -> None: ...


def caller_from_api_key(identity: ApiKeyIdentity, now: datetime) -> Caller | None:
    """Return the caller of a presented key, or None if the key is revoked or expired, or its owner is disabled."""
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


def check_key_scopes(caller: Caller, requested: list[str] | None) -> list[str]:
    """Return the scopes of a new key, which are never more than its creator has. Errors: `invalid_field`."""
    # An admin may grant all scopes of the role, even with a key that carries only `admin`.
    grantable = SCOPES_BY_ROLE[caller.role] if caller.is_admin else caller.scopes
    if requested is None:
        return sorted(grantable - {"admin"})
    for scope in requested:
        if scope not in ALL_SCOPES:
            raise InvalidField("scopes", f"{scope!r} is not a scope. Send one of: {', '.join(sorted(ALL_SCOPES))}.")
        if scope not in grantable:
            raise InvalidField("scopes", f"{scope!r} cannot be granted: the caller does not have this scope.")
    return sorted(set(requested))


def _check_expiry(at: TimeInput | None, now: datetime) -> datetime | None:
    if at is None:
        return None
    # A key that expires on a day is valid on that day.
    expires_at = read_time("expires_at", at, is_end=True)
    if expires_at <= now:
        raise InvalidField("expires_at", "must be in the future.")
    return expires_at


async def create_api_key(tx: Tx, caller: Caller, data: NewApiKey, key: str, key_hash: bytes) -> CreatedApiKey:
    """Create an API key.

    Errors: `invalid_field` for unknown scopes, scopes that the caller does not have, and past expiries; `conflict` for
    more than `MAX_KEYS_PER_USER` keys.
    """
    # Locks the user until the commit, so that concurrent requests count the keys one after the other.
    await tx.accounts.get_user(caller.user_id, lock=True)
    if await tx.api_keys.count_active(caller.user_id, tx.now) >= MAX_KEYS_PER_USER:
        raise Conflict(
            f"The user already has {MAX_KEYS_PER_USER} active keys, the maximum. Revoke or delete one first."
        )
    api_key = CreatedApiKey(
        id=ids.generate_id("key"),
        name=data.name,
        description=data.description,
        key_prefix=key[:12],
        scopes=check_key_scopes(caller, data.scopes),
        rate_limit_per_minute=data.rate_limit_per_minute,
        expires_at=_check_expiry(data.expires_at, tx.now),
        is_active=True,
        last_used_at=None,
        usage_count=0,
        user_id=caller.user_id,
        tenant_id=caller.tenant_id,
        created_at=tx.now,
        updated_at=tx.now,
        key=key,
    )
    await tx.api_keys.add(api_key, key_hash)
    return api_key


async def get_api_key(tx: Tx, caller: Caller, key_id: str, lock: bool = False) -> ApiKey:
    """Return a key of the caller, or any key of the tenant for an admin. Errors: `not_found`."""
    return require_found("API key", key_id, await tx.api_keys.get(key_id, _get_owner_filter(caller), lock))


async def list_api_keys(tx: Tx, caller: Caller, page: Page) -> Listing[ApiKey]:
    """List the caller's keys, or all keys of the tenant for an admin."""
    return await tx.api_keys.list_page(_get_owner_filter(caller), page)


async def patch_api_key(tx: Tx, caller: Caller, key_id: str, data: PatchApiKey) -> ApiKey:
    """Change the fields that were sent. Errors: `not_found`, `conflict` for a revoked key, `invalid_field`."""
    key = await get_api_key(tx, caller, key_id, lock=True)
    if not key.is_active:
        raise Conflict("A revoked key cannot be changed. Create a new key.")
    if data.name is not UNSET:
        key.name = data.name
    if data.description is not UNSET:
        key.description = data.description
    if data.scopes is not UNSET:
        key.scopes = check_key_scopes(caller, data.scopes)
    if data.rate_limit_per_minute is not UNSET:
        key.rate_limit_per_minute = data.rate_limit_per_minute
    if data.expires_at is not UNSET:
        key.expires_at = _check_expiry(data.expires_at, tx.now)
    key.updated_at = tx.now
    await tx.api_keys.save(key)
    return key


async def revoke_api_key(tx: Tx, caller: Caller, key_id: str) -> ApiKey:
    """Disable a key from the next request on, and keep it on the list. Repeating this is allowed."""
    key = await get_api_key(tx, caller, key_id, lock=True)
    key.is_active, key.updated_at = False, tx.now
    await tx.api_keys.save(key)
    return key


async def delete_api_key(tx: Tx, caller: Caller, key_id: str) -> None:
    """Delete a key. Errors: `not_found`."""
    await get_api_key(tx, caller, key_id)
    await tx.api_keys.delete(key_id)


def _get_owner_filter(caller: Caller) -> str | None:
    return None if caller.is_admin else caller.user_id
