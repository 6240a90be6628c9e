"""Statistics, lists and pages equal brute force over the rows, after any sequence of adding, deleting and folding."""

import asyncio
import json
import random
from collections import Counter
from collections.abc import Awaitable, Callable
from datetime import datetime, timedelta
from typing import Any

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from domain import artifacts, evaluations
from domain.artifacts import service
from domain.artifacts.record import ArtifactRecord
from domain.artifacts.service import PackedArtifact
from domain.evaluations import Evaluation, NewEvaluation
from domain.evaluations.scoring import EvaluationScores
from domain.shared.pages import Page
from domain.stats import RECORD_KINDS
from infra.postgres.db import create_engine
from infra.postgres.store import PostgresStore
from infra.sketches import build_bin_expression, find_bin_key
from tests.support.isolated_database import IsolatedDatabase, SilentBell, open_isolated_database
from tests.support.stats_environment import StatsEnvironment, run_property_test
from tests.support.stats_oracle import TenantRows, choose_scores, get_owner_ids
from tests.support.stats_strategies import ASK, DAY, HOUR, LEASE, NAMES, NOWS, STEP


async def test_any_interleaving_matches_brute_force(system) -> None:
    def run_examples(
        runner: asyncio.Runner, database: IsolatedDatabase, store: PostgresStore, clock: list[datetime]
    ) -> None:
        async def create_environment() -> StatsEnvironment:
            clock[0] = NOWS[0]
            for table in ("stat_deltas", "stat_rollups", "evaluations", "artifacts", "artifact_ids", "artifact_bodies"):
                await database.owner.execute(f"DELETE FROM {table}")
            return StatsEnvironment(database, store, [TenantRows(await database.add_tenant()) for _ in range(2)], clock)

        async def run(steps: list[Any]) -> None:
            await (await create_environment()).check(steps)

        @settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck))
        @given(steps=st.lists(st.tuples(STEP, ASK), min_size=4, max_size=25))
        def check(steps: list[Any]) -> None:
            runner.run(run(steps))

        check()

    await run_property_test(system, run_examples)


BATCH_SIZE = 10


