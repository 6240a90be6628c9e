"""Parse and check evaluations, with every check that needs no other record."""

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
from domain.shared.field_errors import list_field_errors
from domain.shared.json_limits import JsonTooLarge, check_json, check_json_body
from domain.shared.times import normalize_times, read_record_time

_LIST_DECODER: Final = msgspec.json.Decoder(list[msgspec.Raw])
_BATCH_DECODER: Final = msgspec.json.Decoder(list[NewEvaluation])
_EVALUATION_DECODER: Final = msgspec.json.Decoder(NewEvaluation)


class _EvaluationWrapper(msgspec.Struct, forbid_unknown_fields=True):
    evaluations: msgspec.Raw


_WRAPPER_DECODER: Final = msgspec.json.Decoder(_EvaluationWrapper)
_UNREADABLE_ERRORS: Final = (msgspec.DecodeError, UnicodeDecodeError, RecursionError)
_TEXT_FIELDS: Final = ("prompt", "response", "mode", "model_name", "agent_name", "session_id", "artifact_id")


def parse_evaluation(body: bytes) -> NewEvaluation:
    """Parse one evaluation. Errors: `malformed_request`, `invalid_field`."""
    check_json_body(body)
    try:
        return _decode_evaluation(body)
    except msgspec.ValidationError as error:
        if field_error_from_msgspec(str(error)).field == "body":
            raise DomainError("malformed_request", "The body must be a JSON object.") from None
        raise _build_field_errors(body, error) from None
    except _UNREADABLE_ERRORS as error:
        raise _build_syntax_error(error) from None


def _decode_evaluation(source: bytes | msgspec.Raw) -> NewEvaluation:
    """Decode one evaluation, with its time in any form that we accept. Errors: those of msgspec."""
    try:
        return _EVALUATION_DECODER.decode(source)
    except msgspec.ValidationError as error:
        if "datetime" not in str(error):
            raise
    return _EVALUATION_DECODER.decode(normalize_times(source, NewEvaluation))


def parse_evaluation_batch(body: bytes) -> list[NewEvaluation]:
    """Parse a batch: a JSON list of evaluations, or `{"evaluations": […]}`.

    Errors: `malformed_request`, `invalid_field` with the place, for example `evaluations[3].latency_sec`.
    """
    try:
        check_json_body(body, BATCH_JSON_LIMITS)
        raw: bytes | msgspec.Raw = body
        if body.lstrip()[:1] == b"{":
            raw = _WRAPPER_DECODER.decode(body).evaluations
        rows = _LIST_DECODER.decode(raw)
        if not 1 <= len(rows) <= MAX_EVALUATION_BATCH:
            raise InvalidField("evaluations", f"must have from 1 to {MAX_EVALUATION_BATCH} rows, not {len(rows)}.")
        try:
            return _BATCH_DECODER.decode(raw)
        except msgspec.ValidationError:
            return [_decode_evaluation(row) for row in rows]
    except msgspec.ValidationError as error:
        raise _locate_errors(raw, error) from None
    except _UNREADABLE_ERRORS as error:
        raise _build_syntax_error(error) from None


def _locate_errors(raw: bytes | msgspec.Raw, error: msgspec.ValidationError) -> DomainError:
    """Return the errors with their rows, which msgspec does not report."""
    try:
        rows = _LIST_DECODER.decode(raw)
    except msgspec.ValidationError:
        return InvalidField("evaluations", f"must be a list of evaluations: {error}.")
    errors: list[FieldError] = []
    for number, row in enumerate(rows):
        try:
            _decode_evaluation(row)
        except msgspec.ValidationError as row_error:
            errors += _build_field_errors(row, row_error, f"evaluations[{number}]").errors
        if len(errors) >= MAX_FIELD_ERRORS:
            break
    return InvalidFields(errors)


def _build_field_errors(row: bytes | msgspec.Raw, error: msgspec.ValidationError, within: str = "") -> DomainError:
    """Return every wrong field of a row that was refused for one of them."""
    try:
        return InvalidFields(list_field_errors(msgspec.json.decode(row), NewEvaluation, error, within))
    except _UNREADABLE_ERRORS:
        return InvalidFields([field_error_from_msgspec(str(error), within)])


def _build_syntax_error(error: Exception) -> DomainError:
    why = "nests too deeply" if isinstance(error, RecursionError) else f"is not JSON: {error}"
    return DomainError("malformed_request", f"The body {why}.")


def build_evaluations(
    tenant_id: str, user_id: str, sent: list[NewEvaluation], now: datetime, batch: bool
) -> list[Evaluation]:
    """Build evaluations as they are stored. Errors: `invalid_field`, with the row of a batch."""
    built = []
    for number, (data, evaluation_id) in enumerate(zip(sent, ids.generate_ids("eval", len(sent)), strict=True)):
        try:
            created_at = _check_evaluation(data, now)
        except DomainError as error:
            raise prefix_batch_row(error, number) if batch else error from None
        built.append(
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
                metrics="pending" if _has_missing_scores(data) else "sent",
                created_at=created_at,
            )
        )
    return built


def _check_evaluation(data: NewEvaluation, now: datetime) -> datetime:
    for name in _TEXT_FIELDS:
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
        # A slice is unchecked; decoding shows that it can be decoded later.
        metadata = msgspec.json.decode(sent)
    except _UNREADABLE_ERRORS as error:
        raise InvalidField("metadata", f"cannot be read: {error}.") from None
    if metadata is not None and not isinstance(metadata, dict):
        raise InvalidField("metadata", "must be an object.")


def _has_missing_scores(data: NewEvaluation) -> bool:
    return (
        data.hallucinated is None
        or data.hallucination_probability is None
        or data.semantic_drift is None
        or data.factual_support is None
        or data.uncertainty is None
    )


def prefix_batch_row(error: DomainError, number: int) -> DomainError:
    """Return the error of a field as that of a row of a batch."""
    errors = [FieldError(field=f"evaluations[{number}].{item.field}", message=item.message) for item in error.errors]
    return DomainError(error.code, f"evaluations[{number}].{error.detail}", errors)
