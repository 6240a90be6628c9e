"""Build the record of an uploaded artifact: its metadata, its body, its fingerprint and the text it is searched by."""

from collections.abc import Iterator, Sequence
from datetime import datetime
from hashlib import sha256
from typing import Any, Final, Literal
from uuid import uuid4

import msgspec

from domain.artifacts import calls, determinism, schema
from domain.artifacts.schema import (
    Artifact,
    ArtifactError,
    ArtifactToolCall,
    LlmConfig,
    ReplayLevel,
    SamplingParameters,
    TokenUsage,
)
from domain.shared import ids
from domain.shared.errors import DomainError, FieldError, InvalidFields
from domain.shared.search_text import extract_words
from domain.shared.times import read_record_time

MAX_NAME_CHARACTERS: Final = 200
MAX_KURRAL_ID_CHARACTERS: Final = 128
# Paths below /artifacts/ that are no ids.
RESERVED_IDS: Final = frozenset({".", "..", "export", "upload", "semantic-buckets"})
MAX_RUN_ID_CHARACTERS: Final = 256
MAX_SEMANTIC_BUCKETS: Final = 32
MAX_TAGS: Final = 64
MAX_MESSAGE_BYTES: Final = 4 * 1024
DEFAULT_ENVIRONMENT: Final = "production"
DEFAULT_SCHEMA_VERSION: Final = "1.0.0"

ArtifactStatus = Literal["ok", "error"]

_JSON_ENCODER: Final = msgspec.json.Encoder()


class ArtifactMetadata(msgspec.Struct, frozen=True, kw_only=True):
    """Describe an artifact, as lists, statistics and `GET /artifacts/{id}/metadata` show it.

    `id` is ours, `kurral_id` the caller's. `tenant_id` is the tenant that owns the artifact, `labelled_tenant` the one
    that its body names. Durations in milliseconds, costs in USD, `size_bytes` of the body; `tool_calls` and
    `tool_errors` are counts; a dict of tags is shown as `key:value`.
    """

    id: str
    kurral_id: str
    run_id: str
    tenant_id: str
    execution_id: str | None
    user_id: str
    created_at: datetime
    created_by: str | None
    received_at: datetime
    schema_version: str
    environment: str
    semantic_buckets: list[str]
    deterministic: bool
    replay_level: ReplayLevel
    determinism_score: float
    status: ArtifactStatus
    error_type: str | None
    error_message: str | None
    model_name: str | None
    model_version: str | None
    provider: str | None
    duration_ms: float | None
    cost_usd: float | None
    prompt_tokens: int | None
    completion_tokens: int | None
    total_tokens: int | None
    tool_calls: int
    tool_errors: int
    graph_hash: str | None
    tags: list[str]
    size_bytes: int
    labelled_tenant: str | None


class ArtifactRecord(msgspec.Struct, frozen=True, kw_only=True):
    """Hold an artifact as it is stored.

    `body` is its JSON with everything filled in. `fingerprint` is the SHA-256 of what was sent, without
    white space and in the schema's order: an artifact has the same one bare and wrapped, and generated values do not
    change it. `failures` is the text that a search looks through: the words of the errors of the run and of its
    tool calls.
    """

    metadata: ArtifactMetadata
    body: bytes
    fingerprint: bytes
    failures: str


class _TokenCounts(msgspec.Struct, frozen=True):
    """Hold the tokens of a run, of prompt, completion and both."""

    prompt: int | None = None
    completion: int | None = None
    total: int | None = None


class _Origin(msgspec.Struct, frozen=True):
    """Name who sent an artifact, when, and the execution that it is of."""

    tenant_id: str
    user_id: str
    now: datetime
    execution_id: str | None


def build_record(
    sent: bytes, *, tenant_id: str, user_id: str, now: datetime, execution_id: str | None = None
) -> ArtifactRecord:
    """Build the record of a request's body: an artifact, bare or under `artifact_data`.

    `execution_id` names the execution that the artifact is of; only its own artifact may bear its id.
    Errors: `malformed_request`, `invalid_field` with every wrong field that is cheap to find.
    """
    origin = _Origin(tenant_id, user_id, now, execution_id)
    artifact = schema.parse_artifact(sent)
    parameters = schema.parse_parameters(artifact)
    errors: list[FieldError] = []
    checked = _complete_fields(artifact, origin, errors)
    tokens = _count_tokens(artifact.token_usage, errors)
    if errors:
        raise InvalidFields(errors)

    filled = _fill_in(checked, artifact, parameters, origin)
    # One after the other: each encoding is as large as the body.
    fingerprint = sha256(_JSON_ENCODER.encode(artifact)).digest()
    body = _JSON_ENCODER.encode(filled)
    return ArtifactRecord(
        metadata=_build_metadata(filled, artifact, origin, tokens, len(body)),
        body=body,
        fingerprint=fingerprint,
        failures=extract_words(_list_error_texts(filled)),
    )


