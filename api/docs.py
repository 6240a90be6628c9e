"""The documentation pages: Swagger UI from a wheel, ReDoc from its own release; and the document. All work offline."""

import html
import importlib.resources
from importlib.resources.abc import Traversable
from typing import Any, Final

from litestar import Response, Router, get
from litestar.exceptions import NotFoundException

from api.front import PUBLIC, Front
from api.requests import HttpRequest

_PAGES: Final = importlib.resources.files("api") / "pages"
_SWAGGER: Final = importlib.resources.files("swagger_ui") / "static"
_SCRIPT: Final = "text/javascript"
_TITLE: Final = b"<title>Paddock</title>"
_ASSETS: Final[dict[str, tuple[Traversable, str]]] = {
    "docs.js": (_PAGES, _SCRIPT),
    "redoc.js": (_PAGES, _SCRIPT),
    "redoc.standalone.js": (_PAGES, _SCRIPT),
    "redoc.standalone.js.LICENSE.txt": (_PAGES, "text/plain"),
    "swagger-ui-bundle.js": (_SWAGGER, _SCRIPT),
    "swagger-ui-standalone-preset.js": (_SWAGGER, _SCRIPT),
    "swagger-ui.css": (_SWAGGER, "text/css"),
    "favicon-32x32.png": (_SWAGGER, "image/png"),
}
# Both pages put styles into themselves; ReDoc searches in a worker that it makes of its own text.
PAGE_POLICY: Final = (
    "default-src 'none'; script-src 'self'; style-src 'self' 'unsafe-inline'; img-src 'self' data:; font-src data:; "
    "connect-src 'self'; worker-src blob:; base-uri 'none'; form-action 'self'; frame-ancestors 'none'"
)


def _page(name: str, title: str) -> Response[bytes]:
    page = (_PAGES / name).read_bytes().replace(_TITLE, f"<title>{html.escape(title)}</title>".encode())
    return Response(page, media_type="text/html", headers={"Content-Security-Policy": PAGE_POLICY})


@get("/docs", opt=PUBLIC, include_in_schema=False, media_type="text/html")
async def swagger(front: Front) -> Response[bytes]:
    """Swagger UI."""
    return _page("docs.html", front.settings.app_name)


@get("/redoc", opt=PUBLIC, include_in_schema=False, media_type="text/html")
async def redoc(front: Front) -> Response[bytes]:
    """ReDoc."""
    return _page("redoc.html", front.settings.app_name)


@get("/openapi.json", opt=PUBLIC, include_in_schema=False)
async def document(request: HttpRequest) -> dict[str, Any]:
    """The OpenAPI document."""
    document: dict[str, Any] = request.app.state.document
    return document


@get("/docs/assets/{name:str}", opt=PUBLIC, include_in_schema=False)
async def asset(name: str) -> Response[bytes]:
    """A file of the pages."""
    if name not in _ASSETS:
        raise NotFoundException(f"There is no {name!r} here.")
    folder, media_type = _ASSETS[name]
    headers = {"Cache-Control": "public, max-age=86400"}
    return Response((folder / name).read_bytes(), media_type=media_type, headers=headers)


router = Router("/", route_handlers=[swagger, redoc, document, asset])
