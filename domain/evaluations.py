"""Evaluations: what somebody, or a worker, thinks of one answer of a model.

Metrics that the caller sends are stored as sent. Those left out are computed by a worker from prompt, response
and `retrieved_docs` (`domain.metrics`), which is what `metrics` tells: `sent`, or `pending` until `computed`.
"""

from datetime import datetime, timedelta
from typing import Annotated, Any, Final, Literal, Protocol

import msgspec
from msgspec import Meta

from domain import ids
from domain.errors import DomainError, FieldError, invalid, not_found
from domain.jobs import Job
from domain.metrics import Scores
from domain.pages import Listing, Page
from domain.ports import Tx
from domain.stats import SCALE, Bucket, Question, between, buckets, counted, filled, last_days, readable
from domain.times import recorded

MAX_BATCH: Final = 1000
MAX_TEXT: Final = 1_000_000
MAX_DOCS: Final = 256
# Claims of one whose computing fails, before it stays without.
MAX_ATTEMPTS: Final = 3

Metrics = Literal["sent", "pending", "computed", "failed"]
Text = Annotated[str, Meta(max_length=MAX_TEXT)]
Name = Annotated[str, Meta(min_length=1, max_length=200)]
Share = Annotated[float, Meta(ge=0, le=1)]
# A cosine distance, so up to 2.
Drift = Annotated[float, Meta(ge=0, le=2)]
Seconds = Annotated[float, Meta(ge=0, le=1_000_000, description="Seconds.")]
Rate = Annotated[float, Meta(ge=0, le=1_000_000_000, description="Per second.")]


