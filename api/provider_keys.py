"""Handle keys for outside services: create, list, get, update and delete. No answer shows a key."""

from litestar import Response, Router, delete, get, post, route

from api.idempotency import ResourceCreator
from api.operations import IDEMPOTENCY_KEY, require_scope
from api.requests import HttpRequest, Store
from domain import provider_keys
from domain.provider_keys import NewProviderKey, PatchProviderKey, ProviderKey
from domain.shared.access import Caller
from domain.shared.pages import Listing, Page
from infra.credentials import Keyring

_ITEM_PATH = "/provider-keys/{provider_key_id:str}"


@post("/provider-keys", opt=require_scope("write:catalog", IDEMPOTENCY_KEY))
async def create_provider_key(
    creator: ResourceCreator, keyring: Keyring, request: HttpRequest, caller: Caller, data: NewProviderKey
) -> Response[ProviderKey]:
    """Store a key for an outside service. It is encrypted, and no answer shows it."""
    seal = keyring.seal
    return await creator.create_idempotently(
        request, caller, lambda tx: provider_keys.create_provider_key(tx, caller, data, seal)
    )


@get("/provider-keys", opt=require_scope("read:catalog"))
async def list_provider_keys(
    store: Store, caller: Caller, pagination: Page, service: str | None = None
) -> Listing[ProviderKey]:
    """List the tenant's keys for outside services, newest first."""
    async with store.transaction(caller) as tx:
        return await provider_keys.list_provider_keys(tx, pagination, service)


@get(_ITEM_PATH, opt=require_scope("read:catalog"))
async def get_provider_key(store: Store, caller: Caller, provider_key_id: str) -> ProviderKey:
    """Return a key by id, name or slug, without its value."""
    async with store.transaction(caller) as tx:
        return await provider_keys.get_provider_key(tx, provider_key_id)


@route(_ITEM_PATH, http_method=["PATCH", "PUT"], opt=require_scope("write:catalog"), status_code=200)
async def update_provider_key(
    store: Store, keyring: Keyring, caller: Caller, provider_key_id: str, data: PatchProviderKey
) -> ProviderKey:
    """Change the fields that are sent; PUT does the same. Models and tools follow a renamed key."""
    async with store.transaction(caller) as tx:
        return await provider_keys.patch_provider_key(tx, provider_key_id, data, keyring.seal)


@delete(_ITEM_PATH, opt=require_scope("write:catalog"))
async def delete_provider_key(store: Store, caller: Caller, provider_key_id: str) -> None:
    """Delete a key permanently. A key that a model or a tool uses is refused with 409."""
    async with store.transaction(caller) as tx:
        await provider_keys.delete_provider_key(tx, provider_key_id)


router = Router(
    "/",
    route_handlers=[
        create_provider_key,
        list_provider_keys,
        get_provider_key,
        update_provider_key,
        delete_provider_key,
    ],
    tags=["provider keys"],
)
