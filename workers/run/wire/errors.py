"""Describe to an agent why its request is refused, or why the call of a model failed."""

from collections.abc import Mapping

from domain.llms import ModelError
from domain.shared.errors import DomainError


class GatewayRefusal(Exception):
    """Answer a request with an error. `should_retry` tells the client whether to try again; None lets it decide."""

    def __init__(  # noqa: PLR0913 - what an error of OpenAI consists of
        self,
        status: int,
        message: str,
        code: str | None = None,
        param: str | None = None,
        kind: str | None = None,
        should_retry: bool | None = None,
        retry_after: float | None = None,
    ) -> None:
        super().__init__(message)
        self.status, self.retry_after, self.should_retry = status, retry_after, should_retry
        usual = "invalid_request_error" if status < 500 else "server_error"
        self.body = {"error": {"message": message, "type": kind or usual, "param": param, "code": code}}

    def name_field(self, option_fields: Mapping[str, str]) -> "GatewayRefusal":
        """Return the refusal with the request's own name of an option that a model cannot apply as its `param`."""
        error = self.body["error"]
        if error["code"] == "unsupported_option":
            error["param"] = option_fields.get(error["param"] or "", error["param"])
        return self

    @property
    def headers(self) -> dict[str, str]:
        """The headers that tell the client whether and when to try again."""
        headers = {} if self.should_retry is None else {"x-should-retry": "true" if self.should_retry else "false"}
        return headers if self.retry_after is None else {**headers, "Retry-After": f"{max(0.0, self.retry_after):g}"}


def refuse_unknown_model(name: str) -> GatewayRefusal:
    """Return the refusal of a model that the version does not name."""
    return GatewayRefusal(
        404, f"The model {name[:256]!r} is not among the `models` of the manifest.", "model_not_found", "model"
    )


def render_refusal(error: Exception, model: str) -> GatewayRefusal | None:
    """Return what an agent learns of a failed call, None for an internal error.

    A provider's message is passed on only where it says what is wrong with the request: other messages may hold
    addresses, or a piece of a key.
    """
    if isinstance(error, ModelError):
        return _render_model_refusal(error, model)
    if isinstance(error, DomainError):
        if error.code == "budget_exceeded":
            return GatewayRefusal(402, error.detail, error.code, kind=error.code, should_retry=False)
        if error.code == "model_unavailable":
            return GatewayRefusal(503, f"The model {model!r} cannot be reached now.", error.code)
        if error.code in ("not_found", "invalid_field"):
            words = f"There is no model {model!r} now: register it under /models."
            return GatewayRefusal(404, words, "model_not_found", "model")
    return None


def _render_model_refusal(error: ModelError, model: str) -> GatewayRefusal:
    match error.kind:
        case "rate_limited":
            words = f"The provider of {model!r} takes no more requests for now."
            return GatewayRefusal(429, words, "rate_limit_exceeded", kind="requests", retry_after=error.retry_after)
        case "unavailable":
            return GatewayRefusal(
                503, f"The model {model!r} cannot be reached now.", error.kind, retry_after=error.retry_after
            )
        case "timeout":
            return GatewayRefusal(504, f"The model {model!r} did not answer in time.", error.kind)
        case "cut_off" | "malformed":
            return GatewayRefusal(502, f"The answer of {model!r} broke off or could not be read.", error.kind)
        case "refused" if error.option == "model":
            return GatewayRefusal(400, error.message, "unsupported_model", "model", should_retry=False)
        case "refused" if error.option is not None:
            return GatewayRefusal(400, error.message, "unsupported_option", error.option, should_retry=False)
        case "refused":
            return GatewayRefusal(400, error.message, "refused_by_provider", should_retry=False)
        case "unauthorized":
            words = (
                f"The provider of {model!r} does not accept the key that is kept for it. The agent's own key has no "
                "part in this: the operator of this installation, or the owner of its provider keys, has to fix it."
            )
            return GatewayRefusal(502, words, "provider_key_refused", should_retry=False)
        case "not_allowed":
            words = f"This installation must not connect to the address of {model!r}."
            return GatewayRefusal(502, words, "address_not_allowed", should_retry=False)