class NewEvaluation(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """What is evaluated, and the metrics that the caller knows.

    `created_at` is when it happened, now if left out. `execution_id` and `artifact_id` (a `kurral_id`) must exist.
    """

    prompt: Annotated[Text, Meta(examples=["What is the capital of France?"])]
    response: Annotated[Text, Meta(examples=["Paris is the capital of France."])]
    retrieved_docs: Annotated[list[Text], Meta(max_length=MAX_DOCS)] | None = None
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
    metadata: dict[str, Any] | None = None
    created_at: datetime | None = None


class Evaluation(msgspec.Struct, kw_only=True):
    """One evaluation. Scores from 0 to 1 (`semantic_drift` to 2), `computed` names those a worker computed."""

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
    metrics: Metrics
    computed: list[str] = []
    created_at: datetime


class Batch(msgspec.Struct, kw_only=True, frozen=True):
    """What became of a batch: how many were stored, and their ids in the order in which they were sent."""

    created: int
    ids: list[str]


class Filter(msgspec.Struct, frozen=True, kw_only=True):
    """What evaluations are narrowed to. Times are inclusive at `since`, exclusive at `until`."""

    hallucinated: bool | None = None
    mode: str | None = None
    model_name: str | None = None
    agent_name: str | None = None
    session_id: str | None = None
    execution_id: str | None = None
    artifact_id: str | None = None
    since: datetime | None = None
    until: datetime | None = None


class Claimed(msgspec.Struct, kw_only=True, frozen=True):
    """An evaluation whose metrics this attempt computes."""

    evaluation: Evaluation
    attempt: int


class EvaluationStats(msgspec.Struct, kw_only=True):
    """Figures over evaluations; averages over those that have the value. Latencies in seconds.

    `hallucination_rate` is a share of those judged, from 0 to 1. Quantiles are within 1 % of the true value.
    """

    total_evaluations: int
    total_hallucinations: int
    hallucination_rate: float
    avg_latency: float | None
    avg_throughput: float | None
    avg_semantic_drift: float | None
    avg_uncertainty: float | None
    avg_factual_support: float | None
    p50_latency: float | None
    p95_latency: float | None
    p99_latency: float | None
    by_model: dict[str, int]
    by_agent: dict[str, int]
    by_mode: dict[str, int]
    since: datetime | None


class EvaluationPoint(msgspec.Struct, kw_only=True):
    """An hour or a day (UTC) of evaluations."""

    date: datetime
    count: int
    hallucinations: int
    hallucination_rate: float
    avg_latency: float | None
    avg_throughput: float | None
    avg_semantic_drift: float | None
    avg_uncertainty: float | None
    avg_factual_support: float | None


class Evaluations(Protocol):
    """The evaluations of the bound tenant. Whatever changes them writes their deltas in the same statement."""

    async def add(self, evaluations: list[Evaluation]) -> None: ...
    async def get(self, evaluation_id: str) -> Evaluation | None: ...
    async def page(self, narrowed: Filter, page: Page) -> Listing[Evaluation]: ...
    async def after(self, narrowed: Filter, place: tuple[datetime, str] | None, limit: int) -> list[Evaluation]:
        """The next `limit`, newest first, after the one at `place`."""
        ...

    async def delete_many(self, evaluation_ids: list[str]) -> int: ...
    async def older(self, before: datetime, limit: int) -> list[str]:
        """The oldest evaluations from before a time."""
        ...

    async def linked(self, executions: set[str], artifacts: set[str]) -> tuple[set[str], set[str]]:
        """Which of these executions and artifacts there are."""
        ...

    async def claim(self, most: int, now: datetime, until: datetime) -> list[Claimed]: ...
    async def score(self, scored: list[tuple[Claimed, Scores]]) -> int:
        """Write computed metrics to those still held by their attempt. Returns how many."""
        ...

    async def fail(self, claimed: list[Claimed]) -> None:
        """Leave these without the metrics they lack, or to another attempt while there are any left."""
        ...


_LIST: Final = msgspec.json.Decoder(list[msgspec.Raw])
_BATCH: Final = msgspec.json.Decoder(list[NewEvaluation])
_ONE: Final = msgspec.json.Decoder(NewEvaluation)


class _Wrapped(msgspec.Struct, forbid_unknown_fields=True):
    evaluations: msgspec.Raw


_WRAPPED: Final = msgspec.json.Decoder(_Wrapped)
_METRICS: Final = tuple(Scores.__struct_fields__)
_TEXTS: Final = ("prompt", "response", "mode", "model_name", "agent_name", "session_id", "artifact_id")


def read_batch(body: bytes) -> list[NewEvaluation]:
    """A batch: a JSON list of evaluations, or `{"evaluations": […]}`.

    Errors: `malformed_request`, `invalid_field` with the place, for example `evaluations[3].latency_sec`.
    """
    try:
        raw: bytes | msgspec.Raw = body
        if body.lstrip()[:1] == b"{":
            raw = _WRAPPED.decode(body).evaluations
        rows = _LIST.decode(raw)
        if not 1 <= len(rows) <= MAX_BATCH:
            raise invalid("evaluations", f"must have from 1 to {MAX_BATCH} rows, not {len(rows)}.")
        return _BATCH.decode(raw)
    except msgspec.ValidationError as error:
        raise _misplaced(raw, error) from None
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise DomainError("malformed_request", f"The body is not JSON: {error}.") from None


def _misplaced(raw: bytes | msgspec.Raw, error: msgspec.ValidationError) -> DomainError:
    """Which row is at fault, that msgspec does not say."""
    try:
        rows = _LIST.decode(raw)
    except msgspec.ValidationError:
        return invalid("evaluations", f"must be a list of evaluations: {error}.")
    found: list[FieldError] = []
    for number, row in enumerate(rows):
        try:
            _ONE.decode(row)
        except msgspec.ValidationError as wrong:
            told, _, place = str(wrong).partition(" - at `$")
            found.append(FieldError(field=f"evaluations[{number}]{place.rstrip('`')}", message=f"{told}."))
        if len(found) == 10:
            break
    return DomainError("invalid_field", "; ".join(f"{one.field}: {one.message}" for one in found), found)


def evaluated(tenant_id: str, user_id: str, sent: list[NewEvaluation], now: datetime, batch: bool) -> list[Evaluation]:
    """Evaluations as they are stored. Errors: `invalid_field`, with the row of a batch."""
    made = []
    for number, (data, evaluation_id) in enumerate(zip(sent, ids.many("eval", len(sent)), strict=True)):
        try:
            created_at = _checked(data, now)
        except DomainError as error:
            raise _in_row(error, number) if batch else error from None
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
                metadata=data.metadata,
                metrics="pending" if _incomplete(data) else "sent",
                created_at=created_at,
            )
        )
    return made


