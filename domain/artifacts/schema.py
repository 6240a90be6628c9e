"""Define the artifact that a caller uploads: one LLM run, as Kurral's clients write it and as our own API names it.

Both spellings of a field are fields here, and what was sent keeps its spelling. A null is a field left out.
Free-form values stay slices of the request (`msgspec.Raw`), so that 32 MiB of them never become objects.
Source: KurralArtifact of kurral 0.1.1 to 0.4.0, `models/kurral.py`.
"""

import codecs
from datetime import datetime
from typing import Annotated, Final, Literal

import msgspec
from msgspec import UNSET, Meta, Raw, UnsetType
from msgspec.structs import replace

from domain.shared.errors import DomainError, FieldError, InvalidFields, field_error_from_msgspec
from domain.shared.json_limits import JsonLimits, check_json_body
from domain.shared.times import normalize_times

# Clients and our own readers recurse, and Python stops near 1000 levels, counted from the top of its stack.
# An execution's input may nest 128 deep, and lies one level deep in its artifact.
MAX_ARTIFACT_DEPTH: Final = 130
# Nearly all of its values and numbers stay slices.
ARTIFACT_JSON_LIMITS: Final = JsonLimits(depth=MAX_ARTIFACT_DEPTH, values=None, number_characters=None)
MAX_TOOL_CALLS: Final = 10_000

FreeJson = Raw | UnsetType
ReplayLevel = Literal["A", "B", "C"]
EffectType = Literal["http", "db_write", "email", "fs", "mcp", "other"]
ToolCallStatus = Literal["ok", "error", "timeout"]
# Whole numbers stay whole: Kurral's model takes no others for a duration.
Milliseconds = Annotated[int, Meta(ge=0, le=10**12)] | Annotated[float, Meta(ge=0, le=1e12)]
Usd = Annotated[int, Meta(ge=0, le=10**9)] | Annotated[float, Meta(ge=0, le=1e9)]
Tokens = Annotated[int, Meta(ge=0, le=10**12)]
Share = Annotated[float, Meta(ge=0, le=1)]


class ArtifactPart(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True):
    """Share the rules of all parts of an artifact: fields that were not sent are not written."""


class SamplingParameters(msgspec.Struct, frozen=True, kw_only=True):
    """Hold the sampling parameters that count for determinism; all others are kept unread."""

    temperature: float | None = None
    top_p: float | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    seed: int | None = None


class LlmConfig(ArtifactPart, frozen=True, kw_only=True):
    """Name the model that was called. `parameters` is free-form, see `SamplingParameters`."""

    model_name: str | None = None
    model_version: str | None = None
    provider: str | None = None
    parameters: FreeJson = UNSET
    stop_sequences: list[str] | None = None
    additional_params: FreeJson = UNSET


class ResolvedPrompt(ArtifactPart, frozen=True, kw_only=True):
    """Hold the prompt before and after its variables were filled in. Hashes are SHA-256 in hex."""

    template: str | None = None
    template_id: str | None = None
    template_hash: str | None = None
    variables: FreeJson = UNSET
    variables_hash: str | None = None
    final_text: str | None = None
    final_text_hash: str | None = None
    system_prompt: str | None = None
    messages: FreeJson = UNSET
    hashes: FreeJson = UNSET


class TokenUsage(ArtifactPart, frozen=True, kw_only=True):
    """Count the tokens of the run, each under our name or Kurral's (`prompt` is `prompt_tokens`)."""

    prompt: Tokens | None = None
    prompt_tokens: Tokens | None = None
    completion: Tokens | None = None
    completion_tokens: Tokens | None = None
    total: Tokens | None = None
    total_tokens: Tokens | None = None
    cached: Tokens | None = None
    cached_tokens: Tokens | None = None
    cache_creation: Tokens | None = None
    cache_creation_tokens: Tokens | None = None
    cache_read: Tokens | None = None
    cache_read_tokens: Tokens | None = None
    cache_hit_rate: Share | None = None
    estimated_cost_usd: Usd | None = None
    reasoning: Tokens | None = None
    reasoning_tokens: Tokens | None = None
    audio: Tokens | None = None
    audio_tokens: Tokens | None = None


