"""From what was sent to what is stored, with everything checked that needs no other record."""

from datetime import datetime
from typing import Any, Final, cast

import msgspec
from msgspec import UnsetType

from domain.evaluations.schema import (
    BATCH_JSON_LIMITS,
    MAX_EVALUATION_BATCH,
    MAX_METADATA_BYTES,
    Evaluation,
    NewEvaluation,
)
from domain.shared import ids
from domain.shared.errors import (
    MAX_FIELD_ERRORS,
    DomainError,
    FieldError,
    InvalidField,
    InvalidFields,
    field_error_from_msgspec,
)
from domain.shared.field_errors import collect_field_errors
from domain.shared.json_limits import JsonTooLarge, check_json, check_json_body
from domain.shared.times import normalize_times, read_record_time

_LIST: Final = msgspec.json.Decoder(list[msgspec.Raw])
_BATCH: Final = msgspec.json.Decoder(list[NewEvaluation])
_ONE: Final = msgspec.json.Decoder(NewEvaluation)


class _Wrapped(msgspec.Struct, forbid_unknown_fields=True):
    evaluations: msgspec.Raw


_WRAPPED: Final = msgspec.json.Decoder(_Wrapped)
_UNREADABLE: Final = (msgspec.DecodeError, UnicodeDecodeError, RecursionError)
_TEXTS: Final = ("prompt", "response", "mode", "model_name", "agent_name", "session_id", "artifact_id")


def parse_evaluation(body: bytes) -> NewEvaluation:
    """One evaluation. Errors: `malformed_request`, `invalid_field`."""
    check_json_body(body)
    try:
        return _decoded(body)
    except msgspec.ValidationError as error:
        if field_error_from_msgspec(str(error)).field == "body":
            raise DomainError("malformed_request", "The body must be a JSON object.") from None
        raise _refuse_fields(body, error) from None
    except _UNREADABLE as error:
        raise _unreadable(error) from None


def _decoded(source: bytes | msgspec.Raw) -> NewEvaluation:
    """One evaluation, its time in any form that is read here. Errors: those of msgspec."""
    try:
        return _ONE.decode(source)
    except msgspec.ValidationError as error:
        if "datetime" not in str(error):
            raise
    return _ONE.decode(normalize_times(source, NewEvaluation))


def parse_evaluation_batch(body: bytes) -> list[NewEvaluation]:
    """A batch: a JSON list of evaluations, or `{"evaluations": […]}`.

    Errors: `malformed_request`, `invalid_field` with the place, for example `evaluations[3].latency_sec`.
    """
    try:
        check_json_body(body, BATCH_JSON_LIMITS)
        raw: bytes | msgspec.Raw = body
        if body.lstrip()[:1] == b"{":
            raw = _WRAPPED.decode(body).evaluations
        rows = _LIST.decode(raw)
        if not 1 <= len(rows) <= MAX_EVALUATION_BATCH:
            raise InvalidField("evaluations", f"must have from 1 to {MAX_EVALUATION_BATCH} rows, not {len(rows)}.")
        try:
            return _BATCH.decode(raw)
        except msgspec.ValidationError:
            return [_decoded(row) for row in rows]
    except msgspec.ValidationError as error:
        raise _misplaced(raw, error) from None
    except _UNREADABLE as error:
        raise _unreadable(error) from None


def _misplaced(raw: bytes | msgspec.Raw, error: msgspec.ValidationError) -> DomainError:
    """Which row is at fault, that msgspec does not say."""
    try:
        rows = _LIST.decode(raw)
    except msgspec.ValidationError:
        return InvalidField("evaluations", f"must be a list of evaluations: {error}.")
    found: list[FieldError] = []
    for number, row in enumerate(rows):
        try:
            _decoded(row)
        except msgspec.ValidationError as wrong:
            found += _refuse_fields(row, wrong, f"evaluations[{number}]").errors
        if len(found) >= MAX_FIELD_ERRORS:
            break
    return InvalidFields(found)


