"""Handle the registry of models: create, list, get, update and delete."""

from litestar import Response, Router, delete, get, post, route

from api.idempotency import ResourceCreator
from api.operations import IDEMPOTENCY_KEY, require_scope
from api.requests import HttpRequest, Store
from domain import llms
from domain.llms import Model, NewModel, PatchModel, Provider
from domain.shared.access import Caller
from domain.shared.pages import Listing, Page

# Names of models may hold slashes: `openai/gpt-4o`.
_ITEM_PATH = "/models/{model_id:path}"


@post("/models", opt=require_scope("write:catalog", IDEMPOTENCY_KEY))
async def create_model(
    creator: ResourceCreator, request: HttpRequest, caller: Caller, data: NewModel
) -> Response[Model]:
    """Register a model under a name that agents can use."""
    return await creator.create_idempotently(request, caller, lambda tx: llms.create_model(tx, caller, data))


@get("/models", opt=require_scope("read:catalog"))
async def list_models(
    store: Store, caller: Caller, pagination: Page, provider: Provider | None = None
) -> Listing[Model]:
    """List the tenant's models, newest first. `smollm2`, which runs locally, is registered from the start."""
    async with store.transaction(caller) as tx:
        return await llms.list_models(tx, pagination, provider)


@get(_ITEM_PATH, opt=require_scope("read:catalog"))
async def get_model(store: Store, caller: Caller, model_id: str) -> Model:
    """Return a model by id or name."""
    async with store.transaction(caller) as tx:
        return await llms.get_model(tx, model_id.removeprefix("/"))


@route(_ITEM_PATH, http_method=["PATCH", "PUT"], opt=require_scope("write:catalog"), status_code=200)
async def update_model(store: Store, caller: Caller, model_id: str, data: PatchModel) -> Model:
    """Change the fields that are sent; PUT does the same. The change applies to calls that begin later."""
    async with store.transaction(caller) as tx:
        return await llms.patch_model(tx, caller, model_id.removeprefix("/"), data)


@delete(_ITEM_PATH, opt=require_scope("write:catalog"))
async def delete_model(store: Store, caller: Caller, model_id: str) -> None:
    """Delete a model from the registry."""
    async with store.transaction(caller) as tx:
        await llms.delete_model(tx, model_id.removeprefix("/"))


router = Router("/", route_handlers=[create_model, list_models, get_model, update_model, delete_model], tags=["models"])