class ArtifactToolCall(ArtifactPart, frozen=True, kw_only=True):
    """Describe one tool call of the run; `parent_id` is the `id` of another, see `calls`. Latency in milliseconds.

    `inputs outputs error duration_ms timestamp` are Kurral's older names of
    `input output error_text latency_ms start_time`, and `error_stack` is its name of `stack`.
    """

    id: str | None = None
    parent_id: str | None = None
    tool_name: str | None = None
    namespace: str | None = None
    agent_id: str | None = None
    start_time: datetime | None = None
    end_time: datetime | None = None
    latency_ms: Milliseconds | None = None
    timestamp: datetime | None = None
    input: FreeJson = UNSET
    input_hash: str | None = None
    output: FreeJson = UNSET
    output_hash: str | None = None
    hashes: FreeJson = UNSET
    summary: str | None = None
    type: str | None = None
    effect_type: EffectType | None = None
    status: ToolCallStatus | None = None
    error_flag: bool | None = None
    error_text: str | None = None
    error_type: str | None = None
    stack: str | None = None
    error_stack: str | None = None
    cache_key: str | None = None
    stubbed_in_replay: bool | None = None
    metadata: FreeJson = UNSET
    inputs: FreeJson = UNSET
    outputs: FreeJson = UNSET
    error: str | None = None
    duration_ms: Milliseconds | None = None


class DeterminismReport(ArtifactPart, frozen=True, kw_only=True):
    """Score how repeatable the run is, from 0 to 1, over all and by factor."""

    overall_score: Share | None = None
    breakdown: dict[str, Share] | None = None
    missing_fields: list[str] | None = None
    warnings: list[str] | None = None


class ArtifactError(ArtifactPart, frozen=True, kw_only=True):
    """Describe the error of the run."""

    type: str | None = None
    message: str | None = None
    stack: str | None = None


class GraphVersion(ArtifactPart, frozen=True, kw_only=True):
    """Hold hashes of the agent's graph, tools and policies."""

    graph_hash: str | None = None
    graph_checksum: str | None = None
    tool_schemas_hash: str | None = None
    tools: FreeJson = UNSET
    policy_pack_hash: str | None = None
    policy_version: str | None = None
    preprocessors_hash: str | None = None
    postprocessors_hash: str | None = None


class TimeEnv(ArtifactPart, frozen=True, kw_only=True):
    """Describe when and in which environment the run happened."""

    timestamp: datetime | None = None
    timezone: str | None = None
    wall_clock_time: str | None = None
    locale: str | None = None
    environment_vars: FreeJson = UNSET
    feature_flags: FreeJson = UNSET
    clock_freeze: bool | None = None


class Artifact(ArtifactPart, frozen=True, kw_only=True):
    """Describe one recorded LLM run. Durations in milliseconds, costs in USD, times without an offset are UTC."""

    kurral_id: str | None = None
    run_id: str | None = None
    tenant_id: str | None = None
    semantic_buckets: list[str] | None = None
    environment: str | None = None
    schema_version: str | None = None
    created_at: datetime | None = None
    created_by: str | None = None
    deterministic: bool | None = None
    replay_level: ReplayLevel | None = None
    determinism_report: DeterminismReport | None = None
    inputs: FreeJson = UNSET
    outputs: FreeJson = UNSET
    error: ArtifactError | str | None = None
    llm_config: LlmConfig | None = None
    resolved_prompt: ResolvedPrompt | None = None
    graph_version: GraphVersion | str | None = None
    tool_calls: Annotated[list[ArtifactToolCall], Meta(max_length=MAX_TOOL_CALLS)] | None = None
    time_env: TimeEnv | None = None
    duration_ms: Milliseconds | None = None
    cost_usd: Usd | None = None
    token_usage: TokenUsage | None = None
    object_storage_uri: str | None = None
    tags: dict[str, str] | list[str] | None = None
    metadata: FreeJson = UNSET
    replay_evidence: FreeJson = UNSET
    governance: FreeJson = UNSET
    data_snapshots: FreeJson = UNSET
    extensions: FreeJson = UNSET


