"""Run the property tests of statistics: two tenants, and every operation on their records."""

import asyncio
import json
from collections.abc import Callable
from datetime import datetime, timedelta
from typing import Any

import msgspec
import pytest

from domain import artifacts, evaluations
from domain.artifacts import ArtifactMetadata, service
from domain.artifacts.service import PackedArtifact
from domain.evaluations import ClaimedEvaluation, NewEvaluation
from domain.evaluations.scoring import EvaluationScores
from domain.shared.errors import DomainError
from domain.shared.pages import Page
from domain.stats import NANOS_PER_UNIT
from infra.postgres.db import create_engine
from infra.postgres.store import PostgresStore
from tests.support.isolated_database import IsolatedDatabase, SilentBell, open_isolated_database
from tests.support.stats_oracle import (
    LostTransaction,
    TenantRows,
    check_evaluations,
    check_groups,
    check_page,
    choose_ids,
    choose_scores,
    fill_filter,
    get_owner_ids,
    list_buckets,
)
from tests.support.stats_strategies import DAY, LEASE, NOWS, OTHERS
from workers.record.stats import StatsFolder


async def run_property_test(
    system: Any,
    run_examples: Callable[[asyncio.Runner, IsolatedDatabase, PostgresStore, list[datetime]], None],
) -> None:
    """Run Hypothesis examples in a thread with its own event loop and database, as Hypothesis calls no coroutines."""

    def run_in_thread() -> None:
        with asyncio.Runner() as runner:
            clock = [NOWS[0]]

            async def open_database() -> Any:
                context = open_isolated_database(system)
                database = await context.__aenter__()
                return context, database, create_engine(database.url, pool_size=6, application="tests")

            context, database, engine = runner.run(open_database())
            try:
                run_examples(runner, database, PostgresStore(engine, SilentBell(), lambda: clock[0]), clock)
            finally:
                runner.run(engine.dispose())
                runner.run(context.__aexit__(None, None, None))

    await asyncio.to_thread(run_in_thread)


