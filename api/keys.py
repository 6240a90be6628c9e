"""Handle API keys: create, list, get, update, revoke and delete."""

from litestar import Response, Router, delete, get, patch, post

from api.idempotency import ResourceCreator
from api.operations import IDEMPOTENCY_KEY, require_scope
from api.requests import HttpRequest, Store
from domain import accounts
from domain.accounts import ApiKey, CreatedApiKey, NewApiKey, PatchApiKey
from domain.shared.access import Caller
from domain.shared.pages import Listing, Page
from infra.credentials import API_KEY_PREFIX, generate_token, hash_token

# `/auth/api-keys` is AgentOps' name for the same thing.
_LIST_PATHS = ["/api-keys", "/auth/api-keys"]
_ITEM_PATHS = ["/api-keys/{key_id:str}", "/auth/api-keys/{key_id:str}"]


@post(_LIST_PATHS, opt=require_scope("account", IDEMPOTENCY_KEY))
async def create_key(
    creator: ResourceCreator, request: HttpRequest, caller: Caller, data: NewApiKey
) -> Response[CreatedApiKey]:
    """Create a key. `key` is shown only in this answer."""
    secret = generate_token(API_KEY_PREFIX)
    return await creator.create_idempotently(
        request, caller, lambda tx: accounts.create_api_key(tx, caller, data, secret, hash_token(secret))
    )


@get(_LIST_PATHS, opt=require_scope("account"))
async def list_keys(store: Store, caller: Caller, pagination: Page) -> Listing[ApiKey]:
    """List your own keys; an admin sees all keys of the tenant."""
    async with store.transaction(caller) as tx:
        return await accounts.list_api_keys(tx, caller, pagination)


@get(_ITEM_PATHS, opt=require_scope("account"))
async def get_key(store: Store, caller: Caller, key_id: str) -> ApiKey:
    """Return a key, without its secret."""
    async with store.transaction(caller) as tx:
        return await accounts.get_api_key(tx, caller, key_id)


@patch(_ITEM_PATHS, opt=require_scope("account"))
async def update_key(store: Store, caller: Caller, key_id: str, data: PatchApiKey) -> ApiKey:
    """Change the fields that are sent. The secret itself never changes."""
    async with store.transaction(caller) as tx:
        return await accounts.patch_api_key(tx, caller, key_id, data)


@post("/api-keys/{key_id:str}/revoke", opt=require_scope("account"), status_code=200)
async def revoke_key(store: Store, caller: Caller, key_id: str) -> ApiKey:
    """Revoke a key from the next request on, and keep it in lists."""
    async with store.transaction(caller) as tx:
        return await accounts.revoke_api_key(tx, caller, key_id)


@delete(_ITEM_PATHS, opt=require_scope("account"))
async def delete_key(store: Store, caller: Caller, key_id: str) -> None:
    """Delete a key permanently."""
    async with store.transaction(caller) as tx:
        await accounts.delete_api_key(tx, caller, key_id)


router = Router(
    "/", route_handlers=[create_key, list_keys, get_key, update_key, revoke_key, delete_key], tags=["api keys"]
)
