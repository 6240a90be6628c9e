"""Manage keys for outside services (model providers, APIs of tools): encrypted at rest and never shown again."""

import re
from collections.abc import Callable
from datetime import datetime
from typing import Annotated, Final, Literal, Protocol

import msgspec
from msgspec import UNSET, Meta, UnsetType

from domain.ports import Tx
from domain.shared import ids, names
from domain.shared.access import Caller
from domain.shared.aws_keys import AWS_KEY_FORMS, InvalidAwsKey, parse_aws_key
from domain.shared.errors import Conflict, InvalidField, require_found
from domain.shared.names import Name
from domain.shared.pages import Listing, Page

# Keys are sent in headers, which allow no other characters (RFC 9110 section 5.5).
PROVIDER_KEY_PATTERN: Final = re.compile(r"[!-~](?:[ -~]*[!-~])?")
# The last four characters would reveal too much of a shorter key.
MIN_SHOWABLE_CHARACTERS: Final = 20
_MAX_SHOWN_USERS: Final = 5

ServiceName = Annotated[
    str, Meta(min_length=1, max_length=64, pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]*(?!\n)$", examples=["openai"])
]
KeyText = Annotated[str, Meta(min_length=1, max_length=8192, examples=["sk-..."])]
KeySealer = Callable[[bytes], bytes]


class ProviderKey(msgspec.Struct, kw_only=True):
    """Show a provider key without its secret. Models and tools name it by id, name or `slug`.

    `last_four` is null for keys that are too short to show a part of them.
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
    """Store a key. `service` is the provider whose models use the key, unless they name another one."""

    name: Annotated[Name, Meta(examples=["OpenAI API Key"])]
    service: ServiceName
    key: KeyText

    def __repr__(self) -> str:
        return f"NewProviderKey(name={self.name!r})"


class PatchProviderKey(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """Change a key. A new `key` is used from the next call on; models and tools follow a renamed key."""

    name: Name | UnsetType = UNSET
    service: ServiceName | UnsetType = UNSET
    key: KeyText | UnsetType = UNSET

    def __repr__(self) -> str:
        return f"PatchProviderKey(name={self.name!r})"


class ProviderKeys(Protocol):
    """Store the provider keys of the bound tenant; `list_sealed` and `replace_sealed` work on all tenants."""

    async def add(self, key: ProviderKey, sealed: bytes) -> bool: ...
    async def find(self, reference: str, lock: bool | Literal["share"] = False) -> ProviderKey | None: ...
    async def list_page(self, page: Page, service: str | None) -> Listing[ProviderKey]: ...
    async def save(self, key: ProviderKey, sealed: bytes | None) -> bool: ...
    async def delete(self, key_id: str) -> None: ...
    async def find_slug_holders(self, slugs: list[str]) -> dict[str, str]:
        """Return the names of the keys with these slugs, by slug."""
        ...

    async def list_users(self, slug: str) -> list[str]:
        """List the resources that name this key, as `model fast` or `tool Search`."""
        ...

    async def find_sealed(self, slug: str) -> bytes | None: ...
    async def find_sealed_for_service(self, service: str) -> bytes | None:
        """Return the encrypted key for a service, ignoring case, if exactly one exists."""
        ...

    async def list_sealed(self, after: str | None, most: int) -> list[tuple[str, bytes]]:
        """List ids and encrypted keys of all tenants, ordered by id."""
        ...

    async def replace_sealed(self, key_id: str, old: bytes, new: bytes) -> bool:
        """Replace `old` by `new`, if the key is still `old`."""
        ...


def check_key_text(key: str, service: str = "") -> str:
    """Return a key that can be sent in a header, and that has a form of its service's keys, if these have a form.

    Errors: `invalid_field`, without the key.
    """
    if not PROVIDER_KEY_PATTERN.fullmatch(key):
        raise InvalidField(
            "key", "must be printable ASCII without surrounding spaces. Check that it was copied correctly."
        )
    if service.lower() == "bedrock":
        try:
            parse_aws_key(key)
        except InvalidAwsKey as error:
            raise InvalidField("key", f"{error} Send {AWS_KEY_FORMS}.") from None
    return key


def get_last_four(key: str) -> str | None:
    """Return the last four characters of a key, to recognize it, or None for a short key."""
    return key[-4:] if len(key) >= MIN_SHOWABLE_CHARACTERS else None


async def create_provider_key(tx: Tx, caller: Caller, data: NewProviderKey, seal: KeySealer) -> ProviderKey:
    """Store a key. Errors: `conflict` for a taken name."""
    key = ProviderKey(
        id=ids.generate_id("pkey"),
        name=names.check_name(data.name, "pkey"),
        slug=await _choose_slug(tx, data.name),
        service=data.service,
        last_four=get_last_four(check_key_text(data.key, data.service)),
        tenant_id=caller.tenant_id,
        created_at=tx.now,
        updated_at=tx.now,
    )
    if not await tx.provider_keys.add(key, seal(data.key.encode())):
        raise names.NameTaken("provider key", key.name)
    return key


async def _choose_slug(tx: Tx, name: str, key: ProviderKey | None = None) -> str:
    """Return the slug of a key's name. Errors: `conflict` for an alike name."""
    holders = await tx.provider_keys.find_slug_holders(names.list_slug_candidates("key", name))
    own = "" if key is None else key.slug
    return names.choose_slug("key", name, own, {slug: other for slug, other in holders.items() if slug != own})


