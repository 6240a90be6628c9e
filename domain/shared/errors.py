"""Define the errors that the domain raises: a stable code, a sentence for a person, and the fields at fault.

They know nothing of HTTP. `api/errors.py` maps each code to a status; workers map it to a settled row.
"""

import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Final, TypeVar

import msgspec

ResourceT = TypeVar("ResourceT")

# Every code the product can answer with. A code outside this set is a programming error.
ERROR_CODES: Final = frozenset(
    {
        "agent_archived",
        "archive_too_large",
        "body_too_large",
        "budget_exceeded",
        "concurrency_limit",
        "conflict",
        "database_busy",
        "database_read_only",
        "database_slow",
        "database_unsafe",
        "egress_not_allowed",
        "file_too_large",
        "file_unavailable",
        "forbidden",
        "idempotency_conflict",
        "internal_error",
        "invalid_credentials",
        "invalid_field",
        "invitation_required",
        "malformed_request",
        "method_not_allowed",
        "missing_scope",
        "model_unavailable",
        "not_found",
        "quota_exceeded",
        "range_not_satisfiable",
        "rate_limit_exceeded",
        "refresh_token_reused",
        "sandbox_unavailable",
        "secret_unavailable",
        "state_conflict",
        "storage_full",
        "storage_unavailable",
        "thread_busy",
        "thread_changed",
        "tool_failed",
        "unauthenticated",
        "unavailable",
        "version_not_ready",
    }
)

# Outages that end on their own or when an operator acts, and that no request caused: work waits and then continues.
DATABASE_OUTAGE_CODES: Final = frozenset(
    {"unavailable", "database_busy", "database_read_only", "database_slow", "database_unsafe", "storage_full"}
)
OUTAGE_CODES: Final = DATABASE_OUTAGE_CODES | {"storage_unavailable"}

MAX_FIELD_ERRORS: Final = 20
# Replaces the type that msgspec names: `domain.shared.times` reads more forms.
TIME_RULE: Final = "must be a date or a time, for example 2030-01-01, 2030-01-01T00:00:00Z or 1893456000."
# Sentences for the patterns of our fields, which msgspec shows as regular expressions.
_PATTERN_MESSAGES: Final = {
    repr(pattern): message
    for pattern, message in (
        (r"^[^\x00]*$", "must not contain the character U+0000."),
        (r"^[^\x00-\x1f]*$(?!\n)", "must not contain line breaks or other control characters."),
        (r"^[^\x00-\x20\x7f]+(?!\n)$", "must not contain spaces or control characters."),
        (
            r"^[A-Za-z0-9][A-Za-z0-9_.-]*(?!\n)$",
            "must be letters, digits, _, . and -, a letter or digit first.",
        ),
        (
            r"^[a-z0-9][a-z0-9_-]*(?!\n)$",
            "must be lower-case letters, digits, _ and -, a letter or digit first.",
        ),
    )
}
_LOCATED_MESSAGE: Final = re.compile(r"(.*) - at (?:`?key`? in )?`\$\.?(.*)`", re.DOTALL)
_FIELD_MESSAGES: Final = (
    ("Object missing required field `", "is required."),
    ("Object contains unknown field `", "is not a known field."),
)


class FieldError(msgspec.Struct, frozen=True, kw_only=True):
    """Name one field of a request and what is wrong with it."""

    field: str
    message: str


class DomainError(Exception):
    """Report that a rule was broken.

    `code` is one of `ERROR_CODES`, `detail` a full sentence, `errors` the fields at fault if any,
    `retry_after` seconds for errors that end on their own.
    """

    def __init__(
        self,
        code: str,
        detail: str,
        errors: Iterable[FieldError] = (),
        retry_after: int | None = None,
    ) -> None:
        if code not in ERROR_CODES:
            raise ValueError(f"unknown error code {code!r}")
        super().__init__(detail)
        self.code = code
        self.detail = detail
        self.errors = tuple(errors)
        self.retry_after = retry_after


class NotFound(DomainError):
    """Report an id or a name that does not exist, or that belongs to another tenant."""

    def __init__(self, kind: str, reference: str) -> None:
        super().__init__("not_found", f"There is no {kind} {reference[:200]!r}.")


class InvalidField(DomainError):
    """Report one field that breaks a rule. `message` follows the field's name: "must be at most 300."."""

    def __init__(self, field: str, message: str) -> None:
        super().__init__("invalid_field", f"{field}: {message}", [FieldError(field=field, message=message)])


def _join_messages(errors: list[FieldError]) -> str:
    sentences = [f"{error.field}: {error.message}" for error in errors]
    return "; ".join([*(sentence.removesuffix(".") for sentence in sentences[:-1]), *sentences[-1:]])


class InvalidFields(DomainError):
    """Report the first `MAX_FIELD_ERRORS` fields that break a rule."""

    def __init__(self, errors: list[FieldError]) -> None:
        listed = errors[:MAX_FIELD_ERRORS]
        super().__init__("invalid_field", _join_messages(listed), listed)


class Conflict(DomainError):
    """Report a well-formed request that the present state of the resource does not allow."""

    def __init__(self, detail: str, code: str = "conflict", errors: Iterable[FieldError] = ()) -> None:
        super().__init__(code, detail, errors)


class Forbidden(DomainError):
    """Report an authenticated caller who may not do this."""

    def __init__(self, detail: str, code: str = "forbidden") -> None:
        super().__init__(code, detail)


def require_found(kind: str, reference: str, resource: ResourceT | None) -> ResourceT:
    """Return what was looked up by a reference. Errors: `not_found` for nothing."""
    if resource is None:
        raise NotFound(kind, reference)
    return resource


@contextmanager
def collect_invalid_fields(errors: list[FieldError]) -> Iterator[None]:
    """Add the fields of an `invalid_field` error to `errors`, so that a request learns all of them at once."""
    try:
        yield
    except DomainError as error:
        if error.code != "invalid_field":
            raise
        errors += error.errors


def field_error_from_msgspec(sentence: str, within: str = "") -> FieldError:
    """Convert msgspec's message about a body to the field that it means, below `within`, and what is wrong with it.

    msgspec names missing and unknown fields in the message, and the path at its end: `… - at `$.a[...].b``.
    """
    match = _LOCATED_MESSAGE.fullmatch(sentence)
    message, path = (match[1], match[2]) if match is not None else (sentence, "")
    for beginning, replacement in _FIELD_MESSAGES:
        if message.startswith(beginning):
            name = message.removeprefix(beginning).split("`")[0][:200]
            return FieldError(field=_join_path(within, path, name), message=replacement)
    message = TIME_RULE if "datetime" in message else _PATTERN_MESSAGES.get(message.rpartition(" regex ")[2], message)
    return FieldError(field=_join_path(within, path) or "body", message=message)


def _join_path(*parts: str) -> str:
    return ".".join(filter(None, parts)).replace(".[", "[")
