"""Handle prompt templates: create, list, get, update, delete and render."""

from litestar import Response, Router, delete, get, post, route

from api.idempotency import ResourceCreator
from api.operations import IDEMPOTENCY_KEY, require_scope
from api.requests import HttpRequest, Store
from domain import templates
from domain.shared.access import Caller
from domain.shared.pages import Listing, Page
from domain.templates import NewTemplate, PatchTemplate, RenderedTemplate, Template, TemplateRender

_ITEM_PATH = "/templates/{template_id:str}"


@post("/templates", opt=require_scope("write:catalog", IDEMPOTENCY_KEY))
async def create_template(
    creator: ResourceCreator, request: HttpRequest, caller: Caller, data: NewTemplate
) -> Response[Template]:
    """Create a template for agents and tasks. `{name}` in its text is a variable."""
    return await creator.create_idempotently(request, caller, lambda tx: templates.create_template(tx, caller, data))


@get("/templates", opt=require_scope("read:catalog"))
async def list_templates(store: Store, caller: Caller, pagination: Page) -> Listing[Template]:
    """List the tenant's templates, newest first."""
    async with store.transaction(caller) as tx:
        return await templates.list_templates(tx, pagination)


@get(_ITEM_PATH, opt=require_scope("read:catalog"))
async def get_template(store: Store, caller: Caller, template_id: str) -> Template:
    """Return a template by id or name."""
    async with store.transaction(caller) as tx:
        return await templates.get_template(tx, template_id)


@route(_ITEM_PATH, http_method=["PATCH", "PUT"], opt=require_scope("write:catalog"), status_code=200)
async def update_template(store: Store, caller: Caller, template_id: str, data: PatchTemplate) -> Template:
    """Change the fields that are sent; PUT does the same. Started executions keep the old text."""
    async with store.transaction(caller) as tx:
        return await templates.update_template(tx, template_id, data)


@delete(_ITEM_PATH, opt=require_scope("write:catalog"))
async def delete_template(store: Store, caller: Caller, template_id: str) -> None:
    """Delete a template that no agent and no task uses."""
    async with store.transaction(caller) as tx:
        await templates.delete_template(tx, template_id)


@post("/templates/{template_id:str}/render", opt=require_scope("read:catalog"), status_code=200)
async def render_template(store: Store, caller: Caller, template_id: str, data: TemplateRender) -> RenderedTemplate:
    """Return the template's text with a value for each of its variables."""
    async with store.transaction(caller) as tx:
        return await templates.render_template(tx, template_id, data)


router = Router(
    "/",
    route_handlers=[
        create_template,
        list_templates,
        get_template,
        update_template,
        delete_template,
        render_template,
    ],
    tags=["templates"],
)