async def get_provider_key(tx: Tx, reference: str, lock: bool | Literal["share"] = False) -> ProviderKey:
    """Return a key by id, name or slug. Errors: `not_found`."""
    return require_found("provider key", reference, await tx.provider_keys.find(reference, lock))


async def list_provider_keys(tx: Tx, page: Page, service: str | None) -> Listing[ProviderKey]:
    """List the tenant's keys, newest first."""
    return await tx.provider_keys.list_page(page, service)


async def resolve_key_slug(tx: Tx, reference: str, field: str) -> str:
    """Return the slug of the key that `field` names, locked until the commit. Errors: `invalid_field`."""
    key = await tx.provider_keys.find(reference, "share")
    if key is None:
        raise InvalidField(field, f"names no provider key: {reference!r}. Add it under /provider-keys.")
    return key.slug


async def get_sealed_key(tx: Tx, reference: str) -> bytes:
    """Return an encrypted key by its slug. Errors: `not_found`."""
    return require_found("provider key", reference, await tx.provider_keys.find_sealed(reference))


async def patch_provider_key(tx: Tx, reference: str, data: PatchProviderKey, seal: KeySealer) -> ProviderKey:
    """Change the fields that were sent. Errors: `not_found`, `conflict` for a taken name."""
    key = await get_provider_key(tx, reference, lock=True)
    old_slug, new_sealed = key.slug, None
    if data.name is not UNSET:
        key.slug = await _choose_slug(tx, names.check_name(data.name, "pkey"), key)
        key.name = data.name
    if data.service is not UNSET:
        key.service = data.service
    if data.key is not UNSET:
        key.last_four = get_last_four(check_key_text(data.key, key.service))
        new_sealed = seal(data.key.encode())
    key.updated_at = tx.now
    if not await tx.provider_keys.save(key, new_sealed):
        raise names.NameTaken("provider key", key.name)
    if key.slug != old_slug:
        # Models follow by a foreign key; the configuration of a tool is JSON.
        for tool in await tx.tools.list_by_provider_key(old_slug):
            secrets = {header: key.slug if slug == old_slug else slug for header, slug in tool.secrets.items()}
            tool.configuration = {**tool.configuration, "secrets": secrets}
            await tx.tools.save(tool)
    return key


async def delete_provider_key(tx: Tx, reference: str) -> None:
    """Delete a key. Errors: `not_found`, `conflict` naming the models and tools that use it."""
    key = await get_provider_key(tx, reference, lock=True)
    users = await tx.provider_keys.list_users(key.slug)
    if users:
        more = f" and {len(users) - _MAX_SHOWN_USERS} more" if len(users) > _MAX_SHOWN_USERS else ""
        raise Conflict(
            f"The provider key {key.slug!r} is used by {', '.join(users[:_MAX_SHOWN_USERS])}{more}. "
            "Give them another key first."
        )
    await tx.provider_keys.delete(key.id)