def _complete_fields(artifact: Artifact, origin: _Origin, errors: list[FieldError]) -> Artifact:
    """Return the artifact with completed tool calls and with times in UTC, and add the errors of its fields."""
    tool_calls, call_errors = calls.complete_tool_calls(artifact.tool_calls or ())
    errors += call_errors
    created_at = _read_created_at(artifact.created_at, origin.now, errors)
    time_env = artifact.time_env
    if time_env is not None and time_env.timestamp is not None:
        timestamp = calls.to_utc("time_env.timestamp", time_env.timestamp, errors)
        time_env = msgspec.structs.replace(time_env, timestamp=timestamp)
    _check_names(artifact, origin.execution_id, errors)
    return msgspec.structs.replace(artifact, tool_calls=tool_calls, created_at=created_at, time_env=time_env)


def _fill_in(checked: Artifact, sent: Artifact, parameters: SamplingParameters, origin: _Origin) -> Artifact:
    """Return the artifact with its ids, defaults and determinism report filled in."""
    kurral_id = sent.kurral_id or origin.execution_id or str(uuid4())
    environment = sent.environment or DEFAULT_ENVIRONMENT
    report = sent.determinism_report
    if report is None or report.overall_score is None:
        computed = determinism.build_report(sent, checked.tool_calls or (), parameters, environment)
        if report is None:
            report = computed
        else:
            report = msgspec.structs.replace(report, overall_score=computed.overall_score or 0.0)
    level = _choose_level(sent, report.overall_score or 0.0)
    return msgspec.structs.replace(
        checked,
        kurral_id=kurral_id,
        run_id=sent.run_id or kurral_id,
        tenant_id=sent.tenant_id or origin.tenant_id,
        semantic_buckets=sent.semantic_buckets or [],
        environment=environment,
        schema_version=sent.schema_version or DEFAULT_SCHEMA_VERSION,
        deterministic=level == "A" if sent.deterministic is None else sent.deterministic,
        replay_level=_choose_body_level(sent, level),
        determinism_report=report,
    )


def _build_metadata(
    filled: Artifact, sent: Artifact, origin: _Origin, tokens: _TokenCounts, size: int
) -> ArtifactMetadata:
    config = filled.llm_config or LlmConfig()
    error = _find_error(filled)
    score = (filled.determinism_report and filled.determinism_report.overall_score) or 0.0
    cost = filled.cost_usd
    if cost is None and filled.token_usage is not None:
        cost = filled.token_usage.estimated_cost_usd
    return ArtifactMetadata(
        id=ids.generate_id("art"),
        kurral_id=filled.kurral_id or "",
        run_id=filled.run_id or "",
        tenant_id=origin.tenant_id,
        execution_id=origin.execution_id,
        user_id=origin.user_id,
        created_at=filled.created_at or origin.now,
        created_by=filled.created_by,
        received_at=origin.now,
        schema_version=filled.schema_version or DEFAULT_SCHEMA_VERSION,
        environment=filled.environment or DEFAULT_ENVIRONMENT,
        semantic_buckets=sorted(set(filled.semantic_buckets or ())),
        deterministic=bool(filled.deterministic),
        replay_level=_choose_level(sent, score),
        determinism_score=score,
        status="ok" if error is None else "error",
        error_type=None if error is None or error.type is None else _cut_text(error.type, MAX_NAME_CHARACTERS),
        error_message=None if error is None or error.message is None else _cut_text(error.message, MAX_MESSAGE_BYTES),
        model_name=config.model_name,
        model_version=config.model_version,
        provider=config.provider,
        duration_ms=None if filled.duration_ms is None else float(filled.duration_ms),
        cost_usd=None if cost is None else float(cost),
        prompt_tokens=tokens.prompt,
        completion_tokens=tokens.completion,
        total_tokens=tokens.total,
        tool_calls=len(filled.tool_calls or ()),
        tool_errors=sum(map(calls.has_failed, filled.tool_calls or ())),
        graph_hash=_find_graph_hash(filled),
        tags=[tag for _, tag in _list_tags(filled)],
        size_bytes=size,
        labelled_tenant=sent.tenant_id,
    )


def _choose_level(sent: Artifact, score: float) -> ReplayLevel:
    return sent.replay_level or determinism.level_from_score(score)


def _choose_body_level(sent: Artifact, level: ReplayLevel) -> ReplayLevel | None:
    # Kurral from 0.2.0 on sends `deterministic` without a level and cannot load a level C: leave it without one.
    if level == "C" and sent.replay_level is None and sent.deterministic is not None:
        return None
    return level


def _read_created_at(sent: datetime | None, now: datetime, errors: list[FieldError]) -> datetime:
    try:
        return now if sent is None else read_record_time("created_at", sent, now)
    except DomainError as error:
        errors += error.errors
        return now


