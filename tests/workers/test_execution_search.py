"""Lists by tags, metadata and words are what reading every execution would find, served by their key."""

import random
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import timedelta
from typing import Any

import pytest
from sqlalchemy import event

from domain import executions
from domain.executions import Execution, ExecutionFilter, ExecutionStart
from domain.shared.access import Caller
from domain.shared.pages import MAX_COUNTED_MATCHES, Page
from infra.postgres.db import create_engine
from infra.postgres.store import PostgresStore
from scripts.system import System
from tests.support.isolated_database import NOW, IsolatedDatabase, SilentBell, open_isolated_database
from workers.record.execution_terms import TermWriter

TAGS = ["a", "b", "größe", "t:a", "w:red"]
METADATA: list[dict[str, Any]] = [{}, {"k": 1}, {"k": "1", "b": True}, {"k": 1.5}, {"k": "x" * 300}, {"a": "b:c"}]
METADATA_FILTERS = ["k:1", "b:true", "k:1.5", "k:" + "x" * 300, "a:b:c", "k:2"]
WORDS = ["red", "Blue", "blue-green", "GRÖSSE", "x_y", "4711", "b"]


@pytest.fixture(scope="module")
async def database(system: System) -> AsyncIterator[IsolatedDatabase]:
    async with open_isolated_database(system) as database:
        yield database


@asynccontextmanager
async def open_store(database: IsolatedDatabase) -> AsyncIterator[PostgresStore]:
    store = PostgresStore(create_engine(database.url, pool_size=2, application="search"), SilentBell(), lambda: NOW)
    try:
        yield store
    finally:
        await store.close()


def _split_words(text: str) -> set[str]:
    return set(re.findall(r"\w+", text.casefold()))


def _matches(execution: Execution, filters: ExecutionFilter) -> bool:
    """Decide by reading, without any index, whether a filter selects an execution."""
    members = set()
    for key, value in (execution.metadata or {}).items():
        members.add(f"{key}:{str(value).lower() if isinstance(value, bool) else value}")
    words = _split_words(f"{execution.run_name} {' '.join(map(str, execution.input_data.values()))} word")
    terms = (filters.search or "").casefold().split()
    required = set().union(*(_split_words(term) for term in terms if not term.startswith("-")))
    excluded = set().union(*(_split_words(term) for term in terms if term.startswith("-")))
    return (
        set(filters.tag or []) <= set(execution.tags)
        and set(filters.metadata or []) <= members
        and required <= words
        and not excluded & words
        and filters.status in (None, execution.status)
    )


async def _add_executions(store: PostgresStore, caller: Caller, draw: random.Random, count: int) -> list[Execution]:
    added = []
    async with store.transaction(caller) as tx:
        for _ in range(count):
            labels = ExecutionStart(
                tags=draw.sample(TAGS, draw.randint(0, 3)),
                metadata=draw.choice(METADATA),
                run_name=draw.choice([None, "red run", "x_y"]),
            )
            payload = {"word": " ".join(draw.sample(WORDS, draw.randint(0, 3)))}
            execution = executions.build_execution(tx, caller.tenant_id, caller.user_id, None, "some", payload)
            execution = executions.apply_start_options(execution, labels, None)
            added.append(await executions.add_execution(tx, execution, None))
    return added


async def test_lists_hold_what_reading_every_execution_finds(database: IsolatedDatabase) -> None:
    draw = random.Random(16)
    caller, other = await database.add_tenant(), await database.add_tenant()
    async with open_store(database) as store:
        added = await _add_executions(store, caller, draw, 120)
        await _add_executions(store, other, draw, 30)
        for execution in draw.sample(added, 40):
            async with store.transaction(caller) as tx:
                assert await tx.executions.cancel_execution(execution.id, "", NOW)
            execution.status = "cancelled"
        while await TermWriter(store).write_terms():
            pass
        found_count = 0
        for _ in range(150):
            search = [draw.choice(["", "-"]) + word for word in draw.sample(WORDS, draw.randint(0, 2))]
            filters = ExecutionFilter(
                status=draw.choice([None, "pending", "cancelled"]),
                tag=draw.sample(TAGS, draw.randint(0, 2)) or None,
                metadata=draw.sample(METADATA_FILTERS, draw.randint(0, 1)) or None,
                search=" ".join(["word", *search]) if search else None,
            )
            expected = sorted((entry.id for entry in added if _matches(entry, filters)), reverse=True)
            page = Page(limit=draw.choice([3, 1000]), offset=draw.choice([0, 0, 2]))
            async with store.transaction(caller) as tx:
                listing = await executions.list_executions(tx, filters, page)
            assert [item.id for item in listing.items] == expected[page.offset : page.offset + page.limit], filters
            assert (listing.total, listing.has_more) == (len(expected), page.offset + page.limit < len(expected))
            found_count += len(listing.items)
        assert found_count > 100


