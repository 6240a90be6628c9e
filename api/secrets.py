"""Handle secrets of agents: create, list, get, update and delete. No answer shows a value."""

from litestar import Response, Router, delete, get, post, route

from api.idempotency import ResourceCreator
from api.operations import IDEMPOTENCY_KEY, require_scope
from api.requests import HttpRequest, Store
from domain import secrets
from domain.secrets import AgentSecret, NewSecret, PatchSecret
from domain.shared.access import Caller
from domain.shared.pages import Listing, Page
from infra.credentials import Keyring

_ITEM_PATH = "/secrets/{secret_id:str}"


@post("/secrets", opt=require_scope("write:secrets", IDEMPOTENCY_KEY))
async def create_secret(
    creator: ResourceCreator, keyring: Keyring, request: HttpRequest, caller: Caller, data: NewSecret
) -> Response[AgentSecret]:
    """Store a secret for agents. It is encrypted, and no answer shows its value."""
    # Not a plain hash of the body: a short value could be guessed from that.
    fingerprint = keyring.fingerprint(await request.body())
    return await creator.create_idempotently(
        request, caller, lambda tx: secrets.create_secret(tx, caller, data, keyring.seal), fingerprint
    )


@get("/secrets", opt=require_scope("read:secrets"))
async def list_secrets(store: Store, caller: Caller, pagination: Page) -> Listing[AgentSecret]:
    """List the tenant's secrets without their values, newest first."""
    async with store.transaction(caller) as tx:
        return await secrets.list_secrets(tx, pagination)


@get(_ITEM_PATH, opt=require_scope("read:secrets"))
async def get_secret(store: Store, caller: Caller, secret_id: str) -> AgentSecret:
    """Return a secret by id or name, without its value."""
    async with store.transaction(caller) as tx:
        return await secrets.get_secret(tx, secret_id)


@route(_ITEM_PATH, http_method=["PATCH", "PUT"], opt=require_scope("write:secrets"), status_code=200)
async def update_secret(
    store: Store, keyring: Keyring, caller: Caller, secret_id: str, data: PatchSecret
) -> AgentSecret:
    """Change the fields that are sent; PUT does the same. Attempts that begin afterwards have the new value."""
    async with store.transaction(caller) as tx:
        return await secrets.patch_secret(tx, secret_id, data, keyring.seal)


@delete(_ITEM_PATH, opt=require_scope("write:secrets"))
async def delete_secret(store: Store, caller: Caller, secret_id: str, force: bool = False) -> None:
    """Delete a secret permanently. One that the current version of an agent needs takes `force=true`."""
    async with store.transaction(caller) as tx:
        await secrets.delete_secret(tx, secret_id, force)


router = Router(
    "/", route_handlers=[create_secret, list_secrets, get_secret, update_secret, delete_secret], tags=["secrets"]
)
