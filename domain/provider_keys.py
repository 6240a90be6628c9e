"""Keys for outside services (a model provider, an API behind a tool): sealed at rest, never shown again."""

import re
from collections.abc import Callable
from datetime import datetime
from typing import Annotated, Final, Literal, Protocol

import msgspec
from msgspec import UNSET, Meta, UnsetType

from domain.ports import Tx
from domain.shared import ids, names
from domain.shared.access import Caller
from domain.shared.errors import Conflict, InvalidField, NotFound
from domain.shared.names import Name
from domain.shared.pages import Listing, Page

# Keys travel in headers, which hold no other characters (RFC 9110 section 5.5).
PROVIDER_KEY_PATTERN: Final = re.compile(r"[!-~](?:[ -~]*[!-~])?")
# Four of so few characters would be much of the key.
MIN_SHOWABLE_CHARACTERS: Final = 20
_SHOWN_USERS: Final = 5

Service = Annotated[
    str, Meta(min_length=1, max_length=64, pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]*(?!\n)$", examples=["openai"])
]
Key = Annotated[str, Meta(min_length=1, max_length=8192, examples=["sk-..."])]
Seal = Callable[[bytes], bytes]


class ProviderKey(msgspec.Struct, kw_only=True):
    """A key as the API shows it. Models and tools name it by id, name or `slug`.

    `last_four` is null for keys that are too short to show any of it.
    """

    id: str
    name: str
    slug: str
    service: str
    last_four: str | None
    tenant_id: str
    created_at: datetime
    updated_at: datetime


