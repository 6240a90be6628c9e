"""Classify the errors of providers, whether they come with a status or within an answer."""

import re
from collections.abc import Mapping
from typing import Any, Final

from domain.llms import ModelErrorKind

# Words to look for in a `code` or `type` that is reduced to lower-case letters and digits. The first match counts.
_KIND_WORDS: Final[tuple[tuple[ModelErrorKind, tuple[str, ...]], ...]] = (
    # Groq's model wrote a tool call that Groq cannot read: the next answer may be better.
    ("malformed", ("toolusefailed",)),
    # The account has no credit left: waiting does not help.
    ("refused", ("insufficientquota", "insufficientbalance", "insufficientcredit", "insufficientfund", "arrear")),
    ("refused", ("billing", "paymentrequired", "creditbalance", "freetieronly", "quotaexhausted", "spendlimit")),
    ("rate_limited", ("ratelimit", "toomanyrequest", "throttl", "resourceexhausted", "slowdown")),
    ("rate_limited", ("limitburst", "limitrequests", "requestlimit", "tokenlimitperminute", "quotaexceeded")),
    ("unauthorized", ("authentication", "unauthorized", "unauthenticated", "permission")),
    ("unauthorized", ("invalidsignature", "expiredtoken", "unrecognizedclient", "missingauthtoken")),  # of AWS
    ("unauthorized", ("forbidden", "apikey", "accessdenied", "accountdeactivated", "invalidtoken", "invalidauth")),
    ("refused", ("contextlength", "contextwindow", "toolong", "toolarge", "maxtokens", "stringabovemax")),
    (
        "refused",
        ("contentfilter", "contentpolicy", "policyviolation", "moderation", "inspection", "safety", "sensitive"),
    ),
    ("refused", ("notfound", "doesnotexist", "nosuchmodel", "unknownmodel", "deprecated", "unsupported")),
    (
        "refused",
        ("notsupported", "notallowed", "invalid", "badrequest", "unprocessable", "validation", "missingrequired"),
    ),
    ("refused", ("failedprecondition", "outofrange", "unimplemented", "conflict", "badparam")),
    ("timeout", ("timeout", "timedout", "deadlineexceeded")),
    ("unavailable", ("overload", "unavailable", "servererror", "internal", "badgateway", "engineerror", "busy")),
    ("unavailable", ("modelerror", "modelstreamerror", "modelnotready")),
)
# Statuses that are clear without the `type` beside them. A `code` may be more precise.
_CLEAR_STATUSES: Final = frozenset({401, 403, 404, 408, 429})
# Fields that may hold the provider's message, in this order.
_MESSAGE_FIELDS: Final = (
    "message",
    "msg",
    "detail",
    "error_description",
    "error_message",
    "error_msg",
    "reason",
    "title",
)
_STATUS_FIELDS: Final = ("status", "status_code", "statusCode", "http_status", "http_code")


def find_error(name: str, data: Mapping[str, Any]) -> dict[str, Any] | None:
    """Return the error that an event reports, or None. `name` is the name of the event."""
    error = data.get("error")
    if isinstance(error, Mapping):
        if any(error.values()):
            return {**{key: data[key] for key in ("code", "type", *_STATUS_FIELDS) if key in data}, **error}
    elif error:
        return {**data, "message": error} if isinstance(error, str) else dict(data)
    if "error" in (name, data.get("object"), data.get("type")):
        return dict(data)
    if isinstance(errors := data.get("errors"), list) and errors:
        return dict(errors[0]) if isinstance(errors[0], Mapping) else {"message": str(errors[0])}
    if "choices" not in data and (get_status(data) or 0) >= 400 and get_message(data):
        return dict(data)
    return None


