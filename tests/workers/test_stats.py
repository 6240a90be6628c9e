"""Statistics, lists and pages are what brute force over the rows says, whatever was added, deleted and folded when."""

import asyncio
import json
import math
import random
from collections import Counter, defaultdict
from collections.abc import Awaitable, Callable, Iterable
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from domain import artifacts, evaluations, ids
from domain.access import Caller
from domain.artifacts import Metadata, cases
from domain.artifacts.cases import Stored
from domain.artifacts.record import Recorded
from domain.errors import DomainError
from domain.evaluations import Claimed, Evaluation, NewEvaluation
from domain.metrics import Scores
from domain.pages import Listing, Page
from domain.stats import ACCURACY, KINDS, QUANTILES, SCALE
from domain.times import OLDEST
from infra.postgres.db import connect
from infra.postgres.store import PostgresStore
from infra.sketches import SMALLEST, bin_of, key
from tests.apart import Apart, apart
from tests.workers.test_lifecycle import Silent
from workers.stats import Folder

HOUR, DAY, LEASE = timedelta(hours=1), timedelta(days=1), timedelta(minutes=5)
# Beginnings of months, days and hours, a leap day, and the oldest a record may be; the latest is what the clocks show.
BEGINS = [
    *(OLDEST, datetime(2027, 12, 31, 23, tzinfo=UTC), datetime(2028, 1, 31, tzinfo=UTC)),
    *(datetime(2028, 2, 1, tzinfo=UTC), datetime(2028, 2, 27, 5, tzinfo=UTC), datetime(2028, 2, 29, tzinfo=UTC)),
    *(datetime(2028, 2, 29, 23, tzinfo=UTC), datetime(2028, 3, 1, tzinfo=UTC), datetime(2028, 3, 1, 1, tzinfo=UTC)),
]
MICRO = timedelta(microseconds=1)
BESIDE = [timedelta(0), timedelta(0), MICRO, -MICRO, timedelta(minutes=30), timedelta(minutes=45), HOUR, 22 * HOUR]
TIMES = st.builds(lambda at, by: max(at + by, OLDEST), st.sampled_from(BEGINS), st.sampled_from(BESIDE))
NOWS = [datetime(2028, 3, 1, 0, 30, tzinfo=UTC), datetime(2028, 3, 1, 1, tzinfo=UTC)]
NOWS += [datetime(2028, 2, 29, 23, 59, 59, 999999, tzinfo=UTC), datetime(2028, 4, 1, tzinfo=UTC)]
# Names that mean something where they should not.
NAMES = ["gpt", "NULL", 'a"b\\,{}', "ü'€ "]
BUCKETS = ["refunds", 'say "no"', "[]"]
NAME = st.sampled_from(NAMES)
SHARE = st.none() | st.sampled_from([0.0, 0.1, 1 / 3, 1.0]) | st.floats(0, 1)
NUMBER = st.none() | st.sampled_from([0.0, 1e-10, 1e-9, 0.1, 2.5e-9, 1.0, 1e6]) | st.floats(0, 1e6)
EVALUATION = st.builds(
    NewEvaluation,
    **{name: st.just(name) for name in ("prompt", "response")},
    **dict.fromkeys(("semantic_drift", "uncertainty", "factual_support", "hallucination_probability"), SHARE),
    **dict.fromkeys(("latency_sec", "throughput_qps"), NUMBER),
    **{name: st.none() | NAME for name in ("mode", "model_name", "agent_name", "session_id")},
    hallucinated=st.sampled_from([None, True, False]),
    created_at=st.none() | TIMES,
)
BATCH = st.lists(EVALUATION, min_size=1, max_size=6)
SCORES = st.builds(
    Scores, **{name: st.floats(0, 1) for name in Scores.__struct_fields__[:4]}, hallucinated=st.booleans()
)
# What nothing else draws.
OTHERS = Scores(**dict.fromkeys(Scores.__struct_fields__[:4], 0.987654321), hallucinated=True)
EXECUTIONS = [ids.encode("exec", UUID(int=number)) for number in (1, 2)]
ARTIFACT = st.fixed_dictionaries(
    {"kurral_id": st.sampled_from([f"k{number}" for number in range(6)])},
    optional={
        "created_at": TIMES.map(datetime.isoformat),
        "environment": NAME,
        "deterministic": st.booleans(),
        "replay_level": st.sampled_from("ABC"),
        "llm_config": st.fixed_dictionaries({"model_name": NAME, "provider": NAME}),
        "semantic_buckets": st.lists(st.sampled_from(BUCKETS), max_size=3),
        "error": st.fixed_dictionaries({"type": NAME, "message": st.sampled_from(["broken pipe", "out of memory"])}),
        "cost_usd": NUMBER.filter(lambda value: value is not None),
        "duration_ms": st.integers(0, 10**12) | NUMBER,
        "token_usage": st.fixed_dictionaries({"prompt_tokens": st.integers(0, 10**6)}),
        "run_id": NAME,
        "tags": st.lists(NAME, max_size=2),
        "tenant_id": NAME,
    },
)