def _checked(data: NewEvaluation, now: datetime) -> datetime:
    for name in _TEXTS:
        if "\0" in (getattr(data, name) or ""):
            raise invalid(name, "must not hold U+0000.")
    if data.execution_id is not None and ids.decode("exec", data.execution_id) is None:
        raise invalid("execution_id", f"there is no execution {data.execution_id!r}.")
    return now if data.created_at is None else recorded("created_at", data.created_at, now)


def _incomplete(data: NewEvaluation) -> bool:
    return (
        data.hallucinated is None
        or data.hallucination_probability is None
        or data.semantic_drift is None
        or data.factual_support is None
        or data.uncertainty is None
    )


def _in_row(error: DomainError, number: int) -> DomainError:
    found = [FieldError(field=f"evaluations[{number}].{one.field}", message=one.message) for one in error.errors]
    return DomainError(error.code, f"evaluations[{number}].{error.detail}", found)


async def add(tx: Tx, submissions: list[list[Evaluation]]) -> list[DomainError | None]:
    """Store what several callers of one tenant sent, each all or nothing. Returns what is wrong with each, if anything.

    What is wrong can only be a link that leads nowhere; all else was checked before.
    """
    executions = {one.execution_id for sent in submissions for one in sent if one.execution_id is not None}
    artifacts = {one.artifact_id for sent in submissions for one in sent if one.artifact_id is not None}
    problems: list[DomainError | None] = [None] * len(submissions)
    if executions or artifacts:
        there = await tx.evaluations.linked(executions, artifacts)
        problems = [_dangling(sent, *there) for sent in submissions]
    good = [one for sent, problem in zip(submissions, problems, strict=True) if problem is None for one in sent]
    if good:
        await tx.evaluations.add(good)
        tx.ring(Job(lane="record", row_id=good[0].id, tenant_id=good[0].tenant_id, attempt=0))
    return problems


def _dangling(sent: list[Evaluation], executions: set[str], artifacts: set[str]) -> DomainError | None:
    for number, one in enumerate(sent):
        for field, value, there in (
            ("execution_id", one.execution_id, executions),
            ("artifact_id", one.artifact_id, artifacts),
        ):
            if value is not None and value not in there:
                error = invalid(field, f"there is no {field.removesuffix('_id')} {value!r}.")
                return _in_row(error, number) if len(sent) > 1 else error
    return None


async def get(tx: Tx, evaluation_id: str) -> Evaluation:
    """An evaluation. Errors: `not_found`."""
    found = await tx.evaluations.get(evaluation_id)
    if found is None:
        raise not_found("evaluation", evaluation_id)
    return found


def narrowed(wanted: Filter) -> Filter:
    """The filter with its times in UTC. Errors: `invalid_field`."""
    readable(wanted)
    since, until = between(wanted.since, wanted.until, ("since", "until"))
    return msgspec.structs.replace(wanted, since=since, until=until)


async def list_evaluations(tx: Tx, wanted: Filter, page: Page) -> Listing[Evaluation]:
    """Evaluations, newest first. Errors: `invalid_field`."""
    return await tx.evaluations.page(narrowed(wanted), page)


async def after(tx: Tx, last: Evaluation | None, limit: int, *, wanted: Filter) -> list[Evaluation]:
    """The next evaluations after `last`, newest first."""
    return await tx.evaluations.after(wanted, None if last is None else (last.created_at, last.id), limit)


async def created(tx: Tx, submissions: list[list[Evaluation]]) -> list[Evaluation | DomainError]:
    """Store one evaluation of each caller."""
    problems = await add(tx, submissions)
    return [problem or sent[0] for sent, problem in zip(submissions, problems, strict=True)]


