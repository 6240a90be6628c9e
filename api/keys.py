"""API keys: create, list, change, revoke, delete."""

from litestar import Response, Router, delete, get, patch, post

from api.front import Front, created, needs
from api.requests import HttpRequest
from domain.accounts import keys
from domain.accounts.keys import ApiKey, CreatedKey, NewKey, PatchKey
from domain.shared.access import Caller
from domain.shared.pages import Listing, Page
from infra.credentials import KEY_PREFIX, new_token, token_hash

# `/auth/api-keys` is AgentOps' name for the same thing.
_ALL = ["/api-keys", "/auth/api-keys"]
_ONE = ["/api-keys/{key_id:str}", "/auth/api-keys/{key_id:str}"]


@post(_ALL, opt=needs("account"))
async def create_key(front: Front, request: HttpRequest, caller: Caller, data: NewKey) -> Response[CreatedKey]:
    """Create a key. The answer's `key` is shown this once."""
    key = new_token(KEY_PREFIX)
    return await created(front, request, caller, lambda tx: keys.create(tx, caller, data, key, token_hash(key)))


@get(_ALL, opt=needs("account"))
async def list_keys(front: Front, caller: Caller, part: Page) -> Listing[ApiKey]:
    """One's own keys; an admin sees the tenant's."""
    async with front.store.begin(caller) as tx:
        return await keys.list_keys(tx, caller, part)


@get(_ONE, opt=needs("account"))
async def get_key(front: Front, caller: Caller, key_id: str) -> ApiKey:
    """One key."""
    async with front.store.begin(caller) as tx:
        return await keys.get(tx, caller, key_id)


@patch(_ONE, opt=needs("account"))
async def patch_key(front: Front, caller: Caller, key_id: str, data: PatchKey) -> ApiKey:
    """Change what was sent. The key itself never changes."""
    async with front.store.begin(caller) as tx:
        return await keys.patch(tx, caller, key_id, data)


@post("/api-keys/{key_id:str}/revoke", opt=needs("account"), status_code=200)
async def revoke_key(front: Front, caller: Caller, key_id: str) -> ApiKey:
    """Make a key useless from the next request on, and keep it on the list."""
    async with front.store.begin(caller) as tx:
        return await keys.revoke(tx, caller, key_id)


@delete(_ONE, opt=needs("account"))
async def delete_key(front: Front, caller: Caller, key_id: str) -> None:
    """Remove a key for good."""
    async with front.store.begin(caller) as tx:
        await keys.delete(tx, caller, key_id)


router = Router(
    "/", route_handlers=[create_key, list_keys, get_key, patch_key, revoke_key, delete_key], tags=["api keys"]
)