def some(**values: st.SearchStrategy[Any]) -> st.SearchStrategy[dict[str, Any]]:
    """Values for a few of these names: with many a filter would let nothing through.

    A number stands for the value of one of the rows.
    """
    own = st.integers(0, 1000)
    named = [st.tuples(st.just(name), values[name] if name == "search" else own | values[name]) for name in values]
    return st.lists(st.one_of(*named), max_size=2).map(dict)


# A number stands for the very time of one of the records.
BOUND = st.none() | TIMES | st.integers(0, 1000)
BOUNDS = st.tuples(BOUND, BOUND)
OF_EVALUATIONS = some(
    hallucinated=st.booleans(),
    **dict.fromkeys(("mode", "model_name", "agent_name", "session_id"), NAME),
    execution_id=st.sampled_from(EXECUTIONS),
    artifact_id=st.just("k0"),
)
OF_ARTIFACTS = some(
    environment=NAME,
    semantic_bucket=st.sampled_from(BUCKETS),
    deterministic=st.booleans(),
    replay_level=st.sampled_from("ABC"),
    status=st.sampled_from(["ok", "error"]),
    search=st.sampled_from(["memory", "pipe", "Broken"]),
    execution_id=st.sampled_from(EXECUTIONS),
    **dict.fromkeys(("model_name", "provider", "run_id", "tag", "error_type", "labelled_tenant"), NAME),
)
PAGE = st.builds(Page, limit=st.integers(1, 8), offset=st.integers(0, 12))
TENANT, PLACE = st.integers(0, 1), st.integers(0, 1000)
ASK = st.tuples(
    TENANT, OF_EVALUATIONS, OF_ARTIFACTS, BOUNDS, st.integers(1, 90), st.sampled_from(["hour", "day"]), PAGE, PLACE
)
STEP = st.one_of(
    st.tuples(st.just("insert"), TENANT, st.lists(BATCH, min_size=1, max_size=3)),
    st.tuples(st.just("insert"), TENANT, BATCH.map(lambda batch: [batch])),
    st.tuples(st.just("insert"), TENANT, EVALUATION.map(lambda one: [[one]])),
    st.tuples(st.just("delete"), TENANT, st.lists(PLACE, max_size=4)),
    st.tuples(
        *(st.just("compute"), st.integers(1, 9), st.lists(st.none() | SCORES, min_size=1, max_size=4)),
        st.sampled_from(["", "", "twice", "late", "deleted"]),
    ),
    st.tuples(
        st.just("upload"), TENANT, st.lists(ARTIFACT, min_size=1, max_size=5), st.sampled_from([None, *EXECUTIONS])
    ),
    st.tuples(st.just("upload"), TENANT, ARTIFACT.map(lambda one: [one]), st.none()),
    st.tuples(st.just("forget"), TENANT, st.lists(PLACE, max_size=4)),
    st.tuples(st.just("fold"), TENANT, st.sampled_from(KINDS), st.integers(1, 7) | st.just(2000)),
    st.tuples(st.just("fold_beside"), TENANT, st.sampled_from(KINDS), st.integers(1, 9), st.booleans()),
    st.tuples(st.just("fold_all")),
    st.tuples(st.just("turn_clock"), st.sampled_from(NOWS)),
    st.tuples(st.just("steal"), TENANT, PLACE),
)


_LISTS = {"semantic_bucket": "semantic_buckets", "tag": "tags"}
_MEASURED = ("latency_sec", "throughput_qps", "semantic_drift", "uncertainty", "factual_support")
_TOLD = ("latency", "throughput", *_MEASURED[2:])


def scaled(value: float | None, by: int = SCALE) -> int:
    return 0 if value is None else round(value * by)


def counts_as(row: Evaluation | Recorded) -> tuple[tuple[Any, ...], dict[str, int], float | None]:
    """Dimensions, measures, and the value that quantiles are taken of."""
    if isinstance(row, Evaluation):
        dims = row.model_name, row.agent_name, row.mode, row.hallucinated
        measures = {"count": 1, "hallucinated": int(row.hallucinated or 0), "judged": int(row.hallucinated is not None)}
        for name in _MEASURED:
            value = getattr(row, name)
            measures |= {name: scaled(value), f"{name}_known": int(value is not None)}
        return dims, measures, row.latency_sec
    made = row.metadata
    measures = {
        "count": 1,
        "errors": int(made.status == "error"),
        "deterministic": int(made.deterministic),
        "size_bytes": made.size_bytes,
        "cost_usd": scaled(made.cost_usd),
        "tokens": made.total_tokens or 0,
        "duration_ms": scaled(made.duration_ms, 1000),
        "duration_ms_known": int(made.duration_ms is not None),
    }
    names = ("environment", "deterministic", "replay_level", "model_name", "provider", "status")
    return (*(getattr(made, name) for name in names), tuple(made.semantic_buckets)), measures, made.duration_ms


