"""Compute statistics of evaluations."""

from datetime import datetime
from typing import Any

import msgspec

from domain.evaluations.schema import EvaluationFilter
from domain.ports import Tx
from domain.shared.errors import InvalidField
from domain.stats import (
    NANOS_PER_UNIT,
    StatsQuery,
    TimeBucket,
    find_window_start,
    list_bucket_starts,
    parse_time_range,
    read_timeseries,
    refuse_nul_characters,
    sort_counts,
)


class EvaluationStats(msgspec.Struct, kw_only=True):
    """Summarize evaluations; averages over those that have the value. Latencies in seconds.

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
    """Summarize an hour or a day (UTC) of evaluations."""

    date: datetime
    count: int
    hallucinations: int
    hallucination_rate: float
    avg_latency: float | None
    avg_throughput: float | None
    avg_semantic_drift: float | None
    avg_uncertainty: float | None
    avg_factual_support: float | None


def normalize_filter(filters: EvaluationFilter) -> EvaluationFilter:
    """Return the filter with its times in UTC. Errors: `invalid_field`."""
    refuse_nul_characters(filters)
    since, until = parse_time_range(filters.since, filters.until, ("since", "until"))
    return msgspec.structs.replace(filters, since=since, until=until)


def query_from_filter(filters: EvaluationFilter) -> StatsQuery:
    """Return a filter as a query of statistics."""
    by_name = {
        name: getattr(filters, name) for name in EvaluationFilter.__struct_fields__ if name not in ("since", "until")
    }
    return StatsQuery(kind="evaluations", filters=by_name, since=filters.since, until=filters.until)


async def compute_evaluation_stats(tx: Tx, filters: EvaluationFilter, days: int | None) -> EvaluationStats:
    """Compute statistics of evaluations: of the last `days` times 24 hours, or of all. Errors: `invalid_field`."""
    filters = normalize_filter(filters)
    if days is not None:
        if filters.since is not None:
            raise InvalidField("days", "cannot be used together with since.")
        filters = msgspec.structs.replace(filters, since=find_window_start(tx.now, days))
    result = await tx.stats.sum_groups(query_from_filter(filters))
    p50, p95, p99 = result.quantiles
    totals = {name: result.sum_measure(name) for name in (result.groups[0].measures if result.groups else ())}
    return EvaluationStats(
        total_evaluations=totals.get("count", 0),
        total_hallucinations=totals.get("hallucinated", 0),
        hallucination_rate=_compute_rate(totals),
        **_compute_averages(totals),
        p50_latency=p50,
        p95_latency=p95,
        p99_latency=p99,
        by_model=sort_counts(result.sum_by("model_name")),
        by_agent=sort_counts(result.sum_by("agent_name")),
        by_mode=sort_counts(result.sum_by("mode")),
        since=filters.since,
    )


async def compute_evaluation_timeseries(
    tx: Tx, filters: EvaluationFilter, days: int, bucket: TimeBucket
) -> list[EvaluationPoint]:
    """Summarize evaluations per hour or day, oldest first, with empty ones. Errors: `invalid_field`."""
    points = await read_timeseries(
        tx, query_from_filter(normalize_filter(filters)), bucket, list_bucket_starts(tx.now, days, bucket)
    )
    return [
        EvaluationPoint(
            date=point["begin"],
            count=point.get("count", 0),
            hallucinations=point.get("hallucinated", 0),
            hallucination_rate=_compute_rate(point),
            **_compute_averages(point),
        )
        for point in points
    ]


def _compute_rate(sums: dict[str, Any]) -> float:
    return sums["hallucinated"] / sums["judged"] if sums.get("judged") else 0.0


def _compute_averages(sums: dict[str, Any]) -> dict[str, float | None]:
    names = {
        "avg_latency": "latency_sec",
        "avg_throughput": "throughput_qps",
        "avg_semantic_drift": "semantic_drift",
        "avg_uncertainty": "uncertainty",
        "avg_factual_support": "factual_support",
    }
    return {
        name: sums[measure] / (NANOS_PER_UNIT * count) if (count := sums.get(f"{measure}_known")) else None
        for name, measure in names.items()
    }
