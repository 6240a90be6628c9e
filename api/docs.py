"""Serve the OpenAPI document and its pages: Swagger UI from a wheel, ReDoc from its own release. All work offline."""

import html
import importlib.resources
from importlib.resources.abc import Traversable
from typing import Any, Final

from litestar import Response, Router, get
from litestar.exceptions import NotFoundException
from litestar.response import Redirect

from api.operations import PUBLIC_ACCESS
from api.requests import HttpRequest
from infra.settings import Settings

_PAGE_FOLDER: Final = importlib.resources.files("api") / "pages"
_SWAGGER_FOLDER: Final = importlib.resources.files("swagger_ui") / "static"
_SCRIPT_TYPE: Final = "text/javascript"
_TITLE_TAG: Final = b"<title>Paddock</title>"
_ASSET_FILES: Final[dict[str, tuple[Traversable, str]]] = {
    "docs.js": (_PAGE_FOLDER, _SCRIPT_TYPE),
    "redoc.js": (_PAGE_FOLDER, _SCRIPT_TYPE),
    "redoc.standalone.js": (_PAGE_FOLDER, _SCRIPT_TYPE),
    "redoc.standalone.js.LICENSE.txt": (_PAGE_FOLDER, "text/plain"),
    "swagger-ui-bundle.js": (_SWAGGER_FOLDER, _SCRIPT_TYPE),
    "swagger-ui-standalone-preset.js": (_SWAGGER_FOLDER, _SCRIPT_TYPE),
    "swagger-ui.css": (_SWAGGER_FOLDER, "text/css"),
    "favicon-32x32.png": (_SWAGGER_FOLDER, "image/png"),
}
# Both pages insert styles into themselves; ReDoc's search runs in a worker made from a blob.
PAGE_POLICY: Final = (
    "default-src 'none'; script-src 'self'; style-src 'self' 'unsafe-inline'; img-src 'self' data:; font-src data:; "
    "connect-src 'self'; worker-src blob:; base-uri 'none'; form-action 'self'; frame-ancestors 'none'"
)


def _render_page(name: str, title: str) -> Response[bytes]:
    page = (_PAGE_FOLDER / name).read_bytes().replace(_TITLE_TAG, f"<title>{html.escape(title)}</title>".encode())
    return Response(page, media_type="text/html", headers={"Content-Security-Policy": PAGE_POLICY})


@get("/", opt=PUBLIC_ACCESS, include_in_schema=False)
async def show_start() -> Redirect:
    """Redirect browsers that open the address of the API to its pages."""
    return Redirect("/docs")


@get("/docs", opt=PUBLIC_ACCESS, include_in_schema=False, media_type="text/html")
async def show_swagger(settings: Settings) -> Response[bytes]:
    """Return the Swagger UI page."""
    return _render_page("docs.html", settings.app_name)


@get("/redoc", opt=PUBLIC_ACCESS, include_in_schema=False, media_type="text/html")
async def show_redoc(settings: Settings) -> Response[bytes]:
    """Return the ReDoc page."""
    return _render_page("redoc.html", settings.app_name)


@get("/openapi.json", opt=PUBLIC_ACCESS, include_in_schema=False)
async def get_document(request: HttpRequest) -> dict[str, Any]:
    """Return the OpenAPI document."""
    openapi_document: dict[str, Any] = request.app.state.openapi_document
    return openapi_document


@get("/docs/assets/{name:str}", opt=PUBLIC_ACCESS, include_in_schema=False)
async def get_asset(name: str) -> Response[bytes]:
    """Return a file of the pages."""
    if name not in _ASSET_FILES:
        raise NotFoundException(f"No file named {name!r}.")
    folder, media_type = _ASSET_FILES[name]
    headers = {"Cache-Control": "public, max-age=86400"}
    return Response((folder / name).read_bytes(), media_type=media_type, headers=headers)


router = Router("/", route_handlers=[show_start, show_swagger, show_redoc, get_document, get_asset])
