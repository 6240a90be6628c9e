"""Compute sums and quantiles of statistics by brute force over the rows."""

import json
import math
from collections import Counter, defaultdict
from collections.abc import Iterable
from datetime import datetime
from typing import Any

import msgspec

from domain import evaluations
from domain.artifacts import service
from domain.artifacts.record import ArtifactRecord
from domain.evaluations import ClaimedEvaluation, Evaluation
from domain.evaluations.scoring import EvaluationScores
from domain.shared.access import Caller
from domain.shared.pages import Listing, Page
from domain.shared.times import OLDEST_RECORD_TIME
from domain.stats import NANOS_PER_UNIT, QUANTILE_ACCURACY, QUANTILE_FRACTIONS
from infra.sketches import SMALLEST_VALUE
from tests.support.stats_strategies import DAY, HOUR, NOWS, OFFSETS, PERIOD_STARTS

_LIST_FIELDS = {"semantic_bucket": "semantic_buckets", "tag": "tags"}
_MEASURED_FIELDS = ("latency_sec", "throughput_qps", "semantic_drift", "uncertainty", "factual_support")
_AVERAGE_NAMES = ("latency", "throughput", *_MEASURED_FIELDS[2:])


def scale_value(value: float | None, by: int = NANOS_PER_UNIT) -> int:
    return 0 if value is None else round(value * by)


def measure_row(row: Evaluation | ArtifactRecord) -> tuple[tuple[Any, ...], dict[str, int], float | None]:
    """Return the dimensions, the measures, and the value for quantiles."""
    if isinstance(row, Evaluation):
        dims = row.model_name, row.agent_name, row.mode, row.hallucinated
        measures = {"count": 1, "hallucinated": int(row.hallucinated or 0), "judged": int(row.hallucinated is not None)}
        for name in _MEASURED_FIELDS:
            value = getattr(row, name)
            measures |= {name: scale_value(value), f"{name}_known": int(value is not None)}
        return dims, measures, row.latency_sec
    metadata = row.metadata
    measures = {
        "count": 1,
        "errors": int(metadata.status == "error"),
        "deterministic": int(metadata.deterministic),
        "size_bytes": metadata.size_bytes,
        "cost_usd": scale_value(metadata.cost_usd),
        "tokens": metadata.total_tokens or 0,
        "duration_ms": scale_value(metadata.duration_ms, 1000),
        "duration_ms_known": int(metadata.duration_ms is not None),
    }
    names = ("environment", "deterministic", "replay_level", "model_name", "provider", "status")
    return (
        (*(getattr(metadata, name) for name in names), tuple(metadata.semantic_buckets)),
        measures,
        metadata.duration_ms,
    )


class LostTransaction(Exception):
    """Report that a transaction ended before its commit."""


def interpolate_quantile(values: Iterable[float], fraction: float) -> float | None:
    """Return the exact quantile, as Postgres' `percentile_cont` does; tiny values count as zero."""
    ordered = sorted(value if value >= SMALLEST_VALUE else 0.0 for value in values)
    if not ordered:
        return None
    rank = fraction * (len(ordered) - 1)
    low, high = ordered[math.floor(rank)], ordered[math.ceil(rank)]
    return low + (rank - math.floor(rank)) * (high - low)


def assert_near(value: float | None, exact: float | None) -> None:
    if value is None or exact is None:
        assert value is exact
    else:
        assert abs(value - exact) <= QUANTILE_ACCURACY * exact * (1 + 1e-9)


class StatsOracle:
    """Compute statistics by brute force over rows."""

    def __init__(self, rows: Iterable[Evaluation | ArtifactRecord]) -> None:
        self.rows, self.groups, self.values = list(rows), defaultdict[Any, Counter[str]](Counter), list[float]()
        for dims, measures, value in map(measure_row, self.rows):
            self.groups[dims].update(measures)
            self.values += [] if value is None else [value]
        self.total = sum(self.groups.values(), Counter[str]())

    def count_by(self, place: int) -> dict[Any, int]:
        counts: Counter[Any] = Counter()
        for dims, measures in self.groups.items():
            for value in dims[place] if isinstance(dims[place], tuple) else (dims[place],):
                counts[value] += measures["count"]
        return dict(sorted(((k, n) for k, n in counts.items() if k is not None), key=lambda pair: (-pair[1], pair[0])))

    def check_quantiles(self, *quantiles: float | None) -> None:
        """Compare quantiles with those that Postgres' `percentile_cont` interpolates, within the stated error."""
        for fraction, value in zip(QUANTILE_FRACTIONS, quantiles, strict=True):
            assert_near(value, interpolate_quantile(self.values, fraction))

    def compute_averages(self) -> dict[str, float | None]:
        return {
            f"avg_{average_name}": self.total[name] / (NANOS_PER_UNIT * known_count)
            if (known_count := self.total[f"{name}_known"])
            else None
            for average_name, name in zip(_AVERAGE_NAMES, _MEASURED_FIELDS, strict=True)
        }

    def compute_rate(self, of: str, among: str, whole: float = 1) -> float:
        return whole * self.total[of] / self.total[among] if self.total[among] else 0.0


