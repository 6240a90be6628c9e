"""From errors to RFC 9457 problem+json: one table from code to status."""

from typing import Any, Final

import msgspec
import structlog
from litestar import Response
from litestar.exceptions import HTTPException, ValidationException
from litestar.exceptions.http_exceptions import RequestEntityTooLarge
from litestar.params import ParameterKwarg

from api.requests import HttpRequest
from domain.shared.errors import OUTAGES, DomainError, FieldError, invalid, misread, refused
from domain.shared.field_errors import name_allowed_values
from infra.outage_log import tell_outage

_log = structlog.get_logger("paddock.api")

# code → status and title
TABLE: Final[dict[str, tuple[int, str]]] = {
    "agent_archived": (409, "The agent is archived"),
    "archive_too_large": (413, "The archive is too large"),
    "body_too_large": (413, "The request is too large"),
    "budget_exceeded": (402, "A budget is used up"),
    "concurrency_limit": (409, "As many run as may run"),
    "conflict": (409, "The state of the resource does not allow this"),
    "database_busy": (503, "The database is at its limits"),
    "database_read_only": (503, "The database takes no writes"),
    "database_slow": (503, "The database does not answer in time"),
    "database_unsafe": (503, "The database would not keep tenants apart"),
    "forbidden": (403, "Not allowed"),
    "idempotency_conflict": (409, "The Idempotency-Key was used before"),
    "internal_error": (500, "Something went wrong here"),
    "invalid_credentials": (401, "Wrong credentials"),
    "invalid_field": (422, "A field is not valid"),
    "invitation_required": (403, "An invitation is needed"),
    "malformed_request": (400, "The request cannot be read"),
    "method_not_allowed": (405, "The method is not allowed"),
    "missing_scope": (403, "A scope is missing"),
    "model_unavailable": (503, "A model does not answer"),
    "not_found": (404, "Not found"),
    "quota_exceeded": (413, "The tenant has stored as much as it may"),
    "rate_limit_exceeded": (429, "Too many requests"),
    "refresh_token_reused": (401, "The refresh token was used before"),
    "sandbox_unavailable": (503, "This host cannot isolate code"),
    "storage_full": (503, "A disk is full"),
    "storage_unavailable": (503, "Object storage is away"),
    "tool_failed": (422, "The tool failed"),
    "unauthenticated": (401, "Authentication is needed"),
    "unavailable": (503, "A part is away"),
    "version_not_ready": (409, "The version is not ready"),
}
_CODES: Final = {400: "malformed_request", 404: "not_found", 405: "method_not_allowed", 413: "body_too_large"}


class Problem(msgspec.Struct, kw_only=True, omit_defaults=True):
    """The body of every error (RFC 9457), with our stable `error` code and the fields at fault."""

    type: str
    title: str
    status: int
    detail: str
    instance: str
    error: str
    request_id: str
    errors: list[FieldError] = []
    retry_after: int | None = None


def problem(request: HttpRequest, error: DomainError) -> Response[bytes]:
    """A domain error as an answer."""
    status, title = TABLE[error.code]
    headers = {}
    if error.retry_after is not None:
        headers["Retry-After"] = str(error.retry_after)
    if status == 401:
        headers["WWW-Authenticate"] = 'Bearer realm="paddock"'
    body = Problem(
        type=f"urn:paddock:error:{error.code}",
        title=title,
        status=status,
        detail=error.detail,
        instance=request.url.path,
        error=error.code,
        request_id=request.scope.get("state", {}).get("request_id", ""),
        errors=list(error.errors),
        retry_after=error.retry_after,
    )
    return Response(
        msgspec.json.encode(body), status_code=status, headers=headers, media_type="application/problem+json"
    )


def on_domain_error(request: HttpRequest, error: DomainError) -> Response[bytes]:
    """Errors that the domain raised."""
    if error.code in OUTAGES:
        tell_outage(_log, "refused in an outage", error)
    return problem(request, error)


def on_http_error(request: HttpRequest, error: HTTPException) -> Response[bytes]:
    """Errors that Litestar raised: routing, reading and validating requests."""
    if isinstance(error, ValidationException):
        return problem(request, _fields(request, error))
    if isinstance(error, RequestEntityTooLarge):
        return problem(request, DomainError("body_too_large", "The request's body is larger than allowed here."))
    if "disconnected" in error.detail:
        # Nobody reads this answer; the log need not hold a traceback of it.
        return problem(request, DomainError("malformed_request", "The client went away before its request was read."))
    if error.status_code >= 500:
        return on_any_error(request, error)
    answer = problem(request, DomainError(_CODES.get(error.status_code, "malformed_request"), error.detail))
    answer.headers.update(error.headers or {})
    return answer


def on_unreadable(request: HttpRequest, error: Exception) -> Response[bytes]:
    """Bodies that are nested beyond reason, or are not UTF-8."""
    why = "nests too deeply" if isinstance(error, RecursionError) else "is not UTF-8 text"
    return problem(request, DomainError("malformed_request", f"The body {why}."))


def on_any_error(request: HttpRequest, error: Exception) -> Response[bytes]:
    """A mistake of ours. The log has it whole; the caller gets the request's id to ask with."""
    _log.error("unexpected error", path=request.url.path, exc_info=error)
    return problem(request, DomainError("internal_error", "An unexpected error; the log has it under the request_id."))


def _fields(request: HttpRequest, error: ValidationException) -> DomainError:
    found: list[FieldError] = []
    for item in error.extra or []:
        if not isinstance(item, dict):
            continue
        message, key = str(item.get("message", "")), str(item.get("key", ""))
        if item.get("source") == "body":
            if message in ("'data'", "Expected `object`, got `null`"):
                return DomainError("malformed_request", "The body must be a JSON object.")
            found.append(misread(message, "" if key == "data" else key.removeprefix("data.")))
        else:
            wrong = FieldError(field=_sent_as(request, key) or "request", message=message)
            found.append(name_allowed_values(wrong, _annotation(request, key)))
    if not found:
        return invalid("request", error.detail)
    return refused(found)


def _annotation(request: HttpRequest, key: str) -> Any:
    """The type of a handler's parameter, or of one of the functions that it depends on."""
    handler = request.route_handler
    for signature in (
        handler.parsed_fn_signature,
        *(one.parsed_fn_signature for one in handler.resolve_dependencies().values()),
    ):
        if key in signature.parameters:
            return signature.parameters[key].raw
    return None


def _sent_as(request: HttpRequest, key: str) -> str:
    """What a caller knows a handler's parameter as: `from` cannot be the name of one."""
    known = request.route_handler.parsed_fn_signature.parameters.get(key)
    named = known.kwarg_definition if known is not None else None
    return (named.query if isinstance(named, ParameterKwarg) else None) or key