_FILL_SQL = """
    INSERT INTO executions (id, tenant_id, user_id, run_name, kind, lane, status, attempt, max_attempts, timeout,
        steps_total, steps_completed, recorded, total_cost, last_seq, created_at, completed_at, updated_at)
    SELECT gen_random_uuid(), t.id, u.id, 'r', 'agent', 'run', 'completed', 1, 1, 1, 1, 1, true, 0, 1, $1, $1, $1
    FROM tenants t JOIN users u ON u.tenant_id = t.id, generate_series(1, 10000);
"""
_FILL_TERMS_SQL = """
    INSERT INTO execution_terms (tenant_id, term, execution_id)
    SELECT e.tenant_id, t.term, e.id FROM (SELECT *, row_number() OVER (ORDER BY id) AS n FROM executions) AS e
    CROSS JOIN LATERAL (
        SELECT 't:every' AS term UNION ALL SELECT 'w:every' UNION ALL SELECT 'w:even' WHERE e.n % 2 = 0
        UNION ALL SELECT 'w:rare' WHERE e.n % 5000 = 0) AS t
"""


@pytest.fixture(scope="module")
async def filled_database(system: System) -> AsyncIterator[tuple[IsolatedDatabase, Caller]]:
    async with open_isolated_database(system) as database:
        caller = await database.add_tenant()
        await database.owner.execute(_FILL_SQL, NOW)
        await database.owner.execute(_FILL_TERMS_SQL)
        await database.owner.execute("ANALYZE executions, execution_terms")
        yield database, caller


@pytest.mark.parametrize(
    ("filters", "total"),
    [
        (ExecutionFilter(tag=["every"]), MAX_COUNTED_MATCHES),
        (ExecutionFilter(search="every"), MAX_COUNTED_MATCHES),
        (ExecutionFilter(search="rare every even"), 2),
        (ExecutionFilter(search="every -even"), MAX_COUNTED_MATCHES),
        (ExecutionFilter(search="absent"), 0),
        (ExecutionFilter(search="every even", status="completed"), MAX_COUNTED_MATCHES),
        (ExecutionFilter(tag=["every"], since=NOW - timedelta(days=1)), MAX_COUNTED_MATCHES),
    ],
)
async def test_pages_are_read_from_the_key_of_terms(
    filled_database: tuple[IsolatedDatabase, Caller], filters: ExecutionFilter, total: int
) -> None:
    """No statement of a page reads all executions, or sorts those with a term."""
    database, caller = filled_database
    async with open_store(database) as store:
        statements = list[tuple[str, Any]]()

        def note_statement(connection: Any, cursor: Any, statement: str, parameters: Any, *_: Any) -> None:
            statements.append((statement, parameters))

        event.listen(store._engine.sync_engine, "before_cursor_execute", note_statement)
        async with store.transaction(caller) as tx:
            listing = await executions.list_executions(tx, filters, Page(limit=50))
            assert listing.total == total
            assert 1 <= len(statements) <= 2
            raw = tx._raw  # type: ignore[attr-defined]
            for statement, parameters in list(statements):
                plan = "\n".join(row[0] for row in await raw.fetch(f"EXPLAIN {statement}", *parameters))
                assert "execution_terms_pkey" in plan, plan
                assert "Seq Scan" not in plan, plan
                assert "Sort" not in plan, plan