async def test_concurrent_readers_see_a_consistent_snapshot(system) -> None:
    """Add and delete tens in one commit each, while others fold and compute: no reader may see part of a ten."""
    async with open_isolated_database(system) as database:
        engine = create_engine(database.url, pool_size=12, application="tests")
        now, done, dice = NOWS[0], asyncio.Event(), random.Random(4)
        store = PostgresStore(engine, SilentBell(), lambda: now)
        owner = TenantRows(await database.add_tenant())
        folds, answers = Counter[str](), Counter[str]()

        def build_evaluations() -> list[Evaluation]:
            # Some before the partial hour of the query and some in it, of several models, some to be computed.
            new_evaluations = [
                NewEvaluation(
                    prompt="p",
                    response="r",
                    created_at=now - dice.choice([HOUR, DAY, 40 * DAY, timedelta(minutes=dice.randrange(120))]),
                    model_name=dice.choice(NAMES),
                    latency_sec=dice.choice([None, 0.0, 1.5, 20.0]),
                    hallucinated=dice.choice([None, True, False]),
                )
                for _ in range(BATCH_SIZE)
            ]
            return evaluations.build_evaluations(*get_owner_ids(owner), new_evaluations, now, batch=True)

        def build_records(number: int) -> list[ArtifactRecord]:
            bodies = [
                {
                    "kurral_id": f"{number}-{number_in_batch}",
                    "cost_usd": number_in_batch / 7,
                    "duration_ms": number_in_batch,
                }
                for number_in_batch in range(BATCH_SIZE)
            ]
            tenant_id, user_id = get_owner_ids(owner)
            return [
                artifacts.build_record(json.dumps(body).encode(), tenant_id=tenant_id, user_id=user_id, now=now)
                for body in bodies
            ]

        async def write_batches(number: int) -> None:
            for turn in range(12):
                batch = build_evaluations()
                async with store.transaction(owner.caller) as tx:
                    await evaluations.create_batches(tx, [batch])
                owner.evaluations |= {evaluation.id: evaluation for evaluation in batch}
                await upload_batch(100 * number + turn)
                if turn % 3 == 2:
                    await delete_twice(
                        lambda tx, batch=batch: tx.evaluations.delete_many([evaluation.id for evaluation in batch])
                    )
                    for evaluation in batch:
                        owner.deleted_rows.append(owner.evaluations.pop(evaluation.id))

        async def upload_batch(number: int) -> None:
            # The same ten uploaded twice at once are stored once.
            tries = [build_records(number), build_records(number)]

            async def send(records: list[ArtifactRecord]) -> set[str]:
                async with store.transaction(owner.caller) as tx:
                    return await tx.artifacts.add(
                        [PackedArtifact(record=record, packed_body=b"") for record in records]
                    )

            stored = await asyncio.gather(*map(send, tries))
            assert sorted(map(len, stored)) == [0, BATCH_SIZE]
            records = next(records for records, stored_ids in zip(tries, stored, strict=True) if stored_ids)
            if number % 2:
                await delete_twice(lambda tx: tx.artifacts.delete([record.metadata.id for record in records], now))
            else:
                owner.artifacts.update({record.metadata.id: record for record in records})

        async def delete_twice(delete: Callable[[Any], Awaitable[int]]) -> None:
            async def delete_once() -> int:
                async with store.transaction(owner.caller) as tx:
                    return await delete(tx)

            assert sorted(await asyncio.gather(delete_once(), delete_once())) == [0, BATCH_SIZE]

        async def fold_deltas() -> None:
            while not done.is_set():
                async with store.transaction(owner.caller) as tx:
                    for kind in RECORD_KINDS:
                        folds[kind] += await tx.stats.fold_deltas(kind, dice.randint(1, 40))
                await asyncio.sleep(0)

        async def compute_scores() -> None:
            while not done.is_set():
                async with store.system_transaction() as tx:
                    claimed = await evaluations.claim_evaluations(tx, 7, LEASE)
                drawn = EvaluationScores(
                    **dict.fromkeys(EvaluationScores.__struct_fields__[:4], 0.25), hallucinated=True
                )
                scores = choose_scores(claimed, [drawn])
                async with store.tenant_transaction(owner.caller.tenant_id) as tx:
                    await evaluations.settle_evaluations(tx, list(zip(claimed, scores, strict=True)))
                await asyncio.sleep(0)

        async def read_statistics() -> None:
            while not done.is_set():
                for since in (None, now - timedelta(days=60, minutes=7)):
                    async with store.transaction(owner.caller) as tx:
                        evaluation_stats = await evaluations.compute_evaluation_stats(
                            tx, evaluations.EvaluationFilter(since=since), None
                        )
                        points = await evaluations.compute_evaluation_timeseries(
                            tx, evaluations.EvaluationFilter(), 90, "hour"
                        )
                        artifact_stats = await service.compute_artifact_stats(
                            tx, service.ArtifactFilter(start_date=since)
                        )
                    counts = [
                        evaluation_stats.total_evaluations,
                        sum(evaluation_stats.by_model.values()),
                        artifact_stats.total_artifacts,
                    ]
                    counts += [sum(point.count for point in points), sum(artifact_stats.by_status.values())]
                    assert [count % BATCH_SIZE for count in counts] == [0] * len(counts)
                    answers["evaluations"] += evaluation_stats.total_evaluations > 0

        async with asyncio.TaskGroup() as background:
            for task in (fold_deltas(), fold_deltas(), compute_scores(), read_statistics(), read_statistics()):
                background.create_task(task)
            try:
                async with asyncio.TaskGroup() as group:
                    for number in range(4):
                        group.create_task(write_batches(number))
            finally:
                done.set()
        async with store.transaction(owner.caller) as tx:
            stored_evaluations = {row_id: await evaluations.get_evaluation(tx, row_id) for row_id in owner.evaluations}
        assert all(row.created_at == owner.evaluations[row_id].created_at for row_id, row in stored_evaluations.items())
        owner.evaluations = stored_evaluations
        environment = StatsEnvironment(database, store, [owner, TenantRows(await database.add_tenant())], [now])
        await environment.ask(0, page=Page(limit=1000))
        await environment.clear()
        await engine.dispose()
    assert min(folds[kind] for kind in ("artifacts", "evaluations")) > 50, folds
    assert answers["evaluations"] > 10, answers


async def test_postgres_computes_the_bins_of_the_library(system) -> None:
    dice = random.Random(5)
    values = [0.0, 1e-12, 9.99e-10, 1e-9, 1e-3, 1.0, 1e12, *(10 ** dice.uniform(-9, 12) for _ in range(5000))]
    async with open_isolated_database(system) as database:
        query = (
            f"SELECT {build_bin_expression('v')} AS bin FROM unnest($1::float8[]) WITH ORDINALITY AS u(v, n) ORDER BY n"
        )
        bins = [record["bin"] for record in await database.owner.fetch(query, values)]
    assert bins == [find_bin_key(value) for value in values]
