"""Measure how fast executions are found by words and tags, as ratios to the plain list in one run.

`python -m scripts.bench.search` starts a system of its own and prints one table; `--small` has a tenth of the rows.
Nothing is asserted.
"""

import asyncio
import statistics
import sys
import time
from typing import Any, Final

import asyncpg

from domain.shared import ids
from infra.postgres.connection import AsyncpgConnection
from scripts.bench.environment import run_bench_system
from scripts.bench.figures import BenchRow, print_rows
from scripts.bench.soak import BenchClient

FULL_SIZE, SMALL_SIZE = 1_000_000, 100_000
TIMED_CALLS = 25
PAGE_SIZE = 50
# How often a word or tag occurs, as `_TERMS_SQL` writes them; every execution has a few other words as well.
RARE_EVERY, SOME_EVERY = 50_000, 100

_EXECUTIONS_SQL: Final = """
    INSERT INTO executions (
        id, tenant_id, user_id, run_name, kind, status, input_data, output_data, attempt, max_attempts, timeout,
        steps_total, steps_completed, total_cost, last_seq, recorded, created_at, completed_at, updated_at
    )
    SELECT (lpad(to_hex($3::bigint + n), 12, '0') || '7000' || '8000' || lpad(to_hex(n), 12, '0'))::uuid,
           $1, $2, 'bench-' || n, 'agent', 'completed', '{"n": 1}', '{"n": 1}', 1, 3, 30, 1, 1, 0, 1, true,
           to_timestamp(($3::bigint + n) / 1000.0), now(), now()
    FROM generate_series(1, $4::bigint) AS n
"""
_TERMS_SQL: Final = """
    INSERT INTO execution_terms (tenant_id, term, execution_id)
    SELECT e.tenant_id, t.term, e.id FROM (
        SELECT id, tenant_id, row_number() OVER (ORDER BY id) AS n FROM executions WHERE tenant_id = $1
    ) AS e CROSS JOIN LATERAL (
        SELECT 'w:everywhere' AS term
        UNION ALL SELECT 't:everywhere'
        UNION ALL SELECT CASE WHEN e.n % 2 = 0 THEN 'w:even' ELSE 'w:odd' END
        UNION ALL SELECT 'w:some' WHERE e.n % 100 = 0
        UNION ALL SELECT 't:some' WHERE e.n % 100 = 0
        UNION ALL SELECT 'w:rare' WHERE e.n % 50000 = 0
        UNION ALL SELECT 't:rare' WHERE e.n % 50000 = 0
        UNION ALL SELECT DISTINCT 'w:x' || (random() * 20000)::int FROM generate_series(1, 3)
            WHERE e.n > 0
    ) AS t
"""
# What is found, and the query parameters that find it.
_SEARCH_PARAMETERS: Final[tuple[tuple[str, str], ...]] = (
    ("a word that every execution has", "search=everywhere"),
    (f"a word of one in {SOME_EVERY}", "search=some"),
    (f"a word of one in {RARE_EVERY}", "search=rare"),
    ("a word that none has", "search=absent"),
    ("a frequent and a rare word", "search=everywhere rare"),
    ("two frequent words", "search=everywhere even"),
    ("a frequent word without another", "search=everywhere -even"),
    ("a frequent word, with a status", "search=everywhere&status=completed"),
    ("a tag that every execution has", "tag=everywhere"),
    (f"a tag of one in {SOME_EVERY}", "tag=some"),
    (f"a tag of one in {RARE_EVERY}", "tag=rare"),
    ("a tag that none has", "tag=absent"),
)


async def fill_executions(owner: AsyncpgConnection, tenant_id: str, user_id: str, count: int) -> None:
    """Write executions with their terms, without the triggers and indexes that slow single rows down."""
    await owner.execute("SET session_replication_role = replica")
    now = int(time.time() * 1000)
    await owner.execute(_EXECUTIONS_SQL, tenant_id, ids.decode_id("user", user_id), now - count - 1000, count)
    await owner.execute("ALTER TABLE execution_terms DROP CONSTRAINT execution_terms_pkey")
    await owner.execute(_TERMS_SQL, tenant_id)
    await owner.execute("ALTER TABLE execution_terms ADD PRIMARY KEY (tenant_id, term, execution_id)")
    await owner.execute("VACUUM ANALYZE executions")
    await owner.execute("VACUUM ANALYZE execution_terms")


async def measure_searches(client: BenchClient) -> list[BenchRow]:
    """Compare a page of each search with a page of the plain list, call by call in turn."""
    rows = list[BenchRow]()
    plain_path = f"executions?limit={PAGE_SIZE}"
    for what, parameters in _SEARCH_PARAMETERS:
        plain_times, search_times = list[float](), list[float]()
        for _ in range(TIMED_CALLS):
            plain_times.append(await _time_page(client, plain_path))
            search_times.append(await _time_page(client, f"{plain_path}&{parameters}"))
        base, median = statistics.median(plain_times), statistics.median(search_times)
        rows.append((what, f"{median / base:.2f}", f"the plain list ({median:.1f} ms to {base:.1f} ms)"))
    return rows


async def _time_page(client: BenchClient, path: str) -> float:
    began = time.perf_counter()
    await client.call_api("GET", path)
    return (time.perf_counter() - began) * 1000


async def main(size: int = FULL_SIZE) -> None:
    """Fill a system with executions, measure and print."""
    async with run_bench_system() as system, BenchClient(system.url, {"X-API-Key": system.admin_key}) as client:
        account: dict[str, Any] = await client.call_api("GET", "auth/me")
        owner = await asyncpg.connect(system.settings.database_owner_url.reveal(), command_timeout=900)
        try:
            await fill_executions(owner, account["tenant_id"], account["id"], size)
        finally:
            await owner.close()
        print(f"a page of {PAGE_SIZE} of {size} executions")
        print_rows(await measure_searches(client))


if __name__ == "__main__":
    asyncio.run(main(SMALL_SIZE if "--small" in sys.argv[1:] else FULL_SIZE))
