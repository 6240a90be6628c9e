"""Answer errors below `/v1` in the shape of OpenAI, which its clients turn into exceptions of their own."""

from typing import Any, Final

import msgspec
from litestar import Response

from domain.executions import Execution, is_platform_error_type
from domain.shared.errors import DomainError
from infra.wires.common import WireRefusal

OPENAI_PREFIX: Final = "/v1"
# Codes that OpenAI's clients know by another name; all others keep ours.
_OPENAI_CODES: Final = {"unauthenticated": "invalid_api_key", "invalid_field": "invalid_value"}
_OPENAI_TYPES: Final = {401: "authentication_error", 403: "permission_error", 429: "requests"}
# How a field of a start is called in requests of OpenAI's clients.
_FIELD_NAMES: Final = {"task": "messages"}
# Statuses of runs that failed, by the error type of the execution. Failures of an agent's code have none of these.
_RUN_STATUSES: Final = {
    "budget_exceeded": 402,
    "rate_limited": 429,
    "refused": 400,
    "too_many_steps": 500,
    "timeout": 504,
    "unavailable": 503,
    "model_unavailable": 503,
    "sandbox_unavailable": 503,
    "cut_off": 502,
    "malformed": 502,
    "unauthorized": 502,
    "not_allowed": 502,
    "thread_changed": 409,
}


def is_openai_path(path: str) -> bool:
    """Return whether errors of a path have OpenAI's shape."""
    return path == OPENAI_PREFIX or path.startswith(f"{OPENAI_PREFIX}/")


def render_openai_error(error: DomainError, status: int, headers: dict[str, str]) -> Response[bytes]:
    """Return the answer of a domain error, whose status is the one of `/api/v1` but for a 422."""
    return render_wire_refusal(refuse_domain_error(error, status), headers)


def refuse_domain_error(error: DomainError, status: int) -> WireRefusal:
    """Return a domain error as OpenAI's clients read it."""
    status = 400 if status == 422 else status
    field = error.errors[0].field if error.errors else None
    code = _OPENAI_CODES.get(error.code, error.code)
    param = None if field is None else _FIELD_NAMES.get(field, field)
    return WireRefusal(status, error.detail, code, param, _OPENAI_TYPES.get(status))


def render_wire_refusal(refusal: WireRefusal, headers: dict[str, str] | None = None) -> Response[bytes]:
    """Return the answer of a refused request."""
    return Response(
        msgspec.json.encode(refusal.body),
        status_code=refusal.status,
        headers={**refusal.headers, **(headers or {})},
        media_type="application/json",
    )


def on_wire_refusal(_: Any, refusal: WireRefusal) -> Response[bytes]:
    """Answer a request that its parser refuses."""
    return render_wire_refusal(refusal)


def refuse_ended_run(execution: Execution) -> WireRefusal:
    """Return the error of a run that failed or was cancelled. Clients must not repeat it by themselves: it costs."""
    error_type = execution.error_type or execution.status
    status = _RUN_STATUSES.get(error_type, 500)
    if execution.status == "cancelled":
        status, error_type = 409, "cancelled"
    message = execution.error_message or f"The execution {execution.id} was {execution.status}."
    if execution.error_type and not is_platform_error_type(execution.error_type):
        # What an exception says may be a single word: KeyError: 'name'.
        message = f"{error_type}: {message}"
    kind = "invalid_request_error" if status == 400 else "run_failed"
    return WireRefusal(status, message, error_type, kind=kind, should_retry=False)
