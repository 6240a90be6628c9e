"""Define evaluations as they are sent and stored, and the filter of their lists."""

from datetime import datetime
from typing import Annotated, Any, Final, Literal

import msgspec
from msgspec import UNSET, Meta, UnsetType

from domain.shared.json_limits import JsonLimits

MAX_EVALUATION_BATCH: Final = 1000
# The values of `metadata` are counted too, though they become objects one row at a time.
BATCH_JSON_LIMITS: Final = JsonLimits(depth=512, values=1_000_000)
MAX_TEXT_CHARACTERS: Final = 1_000_000
MAX_RETRIEVED_DOCS: Final = 256
MAX_METADATA_BYTES: Final = 64 * 1024
# Claims of an evaluation whose scoring fails, before it stays without scores.
MAX_SCORING_ATTEMPTS: Final = 3

MetricsState = Literal["sent", "pending", "computed", "failed"]
Text = Annotated[str, Meta(max_length=MAX_TEXT_CHARACTERS)]
Name = Annotated[str, Meta(min_length=1, max_length=200)]
Share = Annotated[float, Meta(ge=0, le=1)]
# A cosine distance, so up to 2.
Drift = Annotated[float, Meta(ge=0, le=2)]
Seconds = Annotated[float, Meta(ge=0, le=1_000_000, description="Seconds.")]
Rate = Annotated[float, Meta(ge=0, le=1_000_000_000, description="Per second.")]


class NewEvaluation(msgspec.Struct, kw_only=True, forbid_unknown_fields=True, gc=False):
    """Send an answer to evaluate, and the metrics that the caller has measured.

    `created_at` is when it happened, now if left out. `execution_id` and `artifact_id` (a `kurral_id`) must exist.
    `metadata` is a free object of up to 64 KiB.
    """

    prompt: Annotated[Text, Meta(examples=["What is the capital of France?"])]
    response: Annotated[Text, Meta(examples=["Paris is the capital of France."])]
    retrieved_docs: Annotated[list[Text], Meta(max_length=MAX_RETRIEVED_DOCS)] | None = None
    semantic_drift: Drift | None = None
    uncertainty: Share | None = None
    factual_support: Share | None = None
    hallucination_probability: Share | None = None
    hallucinated: bool | None = None
    latency_sec: Seconds | None = None
    throughput_qps: Rate | None = None
    mode: Annotated[Name, Meta(examples=["self-check"])] | None = None
    model_name: Annotated[Name, Meta(examples=["gpt-4o-mini"])] | None = None
    agent_name: Annotated[Name, Meta(examples=["qa_assistant"])] | None = None
    session_id: Name | None = None
    execution_id: str | None = None
    artifact_id: str | None = None
    # A slice of the request: as objects it would take many times its size.
    metadata: msgspec.Raw | UnsetType = UNSET
    created_at: datetime | None = None


class Evaluation(msgspec.Struct, kw_only=True, gc=False):
    """Describe one evaluation. Scores from 0 to 1 (`semantic_drift` to 2), `computed` names those a worker computed."""

    id: str
    tenant_id: str
    user_id: str
    prompt: str
    response: str
    retrieved_docs: list[str] | None
    semantic_drift: float | None
    uncertainty: float | None
    factual_support: float | None
    hallucination_probability: float | None
    hallucinated: bool | None
    latency_sec: float | None
    throughput_qps: float | None
    mode: str | None
    model_name: str | None
    agent_name: str | None
    session_id: str | None
    execution_id: str | None
    artifact_id: str | None
    metadata: dict[str, Any] | None
    metrics: MetricsState
    computed: list[str] = []
    created_at: datetime


class EvaluationBatch(msgspec.Struct, kw_only=True, frozen=True):
    """Report a stored batch: the number of evaluations and their ids, in the order in which they were sent."""

    created: int
    ids: list[str]


class EvaluationFilter(msgspec.Struct, frozen=True, kw_only=True):
    """Select evaluations of a list. Times are inclusive at `since`, exclusive at `until`."""

    hallucinated: bool | None = None
    mode: str | None = None
    model_name: str | None = None
    agent_name: str | None = None
    session_id: str | None = None
    execution_id: str | None = None
    artifact_id: str | None = None
    since: datetime | None = None
    until: datetime | None = None


class ClaimedEvaluation(msgspec.Struct, kw_only=True, frozen=True):
    """Hold an evaluation whose metrics this attempt computes."""

    evaluation: Evaluation
    attempt: int
