"""What went wrong with a call, in `ModelError`'s terms. No message holds the key, whoever wrote it."""

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


def build_timeout_error(ask: ModelCall, began: bool) -> ModelError:
    """Nothing came in time."""
    what = "stopped answering: nothing came" if began else "did not begin to answer"
    return ModelError("timeout", f"{_name_subject(ask.target)} {what} for {ask.timeout:g} seconds.")


def build_unfinished_error(target: ModelTarget) -> ModelError:
    """An answer ended in good order, but nobody said that it was whole."""
    return ModelError("cut_off", f"The answer of {_name_model(target)} ended before it was finished.")


def build_empty_error(target: ModelTarget) -> ModelError:
    """An answer came, and there is none in it."""
    return ModelError(
        "malformed", f"The answer of {_name_model(target)} is empty: there is neither text nor a tool call in it."
    )


def build_malformed_error(target: ModelTarget, why: str) -> ModelError:
    """An answer is not what the protocol says. `why` is ours or the provider's text."""
    return ModelError("malformed", f"The answer of {_name_model(target)} cannot be read: {clean_text(target, why)}")


def build_stream_error(target: ModelTarget, error: Any) -> ModelError:
    """The provider says, in the middle of an answer, that it failed."""
    body = error if isinstance(error, dict) else {"message": str(error)}
    return _build_provider_error(target, error_parser.get_status(body), body, error_parser.get_retry_after(body))


def convert_exception(error: BaseException, ask: ModelCall, base_url: str | None, answered: bool) -> ModelError:
    """Any exception of a call. `answered`: the provider had begun to."""
    target = ask.target
    for cause in _iterate_causes(error):
        if isinstance(cause, ModelError):
            return cause
        if isinstance(cause, OutboundRefused):
            return ModelError("not_allowed", str(cause))
    match error:
        case ModelQuotaExceededError():
            said = clean_text(target, error_parser.get_message(error.body))
            return ModelError("refused", f"The account at {target.provider} has nothing left: {said}")
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
            why = next(
                (str(one) for one in _iterate_causes(error) if isinstance(one, httpx2.TransportError)), str(error)
            )
            where = _name_host(base_url, target)
            return ModelError(
                "unavailable", f"{_name_subject(target)} cannot be reached at {where}: {clean_text(target, why)}"
            )
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


def clean_text(target: ModelTarget, text: str) -> str:
    """Somebody else's text, short, on one line and without the key."""
    key = target.api_key.reveal() if target.api_key is not None else ""
    text = " ".join((text.replace(key, "***") if key else text).split())
    return text if len(text) <= 300 else f"{text[:300]}…"


def _build_provider_error(
    target: ModelTarget, status: int | None, body: object, retry_after: float | None
) -> ModelError:
    """An error by its words and its status, wherever it came: the same mean the same."""
    said, who = clean_text(target, error_parser.get_message(body)), _name_subject(target)
    wait = retry_after if retry_after is not None and math.isfinite(retry_after) and retry_after >= 0 else None
    kind = error_parser.classify_error(body, status)
    number = f" ({status})" if status is not None else ""
    match kind:
        case "rate_limited":
            words = f"{who} is called too often"
        case "unauthorized":
            words = f"{who} does not accept the API key" if target.api_key else f"{who} needs an API key"
        case "timeout":
            words = f"{who} did not get the request in time"
        case "unavailable":
            words = f"{who} failed{number}"
        case _ if status == 404:
            words = f"{who} is not known there (404)"
        case _:
            words = f"{who} refused the request{number}"
    return ModelError(kind, f"{words}: {said}" if said else f"{words}.", retry_after=wait)


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
    one: BaseException | None = error
    while one is not None and id(one) not in seen:
        seen.add(id(one))
        yield one
        one = one.__cause__ or one.__context__
