"""Answer errors as RFC 9457 problem+json: one table maps each code to its status and title."""

from typing import Any, Final

import msgspec
import structlog
from litestar import Response
from litestar.exceptions import HTTPException, NotFoundException, ValidationException
from litestar.exceptions.http_exceptions import RequestEntityTooLarge
from litestar.params import ParameterKwarg

from api.openai_errors import is_openai_path, render_openai_error
from api.requests import HttpRequest
from domain.shared.errors import (
    OUTAGE_CODES,
    DomainError,
    FieldError,
    InvalidField,
    InvalidFields,
    field_error_from_msgspec,
)
from domain.shared.field_errors import name_allowed_values
from infra.outage_log import log_outage

_log = structlog.get_logger("paddock.api")

# code → status and title
ERROR_TABLE: Final[dict[str, tuple[int, str]]] = {
    "agent_archived": (409, "The agent is archived"),
    "archive_too_large": (413, "The archive is too large"),
    "file_too_large": (413, "The file is too large"),
    "file_unavailable": (409, "A file cannot be read"),
    "range_not_satisfiable": (416, "The range lies outside of the file"),
    "body_too_large": (413, "The request is too large"),
    "budget_exceeded": (402, "A budget is exhausted"),
    "concurrency_limit": (409, "Too many executions are running"),
    "conflict": (409, "The request conflicts with the current state"),
    "database_busy": (503, "The database has reached its limits"),
    "database_read_only": (503, "The database accepts no writes"),
    "database_slow": (503, "The database did not answer in time"),
    "database_unsafe": (503, "The database would not isolate tenants"),
    "egress_not_allowed": (409, "A host is not allowed"),
    "forbidden": (403, "Not allowed"),
    "idempotency_conflict": (409, "The Idempotency-Key was already used"),
    "internal_error": (500, "Internal error"),
    "invalid_credentials": (401, "Invalid credentials"),
    "invalid_field": (422, "Invalid field"),
    "invitation_required": (403, "An invitation is required"),
    "malformed_request": (400, "The request cannot be read"),
    "method_not_allowed": (405, "Method not allowed"),
    "missing_scope": (403, "A scope is missing"),
    "model_unavailable": (503, "The model is unavailable"),
    "not_found": (404, "Not found"),
    "quota_exceeded": (413, "The storage quota is exceeded"),
    "rate_limit_exceeded": (429, "Too many requests"),
    "refresh_token_reused": (401, "The refresh token was already used"),
    "sandbox_unavailable": (503, "The host cannot isolate code"),
    "secret_unavailable": (409, "A secret is missing"),
    "thread_busy": (409, "A run of the thread has not ended"),
    "thread_changed": (409, "The thread was changed meanwhile"),
    "state_conflict": (409, "The state was changed meanwhile"),
    "storage_full": (503, "A disk is full"),
    "storage_unavailable": (503, "Object storage is unavailable"),
    "tool_failed": (422, "The tool failed"),
    "unauthenticated": (401, "Authentication is required"),
    "unavailable": (503, "A service is unavailable"),
    "version_not_ready": (409, "The version is not ready"),
}
_STATUS_CODES: Final = {400: "malformed_request", 404: "not_found", 405: "method_not_allowed", 413: "body_too_large"}


class Problem(msgspec.Struct, kw_only=True, omit_defaults=True):
    """Describe an error (RFC 9457), with a stable `error` code and the invalid fields."""

    type: str
    title: str
    status: int
    detail: str
    instance: str
    error: str
    request_id: str
    errors: list[FieldError] = []
    retry_after: int | None = None


def render_problem(request: HttpRequest, error: DomainError) -> Response[bytes]:
    """Return the answer of a domain error."""
    status, title = ERROR_TABLE[error.code]
    headers = {}
    if error.retry_after is not None:
        headers["Retry-After"] = str(error.retry_after)
    if status == 401:
        headers["WWW-Authenticate"] = 'Bearer realm="paddock"'
    if is_openai_path(request.url.path):
        return render_openai_error(error, status, headers)
    problem = Problem(
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
        msgspec.json.encode(problem), status_code=status, headers=headers, media_type="application/problem+json"
    )