class StatsEnvironment:
    """Hold two tenants in one database."""

    def __init__(
        self, database: IsolatedDatabase, store: PostgresStore, owners: list[TenantRows], clock: list[datetime]
    ) -> None:
        self._database, self._store, self._owners, self._clock = database, store, owners, clock

    # Operations.

    async def insert(self, whose: int, batches: list[list[NewEvaluation]]) -> None:
        owner = self._owners[whose]
        async with self._store.transaction(owner.caller) as tx:
            batches_of_rows = [
                evaluations.build_evaluations(*get_owner_ids(owner), batch, tx.now, batch=True) for batch in batches
            ]
            if batches == [batches[0][:1]]:
                assert await evaluations.create_evaluations(tx, batches_of_rows) == batches_of_rows[0]
            else:
                answers = await evaluations.create_batches(tx, batches_of_rows)
                assert answers == [
                    evaluations.EvaluationBatch(created=len(sent), ids=[row.id for row in sent])
                    for sent in batches_of_rows
                ]
        owner.evaluations |= {row.id: row for batch in batches_of_rows for row in batch}

    async def delete(self, whose: int, places: list[int]) -> None:
        owner = self._owners[whose]
        chosen = choose_ids(owner.evaluations, places)
        async with self._store.transaction(owner.caller) as tx:
            for row_id in chosen:
                await evaluations.delete_evaluation(tx, row_id)
                assert await tx.evaluations.delete_many([row_id]) == 0
        owner.deleted_rows += [owner.evaluations.pop(row_id) for row_id in chosen]

    async def compute(self, most: int, drawn: list[EvaluationScores | None], twist: str) -> None:
        claimed = await self._claim(most)
        if twist == "late":
            # The lease runs out, another worker has it, and then the first comes back.
            lost, claimed = claimed, await self._claim(most, later=2 * LEASE)
            assert {claim.evaluation.id for claim in lost} == {claim.evaluation.id for claim in claimed}
            await self._settle(
                [
                    (claim, scores_of_row)
                    for claim, scores_of_row in zip(lost, choose_scores(lost, [OTHERS]), strict=True)
                ]
            )
        if twist == "deleted" and claimed:
            lost_id = claimed[0].evaluation.id
            for number, owner in enumerate(self._owners):
                if lost_id in owner.evaluations:
                    await self.delete(number, [sorted(owner.evaluations).index(lost_id)])
        scores = choose_scores(claimed, drawn)
        await self._settle(list(zip(claimed, scores, strict=True)))
        for claim, scores_of_row in zip(claimed, scores, strict=True):
            row = next(
                (o.evaluations[claim.evaluation.id] for o in self._owners if claim.evaluation.id in o.evaluations), None
            )
            if row is not None and scores_of_row is not None:
                row.computed, row.metrics = evaluations.list_missing_scores(row), "computed"
                for name in EvaluationScores.__struct_fields__:
                    setattr(row, name, getattr(scores_of_row, name))
            elif row is not None and claim.attempt >= evaluations.MAX_SCORING_ATTEMPTS:
                row.metrics = "failed"
        if twist == "twice":
            # Written scores stay; rows that could not be scored were released, and are left out.
            written = [claim for claim, scores_of_row in zip(claimed, scores, strict=True) if scores_of_row is not None]
            await self._settle(list(zip(written, choose_scores(written, [OTHERS]), strict=True)))

    async def upload(self, whose: int, sent: list[dict[str, Any]], execution_id: str | None) -> None:
        owner, stored = self._owners[whose], {}
        async with self._store.transaction(owner.caller) as tx:
            records = [
                artifacts.build_record(
                    json.dumps(record).encode(),
                    **dict(zip(("tenant_id", "user_id"), get_owner_ids(owner), strict=True)),
                    now=tx.now,
                    execution_id=execution_id,
                )
                for record in sent
            ]
            answers = await service.store_artifacts(
                tx, [PackedArtifact(record=record, packed_body=b"packed") for record in records]
            )
        before = {record.metadata.kurral_id: record for record in owner.artifacts.values()}
        for record, answer in zip(records, answers, strict=True):
            if isinstance(answer, ArtifactMetadata) and answer.id == record.metadata.id:
                assert record.metadata.kurral_id not in before | stored, "stored twice"
                stored[record.metadata.kurral_id] = record
        for record, answer in zip(records, answers, strict=True):
            first = (before | stored)[record.metadata.kurral_id]
            if first.fingerprint == record.fingerprint:
                assert answer == first.metadata
            else:
                assert isinstance(answer, DomainError)
                assert answer.code == "conflict"
        owner.artifacts |= {record.metadata.id: record for record in stored.values()}

    async def forget(self, whose: int, places: list[int]) -> None:
        owner = self._owners[whose]
        chosen = choose_ids(owner.artifacts, places)
        async with self._store.transaction(owner.caller) as tx:
            if len(chosen) == 1:
                await service.delete_artifact(tx, owner.artifacts[chosen[0]].metadata.kurral_id)
            else:
                assert await tx.artifacts.delete(chosen, tx.now) == len(chosen)
            assert await tx.artifacts.delete(chosen, tx.now) == 0
        owner.deleted_rows += [owner.artifacts.pop(row_id).metadata for row_id in chosen]

    async def fold(self, whose: int, kind: Any, most: int) -> None:
        before = await self._count_deltas(whose, kind)
        async with self._store.transaction(self._owners[whose].caller) as tx:
            folded = await tx.stats.fold_deltas(kind, most)
        assert folded == min(most, before)
        assert await self._count_deltas(whose, kind) == before - folded

    async def fold_beside(self, whose: int, kind: Any, most: int, lost: bool) -> None:
        """Fold twice at once: the second has nothing to do, and readers see the state before."""
        owner = self._owners[whose]
        try:
            async with self._store.transaction(owner.caller) as tx, self._store.transaction(owner.caller) as other:
                await tx.stats.fold_deltas(kind, most)
                assert await other.stats.fold_deltas(kind, most) == 0
                await self.ask(whose)
                if lost:
                    raise LostTransaction
        except LostTransaction:
            pass
        await asyncio.gather(*(self._fold_deltas(whose, kind, most) for _ in range(2)), self.ask(whose))

    async def fold_all(self) -> None:
        folder = StatsFolder(self._store)
        while await folder.fold_deltas():
            pass
        assert await self._database.owner.fetchval("SELECT count(*) FROM stat_deltas") == 0

    async def turn_clock(self, now: datetime) -> None:
        self._clock[0] = now

    async def write_to_other_tenant(self, whose: int, place: int) -> None:
        mine, theirs = self._owners[whose], self._owners[1 - whose]
        async with self._store.transaction(mine.caller) as tx:
            for row_id in choose_ids(theirs.evaluations, [place]):
                assert await tx.evaluations.get(row_id) is None
                assert await tx.evaluations.delete_many([row_id]) == 0
            for row_id in choose_ids(theirs.artifacts, [place]):
                assert await tx.artifacts.get(row_id) is None
                assert await tx.artifacts.delete([row_id], tx.now) == 0

    # Queries.

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
        since, until = owner.choose_bounds(*bounds)
        evaluated, recorded = list(owner.evaluations.values()), [row.metadata for row in owner.artifacts.values()]
        first = evaluations.EvaluationFilter(**fill_filter(of_evaluations or {}, evaluated), since=since, until=until)
        second = service.ArtifactFilter(**fill_filter(of_artifacts or {}, recorded), start_date=since, end_date=until)
        async with self._store.transaction(owner.caller) as tx:
            await self._ask_evaluations(tx, owner, first, days, bucket)
            await self._ask_artifacts(tx, owner, second, days, bucket, page)
            # Lists: any page, and any row to continue from, existing or deleted.
            for truth, page_of_rows, after in (
                (
                    owner.filter_evaluations(first).rows,
                    await evaluations.list_evaluations(tx, first, page),
                    lambda row: evaluations.list_evaluations_after(tx, row, page.limit, filters=first),
                ),
                (
                    [row.metadata for row in owner.filter_artifacts(second).rows],
                    await tx.artifacts.list_page(second, page),
                    lambda row: service.list_artifacts_after(tx, row, page.limit, filters=second),
                ),
            ):
                check_page(truth, page_of_rows, page)
                rows = [
                    None,
                    *truth,
                    *(row for row in owner.deleted_rows if truth and isinstance(row, type(truth[0]))),
                ]
                last = rows[place % len(rows)]
                rest = (
                    truth if last is None else [r for r in truth if (r.created_at, r.id) < (last.created_at, last.id)]
                )
                assert await after(last) == rest[: page.limit]

    async def _ask_evaluations(self, tx: Any, owner: TenantRows, filters: Any, days: int, bucket: Any) -> None:
        truth = owner.filter_evaluations(filters)
        await check_groups(tx, evaluations.query_from_filter(filters), truth)
        await check_evaluations(await evaluations.compute_evaluation_stats(tx, filters, None), truth, filters.since)
        if filters.until is None or filters.since is None:
            since = (tx.now - days * DAY).replace(minute=0, second=0, microsecond=0)
            of_days = msgspec.structs.replace(filters, since=None)
            if filters.until is None or filters.until >= since:
                truth = owner.filter_evaluations(msgspec.structs.replace(of_days, since=since))
                await check_evaluations(await evaluations.compute_evaluation_stats(tx, of_days, days), truth, since)
        free = msgspec.structs.replace(filters, since=None, until=None)
        if filters != free:
            with pytest.raises(DomainError, match="days"):
                await evaluations.compute_evaluation_timeseries(tx, filters, days, bucket)
        points = await evaluations.compute_evaluation_timeseries(tx, free, days, bucket)
        for begin, end, point in list_buckets(tx.now, days, bucket, points):
            truth = owner.filter_evaluations(msgspec.structs.replace(free, since=begin, until=end))
            assert msgspec.structs.asdict(point) == {
                "date": begin,
                "count": len(truth.rows),
                "hallucinations": truth.total["hallucinated"],
                "hallucination_rate": truth.compute_rate("hallucinated", "judged"),
                **truth.compute_averages(),
            }

    async def _ask_artifacts(
        self, tx: Any, owner: TenantRows, filters: Any, days: int, bucket: Any, page: Page
    ) -> None:
        truth = owner.filter_artifacts(filters)
        await check_groups(tx, service.query_from_filter(filters), truth)
        stats = msgspec.structs.asdict(await service.compute_artifact_stats(tx, filters))
        truth.check_quantiles(*(stats.pop(name) for name in ("p50", "p95", "p99")))
        known_durations = truth.total["duration_ms_known"]
        expected = {
            "total_artifacts": len(truth.rows),
            "total_size_gb": truth.total["size_bytes"] / 10**9,
            **{
                f"by_{name}": truth.count_by(n)
                for n, name in ((0, "environment"), (2, "replay_level"), (6, "semantic_bucket"))
            },
            **{f"by_{name}": truth.count_by(n) for n, name in ((3, "model"), (4, "provider"), (5, "status"))},
            "total_cost_usd": truth.total["cost_usd"] / NANOS_PER_UNIT,
            "total_tokens": truth.total["tokens"],
            "avg_duration_ms": truth.total["duration_ms"] / (1000 * known_durations) if known_durations else None,
            "error_rate": truth.compute_rate("errors", "count", 100),
            "deterministic_rate": truth.compute_rate("deterministic", "count", 100),
        }
        assert stats == expected
        assert [list(stats[name]) for name in expected if name.startswith("by_")] == [
            list(expected[name]) for name in expected if name.startswith("by_")
        ]
        counted = [
            service.SemanticBucketCount(semantic_bucket=name, count=count)
            for name, count in owner.filter_artifacts(service.ArtifactFilter()).count_by(6).items()
        ]
        check_page(counted, await service.list_semantic_buckets(tx, page), page)
        free = msgspec.structs.replace(filters, start_date=None, end_date=None)
        if filters != free:
            with pytest.raises(DomainError, match="days"):
                await service.compute_artifact_timeseries(tx, filters, days, bucket)
        points = await service.compute_artifact_timeseries(tx, free, days, bucket)
        for begin, end, point in list_buckets(tx.now, days, bucket, points):
            truth = owner.filter_artifacts(msgspec.structs.replace(free, start_date=begin, end_date=end))
            assert msgspec.structs.asdict(point) == {
                "date": begin,
                "count": len(truth.rows),
                "total_cost": truth.total["cost_usd"] / NANOS_PER_UNIT,
                "total_tokens": truth.total["tokens"],
                "errors": truth.total["errors"],
                "deterministic": truth.total["deterministic"],
            }

    async def check(self, steps: list[tuple[tuple[Any, ...], tuple[Any, ...]]]) -> None:
        for (name, *arguments), asked in steps:
            await getattr(self, name)(*arguments)
            await self.ask(*asked)
        # The same queries again while partly folded and when folded.
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
        """Delete everything: all counts are zero, before folding and after."""
        for whose, owner in enumerate(self._owners):
            await self.delete(whose, list(range(len(owner.evaluations))))
            await self.forget(whose, list(range(len(owner.artifacts))))
            await self.ask(whose)
        await self.fold_all()
        for whose in (0, 1):
            await self.ask(whose)
        for table in ("stat_deltas", "stat_rollups", "evaluations", "artifacts", "artifact_ids", "artifact_bodies"):
            assert await self._database.owner.fetchval(f"SELECT count(*) FROM {table}") == 0, table

    async def _fold_deltas(self, whose: int, kind: Any, most: int) -> int:
        async with self._store.transaction(self._owners[whose].caller) as tx:
            return await tx.stats.fold_deltas(kind, most)

    async def _count_deltas(self, whose: int, kind: str) -> int:
        query = "SELECT count(*) FROM stat_deltas WHERE tenant_id = $1 AND kind = $2"
        return int(await self._database.owner.fetchval(query, self._owners[whose].caller.tenant_id, kind))

    async def _claim(self, most: int, later: timedelta = timedelta(0)) -> list[ClaimedEvaluation]:
        self._clock[0] += later
        async with self._store.system_transaction() as tx:
            claimed = await evaluations.claim_evaluations(tx, most, LEASE)
        self._clock[0] -= later
        return claimed

    async def _settle(self, rows: list[tuple[ClaimedEvaluation, EvaluationScores | None]]) -> None:
        for owner in self._owners:
            mine = [row for row in rows if row[0].evaluation.tenant_id == owner.caller.tenant_id]
            async with self._store.tenant_transaction(owner.caller.tenant_id) as tx:
                await evaluations.settle_evaluations(tx, mine)
