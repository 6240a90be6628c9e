"""Describe to an agent why the call of a model failed."""

from domain.llms import ModelError
from domain.shared.errors import DomainError
from infra.wires.common import WireRefusal


def refuse_unknown_model(name: str) -> WireRefusal:
    """Return the refusal of a model that the version does not name."""
    return WireRefusal(
        404, f"The model {name[:256]!r} is not among the `models` of the manifest.", "model_not_found", "model"
    )


def render_refusal(error: Exception, model: str) -> WireRefusal | None:
    """Return what an agent learns of a failed call, None for an internal error.

    A provider's message is passed on only where it says what is wrong with the request: other messages may hold
    addresses, or a piece of a key.
    """
    if isinstance(error, ModelError):
        return _render_model_refusal(error, model)
    if isinstance(error, DomainError):
        if error.code == "budget_exceeded":
            return WireRefusal(402, error.detail, error.code, kind=error.code, should_retry=False)
        if error.code == "model_unavailable":
            return WireRefusal(503, f"The model {model!r} cannot be reached now.", error.code)
        if error.code in ("not_found", "invalid_field"):
            words = f"There is no model {model!r} now: register it under /models."
            return WireRefusal(404, words, "model_not_found", "model")
    return None


def _render_model_refusal(error: ModelError, model: str) -> WireRefusal:
    match error.kind:
        case "rate_limited":
            words = f"The provider of {model!r} takes no more requests for now."
            return WireRefusal(429, words, "rate_limit_exceeded", kind="requests", retry_after=error.retry_after)
        case "unavailable":
            return WireRefusal(
                503, f"The model {model!r} cannot be reached now.", error.kind, retry_after=error.retry_after
            )
        case "timeout":
            return WireRefusal(504, f"The model {model!r} did not answer in time.", error.kind)
        case "cut_off" | "malformed":
            return WireRefusal(502, f"The answer of {model!r} broke off or could not be read.", error.kind)
        case "refused" if error.option == "model":
            return WireRefusal(400, error.message, "unsupported_model", "model", should_retry=False)
        case "refused" if error.option is not None:
            return WireRefusal(400, error.message, "unsupported_option", error.option, should_retry=False)
        case "refused":
            return WireRefusal(400, error.message, "refused_by_provider", should_retry=False)
        case "unauthorized":
            words = (
                f"The provider of {model!r} does not accept the key that is kept for it. The agent's own key has no "
                "part in this: the operator of this installation, or the owner of its provider keys, has to fix it."
            )
            return WireRefusal(502, words, "provider_key_refused", should_retry=False)
        case "not_allowed":
            words = f"This installation must not connect to the address of {model!r}."
            return WireRefusal(502, words, "address_not_allowed", should_retry=False)
