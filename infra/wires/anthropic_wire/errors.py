"""Describe in Anthropic's shape why a request is refused, or why the call of a model failed."""

from typing import Any, Final

from infra.wires.common import WireRefusal

# Source: docs.anthropic.com/en/api/errors. Other statuses below 500 are errors of the request.
_ERROR_TYPES: Final = {
    401: "authentication_error",
    402: "billing_error",
    403: "permission_error",
    404: "not_found_error",
    413: "request_too_large",
    429: "rate_limit_error",
    503: "overloaded_error",
    504: "timeout_error",
}


def render_error(refusal: WireRefusal) -> dict[str, Any]:
    """Return the body of an error. `code` is the same word that OpenAI's wire has for it."""
    usual = "invalid_request_error" if refusal.status < 500 else "api_error"
    error = refusal.body["error"]
    described = {"type": _ERROR_TYPES.get(refusal.status, usual), "message": error["message"], "code": error["code"]}
    return {"type": "error", "error": described, "request_id": None}