def on_domain_error(request: HttpRequest, error: DomainError) -> Response[bytes]:
    """Answer errors that the domain raises."""
    if error.code in OUTAGE_CODES:
        log_outage(_log, "refused in an outage", error)
    return render_problem(request, error)


def on_http_error(request: HttpRequest, error: HTTPException) -> Response[bytes]:
    """Answer errors that Litestar raises: in routing, and in reading and validating requests."""
    if isinstance(error, ValidationException):
        return render_problem(request, _collect_field_errors(request, error))
    if isinstance(error, RequestEntityTooLarge):
        return render_problem(request, DomainError("body_too_large", "The request's body is too large for this route."))
    if "disconnected" in error.detail:
        # The client does not read this answer, and the log needs no traceback.
        return render_problem(
            request, DomainError("malformed_request", "The client disconnected before its request was read.")
        )
    if error.status_code >= 500:
        return on_unexpected_error(request, error)
    detail = error.detail
    # Litestar's own words for a path without a route.
    if isinstance(error, NotFoundException) and detail == "Not Found":
        detail = "There is no route of this path. GET /openapi.json lists all but those below /v1."
    answer = render_problem(request, DomainError(_STATUS_CODES.get(error.status_code, "malformed_request"), detail))
    answer.headers.update(error.headers or {})
    return answer


def on_unreadable_body(request: HttpRequest, error: Exception) -> Response[bytes]:
    """Answer bodies that are nested too deeply, or are not UTF-8."""
    reason = "nests too deeply" if isinstance(error, RecursionError) else "is not UTF-8 text"
    return render_problem(request, DomainError("malformed_request", f"The body {reason}."))


def on_unexpected_error(request: HttpRequest, error: Exception) -> Response[bytes]:
    """Answer unexpected errors. The log has the traceback; the caller gets the request's id to report."""
    _log.error("unexpected error", path=request.url.path, exc_info=error)
    return render_problem(
        request,
        DomainError("internal_error", "An unexpected error occurred. The log has its details under this request_id."),
    )


def _collect_field_errors(request: HttpRequest, error: ValidationException) -> DomainError:
    field_errors: list[FieldError] = []
    for item in error.extra or []:
        if not isinstance(item, dict):
            continue
        message, key = str(item.get("message", "")), str(item.get("key", ""))
        if item.get("source") == "body":
            if message in ("'data'", "Expected `object`, got `null`"):
                return DomainError("malformed_request", "The body must be a JSON object.")
            field_errors.append(field_error_from_msgspec(message, "" if key == "data" else key.removeprefix("data.")))
        else:
            field_error = FieldError(field=_find_query_name(request, key) or "request", message=message)
            field_errors.append(name_allowed_values(field_error, _find_parameter_type(request, key)))
    if not field_errors:
        return InvalidField("request", error.detail)
    return InvalidFields(field_errors)


def _find_parameter_type(request: HttpRequest, key: str) -> Any:
    """Return the type of a parameter of the handler or of one of its dependencies."""
    handler = request.route_handler
    for signature in (
        handler.parsed_fn_signature,
        *(provider.parsed_fn_signature for provider in handler.resolve_dependencies().values()),
    ):
        if key in signature.parameters:
            return signature.parameters[key].raw
    return None


def _find_query_name(request: HttpRequest, key: str) -> str:
    """Return the name that callers use for a handler's parameter: Python does not allow the name `from`."""
    parameter = request.route_handler.parsed_fn_signature.parameters.get(key)
    definition = parameter.kwarg_definition if parameter is not None else None
    return (definition.query if isinstance(definition, ParameterKwarg) else None) or key