class ArtifactUpload(Artifact, frozen=True, kw_only=True):
    """Hold the artifact itself, or the wrapper of Kurral's client. One struct, so that one pass reads either."""

    artifact_data: Artifact | UnsetType = UNSET


_UPLOAD_DECODER: Final = msgspec.json.Decoder(ArtifactUpload)
_PARAMETERS_DECODER: Final = msgspec.json.Decoder(SamplingParameters)
_UTF8_CHUNK_BYTES: Final = 1 << 20


def parse_artifact(sent: bytes) -> Artifact:
    """Parse the artifact of a request's body, bare or under `artifact_data`; fills nothing in.

    Errors: `malformed_request` for a body that is no JSON object in UTF-8 or nests deeper than `MAX_ARTIFACT_DEPTH`;
    `invalid_field`.
    """
    check_json_body(sent, ARTIFACT_JSON_LIMITS)
    try:
        _check_utf8(sent)
        packed = msgspec.json.format(sent, indent=-1)
        # The slices keep the buffer that they lie in: if the two are equal, one can be freed.
        upload = _UPLOAD_DECODER.decode(sent if len(packed) == len(sent) else packed)
    except msgspec.ValidationError as error:
        upload = _decode_with_times(packed, error)
    except msgspec.DecodeError as error:
        raise DomainError("malformed_request", f"The body is not JSON: {error}.") from None
    except UnicodeDecodeError:
        raise DomainError("malformed_request", "The body is not UTF-8 text.") from None
    except RecursionError:
        raise DomainError("malformed_request", "The body nests too deeply.") from None
    if isinstance(upload.artifact_data, UnsetType):
        return upload
    extra_fields = [name for name in Artifact.__struct_fields__ if getattr(upload, name) not in (None, UNSET)]
    if extra_fields:
        raise InvalidFields(
            [FieldError(field=name, message="is not allowed beside artifact_data.") for name in extra_fields]
        )
    return upload.artifact_data


def _decode_with_times(packed: bytes, error: msgspec.ValidationError) -> ArtifactUpload:
    """Decode an upload again, with its times in one form. Errors: `invalid_field`, `malformed_request`."""
    if "datetime" not in str(error):
        raise _build_refusal(str(error)) from None
    try:
        return _UPLOAD_DECODER.decode(normalize_times(packed, ArtifactUpload))
    except msgspec.ValidationError as still:
        raise _build_refusal(str(still)) from None


def parse_parameters(artifact: Artifact) -> SamplingParameters:
    """Parse the parameters that count for determinism. Errors: `invalid_field`."""
    parameters = artifact.llm_config.parameters if artifact.llm_config is not None else UNSET
    if isinstance(parameters, UnsetType) or is_empty(parameters):
        return SamplingParameters()
    try:
        return _PARAMETERS_DECODER.decode(parameters)
    except msgspec.ValidationError as error:
        raise _build_refusal(str(error), "llm_config.parameters") from None


def is_empty(value: FreeJson) -> bool:
    """Tell whether a free-form value is empty: left out, null, or an empty string, list or object."""
    return isinstance(value, UnsetType) or (len(value) <= 4 and bytes(value) in (b"", b"null", b"{}", b"[]", b'""'))


def _build_refusal(message: str, within: str = "") -> DomainError:
    field_error = field_error_from_msgspec(message, within)
    if field_error.field == "body" and field_error.message.startswith("Expected `object`"):
        return DomainError("malformed_request", "The body must be a JSON object.")
    # Fields of a wrapped artifact are reported under the names that they have without the wrapper.
    return InvalidFields([replace(field_error, field=field_error.field.removeprefix("artifact_data."))])


def _check_utf8(sent: bytes) -> None:
    """Check that a body is UTF-8: slices are copied unread, so that no other step would notice."""
    if sent.isascii():
        return
    decoder = codecs.getincrementaldecoder("utf-8")()
    for begin in range(0, len(sent), _UTF8_CHUNK_BYTES):
        decoder.decode(sent[begin : begin + _UTF8_CHUNK_BYTES])
    decoder.decode(b"", final=True)