class TenantRows:
    """A tenant, and the rows that it must have. `deleted_rows` are those it no longer has."""

    def __init__(self, caller: Caller) -> None:
        self.caller = caller
        self.evaluations: dict[str, Evaluation] = {}
        self.artifacts: dict[str, ArtifactRecord] = {}
        self.deleted_rows: list[Any] = []

    def choose_bounds(self, *bounds: datetime | int | None) -> tuple[datetime | None, datetime | None]:
        times = sorted(row.created_at for row in self.evaluations.values())
        times += sorted(row.metadata.created_at for row in self.artifacts.values())
        since, until = (
            bound if not isinstance(bound, int) else times[bound % len(times)] if times else None for bound in bounds
        )
        return (until, since) if since and until and until < since else (since, until)

    def filter_evaluations(self, filters: evaluations.EvaluationFilter) -> StatsOracle:
        names = [name for name in filters.__struct_fields__ if name not in ("since", "until")]
        return StatsOracle(
            row
            for row in sorted(self.evaluations.values(), key=lambda row: (row.created_at, row.id), reverse=True)
            if all(getattr(filters, name) in (None, getattr(row, name)) for name in names)
            and (filters.since or row.created_at) <= row.created_at
            and (filters.until is None or row.created_at < filters.until)
        )

    def filter_artifacts(self, filters: service.ArtifactFilter) -> StatsOracle:
        names = ("environment", "deterministic", "replay_level", "model_name", "provider", "status", "run_id")
        names += ("error_type", "execution_id", "labelled_tenant")
        rows = sorted(self.artifacts.values(), key=lambda r: (r.metadata.created_at, r.metadata.id), reverse=True)
        return StatsOracle(
            row
            for row in rows
            for metadata in (row.metadata,)
            if all(getattr(filters, name) in (None, getattr(metadata, name)) for name in names)
            and (filters.semantic_bucket is None or filters.semantic_bucket in metadata.semantic_buckets)
            and (filters.tag is None or filters.tag in metadata.tags)
            and (filters.search is None or filters.search.lower() in row.failures.lower().split())
            and (filters.start_date or metadata.created_at) <= metadata.created_at
            and (filters.end_date is None or metadata.created_at < filters.end_date)
        )


def get_owner_ids(owner: TenantRows) -> tuple[str, str]:
    return owner.caller.tenant_id, owner.caller.user_id


def fill_filter(drawn: dict[str, Any], rows: list[Any]) -> dict[str, Any]:
    """Return a filter with values of the rows in place of its numbers."""
    values = {}
    for name, value in drawn.items():
        if type(value) is int:
            value = getattr(rows[value % len(rows)], _LIST_FIELDS.get(name, name)) if rows else None
            value = (value or [None])[0] if name in _LIST_FIELDS else value
        values[name] = value
    return values


def choose_ids(rows: dict[str, Any], places: list[int]) -> list[str]:
    return list(dict.fromkeys(sorted(rows)[place % len(rows)] for place in places)) if rows else []


def choose_scores(
    claimed: list[ClaimedEvaluation], drawn: list[EvaluationScores | None]
) -> list[EvaluationScores | None]:
    """Return drawn scores where the caller sent none; some cannot be computed."""
    scores: list[EvaluationScores | None] = []
    for number, claim in enumerate(claimed):
        drawn_scores = drawn[number % len(drawn)]
        sent = {name: getattr(claim.evaluation, name) for name in EvaluationScores.__struct_fields__}
        sent = {name: value for name, value in sent.items() if value is not None}
        scores.append(None if drawn_scores is None else msgspec.structs.replace(drawn_scores, **sent))
    return scores


def list_buckets(now: datetime, days: int, bucket: str, points: list[Any]) -> Iterable[tuple[datetime, datetime, Any]]:
    """Return the points with their begin and end: all with records, and a few of the others."""
    begin = now.replace(hour=0, minute=0, second=0, microsecond=0) - (days - 1) * DAY
    step = DAY if bucket == "day" else HOUR
    assert len(points) == days * (DAY // step)
    assert [point.date for point in points] == [begin + number * step for number in range(len(points))]
    near = {(time.replace(minute=0, second=0, microsecond=0) - begin) // step for time in (*_ALL_TIMES, now)}
    return [(p.date, p.date + step, p) for number, p in enumerate(points) if p.count or number in near]


_ALL_TIMES = [max(at + by, OLDEST_RECORD_TIME) for at in PERIOD_STARTS for by in OFFSETS] + NOWS


def check_page(truth: list[Any], listed: Listing[Any], page: Page) -> None:
    assert listed == Listing(
        items=truth[page.offset : page.offset + page.limit],
        total=len(truth),
        limit=page.limit,
        offset=page.offset,
        has_more=page.offset + page.limit < len(truth),
    )


async def check_groups(tx: Any, question: Any, truth: StatsOracle) -> None:
    """Compare the sums as whole numbers."""
    booleans: dict[Any, Any] = {"true": True, "false": False}
    members = {
        "hallucinated": booleans.get,
        "deterministic": booleans.get,
        "semantic_bucket": lambda v: tuple(json.loads(v)),
    }
    measures_by_dims = {
        tuple(members[name](value) if name in members else value for name, value in group.dims.items()): group.measures
        for group in (await tx.stats.sum_groups(question)).groups
    }
    assert measures_by_dims == {dims: dict(measures) for dims, measures in truth.groups.items()}


async def check_evaluations(answer: evaluations.EvaluationStats, truth: StatsOracle, since: datetime | None) -> None:
    stats = msgspec.structs.asdict(answer)
    truth.check_quantiles(*(stats.pop(f"p{number}_latency") for number in (50, 95, 99)))
    expected = {
        "total_evaluations": len(truth.rows),
        "total_hallucinations": truth.total["hallucinated"],
        "hallucination_rate": truth.compute_rate("hallucinated", "judged"),
        **truth.compute_averages(),
        **{f"by_{name}": truth.count_by(place) for place, name in enumerate(("model", "agent", "mode"))},
        "since": since,
    }
    assert stats == expected
    assert [list(stats[f"by_{name}"]) for name in ("model", "agent", "mode")] == [
        list(expected[f"by_{name}"]) for name in ("model", "agent", "mode")
    ]