class Lost(Exception):
    """What ends a transaction before its commit."""


class Truth:
    """Brute force over rows."""

    def __init__(self, rows: Iterable[Evaluation | Recorded]) -> None:
        self.rows, self.groups, self.values = list(rows), defaultdict[Any, Counter[str]](Counter), list[float]()
        for dims, measures, value in map(counts_as, self.rows):
            self.groups[dims].update(measures)
            self.values += [] if value is None else [value]
        self.total = sum(self.groups.values(), Counter[str]())

    def by(self, place: int) -> dict[Any, int]:
        found: Counter[Any] = Counter()
        for dims, measures in self.groups.items():
            for value in dims[place] if isinstance(dims[place], tuple) else (dims[place],):
                found[value] += measures["count"]
        return dict(sorted(((k, n) for k, n in found.items() if k is not None), key=lambda one: (-one[1], one[0])))

    def check_quantiles(self, *found: float | None) -> None:
        """By the rank that a DDSketch has for a quantile."""
        for wanted, value in zip(QUANTILES, found, strict=True):
            exact = sorted(self.values)[math.floor(wanted * (len(self.values) - 1))] if self.values else None
            if exact is None or value is None or exact < SMALLEST:
                assert value == (None if exact is None else 0)
            else:
                assert abs(value - exact) <= ACCURACY * exact * (1 + 1e-9)

    def averages(self) -> dict[str, float | None]:
        return {
            f"avg_{told}": self.total[name] / (SCALE * known) if (known := self.total[f"{name}_known"]) else None
            for told, name in zip(_TOLD, _MEASURED, strict=True)
        }

    def rate(self, of: str, among: str, whole: float = 1) -> float:
        return whole * self.total[of] / self.total[among] if self.total[among] else 0.0


class Owner:
    """A tenant, and the rows that it has to have. `gone` are rows that it has no more."""

    def __init__(self, caller: Caller) -> None:
        self.caller = caller
        self.evaluations: dict[str, Evaluation] = {}
        self.artifacts: dict[str, Recorded] = {}
        self.gone: list[Any] = []

    def bounds(self, *wanted: datetime | int | None) -> tuple[datetime | None, datetime | None]:
        times = sorted(row.created_at for row in self.evaluations.values())
        times += sorted(row.metadata.created_at for row in self.artifacts.values())
        since, until = (
            one if not isinstance(one, int) else times[one % len(times)] if times else None for one in wanted
        )
        return (until, since) if since and until and until < since else (since, until)

    def evaluated(self, wanted: evaluations.Filter) -> Truth:
        names = [name for name in wanted.__struct_fields__ if name not in ("since", "until")]
        return Truth(
            row
            for row in sorted(self.evaluations.values(), key=lambda row: (row.created_at, row.id), reverse=True)
            if all(getattr(wanted, name) in (None, getattr(row, name)) for name in names)
            and (wanted.since or row.created_at) <= row.created_at
            and (wanted.until is None or row.created_at < wanted.until)
        )

    def recorded(self, wanted: cases.Filter) -> Truth:
        names = ("environment", "deterministic", "replay_level", "model_name", "provider", "status", "run_id")
        names += ("error_type", "execution_id", "labelled_tenant")
        rows = sorted(self.artifacts.values(), key=lambda r: (r.metadata.created_at, r.metadata.id), reverse=True)
        return Truth(
            row
            for row in rows
            for made in (row.metadata,)
            if all(getattr(wanted, name) in (None, getattr(made, name)) for name in names)
            and (wanted.semantic_bucket is None or wanted.semantic_bucket in made.semantic_buckets)
            and (wanted.tag is None or wanted.tag in made.tags)
            and (wanted.search is None or wanted.search.lower() in row.failures.lower().split())
            and (wanted.start_date or made.created_at) <= made.created_at
            and (wanted.end_date is None or made.created_at < wanted.end_date)
        )


