"""Build the `ModelError` for everything that can go wrong with a call. No message contains the API key."""

import math
from collections.abc import Iterator
from typing import Any
from urllib.parse import urlsplit

import httpx2
from pydantic_ai.exceptions import (
    ModelAPIError,
    ModelConnectionError,
    ModelHTTPError,
    ModelQuotaExceededError,
    ModelRateLimitError,
    ModelTimeoutError,
    UnexpectedModelBehavior,
    UserError,
)

from domain.llms import ModelCall, ModelError, ModelTarget
from infra.http import OutboundRefused
from infra.llm import error_parser
from infra.llm.key_mask import list_secrets, mask_secrets


def build_timeout_error(ask: ModelCall, began: bool) -> ModelError:
    """Build the error for an answer, or its next part, that did not come in time."""
    what = "stopped answering: nothing came" if began else "did not begin to answer"
    return ModelError("timeout", f"{_name_subject(ask.target)} {what} for {ask.timeout:g} seconds.")


def build_unfinished_error(target: ModelTarget) -> ModelError:
    """Build the error for an answer that ended without saying that it is complete."""
    return ModelError("cut_off", f"The answer of {_name_model(target)} ended before it was finished.")


def build_empty_error(target: ModelTarget) -> ModelError:
    """Build the error for an answer without text and tool calls."""
    return ModelError(
        "malformed", f"The answer of {_name_model(target)} is empty: it has neither text nor a tool call."
    )


def build_malformed_error(target: ModelTarget, why: str) -> ModelError:
    """Build the error for an answer that breaks the protocol. `why` is our own or the provider's text."""
    return ModelError("malformed", f"The answer of {_name_model(target)} cannot be read: {clean_text(target, why)}")


def build_filter_error(target: ModelTarget) -> ModelError:
    """Build the error for a request that the provider's filter kept from the model."""
    return ModelError("refused", f"{_name_subject(target)} did not get the request: a filter of {target.provider} did.")


def build_stream_error(target: ModelTarget, error: Any) -> ModelError:
    """Build the error that a provider reports in the middle of an answer."""
    body = error if isinstance(error, dict) else {"message": str(error)}
    return _build_provider_error(target, error_parser.get_status(body), body, None)


def convert_exception(error: BaseException, ask: ModelCall, base_url: str | None, answered: bool) -> ModelError:
    """Convert any exception of a call. `answered` tells that the provider had begun to answer."""
    target = ask.target
    if (own_error := _find_own_error(error)) is not None:
        return own_error
    match error:
        case ModelQuotaExceededError():
            message = clean_text(target, error_parser.get_message(error.body))
            return ModelError("refused", f"The account at {target.provider} has no credit left: {message}")
        case ModelHTTPError():
            status = 429 if isinstance(error, ModelRateLimitError) else error.status_code
            return _build_provider_error(target, status, error.body, error.retry_after)
        case ModelTimeoutError() | httpx2.TimeoutException():
            return ModelError(
                "timeout", f"{_name_subject(target)} could not be reached in time at {_name_host(base_url, target)}."
            )
        case ModelConnectionError() | httpx2.TransportError() if answered:
            return ModelError("cut_off", f"The connection to {_name_model(target)} ended in the middle of the answer.")
        case ModelConnectionError() | httpx2.TransportError():
            why = clean_text(target, _explain_transport_error(error))
            where = _name_host(base_url, target)
            return ModelError("unavailable", f"{_name_subject(target)} cannot be reached at {where}: {why}")
        case UserError():
            return ModelError("refused", clean_text(target, error.message))
        case ModelAPIError() if error.in_stream:
            return build_stream_error(target, error.body)
        case UnexpectedModelBehavior() | ModelAPIError():
            return build_malformed_error(target, error.message)
    why = f"{type(error).__name__}: {error}"
    if answered:
        return build_malformed_error(target, why)
    return ModelError("refused", f"The request to {_name_model(target)} cannot be made: {clean_text(target, why)}")


def _find_own_error(error: BaseException) -> ModelError | None:
    """Return the error that Paddock itself raised below a library's exception, or None."""
    for cause in _iterate_causes(error):
        if isinstance(cause, ModelError):
            return cause
        if isinstance(cause, OutboundRefused):
            return ModelError("not_allowed", str(cause))
    return None


def _explain_transport_error(error: BaseException) -> str:
    """Return the text of the HTTP client's error, which says more than the exceptions around it."""
    texts = (str(cause) for cause in _iterate_causes(error) if isinstance(cause, httpx2.TransportError))
    return next(texts, str(error))


def clean_text(target: ModelTarget, text: str) -> str:
    """Return a provider's text on one line, of at most 300 characters, with the API key masked."""
    text = " ".join(mask_secrets(text, list_secrets(target)).split())
    return text if len(text) <= 300 else f"{text[:300]}…"


def _build_provider_error(
    target: ModelTarget, status: int | None, body: object, retry_after: float | None
) -> ModelError:
    """Build the error for a provider's body and status, wherever the provider reported them."""
    message, who = clean_text(target, error_parser.get_message(body)), _name_subject(target)
    retry_after = error_parser.get_retry_after(body) if retry_after is None else retry_after
    wait = retry_after if retry_after is not None and math.isfinite(retry_after) and retry_after >= 0 else None
    kind = error_parser.classify_error(body, status)
    number = f" ({status})" if status is not None else ""
    match kind:
        case "rate_limited":
            words = f"{who} has reached its rate limit"
        case "unauthorized":
            words = (
                f"{who} does not accept the API key"
                if target.api_key
                else f"{who} needs an API key, stored under /provider-keys"
            )
        case "timeout":
            words = f"{who} did not get the request in time"
        case "unavailable":
            words = f"{who} failed{number}"
        case "malformed":
            words = f"{who} wrote a tool call that cannot be read{number}"
        case _ if status == 404:
            words = f"{who} is unknown to the provider (404)"
        case _:
            words = f"{who} refused the request{number}"
    return ModelError(kind, f"{words}: {message}" if message else f"{words}.", retry_after=wait)


def _name_model(target: ModelTarget) -> str:
    return f"the model {target.model} of {target.provider}"


def _name_subject(target: ModelTarget) -> str:
    return f"T{_name_model(target)[1:]}"


def _name_host(base_url: str | None, target: ModelTarget) -> str:
    if base_url is None:
        return target.provider
    # The host alone: a URL may hold a password.
    return urlsplit(base_url).netloc.rpartition("@")[2] or "its address"


def _iterate_causes(error: BaseException) -> Iterator[BaseException]:
    seen: set[int] = set()
    cause: BaseException | None = error
    while cause is not None and id(cause) not in seen:
        seen.add(id(cause))
        yield cause
        cause = cause.__cause__ or cause.__context__
