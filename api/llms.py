"""The registry of models: register, list, change, remove."""

from litestar import Response, Router, delete, get, post, route

from api.front import Front, created, needs
from api.requests import HttpRequest
from domain import llms
from domain.llms import Model, NewModel, PatchModel, Provider
from domain.shared.access import Caller
from domain.shared.pages import Listing, Page

# Names of models may hold slashes: `openai/gpt-4o`.
_ONE = "/models/{model_id:path}"


@post("/models", opt=needs("write:catalog"))
async def create_model(front: Front, request: HttpRequest, caller: Caller, data: NewModel) -> Response[Model]:
    """Register a model, under a name that agents can be given."""
    return await created(front, request, caller, lambda tx: llms.create(tx, caller, data))


@get("/models", opt=needs("read:catalog"))
async def list_models(front: Front, caller: Caller, part: Page, provider: Provider | None = None) -> Listing[Model]:
    """The tenant's models, newest first. `smollm2`, which runs here, is there from the start."""
    async with front.store.begin(caller) as tx:
        return await llms.list_models(tx, part, provider)


@get(_ONE, opt=needs("read:catalog"))
async def get_model(front: Front, caller: Caller, model_id: str) -> Model:
    """A model by id or name."""
    async with front.store.begin(caller) as tx:
        return await llms.get(tx, model_id.removeprefix("/"))


@route(_ONE, http_method=["PATCH", "PUT"], opt=needs("write:catalog"), status_code=200)
async def patch_model(front: Front, caller: Caller, model_id: str, data: PatchModel) -> Model:
    """Change what was sent; PUT does the same. Calls that begin later see it."""
    async with front.store.begin(caller) as tx:
        return await llms.patch(tx, caller, model_id.removeprefix("/"), data)


@delete(_ONE, opt=needs("write:catalog"))
async def delete_model(front: Front, caller: Caller, model_id: str) -> None:
    """Remove a model from the registry."""
    async with front.store.begin(caller) as tx:
        await llms.delete(tx, model_id.removeprefix("/"))


router = Router("/", route_handlers=[create_model, list_models, get_model, patch_model, delete_model], tags=["models"])
