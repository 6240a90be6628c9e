"""Keys for outside services: keep, list, change, remove. None is ever shown."""

from litestar import Response, Router, delete, get, post, route

from api.front import Front, created, needs
from api.requests import HttpRequest
from domain import provider_keys
from domain.provider_keys import NewProviderKey, PatchProviderKey, ProviderKey
from domain.shared.access import Caller
from domain.shared.pages import Listing, Page

_ONE = "/provider-keys/{provider_key_id:str}"


@post("/provider-keys", opt=needs("write:catalog"))
async def create_provider_key(
    front: Front, request: HttpRequest, caller: Caller, data: NewProviderKey
) -> Response[ProviderKey]:
    """Keep a key for an outside service. It is sealed, and no answer shows it."""
    seal = front.keyring.seal
    return await created(front, request, caller, lambda tx: provider_keys.create(tx, caller, data, seal))


@get("/provider-keys", opt=needs("read:catalog"))
async def list_provider_keys(
    front: Front, caller: Caller, part: Page, service: str | None = None
) -> Listing[ProviderKey]:
    """The tenant's keys for outside services, newest first."""
    async with front.store.begin(caller) as tx:
        return await provider_keys.list_keys(tx, part, service)


@get(_ONE, opt=needs("read:catalog"))
async def get_provider_key(front: Front, caller: Caller, provider_key_id: str) -> ProviderKey:
    """A key by id, name or slug."""
    async with front.store.begin(caller) as tx:
        return await provider_keys.get(tx, provider_key_id)


@route(_ONE, http_method=["PATCH", "PUT"], opt=needs("write:catalog"), status_code=200)
async def patch_provider_key(front: Front, caller: Caller, provider_key_id: str, data: PatchProviderKey) -> ProviderKey:
    """Change what was sent; PUT does the same. Models and tools that name a renamed key follow it."""
    async with front.store.begin(caller) as tx:
        return await provider_keys.patch(tx, provider_key_id, data, front.keyring.seal)


@delete(_ONE, opt=needs("write:catalog"))
async def delete_provider_key(front: Front, caller: Caller, provider_key_id: str) -> None:
    """Remove a key for good. One that a model or a tool names stays, with 409."""
    async with front.store.begin(caller) as tx:
        await provider_keys.delete(tx, provider_key_id)


router = Router(
    "/",
    route_handlers=[
        create_provider_key,
        list_provider_keys,
        get_provider_key,
        patch_provider_key,
        delete_provider_key,
    ],
    tags=["provider keys"],
)
