"""The documentation pages: Swagger UI from a wheel, so that it works without the internet; ReDoc; the document."""

import importlib.resources
from typing import Any, Final

from litestar import Response, Router, get
from litestar.exceptions import NotFoundException
from litestar.openapi.plugins import RedocRenderPlugin, SwaggerRenderPlugin

from api.front import PUBLIC
from api.requests import HttpRequest

_ASSETS: Final = {
    "swagger-ui-bundle.js": "text/javascript",
    "swagger-ui-standalone-preset.js": "text/javascript",
    "swagger-ui.css": "text/css",
    "favicon-32x32.png": "image/png",
}
_ICON: Final = '<link rel="icon" href="/docs/assets/favicon-32x32.png">'
_swagger: Final = SwaggerRenderPlugin(
    js_url="/docs/assets/swagger-ui-bundle.js",
    css_url="/docs/assets/swagger-ui.css",
    standalone_preset_js_url="/docs/assets/swagger-ui-standalone-preset.js",
    favicon=_ICON,
)
_redoc: Final = RedocRenderPlugin(favicon=_ICON, google_fonts=False)


@get("/docs", opt=PUBLIC, include_in_schema=False, media_type="text/html")
async def swagger(request: HttpRequest) -> bytes:
    """Swagger UI."""
    return _swagger.render(request, _document(request))


@get("/redoc", opt=PUBLIC, include_in_schema=False, media_type="text/html")
async def redoc(request: HttpRequest) -> bytes:
    """ReDoc. Its script comes from its makers' host, as no package carries it."""
    return _redoc.render(request, _document(request))


@get("/openapi.json", opt=PUBLIC, include_in_schema=False)
async def document(request: HttpRequest) -> dict[str, Any]:
    """The OpenAPI document."""
    return _document(request)


@get("/docs/assets/{name:str}", opt=PUBLIC, include_in_schema=False)
async def asset(name: str) -> Response[bytes]:
    """A file of Swagger UI."""
    if name not in _ASSETS:
        raise NotFoundException(f"There is no {name!r} here.")
    data = importlib.resources.files("swagger_ui").joinpath("static", name).read_bytes()
    return Response(data, media_type=_ASSETS[name], headers={"Cache-Control": "public, max-age=86400"})


def _document(request: HttpRequest) -> dict[str, Any]:
    document: dict[str, Any] = request.app.state.document
    return document


router = Router("/", route_handlers=[swagger, redoc, document, asset])