class World:
    """Two tenants in one database."""

    def __init__(self, database: Apart, store: PostgresStore, owners: list[Owner], clock: list[datetime]) -> None:
        self._database, self._store, self._owners, self._clock = database, store, owners, clock

    # What is done to it.

    async def insert(self, whose: int, batches: list[list[NewEvaluation]]) -> None:
        owner = self._owners[whose]
        async with self._store.begin(owner.caller) as tx:
            made = [evaluations.evaluated(*_names(owner), batch, tx.now, batch=True) for batch in batches]
            if batches == [batches[0][:1]]:
                assert await evaluations.created(tx, made) == made[0]
            else:
                answers = await evaluations.created_batches(tx, made)
                assert answers == [evaluations.Batch(created=len(sent), ids=[one.id for one in sent]) for sent in made]
        owner.evaluations |= {one.id: one for batch in made for one in batch}

    async def delete(self, whose: int, places: list[int]) -> None:
        owner = self._owners[whose]
        chosen = _chosen(owner.evaluations, places)
        async with self._store.begin(owner.caller) as tx:
            for row_id in chosen:
                await evaluations.delete(tx, row_id)
                assert await tx.evaluations.delete_many([row_id]) == 0
        owner.gone += [owner.evaluations.pop(row_id) for row_id in chosen]

    async def compute(self, most: int, drawn: list[Scores | None], twist: str) -> None:
        claimed = await self._claim(most)
        if twist == "late":
            # The lease runs out, another worker has it, and then the first comes back.
            lost, claimed = claimed, await self._claim(most, later=2 * LEASE)
            assert {one.evaluation.id for one in lost} == {one.evaluation.id for one in claimed}
            await self._settle([(one, found) for one, found in zip(lost, _scores(lost, [OTHERS]), strict=True)])
        if twist == "deleted" and claimed:
            lost_id = claimed[0].evaluation.id
            for number, owner in enumerate(self._owners):
                if lost_id in owner.evaluations:
                    await self.delete(number, [sorted(owner.evaluations).index(lost_id)])
        scores = _scores(claimed, drawn)
        await self._settle(list(zip(claimed, scores, strict=True)))
        for one, found in zip(claimed, scores, strict=True):
            row = next(
                (o.evaluations[one.evaluation.id] for o in self._owners if one.evaluation.id in o.evaluations), None
            )
            if row is not None and found is not None:
                row.computed, row.metrics = evaluations.missing(row), "computed"
                for name in Scores.__struct_fields__:
                    setattr(row, name, getattr(found, name))
            elif row is not None and one.attempt >= evaluations.MAX_ATTEMPTS:
                row.metrics = "failed"
        if twist == "twice":
            # What was written down stays; one that could not be computed was given back, so that leaves it out.
            written = [one for one, found in zip(claimed, scores, strict=True) if found is not None]
            await self._settle(list(zip(written, _scores(written, [OTHERS]), strict=True)))

    async def upload(self, whose: int, sent: list[dict[str, Any]], execution_id: str | None) -> None:
        owner, known = self._owners[whose], {}
        async with self._store.begin(owner.caller) as tx:
            made = [
                artifacts.recorded(
                    json.dumps(one).encode(),
                    **dict(zip(("tenant_id", "user_id"), _names(owner), strict=True)),
                    now=tx.now,
                    execution_id=execution_id,
                )
                for one in sent
            ]
            answers = await cases.store(tx, [Stored(recorded=one, packed=b"packed") for one in made])
        before = {one.metadata.kurral_id: one for one in owner.artifacts.values()}
        for one, answer in zip(made, answers, strict=True):
            if isinstance(answer, Metadata) and answer.id == one.metadata.id:
                assert one.metadata.kurral_id not in before | known, "stored twice"
                known[one.metadata.kurral_id] = one
        for one, answer in zip(made, answers, strict=True):
            first = (before | known)[one.metadata.kurral_id]
            if first.fingerprint == one.fingerprint:
                assert answer == first.metadata
            else:
                assert isinstance(answer, DomainError)
                assert answer.code == "conflict"
        owner.artifacts |= {one.metadata.id: one for one in known.values()}

    async def forget(self, whose: int, places: list[int]) -> None:
        owner = self._owners[whose]
        chosen = _chosen(owner.artifacts, places)
        async with self._store.begin(owner.caller) as tx:
            if len(chosen) == 1:
                await cases.delete(tx, owner.artifacts[chosen[0]].metadata.kurral_id)
            else:
                assert await tx.artifacts.delete(chosen, tx.now) == len(chosen)
            assert await tx.artifacts.delete(chosen, tx.now) == 0
        owner.gone += [owner.artifacts.pop(row_id).metadata for row_id in chosen]

    async def fold(self, whose: int, kind: Any, most: int) -> None:
        before = await self._deltas(whose, kind)
        async with self._store.begin(self._owners[whose].caller) as tx:
            folded = await tx.stats.fold(kind, most)
        assert folded == min(most, before)
        assert await self._deltas(whose, kind) == before - folded

    async def fold_beside(self, whose: int, kind: Any, most: int, lost: bool) -> None:
        """Two at once: the second has nothing to do, and whoever asks meanwhile sees what was there before."""
        owner = self._owners[whose]
        try:
            async with self._store.begin(owner.caller) as tx, self._store.begin(owner.caller) as other:
                await tx.stats.fold(kind, most)
                assert await other.stats.fold(kind, most) == 0
                await self.ask(whose)
                if lost:
                    raise Lost
        except Lost:
            pass
        await asyncio.gather(*(self._fold(whose, kind, most) for _ in range(2)), self.ask(whose))

    async def fold_all(self) -> None:
        folder = Folder(self._store)
        while await folder():
            pass
        assert await self._database.owner.fetchval("SELECT count(*) FROM stat_deltas") == 0

    async def turn_clock(self, now: datetime) -> None:
        self._clock[0] = now

    async def steal(self, whose: int, place: int) -> None:
        mine, theirs = self._owners[whose], self._owners[1 - whose]
        async with self._store.begin(mine.caller) as tx:
            for row_id in _chosen(theirs.evaluations, [place]):
                assert await tx.evaluations.get(row_id) is None
                assert await tx.evaluations.delete_many([row_id]) == 0
            for row_id in _chosen(theirs.artifacts, [place]):
                assert await tx.artifacts.get(row_id) is None
                assert await tx.artifacts.delete([row_id], tx.now) == 0

    # What it says.

    async def ask(
        self,
        whose: int,
        of_evaluations: dict[str, Any] | None = None,
        of_artifacts: dict[str, Any] | None = None,
        bounds: tuple[datetime | int | None, datetime | int | None] = (None, None),
        days: int = 90,
        bucket: Any = "day",
        page: Page = Page(limit=100),  # noqa: B008
        place: int = 0,
    ) -> None:
        owner = self._owners[whose]
        since, until = owner.bounds(*bounds)
        evaluated, recorded = list(owner.evaluations.values()), [row.metadata for row in owner.artifacts.values()]
        first = evaluations.Filter(**_known(of_evaluations or {}, evaluated), since=since, until=until)
        second = cases.Filter(**_known(of_artifacts or {}, recorded), start_date=since, end_date=until)
        async with self._store.begin(owner.caller) as tx:
            await self._ask_evaluations(tx, owner, first, days, bucket)
            await self._ask_artifacts(tx, owner, second, days, bucket, page)
            # Lists: any page, and reading on from any row, be it there or not.
            for truth, listed, after in (
                (
                    owner.evaluated(first).rows,
                    await evaluations.list_evaluations(tx, first, page),
                    lambda row: evaluations.after(tx, row, page.limit, wanted=first),
                ),
                (
                    [row.metadata for row in owner.recorded(second).rows],
                    await tx.artifacts.page(second, page),
                    lambda row: cases.after(tx, row, page.limit, wanted=second),
                ),
            ):
                check_page(truth, listed, page)
                known = [None, *truth, *(row for row in owner.gone if truth and isinstance(row, type(truth[0])))]
                last = known[place % len(known)]
                rest = (
                    truth if last is None else [r for r in truth if (r.created_at, r.id) < (last.created_at, last.id)]
                )
                assert await after(last) == rest[: page.limit]

    async def _ask_evaluations(self, tx: Any, owner: Owner, wanted: Any, days: int, bucket: Any) -> None:
        truth = owner.evaluated(wanted)
        await check_groups(tx, evaluations.question(wanted), truth)
        await check_evaluations(await evaluations.stats(tx, wanted, None), truth, wanted.since)
        if wanted.until is None or wanted.since is None:
            since = (tx.now - days * DAY).replace(minute=0, second=0, microsecond=0)
            of_days = msgspec.structs.replace(wanted, since=None)
            if wanted.until is None or wanted.until >= since:
                truth = owner.evaluated(msgspec.structs.replace(of_days, since=since))
                await check_evaluations(await evaluations.stats(tx, of_days, days), truth, since)
        free = msgspec.structs.replace(wanted, since=None, until=None)
        if wanted != free:
            with pytest.raises(DomainError, match="days"):
                await evaluations.timeseries(tx, wanted, days, bucket)
        points = await evaluations.timeseries(tx, free, days, bucket)
        for begin, end, point in buckets_of(tx.now, days, bucket, points):
            truth = owner.evaluated(msgspec.structs.replace(free, since=begin, until=end))
            assert msgspec.structs.asdict(point) == {
                "date": begin,
                "count": len(truth.rows),
                "hallucinations": truth.total["hallucinated"],
                "hallucination_rate": truth.rate("hallucinated", "judged"),
                **truth.averages(),
            }

    async def _ask_artifacts(self, tx: Any, owner: Owner, wanted: Any, days: int, bucket: Any, page: Page) -> None:
        truth = owner.recorded(wanted)
        await check_groups(tx, cases.question(wanted), truth)
        found = msgspec.structs.asdict(await cases.stats(tx, wanted))
        truth.check_quantiles(*(found.pop(name) for name in ("p50", "p95", "p99")))
        known = truth.total["duration_ms_known"]
        expected = {
            "total_artifacts": len(truth.rows),
            "total_size_gb": truth.total["size_bytes"] / 10**9,
            **{
                f"by_{name}": truth.by(n)
                for n, name in ((0, "environment"), (2, "replay_level"), (6, "semantic_bucket"))
            },
            **{f"by_{name}": truth.by(n) for n, name in ((3, "model"), (4, "provider"), (5, "status"))},
            "total_cost_usd": truth.total["cost_usd"] / SCALE,
            "total_tokens": truth.total["tokens"],
            "avg_duration_ms": truth.total["duration_ms"] / (1000 * known) if known else None,
            "error_rate": truth.rate("errors", "count", 100),
            "deterministic_rate": truth.rate("deterministic", "count", 100),
        }
        assert found == expected
        assert [list(found[name]) for name in expected if name.startswith("by_")] == [
            list(expected[name]) for name in expected if name.startswith("by_")
        ]
        counted = [
            cases.BucketCount(semantic_bucket=name, count=count)
            for name, count in owner.recorded(cases.Filter()).by(6).items()
        ]
        check_page(counted, await cases.semantic_buckets(tx, page), page)
        free = msgspec.structs.replace(wanted, start_date=None, end_date=None)
        if wanted != free:
            with pytest.raises(DomainError, match="days"):
                await cases.timeseries(tx, wanted, days, bucket)
        points = await cases.timeseries(tx, free, days, bucket)
        for begin, end, point in buckets_of(tx.now, days, bucket, points):
            truth = owner.recorded(msgspec.structs.replace(free, start_date=begin, end_date=end))
            assert msgspec.structs.asdict(point) == {
                "date": begin,
                "count": len(truth.rows),
                "total_cost": truth.total["cost_usd"] / SCALE,
                "total_tokens": truth.total["tokens"],
                "errors": truth.total["errors"],
                "deterministic": truth.total["deterministic"],
            }

    async def check(self, steps: list[tuple[tuple[Any, ...], tuple[Any, ...]]]) -> None:
        for (name, *arguments), asked in steps:
            await getattr(self, name)(*arguments)
            await self.ask(*asked)
        # The same questions once more, of what is partly folded and of what is folded.
        for fold in (lambda: self.fold(0, "evaluations", 3), self.fold_all):
            for whose in (0, 1):
                await self.ask(whose)
                await self.ask(whose, bucket="hour", days=2)
            await fold()
            for _, asked in steps[-5:]:
                await self.ask(*asked)
        for whose in (0, 1):
            await self.ask(whose)
        await self.clear()

    async def clear(self) -> None:
        """Delete everything: nothing is left to count, before it is folded and after."""
        for whose, owner in enumerate(self._owners):
            await self.delete(whose, list(range(len(owner.evaluations))))
            await self.forget(whose, list(range(len(owner.artifacts))))
            await self.ask(whose)
        await self.fold_all()
        for whose in (0, 1):
            await self.ask(whose)
        for table in ("stat_deltas", "stat_rollups", "evaluations", "artifacts", "artifact_ids", "artifact_bodies"):
            assert await self._database.owner.fetchval(f"SELECT count(*) FROM {table}") == 0, table

    async def _fold(self, whose: int, kind: Any, most: int) -> int:
        async with self._store.begin(self._owners[whose].caller) as tx:
            return await tx.stats.fold(kind, most)

    async def _deltas(self, whose: int, kind: str) -> int:
        query = "SELECT count(*) FROM stat_deltas WHERE tenant_id = $1 AND kind = $2"
        return int(await self._database.owner.fetchval(query, self._owners[whose].caller.tenant_id, kind))

    async def _claim(self, most: int, later: timedelta = timedelta(0)) -> list[Claimed]:
        self._clock[0] += later
        async with self._store.begin_unbound() as tx:
            claimed = await evaluations.claim(tx, most, LEASE)
        self._clock[0] -= later
        return claimed

    async def _settle(self, rows: list[tuple[Claimed, Scores | None]]) -> None:
        for owner in self._owners:
            mine = [row for row in rows if row[0].evaluation.tenant_id == owner.caller.tenant_id]
            async with self._store.begin_for(owner.caller.tenant_id) as tx:
                await evaluations.settle(tx, mine)