async def created_batches(tx: Tx, submissions: list[list[Evaluation]]) -> list[Batch | DomainError]:
    """Store a batch of each caller, all or nothing."""
    problems = await add(tx, submissions)
    return [
        problem or Batch(created=len(sent), ids=[one.id for one in sent])
        for sent, problem in zip(submissions, problems, strict=True)
    ]


async def delete(tx: Tx, evaluation_id: str) -> None:
    """Delete an evaluation and what it counts in statistics. Errors: `not_found`."""
    if not await tx.evaluations.delete_many([evaluation_id]):
        raise not_found("evaluation", evaluation_id)
    tx.ring(Job(lane="record", row_id=evaluation_id, tenant_id="", attempt=0))


def question(wanted: Filter) -> Question:
    """The filter as what statistics are asked."""
    by_name = {name: getattr(wanted, name) for name in Filter.__struct_fields__ if name not in ("since", "until")}
    return Question(kind="evaluations", wanted=by_name, since=wanted.since, until=wanted.until)


async def stats(tx: Tx, wanted: Filter, days: int | None) -> EvaluationStats:
    """Figures over evaluations: of the last `days` times 24 hours, or of all. Errors: `invalid_field`."""
    wanted = narrowed(wanted)
    if days is not None:
        if wanted.since is not None:
            raise invalid("days", "cannot be used together with since.")
        wanted = msgspec.structs.replace(wanted, since=last_days(tx.now, days))
    found = await tx.stats.sums(question(wanted))
    p50, p95, p99 = found.quantiles
    totals = {name: found.total(name) for name in (found.groups[0].measures if found.groups else ())}
    return EvaluationStats(
        total_evaluations=totals.get("count", 0),
        total_hallucinations=totals.get("hallucinated", 0),
        hallucination_rate=_rate(totals),
        **_averages(totals),
        p50_latency=p50,
        p95_latency=p95,
        p99_latency=p99,
        by_model=counted(found.by("model_name")),
        by_agent=counted(found.by("agent_name")),
        by_mode=counted(found.by("mode")),
        since=wanted.since,
    )


async def timeseries(tx: Tx, wanted: Filter, days: int, bucket: Bucket) -> list[EvaluationPoint]:
    """Evaluations per hour or day, oldest first, empty ones too. Errors: `invalid_field`."""
    points = await filled(tx, question(narrowed(wanted)), bucket, buckets(tx.now, days, bucket))
    return [
        EvaluationPoint(
            date=point["begin"],
            count=point.get("count", 0),
            hallucinations=point.get("hallucinated", 0),
            hallucination_rate=_rate(point),
            **_averages(point),
        )
        for point in points
    ]


def _rate(sums: dict[str, Any]) -> float:
    return sums["hallucinated"] / sums["judged"] if sums.get("judged") else 0.0


def _averages(sums: dict[str, Any]) -> dict[str, float | None]:
    names = {
        "avg_latency": "latency_sec",
        "avg_throughput": "throughput_qps",
        "avg_semantic_drift": "semantic_drift",
        "avg_uncertainty": "uncertainty",
        "avg_factual_support": "factual_support",
    }
    return {
        name: sums[measure] / (SCALE * known) if (known := sums.get(f"{measure}_known")) else None
        for name, measure in names.items()
    }


async def claim(tx: Tx, most: int, lease: timedelta) -> list[Claimed]:
    """Take evaluations of any tenants whose metrics are to be computed."""
    return await tx.evaluations.claim(most, tx.now, tx.now + lease)


async def settle(tx: Tx, rows: list[tuple[Claimed, Scores | None]]) -> None:
    """Write down what was computed for evaluations of the bound tenant; None for what could not be."""
    scored = [(one, found) for one, found in rows if found is not None]
    if scored:
        await tx.evaluations.score(scored)
        tx.ring(Job(lane="record", row_id=scored[0][0].evaluation.id, tenant_id="", attempt=0))
    if failed := [one for one, found in rows if found is None]:
        await tx.evaluations.fail(failed)


def missing(evaluation: Evaluation) -> list[str]:
    """The metrics that the caller left out."""
    return [name for name in _METRICS if getattr(evaluation, name) is None]
