"""From an uploaded artifact to what is kept of it: its metadata, its body and how to find and recognise it."""

from collections.abc import Iterator, Sequence
from datetime import datetime
from hashlib import sha256
from typing import Any, Final, Literal
from uuid import uuid4

import msgspec

from domain.artifacts import calls, determinism, schema
from domain.artifacts.schema import Artifact, ArtifactError, ArtifactToolCall, LlmConfig, ReplayLevel, TokenUsage
from domain.artifacts.search_text import extract_words
from domain.shared import ids
from domain.shared.errors import DomainError, FieldError, InvalidFields
from domain.shared.times import read_record_time as made_at

MAX_NAME_CHARACTERS: Final = 200
MAX_KURRAL_ID_CHARACTERS: Final = 128
# What comes after /artifacts/ has to be an id and nothing else.
RESERVED_IDS: Final = frozenset({".", "..", "export", "upload", "semantic-buckets"})
MAX_RUN_ID_CHARACTERS: Final = 256
MAX_SEMANTIC_BUCKETS: Final = 32
MAX_TAGS: Final = 64
MAX_MESSAGE_BYTES: Final = 4 * 1024
DEFAULT_ENVIRONMENT: Final = "production"
DEFAULT_SCHEMA_VERSION: Final = "1.0.0"

ArtifactStatus = Literal["ok", "error"]

_ENCODER: Final = msgspec.json.Encoder()


