"""Measure what records cost: ingesting, counting and listing them, as ratios measured in one run.

`python -m scripts.bench.records` starts a system of its own and prints one table; `--small` has a tenth of the rows.
Nothing is asserted. Clients run in a process of their own and send bytes that were made before the clock started, the
same way on both sides of a ratio.
"""

import asyncio
import contextlib
import functools
import multiprocessing
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from datetime import UTC, datetime, timedelta
from typing import Any, cast

import asyncpg
import msgspec

from domain.shared import ids
from domain.stats import QUANTILE_FRACTIONS, RecordKind
from infra.postgres.connection import AsyncpgConnection, TxConnection
from infra.postgres.record_measures import MEASURES_BY_KIND
from infra.postgres.stats import PostgresStats
from scripts.bench.environment import run_bench_system
from scripts.bench.figures import BenchRow, print_rows
from scripts.bench.load import LoadResult, copy_rows, run_bare_handlers, send_load
from scripts.bench.resources import measure_cpu_seconds, measure_memory_mib
from scripts.bench.sample_records import (
    RARE_EVERY,
    build_artifact,
    build_evaluations,
    build_row_expressions,
    convert_to_rows,
)
from scripts.bench.soak import BenchClient, register_tenant
from scripts.system import System

FULL_SIZES, SMALL_SIZES = (1_000_000, 10_000_000), (100_000, 1_000_000)
# Both sides of a ratio in turn, so that what else the machine does falls on both.
COMPARISON_ROUNDS = 3
SINGLE_EVALUATIONS, SINGLE_CONNECTIONS = 6000, 32
BATCH_COUNT, BATCH_ROWS, BATCH_CONNECTIONS = 60, 1000, 4
ARTIFACT_COUNT, ARTIFACT_CONNECTIONS = 2000, 16
LARGE_ARTIFACTS, LARGE_CONNECTIONS = ((20, 10_000_000), (6, 32_000_000)), 4
TIMED_CALLS = 25
HISTORY_DAYS = 90
PAGE_SIZE = 50
API_PATH = "/api/v1/"