def classify_error(body: object, status: int | None) -> ModelErrorKind:
    """Return the kind of an error. A word in `code` takes precedence over one in `type`, and both over the status."""
    error = _get_innermost_error(body)
    if (by_code := _classify_word(error.get("code"))) is not None:
        return by_code
    if (by_reason := _classify_details(error)) is not None:
        return by_reason
    if status not in _CLEAR_STATUSES and (status is None or status < 500):
        for field in ("type", "status"):
            if (by_type := _classify_word(error.get(field))) is not None:
                return by_type
    match status:
        case 429:
            return "rate_limited"
        case 401 | 403:
            return "unauthorized"
        case 408:
            return "timeout"
        case None:
            return "unavailable"
        case _:
            return "unavailable" if status >= 500 else "refused"


def _classify_details(error: Mapping[str, Any]) -> ModelErrorKind | None:
    """Return the kind that Google's details name: an invalid key is a bad request to it."""
    for detail in _list_details(error):
        if (kind := _classify_word(detail.get("reason"))) in ("unauthorized", "rate_limited"):
            return kind
    return None


def _list_details(error: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    details = error.get("details")
    return [item for item in details if isinstance(item, Mapping)] if isinstance(details, list) else []


def get_status(body: Mapping[str, Any]) -> int | None:
    """Return the HTTP status that the body of an error names, or None."""
    for field in ("code", *_STATUS_FIELDS):
        value = body.get(field)
        text = str(value) if isinstance(value, int | str) and not isinstance(value, bool) else ""
        if re.fullmatch("[45][0-9][0-9]", text):
            return int(text)
    return None


def get_retry_after(body: object) -> float | None:
    """Return the seconds to wait that an error names, as a number or as Google writes them, or None."""
    error = _get_innermost_error(body)
    for detail in _list_details(error):
        if isinstance(delay := detail.get("retryDelay"), str) and re.fullmatch(r"\d{1,6}(\.\d+)?s", delay):
            return float(delay[:-1])
    value = error.get("retry_after")
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else None


def has_message(body: Mapping[str, Any]) -> bool:
    """Tell whether a body holds a message for people."""
    return any(body.get(field) for field in _MESSAGE_FIELDS)


def get_message(body: object) -> str:
    """Return the provider's message from any of the shapes that errors have, or an empty text."""
    for _ in range(8):
        if isinstance(body, list):
            body = next((item for item in body if item), "")
        if not isinstance(body, Mapping):
            break
        if (raw := _get_upstream_message(body)) is not None:
            return raw
        body = body.get("error") or body.get("errors") or _get_first_message(body)
    return body if isinstance(body, str) else str(body or "")


def _get_upstream_message(body: Mapping[str, Any]) -> str | None:
    """Return OpenRouter's message with that of the provider behind it, if there is one."""
    metadata = body.get("metadata")
    raw = metadata.get("raw") if isinstance(metadata, Mapping) else None
    message = body.get("message")
    return f"{message}: {raw}" if isinstance(raw, str) and raw and isinstance(message, str) else None


def _get_first_message(body: Mapping[str, Any]) -> object:
    message = next((body[field] for field in _MESSAGE_FIELDS if body.get(field)), None)
    if message is not None:
        place = body.get("loc")
        if isinstance(place, list) and place and isinstance(message, str):
            return f"{'.'.join(map(str, place))}: {message}"
        return message
    # Without a message, the name of the error is better than nothing.
    return " ".join(str(body[field]) for field in ("type", "code") if body.get(field) and body[field] != "error")


def _get_innermost_error(body: object) -> Mapping[str, Any]:
    """Return the object that holds `code` and `type`."""
    for _ in range(4):
        if isinstance(body, list) and body:
            body = body[0]
        if not isinstance(body, Mapping) or not isinstance(body.get("error"), Mapping | list):
            break
        body = body["error"]
    return body if isinstance(body, Mapping) else {}


def _classify_word(value: object) -> ModelErrorKind | None:
    word = re.sub("[^a-z0-9]", "", value[:200].lower()) if isinstance(value, str) else ""
    if not word or word.isdigit():
        return None
    return next((kind for kind, words in _KIND_WORDS if any(part in word for part in words)), None)