class NewProviderKey(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """A key to keep. `service` is the provider whose models use it unless they name another key."""

    name: Annotated[Name, Meta(examples=["OpenAI API Key"])]
    service: Service
    key: Key

    def __repr__(self) -> str:
        return f"NewProviderKey(name={self.name!r})"


class PatchProviderKey(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """What to change. A new `key` holds from the next call on; what names a renamed key follows it."""

    name: Name | UnsetType = UNSET
    service: Service | UnsetType = UNSET
    key: Key | UnsetType = UNSET

    def __repr__(self) -> str:
        return f"PatchProviderKey(name={self.name!r})"


class ProviderKeys(Protocol):
    """The provider keys of the bound tenant; `sealed_texts` and `replace` work on those of all."""

    async def add(self, key: ProviderKey, sealed: bytes) -> bool: ...
    async def find(self, reference: str, lock: bool | Literal["share"] = False) -> ProviderKey | None: ...
    async def list_page(self, page: Page, service: str | None) -> Listing[ProviderKey]: ...
    async def save(self, key: ProviderKey, sealed: bytes | None) -> bool: ...
    async def delete(self, key_id: str) -> None: ...
    async def find_slug_holders(self, slugs: list[str]) -> dict[str, str]:
        """The names of the keys that have these slugs, by slug."""
        ...

    async def list_users(self, slug: str) -> list[str]:
        """What names this key, as `model fast` or `tool Search`."""
        ...

    async def find_sealed(self, slug: str) -> bytes | None: ...
    async def find_sealed_for_service(self, service: str) -> bytes | None:
        """The sealed key for a service, if there is exactly one for it, whatever its letters' case."""
        ...

    async def list_sealed(self, after: str | None, most: int) -> list[tuple[str, bytes]]:
        """Ids and sealed keys of all tenants, in the order of ids."""
        ...

    async def replace_sealed(self, key_id: str, old: bytes, new: bytes) -> bool:
        """Put `new` where `old` still is."""
        ...


def check_key_text(key: str) -> str:
    """A key that can be sent in a header. Errors: `invalid_field`, without showing it."""
    if not PROVIDER_KEY_PATTERN.fullmatch(key):
        raise InvalidField("key", "must be printable ASCII without spaces around it: check how it was copied.")
    return key


def get_last_four(key: str) -> str | None:
    """The end of a key, to tell it from others, unless that gave too much of it away."""
    return key[-4:] if len(key) >= MIN_SHOWABLE_CHARACTERS else None


async def create_provider_key(tx: Tx, caller: Caller, data: NewProviderKey, seal: Seal) -> ProviderKey:
    """Keep a key. Errors: `conflict` when the name's slug is taken."""
    key = ProviderKey(
        id=ids.generate_id("pkey"),
        name=names.check_name(data.name, "pkey"),
        slug=await _slug(tx, data.name),
        service=data.service,
        last_four=get_last_four(check_key_text(data.key)),
        tenant_id=caller.tenant_id,
        created_at=tx.now,
        updated_at=tx.now,
    )
    if not await tx.provider_keys.add(key, seal(data.key.encode())):
        raise names.NameTaken("provider key", key.name)
    return key


async def _slug(tx: Tx, name: str, of: ProviderKey | None = None) -> str:
    """Return the slug of a key's name. Errors: `conflict` for a name that is alike."""
    holders = await tx.provider_keys.find_slug_holders(names.list_slug_candidates("key", name))
    own = "" if of is None else of.slug
    return names.choose_slug("key", name, own, {slug: other for slug, other in holders.items() if slug != own})


async def get_provider_key(tx: Tx, reference: str, lock: bool | Literal["share"] = False) -> ProviderKey:
    """A key by id, name or slug. Errors: `not_found`."""
    key = await tx.provider_keys.find(reference, lock)
    if key is None:
        raise NotFound("provider key", reference)
    return key


async def list_provider_keys(tx: Tx, page: Page, service: str | None) -> Listing[ProviderKey]:
    """The tenant's keys, newest first."""
    return await tx.provider_keys.list_page(page, service)


async def resolve_key_slug(tx: Tx, reference: str, field: str) -> str:
    """The slug of the key that `field` names, which stays until the commit. Errors: `invalid_field`."""
    key = await tx.provider_keys.find(reference, "share")
    if key is None:
        raise InvalidField(field, f"there is no provider key {reference!r}; add it under /provider-keys.")
    return key.slug


async def get_sealed_key(tx: Tx, reference: str) -> bytes:
    """A key as it lies in the database, by its slug. Errors: `not_found`."""
    found = await tx.provider_keys.find_sealed(reference)
    if found is None:
        raise NotFound("provider key", reference)
    return found


async def patch_provider_key(tx: Tx, reference: str, data: PatchProviderKey, seal: Seal) -> ProviderKey:
    """Change what was sent. Errors: `not_found`, `conflict` when the new name's slug is taken."""
    key = await get_provider_key(tx, reference, lock=True)
    before, fresh = key.slug, None
    if data.name is not UNSET:
        key.slug = await _slug(tx, names.check_name(data.name, "pkey"), key)
        key.name = data.name
    if data.service is not UNSET:
        key.service = data.service
    if data.key is not UNSET:
        key.last_four, fresh = get_last_four(check_key_text(data.key)), seal(data.key.encode())
    key.updated_at = tx.now
    if not await tx.provider_keys.save(key, fresh):
        raise names.NameTaken("provider key", key.name)
    if key.slug != before:
        # Models follow by their foreign key; a tool's configuration is JSON.
        for tool in await tx.tools.list_by_provider_key(before):
            follow = {header: key.slug if slug == before else slug for header, slug in tool.secrets.items()}
            tool.configuration = {**tool.configuration, "secrets": follow}
            await tx.tools.save(tool)
    return key


async def delete_provider_key(tx: Tx, reference: str) -> None:
    """Remove a key for good. Errors: `not_found`, `conflict` naming the models and tools that name it."""
    key = await get_provider_key(tx, reference, lock=True)
    users = await tx.provider_keys.list_users(key.slug)
    if users:
        more = f" and {len(users) - _SHOWN_USERS} more" if len(users) > _SHOWN_USERS else ""
        raise Conflict(
            f"The provider key {key.slug!r} is used by {', '.join(users[:_SHOWN_USERS])}{more}: "
            "give them another key first."
        )
    await tx.provider_keys.delete(key.id)