class RecordsBench:
    """Measure a running system from a client process beside it. The figures are collected in `rows`."""

    def __init__(
        self, system: System, owner: AsyncpgConnection, pool: ProcessPoolExecutor, sizes: tuple[int, int]
    ) -> None:
        self.system, self.rows, self._owner, self._pool, self._sizes = system, list[BenchRow](), owner, pool, sizes
        self._tenant_id = self._user_id = self._key = ""
        # Milliseconds in the ids of rows that are made in SQL.
        self._made = int(time.time() * 1000)

    async def run(self) -> None:
        """Measure everything, in an order in which no figure includes rows of another."""
        async with BenchClient(self.system.url, {"X-API-Key": self.system.admin_key}) as client:
            response = await client.call_api("POST", "evaluations", build_evaluations(1)[0])
        self._tenant_id, self._user_id, self._key = response["tenant_id"], response["user_id"], self.system.admin_key
        async with run_bare_handlers() as port:
            await self.measure_single_evaluations(port)
            await self.measure_artifacts(port)
        await self.measure_batches()
        await self.measure_api_memory()
        await self.measure_statistics()

    async def measure_single_evaluations(self, port: int) -> None:
        """Measure single evaluations."""
        bodies = [msgspec.json.encode(evaluation) for evaluation in build_evaluations(256)]
        mine, theirs = await self._compare_handlers(
            port, "evaluations", "/evaluations", bodies, SINGLE_EVALUATIONS, SINGLE_CONNECTIONS
        )
        self._add_row(
            f"evaluations one at a time, {SINGLE_CONNECTIONS} connections",
            mine.rate / theirs.rate,
            f"a bare Litestar POST ({mine.rate:.0f}/s to {theirs.rate:.0f}/s)",
        )

    async def measure_artifacts(self, port: int) -> None:
        """Measure artifacts of 10 KB."""
        bodies = [build_artifact(number, 10_000) for number in range(64)]
        mine, theirs = await self._compare_handlers(
            port, "artifacts/upload", "/artifacts", bodies, ARTIFACT_COUNT, ARTIFACT_CONNECTIONS
        )
        self._add_row(
            f"artifacts of 10 KB, {ARTIFACT_CONNECTIONS} connections",
            mine.rate / theirs.rate,
            f"a bare Litestar POST of the same bytes ({mine.rate:.0f}/s to {theirs.rate:.0f}/s)",
        )

    async def measure_batches(self) -> None:
        """Compare evaluations in batches with COPY of the same rows."""
        postgres, api = self._find_postgres_pid(), self._find_process_pid("api")
        if postgres is None:
            self.rows.append((f"evaluations in batches of {BATCH_ROWS}", "-", "not measured: Postgres is not ours"))
            return
        sent = build_evaluations(BATCH_ROWS)
        requests = [self._build_request("POST", "evaluations/batch", msgspec.json.encode(sent))]
        columns, rows = convert_to_rows(self._tenant_id, self._user_id, sent)
        url = self.system.settings.database_owner_url
        await self._owner.execute("CREATE TABLE bench_copy (LIKE evaluations INCLUDING ALL)")
        copying = functools.partial(self._run_in_client, copy_rows, url.reveal(), "bench_copy", columns, rows)
        firing = functools.partial(self._run_in_client, send_load, self.system.port, requests)
        await copying(2)
        await firing(4, BATCH_CONNECTIONS, 201)
        mine, theirs, clocks = list[float](), list[float](), list[float]()
        for _ in range(COMPARISON_ROUNDS):
            await self._wait_until_idle()
            before = measure_cpu_seconds(postgres) + measure_cpu_seconds(api)
            fired = await firing(BATCH_COUNT // COMPARISON_ROUNDS, BATCH_CONNECTIONS, 201)
            mine.append(
                BATCH_COUNT
                // COMPARISON_ROUNDS
                * BATCH_ROWS
                / (measure_cpu_seconds(postgres) + measure_cpu_seconds(api) - before)
            )
            await self._wait_until_idle()
            before = measure_cpu_seconds(postgres)
            seconds, busy = await copying(BATCH_COUNT // COMPARISON_ROUNDS)
            theirs.append(
                BATCH_COUNT // COMPARISON_ROUNDS * BATCH_ROWS / (measure_cpu_seconds(postgres) - before + busy)
            )
            clocks.append(seconds / fired.seconds)
        await self._owner.execute("DROP TABLE bench_copy")
        spent, other = statistics.median(mine), statistics.median(theirs)
        self._add_row(
            f"evaluations in batches of {BATCH_ROWS}, per core spent",
            spent / other,
            f"COPY of the same rows ({spent:.0f} to {other:.0f} rows per second of processor time)",
        )
        self._add_row(
            f"the same by the clock, {BATCH_CONNECTIONS} connections", statistics.median(clocks), "one COPY at a time"
        )

    async def measure_api_memory(self) -> None:
        """Measure the API's memory while large artifacts arrive."""
        pid = self._find_process_pid("api")
        before = measure_memory_mib(pid)
        for count, size in LARGE_ARTIFACTS:
            requests = [self._build_request("POST", "artifacts/upload", build_artifact(0, size))]
            peaks, stop = [measure_memory_mib(pid)], asyncio.Event()
            watching = asyncio.create_task(_sample_memory(pid, peaks, stop))
            try:
                fired = await self._run_in_client(send_load, self.system.port, requests, count, LARGE_CONNECTIONS, 201)
            finally:
                stop.set()
                await watching
            megabytes = size // 1_000_000
            self._add_row(
                f"memory of the API, {count} artifacts of {megabytes} MB, at most",
                max(peaks) / before,
                f"before ({before:.0f} MiB to {max(peaks):.0f} MiB, {count * megabytes / fired.seconds:.0f} MB/s)",
            )

    async def measure_statistics(self) -> None:
        """Measure statistics and lists over many rows of a new tenant."""
        self._tenant_id, self._key = await register_tenant(self.system.url)
        await self._owner.execute("SELECT set_config('paddock.tenant_id', $1, false)", self._tenant_id)
        first, last = self._sizes
        await self._insert_rows("artifacts", first)
        plain = await self._time_plain_query("artifacts")
        figure = await self._time_calls("stats")
        self._add_row(f"/stats, {first:,} artifacts, p50", figure / plain, f"the plain query ({figure:.1f} ms)")
        await self._insert_rows("evaluations", first)
        plain = await self._time_plain_query("evaluations")
        small = await self._time_calls("evaluations/stats")
        self._add_row(f"/evaluations/stats, {first:,}, p50", small / plain, f"the plain query ({small:.1f} ms)")
        await self._measure_lists(small)
        await self._insert_rows("evaluations", last - first)
        plain = await self._time_plain_query("evaluations")
        large = await self._time_calls("evaluations/stats")
        self._add_row(f"/evaluations/stats, {last:,}, p50", large / plain, f"the plain query ({large:.1f} ms)")
        self._add_row(f"/evaluations/stats, {last:,}, p50", large / small, f"the same of {first:,}")
        days = await self._time_calls("evaluations/stats?days=7")
        self._add_row("/evaluations/stats?days=7, p50", days / large, f"the same of all ({days:.1f} ms)")

    async def _measure_lists(self, figure: float) -> None:
        for what, narrowed in (
            ("", ""),
            (", hallucinated", "&hallucinated=true"),
            (f", an agent of 1 in {RARE_EVERY:,}", "&agent_name=rare"),
        ):
            path = f"evaluations?limit={PAGE_SIZE}{narrowed}&page="
            first, far = await self._time_calls(path + "1"), await self._time_calls(path + "1000")
            name = f"list of {self._sizes[0]:,}{what}"
            self._add_row(f"{name}, page 1", first / figure, f"/evaluations/stats ({first:.1f} ms)")
            self._add_row(f"{name}, page 1,000", far / first, f"its page 1 ({far:.1f} ms)")

    async def _time_calls(self, path: str) -> float:
        request = [self._build_request("GET", path)]
        return float((await self._run_in_client(send_load, self.system.port, request, TIMED_CALLS, 1, 200)).p50)

    async def _compare_handlers(
        self, port: int, path: str, other: str, bodies: list[bytes], total: int, width: int
    ) -> tuple[LoadResult, LoadResult]:
        """Send the same bodies to the API and to the bare handler in turn. Returns the median round of each."""
        real = [self._build_request("POST", path, body) for body in bodies]
        plain = [self._build_request("POST", other, body, whole=True) for body in bodies]
        mine, theirs = list[LoadResult](), list[LoadResult]()
        for warm in (True, *[False] * COMPARISON_ROUNDS):
            for to, requests, seen in ((self.system.port, real, mine), (port, plain, theirs)):
                await self._wait_until_idle()
                fired = await self._run_in_client(send_load, to, requests, total // (4 if warm else 1), width, 201)
                if not warm:
                    seen.append(fired)
        return _pick_median(mine), _pick_median(theirs)

    async def _time_plain_query(self, kind: RecordKind) -> float:
        """Return the milliseconds of the same figures by one query over the rows, with a covering index."""
        facts = MEASURES_BY_KIND[kind]
        measured = [name for name in facts.measured_columns if name not in ("created_at", "semantic_buckets")]
        await self._owner.execute(f"CREATE INDEX bench_plain ON {kind} (tenant_id) INCLUDE ({', '.join(measured)})")
        await self._owner.execute(f"VACUUM ANALYZE {kind}")
        narrow = [name for name in facts.dims if name not in ("hallucinated", "deterministic", "semantic_bucket")]
        whole = ", ".join(f"sum({measure})" for measure in facts.measures.values())
        shares = "ARRAY[" + ", ".join(map(str, QUANTILE_FRACTIONS)) + "]"
        query = (
            f"SELECT count(*), {whole}, percentile_cont({shares}) "  # noqa: S608 (all names are ours)
            f"WITHIN GROUP (ORDER BY {facts.value}) "
            f"FROM {kind} WHERE tenant_id = $1"
        )
        groups = ", ".join(f"({name})" for name in narrow)
        counts = (
            f"SELECT {', '.join(narrow)}, count(*) "  # noqa: S608 (all names are ours)
            f"FROM {kind} WHERE tenant_id = $1 GROUP BY GROUPING SETS ({groups})"
        )
        took = []
        for _ in range(3):
            began = time.perf_counter()
            await self._owner.fetch(query, self._tenant_id)
            await self._owner.fetch(counts, self._tenant_id)
            took.append((time.perf_counter() - began) * 1000)
        await self._owner.execute("DROP INDEX bench_plain")
        return statistics.median(took)

    async def _insert_rows(self, kind: RecordKind, count: int) -> None:
        """Insert rows over the last 90 days with their deltas, and fold the deltas."""
        facts, part = MEASURES_BY_KIND[kind], -(-count // 10)
        columns, values = build_row_expressions(kind)
        begin = datetime.now(UTC) - timedelta(days=HISTORY_DAYS)
        query = (
            f"WITH added AS (INSERT INTO {kind} "  # noqa: S608 (all names are ours)
            f"(id, tenant_id, user_id, created_at, {columns}) "
            # UUIDv7 in rising order: milliseconds, version, a counter, variant, and the number once more.
            "SELECT (lpad(to_hex($1::bigint + n / 1000), 12, '0') || '7' || lpad(to_hex(n % 1000), 3, '0') || '8' "
            "|| lpad(to_hex(n), 15, '0'))::uuid, current_setting('paddock.tenant_id'), $2::uuid, "
            f"$3::timestamptz + n * $4::interval, {values} FROM generate_series($5::bigint, $6::bigint) AS n "
            f"RETURNING {', '.join(facts.measured_columns)}, 1 AS sign) {facts.build_delta_insert('added')}"
        )
        user = ids.decode_id("user", self._user_id)
        for start in range(0, count, part):
            end = min(start + part, count) - 1
            step = timedelta(days=HISTORY_DAYS) / count
            await self._owner.execute(query, self._made, user, begin, step, start, end, timeout=600)
        # Within the month's partition: ids are of now, or a little after.
        self._made += count // 1000 + 1
        while await self._owner.fetchval(
            "SELECT EXISTS (SELECT FROM stat_deltas WHERE tenant_id = $1 AND kind = $2)", self._tenant_id, kind
        ):
            async with self._owner.transaction():
                # Folding uses plain SQL alone.
                connection = TxConnection(cast(Any, self._owner), self._owner)
                await PostgresStats(connection).fold_deltas(kind, 100_000)
        await self._owner.execute(f"VACUUM ANALYZE {kind}")
        await self._owner.execute("VACUUM ANALYZE stat_deltas, stat_rollups")
        await self._owner.execute("CHECKPOINT")

    def _build_request(self, method: str, path: str, body: bytes = b"", whole: bool = False) -> bytes:
        head = (
            f"{method} {path if whole else API_PATH + path} HTTP/1.1\r\nHost: 127.0.0.1\r\nX-API-Key: {self._key}\r\n"
        )
        if body:
            head += f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n"
        return f"{head}\r\n".encode() + body

    async def _run_in_client(self, work: Callable[..., Any], *arguments: Any) -> Any:
        return await asyncio.get_running_loop().run_in_executor(self._pool, functools.partial(work, *arguments))

    async def _wait_until_idle(self) -> None:
        """Wait until the work that the last measurement left is done."""
        for _ in range(200):
            waiting = "SELECT EXISTS (SELECT FROM stat_deltas) OR EXISTS (SELECT FROM artifact_bodies)"
            if not await self._owner.fetchval(waiting):
                break
            await asyncio.sleep(0.1)
        await self._owner.execute("CHECKPOINT")

    def _find_postgres_pid(self) -> int | None:
        part = self.system.services[0]
        return part.child.process.pid if part is not None and part.child is not None else None

    def _find_process_pid(self, name: str) -> int:
        return next(
            process.pid for process in self.system.processes if process.name == name and process.pid is not None
        )

    def _add_row(self, what: str, ratio: float, to: str) -> None:
        ratio_text = f"{ratio:.2f}" if ratio >= 0.1 else f"{ratio:.4f}"
        self.rows.append((what, ratio_text, to))


def _pick_median(fired: Sequence[LoadResult]) -> LoadResult:
    return sorted(fired, key=lambda result: result.rate)[len(fired) // 2]


async def _sample_memory(pid: int, peaks: list[float], stop: asyncio.Event) -> None:
    while not stop.is_set():
        peaks.append(await asyncio.to_thread(measure_memory_mib, pid))
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(stop.wait(), 0.02)


async def measure_records(system: System, sizes: tuple[int, int] = FULL_SIZES) -> list[BenchRow]:
    """Return every figure: what, the ratio, and what it is a ratio of."""
    owner = await asyncpg.connect(system.settings.database_owner_url.reveal(), server_settings={"jit": "off"})
    try:
        with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
            bench = RecordsBench(system, owner, pool, sizes)
            await bench.run()
            return bench.rows
    finally:
        await owner.close()


async def main(sizes: tuple[int, int]) -> None:
    """Measure and print."""
    async with run_bench_system() as system:
        print_rows(await measure_records(system, sizes))


if __name__ == "__main__":
    asyncio.run(main(SMALL_SIZES if "--small" in sys.argv[1:] else FULL_SIZES))