def _names(owner: Owner) -> tuple[str, str]:
    return owner.caller.tenant_id, owner.caller.user_id


def _known(wanted: dict[str, Any], rows: list[Any]) -> dict[str, Any]:
    """A filter, with the rows' own values where it has numbers."""
    found = {}
    for name, value in wanted.items():
        if type(value) is int:
            value = getattr(rows[value % len(rows)], _LISTS.get(name, name)) if rows else None
            value = (value or [None])[0] if name in _LISTS else value
        found[name] = value
    return found


def _chosen(rows: dict[str, Any], places: list[int]) -> list[str]:
    return list(dict.fromkeys(sorted(rows)[place % len(rows)] for place in places)) if rows else []


def _scores(claimed: list[Claimed], drawn: list[Scores | None]) -> list[Scores | None]:
    """Drawn scores where the caller sent none; some cannot be computed."""
    made: list[Scores | None] = []
    for number, one in enumerate(claimed):
        found = drawn[number % len(drawn)]
        sent = {name: getattr(one.evaluation, name) for name in Scores.__struct_fields__}
        sent = {name: value for name, value in sent.items() if value is not None}
        made.append(None if found is None else msgspec.structs.replace(found, **sent))
    return made


def buckets_of(now: datetime, days: int, bucket: str, points: list[Any]) -> Iterable[tuple[datetime, datetime, Any]]:
    """The points with their begin and end; all of those with records, and a few of the others."""
    begin = now.replace(hour=0, minute=0, second=0, microsecond=0) - (days - 1) * DAY
    step = DAY if bucket == "day" else HOUR
    assert len(points) == days * (DAY // step)
    assert [point.date for point in points] == [begin + number * step for number in range(len(points))]
    near = {(time.replace(minute=0, second=0, microsecond=0) - begin) // step for time in (*_ALL_TIMES, now)}
    return [(p.date, p.date + step, p) for number, p in enumerate(points) if p.count or number in near]


_ALL_TIMES = [max(at + by, OLDEST) for at in BEGINS for by in BESIDE] + NOWS


def check_page(truth: list[Any], listed: Listing[Any], page: Page) -> None:
    assert listed == Listing(
        items=truth[page.offset : page.offset + page.limit],
        total=len(truth),
        limit=page.limit,
        offset=page.offset,
        has_more=page.offset + page.limit < len(truth),
    )


async def check_groups(tx: Any, question: Any, truth: Truth) -> None:
    """The very sums, as whole numbers."""
    shown: dict[Any, Any] = {"true": True, "false": False}
    members = {"hallucinated": shown.get, "deterministic": shown.get, "semantic_bucket": lambda v: tuple(json.loads(v))}
    found = {
        tuple(members[name](value) if name in members else value for name, value in group.dims.items()): group.measures
        for group in (await tx.stats.sums(question)).groups
    }
    assert found == {dims: dict(measures) for dims, measures in truth.groups.items()}


async def check_evaluations(answer: evaluations.EvaluationStats, truth: Truth, since: datetime | None) -> None:
    found = msgspec.structs.asdict(answer)
    truth.check_quantiles(*(found.pop(f"p{number}_latency") for number in (50, 95, 99)))
    expected = {
        "total_evaluations": len(truth.rows),
        "total_hallucinations": truth.total["hallucinated"],
        "hallucination_rate": truth.rate("hallucinated", "judged"),
        **truth.averages(),
        **{f"by_{name}": truth.by(place) for place, name in enumerate(("model", "agent", "mode"))},
        "since": since,
    }
    assert found == expected
    assert [list(found[f"by_{name}"]) for name in ("model", "agent", "mode")] == [
        list(expected[f"by_{name}"]) for name in ("model", "agent", "mode")
    ]


async def own(system: Any, body: Callable[[asyncio.Runner, Apart, PostgresStore, list[datetime]], None]) -> None:
    """Run `body` in a thread, with an event loop and a database of its own: Hypothesis calls functions, not coroutines."""

    def in_a_thread() -> None:
        with asyncio.Runner() as runner:
            clock = [NOWS[0]]

            async def opened() -> Any:
                holding = apart(system)
                database = await holding.__aenter__()
                return holding, database, connect(database.url, pool_size=6, application="tests")

            holding, database, engine = runner.run(opened())
            try:
                body(runner, database, PostgresStore(engine, Silent(), lambda: clock[0]), clock)
            finally:
                runner.run(engine.dispose())
                runner.run(holding.__aexit__(None, None, None))

    await asyncio.to_thread(in_a_thread)


async def test_any_interleaving_leaves_what_brute_force_finds(system) -> None:
    def body(runner: asyncio.Runner, database: Apart, store: PostgresStore, clock: list[datetime]) -> None:
        async def fresh() -> World:
            clock[0] = NOWS[0]
            for table in ("stat_deltas", "stat_rollups", "evaluations", "artifacts", "artifact_ids", "artifact_bodies"):
                await database.owner.execute(f"DELETE FROM {table}")
            return World(database, store, [Owner(await database.tenant()) for _ in range(2)], clock)

        async def run(steps: list[Any]) -> None:
            await (await fresh()).check(steps)

        @settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck))
        @given(steps=st.lists(st.tuples(STEP, ASK), min_size=4, max_size=25))
        def check(steps: list[Any]) -> None:
            runner.run(run(steps))

        check()

    await own(system, body)


