"""Prompt templates: create, list, change, delete, fill in."""

from litestar import Response, Router, delete, get, post, route

from api.front import Front, created, needs
from api.requests import HttpRequest
from domain import templates
from domain.shared.access import Caller
from domain.shared.pages import Listing, Page
from domain.templates import NewTemplate, PatchTemplate, Render, Rendered, Template

_ONE = "/templates/{template_id:str}"


@post("/templates", opt=needs("write:catalog"))
async def create_template(front: Front, request: HttpRequest, caller: Caller, data: NewTemplate) -> Response[Template]:
    """Keep a template for agents and tasks. `{name}` in its text is a variable."""
    return await created(front, request, caller, lambda tx: templates.create(tx, caller, data))


@get("/templates", opt=needs("read:catalog"))
async def list_templates(front: Front, caller: Caller, part: Page) -> Listing[Template]:
    """The tenant's templates, newest first."""
    async with front.store.begin(caller) as tx:
        return await templates.list_templates(tx, part)


@get(_ONE, opt=needs("read:catalog"))
async def get_template(front: Front, caller: Caller, template_id: str) -> Template:
    """A template by id or name."""
    async with front.store.begin(caller) as tx:
        return await templates.get(tx, template_id)


@route(_ONE, http_method=["PATCH", "PUT"], opt=needs("write:catalog"), status_code=200)
async def patch_template(front: Front, caller: Caller, template_id: str, data: PatchTemplate) -> Template:
    """Change what was sent; PUT does the same. Runs that have begun keep the text they were started with."""
    async with front.store.begin(caller) as tx:
        return await templates.patch(tx, template_id, data)


@delete(_ONE, opt=needs("write:catalog"))
async def delete_template(front: Front, caller: Caller, template_id: str) -> None:
    """Remove a template that no agent and no task uses."""
    async with front.store.begin(caller) as tx:
        await templates.delete(tx, template_id)


@post("/templates/{template_id:str}/render", opt=needs("read:catalog"), status_code=200)
async def render_template(front: Front, caller: Caller, template_id: str, data: Render) -> Rendered:
    """The template's text with a value for each of its variables."""
    async with front.store.begin(caller) as tx:
        return await templates.render(tx, template_id, data)


router = Router(
    "/",
    route_handlers=[
        create_template,
        list_templates,
        get_template,
        patch_template,
        delete_template,
        render_template,
    ],
    tags=["templates"],
)