def _check_names(artifact: Artifact, execution_id: str | None, errors: list[FieldError]) -> None:
    """Check the names by which rows are found and counted; they have to fit columns and their indexes."""
    _check_kurral_id(artifact.kurral_id, execution_id, errors)
    _check_name("run_id", artifact.run_id, errors, MAX_RUN_ID_CHARACTERS)
    for field in ("tenant_id", "environment", "schema_version", "created_by"):
        _check_name(field, getattr(artifact, field), errors)
    if artifact.llm_config is not None:
        for field in ("model_name", "model_version", "provider"):
            _check_name(f"llm_config.{field}", getattr(artifact.llm_config, field), errors)
    _check_name("graph_version", _find_graph_hash(artifact), errors)
    buckets = artifact.semantic_buckets or ()
    if len(buckets) > MAX_SEMANTIC_BUCKETS:
        errors.append(FieldError(field="semantic_buckets", message=f"has more than {MAX_SEMANTIC_BUCKETS} entries."))
    for index, bucket in enumerate(buckets[:MAX_SEMANTIC_BUCKETS]):
        if not bucket:
            errors.append(FieldError(field=f"semantic_buckets[{index}]", message="must not be empty."))
        _check_name(f"semantic_buckets[{index}]", bucket, errors)
    if len(artifact.tags or ()) > MAX_TAGS:
        errors.append(FieldError(field="tags", message=f"has more than {MAX_TAGS} entries."))
        return
    for field, tag in _list_tags(artifact):
        _check_name(field, tag, errors)


def _check_kurral_id(kurral_id: str | None, execution_id: str | None, errors: list[FieldError]) -> None:
    if kurral_id is None:
        return
    _check_name("kurral_id", kurral_id, errors, MAX_KURRAL_ID_CHARACTERS)
    if kurral_id == "":
        errors.append(FieldError(field="kurral_id", message="must not be empty."))
    if "/" in kurral_id or kurral_id in RESERVED_IDS:
        message = "must not hold a slash, nor be a word that a path of this API has in its place."
        errors.append(FieldError(field="kurral_id", message=message))
    if kurral_id != execution_id and ids.decode_id("exec", kurral_id) is not None:
        errors.append(FieldError(field="kurral_id", message="is reserved for the artifact of an execution."))


def _check_name(field: str, name: str | None, errors: list[FieldError], limit: int = MAX_NAME_CHARACTERS) -> None:
    if name is None:
        return
    if len(name) > limit:
        errors.append(FieldError(field=field, message=f"is longer than {limit} characters."))
    if "\0" in name:
        errors.append(FieldError(field=field, message="contains the character U+0000."))


def _list_tags(artifact: Artifact) -> list[tuple[str, str]]:
    """Return each tag once, with the field that it was sent in."""
    if isinstance(artifact.tags, dict):
        return [(f"tags.{key[:MAX_NAME_CHARACTERS]}", f"{key}:{value}") for key, value in artifact.tags.items()]
    fields = {tag: f"tags[{index}]" for index, tag in reversed(list(enumerate(artifact.tags or ())))}
    return [(fields[tag], tag) for tag in dict.fromkeys(artifact.tags or ())]


def _count_tokens(usage: TokenUsage | None, errors: list[FieldError]) -> _TokenCounts:
    if usage is None:
        return _TokenCounts()
    for name in ("prompt", "completion", "total", "cached", "cache_creation", "cache_read", "reasoning", "audio"):
        ours, theirs = getattr(usage, name), getattr(usage, f"{name}_tokens")
        if ours is not None and theirs is not None and ours != theirs:
            errors.append(FieldError(field=f"token_usage.{name}", message=f"means {name}_tokens; send one of them."))
    prompt = usage.prompt_tokens if usage.prompt is None else usage.prompt
    completion = usage.completion_tokens if usage.completion is None else usage.completion
    total = usage.total_tokens if usage.total is None else usage.total
    # Kurral's model writes a total of 0 where its caller gave none.
    if not total and (prompt is not None or completion is not None):
        total = (prompt or 0) + (completion or 0)
    return _TokenCounts(prompt, completion, total)


def _find_graph_hash(artifact: Artifact) -> str | None:
    if artifact.graph_version is None or isinstance(artifact.graph_version, str):
        return artifact.graph_version
    return artifact.graph_version.graph_hash or artifact.graph_version.graph_checksum


def _find_error(artifact: Artifact) -> ArtifactError | None:
    """Return the error of the run in one form; None where it is missing or empty."""
    if isinstance(artifact.error, str):
        return ArtifactError(message=artifact.error) if artifact.error else None
    error = artifact.error
    return error if error is not None and (error.type or error.message or error.stack) else None


def _list_error_texts(artifact: Artifact) -> Iterator[str]:
    error = _find_error(artifact)
    texts: list[Any] = [] if error is None else [error.type, error.message, error.stack]
    yield from filter(None, texts)
    completed: Sequence[ArtifactToolCall] = artifact.tool_calls or ()
    for call in completed:
        if call.error_type or calls.has_failed(call):
            texts = [call.error_type, call.error_text or call.error, call.stack or call.error_stack]
            yield from filter(None, texts)


def _cut_text(text: str, max_bytes: int) -> str:
    """Return text that Postgres takes, of at most so many bytes."""
    return text[:max_bytes].replace("\0", "\ufffd").encode()[:max_bytes].decode(errors="ignore")
