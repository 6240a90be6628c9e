"""Figures over evaluations."""

from datetime import datetime
from typing import Any

import msgspec

from domain.evaluations.schema import Filter
from domain.ports import Tx
from domain.shared.errors import invalid
from domain.stats import SCALE, Bucket, Question, between, buckets, counted, filled, last_days, readable


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


def narrowed(wanted: Filter) -> Filter:
    """The filter with its times in UTC. Errors: `invalid_field`."""
    readable(wanted)
    since, until = between(wanted.since, wanted.until, ("since", "until"))
    return msgspec.structs.replace(wanted, since=since, until=until)


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