def _refuse_fields(row: bytes | msgspec.Raw, error: msgspec.ValidationError, within: str = "") -> DomainError:
    """Every field at fault of what was refused for one of them."""
    try:
        found = collect_field_errors(msgspec.json.decode(row), NewEvaluation, within)
    except _UNREADABLE:
        found = []
    return InvalidFields(found or [field_error_from_msgspec(str(error), within)])


def _unreadable(error: Exception) -> DomainError:
    why = "nests too deeply" if isinstance(error, RecursionError) else f"is not JSON: {error}"
    return DomainError("malformed_request", f"The body {why}.")


def build_evaluations(
    tenant_id: str, user_id: str, sent: list[NewEvaluation], now: datetime, batch: bool
) -> list[Evaluation]:
    """Evaluations as they are stored. Errors: `invalid_field`, with the row of a batch."""
    made = []
    for number, (data, evaluation_id) in enumerate(zip(sent, ids.generate_ids("eval", len(sent)), strict=True)):
        try:
            created_at = _checked(data, now)
        except DomainError as error:
            raise prefix_batch_row(error, number) if batch else error from None
        made.append(
            Evaluation(
                id=evaluation_id,
                tenant_id=tenant_id,
                user_id=user_id,
                prompt=data.prompt,
                response=data.response,
                retrieved_docs=data.retrieved_docs,
                semantic_drift=data.semantic_drift,
                uncertainty=data.uncertainty,
                factual_support=data.factual_support,
                hallucination_probability=data.hallucination_probability,
                hallucinated=data.hallucinated,
                latency_sec=data.latency_sec,
                throughput_qps=data.throughput_qps,
                mode=data.mode,
                model_name=data.model_name,
                agent_name=data.agent_name,
                session_id=data.session_id,
                execution_id=data.execution_id,
                artifact_id=data.artifact_id,
                metadata=None if isinstance(data.metadata, UnsetType) else cast(Any, data.metadata),
                metrics="pending" if _incomplete(data) else "sent",
                created_at=created_at,
            )
        )
    return made


def _checked(data: NewEvaluation, now: datetime) -> datetime:
    for name in _TEXTS:
        if "\0" in (getattr(data, name) or ""):
            raise InvalidField(name, "must not hold U+0000.")
    if data.execution_id is not None and ids.decode_id("exec", data.execution_id) is None:
        raise InvalidField("execution_id", f"there is no execution {data.execution_id!r}.")
    if not isinstance(data.metadata, UnsetType):
        _check_metadata(bytes(data.metadata))
    return now if data.created_at is None else read_record_time("created_at", data.created_at, now)


def _check_metadata(sent: bytes) -> None:
    if len(sent) > MAX_METADATA_BYTES:
        raise InvalidField("metadata", f"is larger than {MAX_METADATA_BYTES} bytes.")
    try:
        check_json(sent)
    except JsonTooLarge as error:
        raise InvalidField("metadata", error.reason) from None
    try:
        # Read once to see that it can be read again, which a slice was not yet.
        found = msgspec.json.decode(sent)
    except _UNREADABLE as error:
        raise InvalidField("metadata", f"cannot be read: {error}.") from None
    if found is not None and not isinstance(found, dict):
        raise InvalidField("metadata", "must be an object.")


def _incomplete(data: NewEvaluation) -> bool:
    return (
        data.hallucinated is None
        or data.hallucination_probability is None
        or data.semantic_drift is None
        or data.factual_support is None
        or data.uncertainty is None
    )


def prefix_batch_row(error: DomainError, number: int) -> DomainError:
    """The error of a field, as that of a row of a batch."""
    found = [FieldError(field=f"evaluations[{number}].{one.field}", message=one.message) for one in error.errors]
    return DomainError(error.code, f"evaluations[{number}].{error.detail}", found)