TEN = 10


async def test_whoever_asks_meanwhile_is_told_what_there_was_at_some_moment(system) -> None:
    """Tens come and go in one commit each, while others fold and compute: no answer may see a part of ten."""
    async with apart(system) as database:
        engine = connect(database.url, pool_size=12, application="tests")
        now, left, dice = NOWS[0], asyncio.Event(), random.Random(4)
        store = PostgresStore(engine, Silent(), lambda: now)
        owner = Owner(await database.tenant())
        folds, answers = Counter[str](), Counter[str]()

        def evaluated() -> list[Evaluation]:
            # Some before the part of an hour that is asked for and some in it, of several models, some to be computed.
            made = [
                NewEvaluation(
                    prompt="p",
                    response="r",
                    created_at=now - dice.choice([HOUR, DAY, 40 * DAY, timedelta(minutes=dice.randrange(120))]),
                    model_name=dice.choice(NAMES),
                    latency_sec=dice.choice([None, 0.0, 1.5, 20.0]),
                    hallucinated=dice.choice([None, True, False]),
                )
                for _ in range(TEN)
            ]
            return evaluations.evaluated(*_names(owner), made, now, batch=True)

        def recorded(number: int) -> list[Recorded]:
            sent = [{"kurral_id": f"{number}-{one}", "cost_usd": one / 7, "duration_ms": one} for one in range(TEN)]
            tenant_id, user_id = _names(owner)
            return [
                artifacts.recorded(json.dumps(one).encode(), tenant_id=tenant_id, user_id=user_id, now=now)
                for one in sent
            ]

        async def write(number: int) -> None:
            for turn in range(12):
                made = evaluated()
                async with store.begin(owner.caller) as tx:
                    await evaluations.created_batches(tx, [made])
                owner.evaluations |= {one.id: one for one in made}
                await upload(100 * number + turn)
                if turn % 3 == 2:
                    await twice(lambda tx, made=made: tx.evaluations.delete_many([one.id for one in made]))
                    for one in made:
                        owner.gone.append(owner.evaluations.pop(one.id))

        async def upload(number: int) -> None:
            # The same ten twice at once: they are stored once.
            tries = [recorded(number), recorded(number)]

            async def send(made: list[Recorded]) -> set[str]:
                async with store.begin(owner.caller) as tx:
                    return await tx.artifacts.add([Stored(recorded=one, packed=b"") for one in made])

            stored = await asyncio.gather(*map(send, tries))
            assert sorted(map(len, stored)) == [0, TEN]
            made = next(made for made, fresh in zip(tries, stored, strict=True) if fresh)
            if number % 2:
                await twice(lambda tx: tx.artifacts.delete([one.metadata.id for one in made], now))
            else:
                owner.artifacts.update({one.metadata.id: one for one in made})

        async def twice(delete: Callable[[Any], Awaitable[int]]) -> None:
            async def once() -> int:
                async with store.begin(owner.caller) as tx:
                    return await delete(tx)

            assert sorted(await asyncio.gather(once(), once())) == [0, TEN]

        async def fold() -> None:
            while not left.is_set():
                async with store.begin(owner.caller) as tx:
                    for kind in KINDS:
                        folds[kind] += await tx.stats.fold(kind, dice.randint(1, 40))
                await asyncio.sleep(0)

        async def compute() -> None:
            while not left.is_set():
                async with store.begin_unbound() as tx:
                    claimed = await evaluations.claim(tx, 7, LEASE)
                drawn = Scores(**dict.fromkeys(Scores.__struct_fields__[:4], 0.25), hallucinated=True)
                scores = _scores(claimed, [drawn])
                async with store.begin_for(owner.caller.tenant_id) as tx:
                    await evaluations.settle(tx, list(zip(claimed, scores, strict=True)))
                await asyncio.sleep(0)

        async def ask() -> None:
            while not left.is_set():
                for since in (None, now - timedelta(days=60, minutes=7)):
                    async with store.begin(owner.caller) as tx:
                        first = await evaluations.stats(tx, evaluations.Filter(since=since), None)
                        points = await evaluations.timeseries(tx, evaluations.Filter(), 90, "hour")
                        second = await cases.stats(tx, cases.Filter(start_date=since))
                    counts = [first.total_evaluations, sum(first.by_model.values()), second.total_artifacts]
                    counts += [sum(point.count for point in points), sum(second.by_status.values())]
                    assert [count % TEN for count in counts] == [0] * len(counts)
                    answers["evaluations"] += first.total_evaluations > 0

        async with asyncio.TaskGroup() as around:
            for task in (fold(), fold(), compute(), ask(), ask()):
                around.create_task(task)
            try:
                async with asyncio.TaskGroup() as group:
                    for number in range(4):
                        group.create_task(write(number))
            finally:
                left.set()
        async with store.begin(owner.caller) as tx:
            kept = {row_id: await evaluations.get(tx, row_id) for row_id in owner.evaluations}
        assert all(row.created_at == owner.evaluations[row_id].created_at for row_id, row in kept.items())
        owner.evaluations = kept
        world = World(database, store, [owner, Owner(await database.tenant())], [now])
        await world.ask(0, page=Page(limit=1000))
        await world.clear()
        await engine.dispose()
    assert min(folds.values()) > 50, folds
    assert answers["evaluations"] > 10, answers


async def test_postgres_has_the_bins_of_the_library(system) -> None:
    dice = random.Random(5)
    values = [0.0, 1e-12, 9.99e-10, 1e-9, 1e-3, 1.0, 1e12, *(10 ** dice.uniform(-9, 12) for _ in range(5000))]
    async with apart(system) as database:
        query = f"SELECT {bin_of('v')} AS bin FROM unnest($1::float8[]) WITH ORDINALITY AS u(v, n) ORDER BY n"
        bins = [record["bin"] for record in await database.owner.fetch(query, values)]
    assert bins == [key(value) for value in values]