class ArtifactMetadata(msgspec.Struct, frozen=True, kw_only=True):
    """What lists, statistics and `GET /artifacts/{id}/metadata` show of an artifact.

    `id` is ours, `kurral_id` the caller's. `tenant_id` is whose artifact it is, `labelled_tenant` what its
    body says. Durations in milliseconds, costs in USD, `size_bytes` of the body; `tool_calls` and
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
    """An artifact as it is kept.

    `body` is its JSON with everything filled in. `fingerprint` is the SHA-256 of what was sent, without
    white space and in the schema's order: the same artifact bare or wrapped has the same one, whatever was
    generated for it. `failures` is what a search looks through: the words of the errors of the run and of its
    tool calls.
    """

    metadata: ArtifactMetadata
    body: bytes
    fingerprint: bytes
    failures: str


def build_record(
    sent: bytes, *, tenant_id: str, user_id: str, now: datetime, execution_id: str | None = None
) -> ArtifactRecord:
    """What is kept of a request's body: an artifact, bare or under `artifact_data`.

    `execution_id` names the execution that the artifact is of; only its own artifact may bear its id.
    Errors: `malformed_request`, `invalid_field` with every field at fault that is cheap to find.
    """
    artifact = schema.parse_artifact(sent)
    parameters = schema.parse_parameters(artifact)
    completed, found = calls.complete_tool_calls(artifact.tool_calls or ())
    created_at = _created_at(artifact.created_at, now, found)
    time_env = artifact.time_env
    if time_env is not None and time_env.timestamp is not None:
        stamp = calls.to_utc("time_env.timestamp", time_env.timestamp, found)
        time_env = msgspec.structs.replace(time_env, timestamp=stamp)
    _check_names(artifact, execution_id, found)
    tokens = _tokens(artifact.token_usage, found)
    if found:
        raise InvalidFields(found)

    kurral_id = artifact.kurral_id or execution_id or str(uuid4())
    environment = artifact.environment or DEFAULT_ENVIRONMENT
    report = artifact.determinism_report
    if report is None:
        report = determinism.build_report(artifact, completed, parameters, environment)
    score = report.overall_score
    if score is None:
        score = determinism.build_report(artifact, completed, parameters, environment).overall_score or 0.0
        report = msgspec.structs.replace(report, overall_score=score)
    level = artifact.replay_level or determinism.level_from_score(score)
    filled = msgspec.structs.replace(
        artifact,
        kurral_id=kurral_id,
        run_id=artifact.run_id or kurral_id,
        tenant_id=artifact.tenant_id or tenant_id,
        semantic_buckets=artifact.semantic_buckets or [],
        environment=environment,
        schema_version=artifact.schema_version or DEFAULT_SCHEMA_VERSION,
        created_at=created_at,
        deterministic=level == "A" if artifact.deterministic is None else artifact.deterministic,
        replay_level=_level_in_body(artifact, level),
        determinism_report=report,
        tool_calls=completed,
        time_env=time_env,
    )
    fingerprint = sha256(_ENCODER.encode(artifact)).digest()
    body = _ENCODER.encode(filled)
    return ArtifactRecord(
        metadata=_metadata(filled, tenant_id, user_id, now, execution_id, level, score, tokens, len(body), artifact),
        body=body,
        fingerprint=fingerprint,
        failures=extract_words(_told(filled, completed)),
    )


def _metadata(
    filled: Artifact,
    tenant_id: str,
    user_id: str,
    now: datetime,
    execution_id: str | None,
    level: ReplayLevel,
    score: float,
    tokens: tuple[int | None, int | None, int | None],
    size: int,
    sent: Artifact,
) -> ArtifactMetadata:
    config = filled.llm_config or LlmConfig()
    error = _error(filled)
    cost = filled.cost_usd
    if cost is None and filled.token_usage is not None:
        cost = filled.token_usage.estimated_cost_usd
    return ArtifactMetadata(
        id=ids.generate_id("art"),
        kurral_id=filled.kurral_id or "",
        run_id=filled.run_id or "",
        tenant_id=tenant_id,
        execution_id=execution_id,
        user_id=user_id,
        created_at=filled.created_at or now,
        created_by=filled.created_by,
        received_at=now,
        schema_version=filled.schema_version or DEFAULT_SCHEMA_VERSION,
        environment=filled.environment or DEFAULT_ENVIRONMENT,
        semantic_buckets=sorted(set(filled.semantic_buckets or ())),
        deterministic=bool(filled.deterministic),
        replay_level=level,
        determinism_score=score,
        status="ok" if error is None else "error",
        error_type=None if error is None or error.type is None else _text(error.type, MAX_NAME_CHARACTERS),
        error_message=None if error is None or error.message is None else _text(error.message, MAX_MESSAGE_BYTES),
        model_name=config.model_name,
        model_version=config.model_version,
        provider=config.provider,
        duration_ms=None if filled.duration_ms is None else float(filled.duration_ms),
        cost_usd=None if cost is None else float(cost),
        prompt_tokens=tokens[0],
        completion_tokens=tokens[1],
        total_tokens=tokens[2],
        tool_calls=len(filled.tool_calls or ()),
        tool_errors=sum(map(calls.has_failed, filled.tool_calls or ())),
        graph_hash=_graph_hash(filled),
        tags=[name for _, name in _tags(filled)],
        size_bytes=size,
        labelled_tenant=sent.tenant_id,
    )


def _level_in_body(artifact: Artifact, level: ReplayLevel) -> ReplayLevel | None:
    # Kurral from 0.2.0 on sends `deterministic` without a level and cannot load a level C: leave it without one.
    if level == "C" and artifact.replay_level is None and artifact.deterministic is not None:
        return None
    return level


def _created_at(sent: datetime | None, now: datetime, found: list[FieldError]) -> datetime:
    try:
        return now if sent is None else made_at("created_at", sent, now)
    except DomainError as error:
        found += error.errors
        return now


def _check_names(artifact: Artifact, execution_id: str | None, found: list[FieldError]) -> None:
    """Names are what rows are found and counted by; they have to fit columns and their indexes."""
    _check_name("kurral_id", artifact.kurral_id, found, MAX_KURRAL_ID_CHARACTERS)
    if artifact.kurral_id == "":
        found.append(FieldError(field="kurral_id", message="must not be empty."))
    if artifact.kurral_id is not None and ("/" in artifact.kurral_id or artifact.kurral_id in RESERVED_IDS):
        found.append(FieldError(field="kurral_id", message="cannot be asked for: it is a path, or part of one, here."))
    if (
        artifact.kurral_id
        and artifact.kurral_id != execution_id
        and ids.decode_id("exec", artifact.kurral_id) is not None
    ):
        found.append(FieldError(field="kurral_id", message="is kept for the artifact of an execution."))
    _check_name("run_id", artifact.run_id, found, MAX_RUN_ID_CHARACTERS)
    for field in ("tenant_id", "environment", "schema_version", "created_by"):
        _check_name(field, getattr(artifact, field), found)
    if artifact.llm_config is not None:
        for field in ("model_name", "model_version", "provider"):
            _check_name(f"llm_config.{field}", getattr(artifact.llm_config, field), found)
    _check_name("graph_version", _graph_hash(artifact), found)
    buckets = artifact.semantic_buckets or ()
    if len(buckets) > MAX_SEMANTIC_BUCKETS:
        found.append(FieldError(field="semantic_buckets", message=f"has more than {MAX_SEMANTIC_BUCKETS} entries."))
    for place, bucket in enumerate(buckets[:MAX_SEMANTIC_BUCKETS]):
        if not bucket:
            found.append(FieldError(field=f"semantic_buckets[{place}]", message="must not be empty."))
        _check_name(f"semantic_buckets[{place}]", bucket, found)
    if len(artifact.tags or ()) > MAX_TAGS:
        found.append(FieldError(field="tags", message=f"has more than {MAX_TAGS} entries."))
        return
    for field, tag in _tags(artifact):
        _check_name(field, tag, found)


def _check_name(field: str, name: str | None, found: list[FieldError], most: int = MAX_NAME_CHARACTERS) -> None:
    if name is None:
        return
    if len(name) > most:
        found.append(FieldError(field=field, message=f"is longer than {most} characters."))
    if "\0" in name:
        found.append(FieldError(field=field, message="contains the character U+0000."))


def _tags(artifact: Artifact) -> list[tuple[str, str]]:
    """Where each tag stands, and the tag. One that stands there twice is one tag."""
    if isinstance(artifact.tags, dict):
        return [(f"tags.{key[:MAX_NAME_CHARACTERS]}", f"{key}:{value}") for key, value in artifact.tags.items()]
    places = {tag: f"tags[{place}]" for place, tag in reversed(list(enumerate(artifact.tags or ())))}
    return [(places[tag], tag) for tag in dict.fromkeys(artifact.tags or ())]


def _tokens(usage: TokenUsage | None, found: list[FieldError]) -> tuple[int | None, int | None, int | None]:
    """Prompt, completion and total."""
    if usage is None:
        return None, None, None
    for ours in ("prompt", "completion", "total", "cached", "cache_creation", "cache_read", "reasoning", "audio"):
        one, other = getattr(usage, ours), getattr(usage, f"{ours}_tokens")
        if one is not None and other is not None and one != other:
            found.append(FieldError(field=f"token_usage.{ours}", message=f"means {ours}_tokens; send one of them."))
    prompt = usage.prompt_tokens if usage.prompt is None else usage.prompt
    completion = usage.completion_tokens if usage.completion is None else usage.completion
    total = usage.total_tokens if usage.total is None else usage.total
    # Kurral's model writes a total of 0 where its caller gave none.
    if not total and (prompt is not None or completion is not None):
        total = (prompt or 0) + (completion or 0)
    return prompt, completion, total


def _graph_hash(artifact: Artifact) -> str | None:
    if artifact.graph_version is None or isinstance(artifact.graph_version, str):
        return artifact.graph_version
    return artifact.graph_version.graph_hash or artifact.graph_version.graph_checksum


def _error(artifact: Artifact) -> ArtifactError | None:
    """What the run failed with, in one form; None for nothing and for an error that says nothing."""
    if isinstance(artifact.error, str):
        return ArtifactError(message=artifact.error) if artifact.error else None
    error = artifact.error
    return error if error is not None and (error.type or error.message or error.stack) else None


def _told(artifact: Artifact, completed: Sequence[ArtifactToolCall]) -> Iterator[str]:
    error = _error(artifact)
    texts: list[Any] = [] if error is None else [error.type, error.message, error.stack]
    yield from filter(None, texts)
    for call in completed:
        if call.error_type or calls.has_failed(call):
            texts = [call.error_type, call.error_text or call.error, call.stack or call.error_stack]
            yield from filter(None, texts)


def _text(text: str, most: int) -> str:
    """Text that Postgres takes, of at most so many bytes."""
    return text[:most].replace("\0", "\ufffd").encode()[:most].decode(errors="ignore")
