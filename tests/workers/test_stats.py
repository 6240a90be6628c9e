"""Statistics, lists and pages are what brute force over the rows says, whatever was added, deleted and folded when."""

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


async def test_any_interleaving_leaves_what_brute_force_finds(system) -> None:
    def run_examples(
        runner: asyncio.Runner, database: IsolatedDatabase, store: PostgresStore, clock: list[datetime]
    ) -> None:
        async def fresh() -> StatsEnvironment:
            clock[0] = NOWS[0]
            for table in ("stat_deltas", "stat_rollups", "evaluations", "artifacts", "artifact_ids", "artifact_bodies"):
                await database.owner.execute(f"DELETE FROM {table}")
            return StatsEnvironment(database, store, [TenantRows(await database.add_tenant()) for _ in range(2)], clock)

        async def run(steps: list[Any]) -> None:
            await (await fresh()).check(steps)

        @settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck))
        @given(steps=st.lists(st.tuples(STEP, ASK), min_size=4, max_size=25))
        def check(steps: list[Any]) -> None:
            runner.run(run(steps))

        check()

    await run_property_test(system, run_examples)


TEN = 10


async def test_whoever_asks_meanwhile_is_told_what_there_was_at_some_moment(system) -> None:
    """Tens come and go in one commit each, while others fold and compute: no answer may see a part of ten."""
    async with open_isolated_database(system) as database:
        engine = create_engine(database.url, pool_size=12, application="tests")
        now, left, dice = NOWS[0], asyncio.Event(), random.Random(4)
        store = PostgresStore(engine, SilentBell(), lambda: now)
        owner = TenantRows(await database.add_tenant())
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
            return evaluations.build_evaluations(*get_owner_ids(owner), made, now, batch=True)

        def recorded(number: int) -> list[ArtifactRecord]:
            sent = [{"kurral_id": f"{number}-{one}", "cost_usd": one / 7, "duration_ms": one} for one in range(TEN)]
            tenant_id, user_id = get_owner_ids(owner)
            return [
                artifacts.build_record(json.dumps(one).encode(), tenant_id=tenant_id, user_id=user_id, now=now)
                for one in sent
            ]

        async def write(number: int) -> None:
            for turn in range(12):
                made = evaluated()
                async with store.transaction(owner.caller) as tx:
                    await evaluations.create_batches(tx, [made])
                owner.evaluations |= {one.id: one for one in made}
                await upload(100 * number + turn)
                if turn % 3 == 2:
                    await twice(lambda tx, made=made: tx.evaluations.delete_many([one.id for one in made]))
                    for one in made:
                        owner.deleted_rows.append(owner.evaluations.pop(one.id))

        async def upload(number: int) -> None:
            # The same ten twice at once: they are stored once.
            tries = [recorded(number), recorded(number)]

            async def send(made: list[ArtifactRecord]) -> set[str]:
                async with store.transaction(owner.caller) as tx:
                    return await tx.artifacts.add([PackedArtifact(record=one, packed_body=b"") for one in made])

            stored = await asyncio.gather(*map(send, tries))
            assert sorted(map(len, stored)) == [0, TEN]
            made = next(made for made, fresh in zip(tries, stored, strict=True) if fresh)
            if number % 2:
                await twice(lambda tx: tx.artifacts.delete([one.metadata.id for one in made], now))
            else:
                owner.artifacts.update({one.metadata.id: one for one in made})

        async def twice(delete: Callable[[Any], Awaitable[int]]) -> None:
            async def once() -> int:
                async with store.transaction(owner.caller) as tx:
                    return await delete(tx)

            assert sorted(await asyncio.gather(once(), once())) == [0, TEN]

        async def fold() -> None:
            while not left.is_set():
                async with store.transaction(owner.caller) as tx:
                    for kind in RECORD_KINDS:
                        folds[kind] += await tx.stats.fold_deltas(kind, dice.randint(1, 40))
                await asyncio.sleep(0)

        async def compute() -> None:
            while not left.is_set():
                async with store.system_transaction() as tx:
                    claimed = await evaluations.claim_evaluations(tx, 7, LEASE)
                drawn = EvaluationScores(
                    **dict.fromkeys(EvaluationScores.__struct_fields__[:4], 0.25), hallucinated=True
                )
                scores = choose_scores(claimed, [drawn])
                async with store.tenant_transaction(owner.caller.tenant_id) as tx:
                    await evaluations.settle_evaluations(tx, list(zip(claimed, scores, strict=True)))
                await asyncio.sleep(0)

        async def ask() -> None:
            while not left.is_set():
                for since in (None, now - timedelta(days=60, minutes=7)):
                    async with store.transaction(owner.caller) as tx:
                        first = await evaluations.compute_evaluation_stats(
                            tx, evaluations.EvaluationFilter(since=since), None
                        )
                        points = await evaluations.compute_evaluation_timeseries(
                            tx, evaluations.EvaluationFilter(), 90, "hour"
                        )
                        second = await service.compute_artifact_stats(tx, service.ArtifactFilter(start_date=since))
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
        async with store.transaction(owner.caller) as tx:
            kept = {row_id: await evaluations.get_evaluation(tx, row_id) for row_id in owner.evaluations}
        assert all(row.created_at == owner.evaluations[row_id].created_at for row_id, row in kept.items())
        owner.evaluations = kept
        world = StatsEnvironment(database, store, [owner, TenantRows(await database.add_tenant())], [now])
        await world.ask(0, page=Page(limit=1000))
        await world.clear()
        await engine.dispose()
    assert min(folds[kind] for kind in ("artifacts", "evaluations")) > 50, folds
    assert answers["evaluations"] > 10, answers


async def test_postgres_has_the_bins_of_the_library(system) -> None:
    dice = random.Random(5)
    values = [0.0, 1e-12, 9.99e-10, 1e-9, 1e-3, 1.0, 1e12, *(10 ** dice.uniform(-9, 12) for _ in range(5000))]
    async with open_isolated_database(system) as database:
        query = (
            f"SELECT {build_bin_expression('v')} AS bin FROM unnest($1::float8[]) WITH ORDINALITY AS u(v, n) ORDER BY n"
        )
        bins = [record["bin"] for record in await database.owner.fetch(query, values)]
    assert bins == [find_bin_key(value) for value in values]
