"""What records cost: taking them in, counting them and listing them, as ratios measured in one run.

`python -m scripts.recordbench` starts a system of its own and prints one table; `--small` has a tenth of the rows.
Nothing is asserted. Clients run in a process of their own and send bytes that were made before the clock started, the
same way on both sides of a ratio.
"""

import asyncio
import contextlib
import functools
import multiprocessing
import os
import random
import secrets
import statistics
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, cast

import asyncpg
import msgspec
import uvicorn
import uvloop
from litestar import Litestar, Request, post

from domain import evaluations, ids
from domain.evaluations import Evaluation, NewEvaluation
from domain.stats import QUANTILES, Kind
from infra.embedded.children import free_ports
from infra.postgres.db import Raw
from infra.postgres.facts import FACTS
from infra.postgres.stats import PostgresStats
from scripts.resources import held, processor
from scripts.soak import Client
from scripts.up import System

Row = tuple[str, str, str]

FULL, SMALL = (1_000_000, 10_000_000), (100_000, 1_000_000)
# Both sides of a ratio in turn, so that what else the machine does falls on both.
ROUNDS = 3
SINGLES, WIDTH = 6000, 32
BATCHES, BATCH, BATCH_WIDTH = 60, 1000, 4
ARTIFACTS, ARTIFACT_WIDTH = 2000, 16
LARGE, LARGE_WIDTH = ((20, 10_000_000), (6, 32_000_000)), 4
CALLS = 25
DAYS = 90
LIMIT = 50
MODELS, AGENTS, MODES = 4, 5, 2
# One row in so many.
HALLUCINATED, RARE = 10, 10_000
PATIENCE = 120
API = "/api/v1/"


class Fired(msgspec.Struct):
    """What a client saw: how long all took, and milliseconds of each answer."""

    seconds: float
    took: list[float]

    @property
    def rate(self) -> float:
        """Answers per second."""
        return len(self.took) / self.seconds

    @property
    def p50(self) -> float:
        """Milliseconds of half the answers, at most."""
        return statistics.median(self.took)


class _Sender(asyncio.Protocol):
    """One connection that is kept: sends the next request when the last one is answered. Reads no more than it must."""

    def __init__(self, fire: "_Fire") -> None:
        self._fire = fire
        self._seen, self._left = bytearray(), 0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # uvloop's are of no class that asyncio knows.
        self._transport = cast(asyncio.Transport, transport)
        self._next()

    def data_received(self, data: bytes) -> None:
        if self._left == 0:
            self._seen += data
            end = self._seen.find(b"\r\n\r\n")
            if end < 0:
                return
            head = bytes(self._seen[:end]).lower()
            if not head.startswith(self._fire.status):
                self._fire.failed(bytes(self._seen))
                return
            self._left = int(head.partition(b"content-length:")[2].partition(b"\r")[0]) - (len(self._seen) - end - 4)
            self._seen.clear()
        else:
            self._left -= len(data)
        if self._left == 0:
            self._fire.took.append((time.perf_counter() - self._began) * 1000)
            self._next()

    def connection_lost(self, exc: Exception | None) -> None:
        self._fire.ended(self)

    def _next(self) -> None:
        request = next(self._fire.requests, None)
        if request is None:
            self._transport.close()
            return
        self._began = time.perf_counter()
        self._transport.write(request)


class _Fire:
    """The requests of all connections, and what came of them."""

    def __init__(self, requests: list[bytes], total: int, status: int) -> None:
        self.requests = iter([requests[number % len(requests)] for number in range(total)])
        self.status = f"http/1.1 {status}".encode()
        self.took: list[float] = []
        self._total = total
        self._done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._open: set[_Sender] = set()

    async def run(self, port: int, width: int) -> Fired:
        began = time.perf_counter()
        for _ in range(width):
            sender = _Sender(self)
            self._open.add(sender)
            await asyncio.get_running_loop().create_connection(lambda sender=sender: sender, "127.0.0.1", port)  # type: ignore[misc]
        await self._done
        return Fired(time.perf_counter() - began, self.took)

    def failed(self, answer: bytes) -> None:
        if not self._done.done():
            self._done.set_exception(RuntimeError(answer[:2000].decode(errors="replace")))

    def ended(self, sender: _Sender) -> None:
        self._open.discard(sender)
        if not self._done.done() and (len(self.took) == self._total or not self._open):
            whole = len(self.took) == self._total
            self._done.set_result(None) if whole else self.failed(b"connections were closed without an answer")


def fire(port: int, requests: list[bytes], total: int, width: int, status: int) -> Fired:
    """Send `total` of `requests`, over and over, `width` at a time. Errors: `RuntimeError` for another status."""

    async def run() -> Fired:
        firing = _Fire(requests, total, status)
        asyncio.get_running_loop().set_exception_handler(lambda _, told: firing.failed(str(told).encode()))
        async with asyncio.timeout(PATIENCE):
            return await firing.run(port, width)

    return uvloop.run(run())


def copy(url: str, table: str, columns: list[str], rows: list[tuple[Any, ...]], times: int) -> tuple[float, float]:
    """COPY `rows`, so many times, each with new ids and a commit. Returns seconds, and processor time of the client."""

    async def run() -> tuple[float, float]:
        connection = await asyncpg.connect(url)
        seconds = processors = 0.0
        try:
            for _ in range(times):
                fresh = ids.many("eval", len(rows))
                sent = [(ids.decode("eval", one), *row) for one, row in zip(fresh, rows, strict=True)]
                began, busy = time.perf_counter(), time.process_time()
                await connection.copy_records_to_table(table, records=sent, columns=["id", *columns])
                seconds, processors = (
                    seconds + time.perf_counter() - began,
                    processors + time.process_time() - busy,
                )
        finally:
            await connection.close()
        return seconds, processors

    return uvloop.run(run())


def bare(port: int) -> None:
    """Litestar handlers that read what the real ones read, and store nothing; in a process of their own."""

    @post("/evaluations", sync_to_thread=False)
    def evaluation(data: NewEvaluation) -> NewEvaluation:
        return data

    @post("/artifacts", request_max_body_size=32 * 1024 * 1024)
    async def artifact(request: Request[Any, Any, Any]) -> dict[str, int]:
        return {"size_bytes": len(await request.body())}

    app = Litestar([evaluation, artifact], openapi_config=None, logging_config=None)
    uvicorn.run(app, port=port, log_config=None, access_log=False, server_header=False)


@contextlib.asynccontextmanager
async def _bare() -> AsyncIterator[int]:
    port = free_ports(1)[0]
    code = f"from scripts.recordbench import bare; bare({port})"
    process = await asyncio.create_subprocess_exec(sys.executable, "-c", code)
    try:
        for _ in range(200):
            with contextlib.suppress(OSError):
                _, writer = await asyncio.open_connection("127.0.0.1", port)
                writer.close()
                break
            await asyncio.sleep(0.05)
        yield port
    finally:
        process.terminate()
        await process.wait()


class Bench:
    """A running system, and a client process beside it. Figures gather in `rows`."""

    def __init__(self, system: System, owner: Raw, pool: ProcessPoolExecutor, sizes: tuple[int, int]) -> None:
        self.system, self.rows, self._owner, self._pool, self._sizes = system, list[Row](), owner, pool, sizes
        self._tenant_id = self._user_id = self._key = ""
        # Milliseconds in the ids of rows that are made in SQL.
        self._made = int(time.time() * 1000)

    async def run(self) -> None:
        """Everything, in an order in which nothing is measured over rows it does not speak of."""
        async with Client(self.system.url, {"X-API-Key": self.system.admin_key}) as client:
            one = await client.call("POST", "evaluations", _evaluations(1)[0])
        self._tenant_id, self._user_id, self._key = one["tenant_id"], one["user_id"], self.system.admin_key
        async with _bare() as port:
            await self.singles(port)
            await self.artifacts(port)
        await self.batches()
        await self.memory()
        await self.figures()

    async def singles(self, port: int) -> None:
        """Evaluations one at a time."""
        bodies = [msgspec.json.encode(one) for one in _evaluations(256)]
        mine, theirs = await self._against(port, "evaluations", "/evaluations", bodies, SINGLES, WIDTH)
        self._row(
            f"evaluations one at a time, {WIDTH} connections",
            mine.rate / theirs.rate,
            f"a bare Litestar POST ({mine.rate:.0f}/s to {theirs.rate:.0f}/s)",
        )

    async def artifacts(self, port: int) -> None:
        """Artifacts of 10 KB."""
        bodies = [_artifact(number, 10_000) for number in range(64)]
        mine, theirs = await self._against(port, "artifacts/upload", "/artifacts", bodies, ARTIFACTS, ARTIFACT_WIDTH)
        self._row(
            f"artifacts of 10 KB, {ARTIFACT_WIDTH} connections",
            mine.rate / theirs.rate,
            f"a bare Litestar POST of the same bytes ({mine.rate:.0f}/s to {theirs.rate:.0f}/s)",
        )

    async def batches(self) -> None:
        """Evaluations in batches, against COPY of the same rows."""
        postgres, api = self._postgres(), self._process("api")
        if postgres is None:
            self.rows.append((f"evaluations in batches of {BATCH}", "-", "not measured: Postgres is not ours"))
            return
        sent = _evaluations(BATCH)
        requests = [self._request("POST", "evaluations/batch", msgspec.json.encode(sent))]
        columns, rows = _as_rows(self._tenant_id, self._user_id, sent)
        url = self.system.settings.database_owner_url
        await self._owner.execute("CREATE TABLE bench_copy (LIKE evaluations INCLUDING ALL)")
        copying = functools.partial(self._apart, copy, url.reveal(), "bench_copy", columns, rows)
        firing = functools.partial(self._apart, fire, self.system.port, requests)
        await copying(2)
        await firing(4, BATCH_WIDTH, 201)
        mine, theirs, clocks = list[float](), list[float](), list[float]()
        for _ in range(ROUNDS):
            await self._rest()
            before = processor(postgres) + processor(api)
            fired = await firing(BATCHES // ROUNDS, BATCH_WIDTH, 201)
            mine.append(BATCHES // ROUNDS * BATCH / (processor(postgres) + processor(api) - before))
            await self._rest()
            before = processor(postgres)
            seconds, busy = await copying(BATCHES // ROUNDS)
            theirs.append(BATCHES // ROUNDS * BATCH / (processor(postgres) - before + busy))
            clocks.append(seconds / fired.seconds)
        await self._owner.execute("DROP TABLE bench_copy")
        spent, other = statistics.median(mine), statistics.median(theirs)
        self._row(
            f"evaluations in batches of {BATCH}, per core spent",
            spent / other,
            f"COPY of the same rows ({spent:.0f} to {other:.0f} rows per second of processor time)",
        )
        self._row(f"the same by the clock, {BATCH_WIDTH} connections", statistics.median(clocks), "one COPY at a time")

    async def memory(self) -> None:
        """What the API holds while large artifacts go in."""
        pid = self._process("api")
        before = held(pid)
        for count, size in LARGE:
            requests = [self._request("POST", "artifacts/upload", _artifact(0, size))]
            peaks, stop = [held(pid)], asyncio.Event()
            watching = asyncio.create_task(_watch(pid, peaks, stop))
            try:
                fired = await self._apart(fire, self.system.port, requests, count, LARGE_WIDTH, 201)
            finally:
                stop.set()
                await watching
            megabytes = size // 1_000_000
            self._row(
                f"memory of the API, {count} artifacts of {megabytes} MB, at most",
                max(peaks) / before,
                f"before ({before:.0f} MiB to {max(peaks):.0f} MiB, {count * megabytes / fired.seconds:.0f} MB/s)",
            )

    async def figures(self) -> None:
        """Statistics and lists over many rows, of a tenant that has nothing else."""
        name = secrets.token_hex(6)
        account = {"email": f"{name}@example.com", "password": secrets.token_hex(8), "tenant_id": f"bench-{name}"}
        async with Client(self.system.url, {}) as nobody:
            token = (await nobody.call("POST", "auth/register", account))["access_token"]
        async with Client(self.system.url, {"Authorization": f"Bearer {token}"}) as admin:
            self._tenant_id = (await admin.call("GET", "auth/me"))["tenant_id"]
            self._key = (await admin.call("POST", "api-keys", {"name": "bench"}))["key"]
        await self._owner.execute("SELECT set_config('paddock.tenant_id', $1, false)", self._tenant_id)
        first, last = self._sizes
        await self._load("artifacts", first)
        plain = await self._plain("artifacts")
        figure = await self._calls("stats")
        self._row(f"/stats, {first:,} artifacts, p50", figure / plain, f"the plain query ({figure:.1f} ms)")
        await self._load("evaluations", first)
        plain = await self._plain("evaluations")
        small = await self._calls("evaluations/stats")
        self._row(f"/evaluations/stats, {first:,}, p50", small / plain, f"the plain query ({small:.1f} ms)")
        await self._lists(small)
        await self._load("evaluations", last - first)
        plain = await self._plain("evaluations")
        large = await self._calls("evaluations/stats")
        self._row(f"/evaluations/stats, {last:,}, p50", large / plain, f"the plain query ({large:.1f} ms)")
        self._row(f"/evaluations/stats, {last:,}, p50", large / small, f"the same of {first:,}")
        days = await self._calls("evaluations/stats?days=7")
        self._row("/evaluations/stats?days=7, p50", days / large, f"the same of all ({days:.1f} ms)")

    async def _lists(self, figure: float) -> None:
        for what, narrowed in (
            ("", ""),
            (", hallucinated", "&hallucinated=true"),
            (f", an agent of 1 in {RARE:,}", "&agent_name=rare"),
        ):
            path = f"evaluations?limit={LIMIT}{narrowed}&page="
            first, far = await self._calls(path + "1"), await self._calls(path + "1000")
            name = f"list of {self._sizes[0]:,}{what}"
            self._row(f"{name}, page 1", first / figure, f"/evaluations/stats ({first:.1f} ms)")
            self._row(f"{name}, page 1,000", far / first, f"its page 1 ({far:.1f} ms)")

    async def _calls(self, path: str) -> float:
        request = [self._request("GET", path)]
        return float((await self._apart(fire, self.system.port, request, CALLS, 1, 200)).p50)

    async def _against(
        self, port: int, path: str, other: str, bodies: list[bytes], total: int, width: int
    ) -> tuple[Fired, Fired]:
        """The same bodies to the API and to the bare handler in turn; of each the round in the middle."""
        real = [self._request("POST", path, body) for body in bodies]
        plain = [self._request("POST", other, body, whole=True) for body in bodies]
        mine, theirs = list[Fired](), list[Fired]()
        for warm in (True, *[False] * ROUNDS):
            for to, requests, seen in ((self.system.port, real, mine), (port, plain, theirs)):
                await self._rest()
                fired = await self._apart(fire, to, requests, total // (4 if warm else 1), width, 201)
                if not warm:
                    seen.append(fired)
        return _middle(mine), _middle(theirs)

    async def _plain(self, kind: Kind) -> float:
        """Milliseconds of the same figures by one query over the rows, which an index holds as far as it needs them."""
        facts = FACTS[kind]
        measured = [name for name in facts.columns if name not in ("created_at", "semantic_buckets")]
        await self._owner.execute(f"CREATE INDEX bench_plain ON {kind} (tenant_id) INCLUDE ({', '.join(measured)})")
        await self._owner.execute(f"VACUUM ANALYZE {kind}")
        narrow = [name for name in facts.dims if name not in ("hallucinated", "deterministic", "semantic_bucket")]
        whole = ", ".join(f"sum({measure})" for measure in facts.measures.values())
        shares = "ARRAY[" + ", ".join(map(str, QUANTILES)) + "]"
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

    async def _load(self, kind: Kind, count: int) -> None:
        """So many rows over the last 90 days with the deltas they make, and these folded."""
        facts, part = FACTS[kind], -(-count // 10)
        columns, values = _made_rows(kind)
        begin = datetime.now(UTC) - timedelta(days=DAYS)
        query = (
            f"WITH added AS (INSERT INTO {kind} "  # noqa: S608 (all names are ours)
            f"(id, tenant_id, user_id, created_at, {columns}) "
            # UUIDv7 in rising order: milliseconds, version, a counter, variant, and the number once more.
            "SELECT (lpad(to_hex($1::bigint + n / 1000), 12, '0') || '7' || lpad(to_hex(n % 1000), 3, '0') || '8' "
            "|| lpad(to_hex(n), 15, '0'))::uuid, current_setting('paddock.tenant_id'), $2::uuid, "
            f"$3::timestamptz + n * $4::interval, {values} FROM generate_series($5::bigint, $6::bigint) AS n "
            f"RETURNING {', '.join(facts.columns)}, 1 AS sign) {facts.delta('added')}"
        )
        user = ids.decode("user", self._user_id)
        for start in range(0, count, part):
            end = min(start + part, count) - 1
            step = timedelta(days=DAYS) / count
            await self._owner.execute(query, self._made, user, begin, step, start, end, timeout=600)
        # Within the month's partition: ids are of now, or a little after.
        self._made += count // 1000 + 1
        while await self._owner.fetchval(
            "SELECT EXISTS (SELECT FROM stat_deltas WHERE tenant_id = $1 AND kind = $2)", self._tenant_id, kind
        ):
            async with self._owner.transaction():
                await PostgresStats(self._owner).fold(kind, 100_000)
        await self._owner.execute(f"VACUUM ANALYZE {kind}")
        await self._owner.execute("VACUUM ANALYZE stat_deltas, stat_rollups")
        await self._owner.execute("CHECKPOINT")

    def _request(self, method: str, path: str, body: bytes = b"", whole: bool = False) -> bytes:
        head = f"{method} {path if whole else API + path} HTTP/1.1\r\nHost: 127.0.0.1\r\nX-API-Key: {self._key}\r\n"
        if body:
            head += f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n"
        return f"{head}\r\n".encode() + body

    async def _apart(self, work: Callable[..., Any], *given: Any) -> Any:
        return await asyncio.get_running_loop().run_in_executor(self._pool, functools.partial(work, *given))

    async def _rest(self) -> None:
        """Until what the last measurement left to be done is done."""
        for _ in range(200):
            waiting = "SELECT EXISTS (SELECT FROM stat_deltas) OR EXISTS (SELECT FROM artifact_bodies)"
            if not await self._owner.fetchval(waiting):
                break
            await asyncio.sleep(0.1)
        await self._owner.execute("CHECKPOINT")

    def _postgres(self) -> int | None:
        part = self.system.parts[0]
        return part.part.process.pid if part is not None and part.part is not None else None

    def _process(self, name: str) -> int:
        return next(one.pid for one in self.system.processes if one.name == name and one.pid is not None)

    def _row(self, what: str, ratio: float, to: str) -> None:
        shown = f"{ratio:.2f}" if ratio >= 0.1 else f"{ratio:.4f}"
        self.rows.append((what, shown, to))


def _middle(fired: Sequence[Fired]) -> Fired:
    return sorted(fired, key=lambda one: one.rate)[len(fired) // 2]


async def _watch(pid: int, peaks: list[float], stop: asyncio.Event) -> None:
    while not stop.is_set():
        peaks.append(await asyncio.to_thread(held, pid))
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(stop.wait(), 0.02)


def _evaluations(count: int) -> list[dict[str, Any]]:
    """Evaluations as clients send them who measured everything themselves: a sentence or two each way."""
    chance = random.Random(7)  # noqa: S311
    return [
        {
            "prompt": f"What is the capital of country number {number}, and since when has it been its capital?",
            "response": f"The capital of country number {number} is its largest city. " * 3,
            "semantic_drift": round(chance.random(), 4),
            "uncertainty": round(chance.random(), 4),
            "factual_support": round(chance.random(), 4),
            "hallucination_probability": round(chance.random(), 4),
            "hallucinated": number % HALLUCINATED == 0,
            "latency_sec": round(chance.lognormvariate(0, 0.7), 4),
            "throughput_qps": round(chance.uniform(1, 50), 3),
            "mode": f"mode-{number % MODES}",
            "model_name": f"model-{number % MODELS}",
            "agent_name": f"agent-{number % AGENTS}",
            "session_id": f"session-{number}",
            "metadata": {"number": number},
        }
        for number in range(count)
    ]


def _as_rows(tenant_id: str, user_id: str, sent: list[dict[str, Any]]) -> tuple[list[str], list[tuple[Any, ...]]]:
    """The columns that the API writes but for the id, and the rows, as COPY takes them."""
    news = msgspec.convert(sent, list[NewEvaluation])
    made = evaluations.evaluated(tenant_id, user_id, news, datetime.now(UTC), batch=True)
    names = [name for name in Evaluation.__struct_fields__ if name not in ("id", "computed")]
    user = ids.decode("user", user_id)
    as_sent: dict[str, Callable[[Evaluation], Any]] = {
        "user_id": lambda one: user,
        "metadata": lambda one: msgspec.json.encode(one.metadata).decode(),
    }
    rows = [tuple(as_sent[name](one) if name in as_sent else getattr(one, name) for name in names) for one in made]
    return names, rows


def _artifact(number: int, size: int) -> bytes:
    """An artifact of about `size` bytes whose text compresses as prose does, to a third or so."""
    chance = random.Random(number)  # noqa: S311
    words = ["".join(chance.choices("etaoinshrdlu", k=chance.randint(2, 9))) for _ in range(2000)]
    # The text of one large artifact is made of the same few pages over again, in another order each time.
    page = " ".join(chance.choices(words, k=min(size // 6, 20_000)))
    text = page
    while len(text) < size - 700:
        cut = chance.randrange(len(page))
        text += page[cut:] + page[:cut]
    whole = {
        "inputs": {"messages": [{"role": "user", "content": "Summarise what follows."}]},
        "outputs": {"text": ""},
        "llm_config": {"model_name": f"model-{number % MODELS}", "provider": "openai", "parameters": {"seed": 7}},
        "token_usage": {"prompt_tokens": 800, "completion_tokens": 120, "total_tokens": 920},
        "duration_ms": 800 + number,
        "cost_usd": 0.0021,
    }
    whole["outputs"] = {"text": text[: size - len(msgspec.json.encode(whole))]}
    return msgspec.json.encode(whole)


def _made_rows(kind: Kind) -> tuple[str, str]:
    """The columns of rows made in SQL, and expressions of `n` for them."""
    latency = "exp(0.7 * sqrt(-2 * ln(1 - random())) * cos(6.283 * random()))"
    made: dict[str, str]
    if kind == "evaluations":
        made = {
            "prompt": "'What is the capital of country number ' || n",
            "response": "'Its largest city, by far.'",
            "semantic_drift": "random()",
            "uncertainty": "random()",
            "factual_support": "random()",
            "hallucination_probability": "random()",
            "hallucinated": f"hashint8(n) % {HALLUCINATED} = 0",
            "latency_sec": latency,
            "throughput_qps": "random() * 50",
            "mode": f"'mode-' || n % {MODES}",
            "model_name": f"'model-' || n / {MODES} % {MODELS}",
            "agent_name": f"CASE WHEN n % {RARE} = 0 THEN 'rare' ELSE 'agent-' || n / {MODES * MODELS} % {AGENTS} END",
            "metrics": "'sent'",
        }
    else:
        made = {
            **dict.fromkeys(("kurral_id", "run_id"), "'kurral-' || n"),
            "received_at": "now()",
            "schema_version": "'1.0.0'",
            "environment": "CASE WHEN n % 4 = 0 THEN 'staging' ELSE 'production' END",
            **dict.fromkeys(("semantic_buckets", "tags"), "'{}'"),
            "deterministic": "n % 3 = 0",
            "replay_level": "CASE WHEN n % 3 = 0 THEN 'A' ELSE 'B' END",
            "determinism_score": "0.5",
            "status": "'ok'",
            "model_name": f"'model-' || n % {MODELS}",
            "provider": "'openai'",
            "duration_ms": f"1000 * {latency}",
            "cost_usd": "0.002 * random()",
            "total_tokens": "n % 4000",
            **dict.fromkeys(("tool_calls", "tool_errors"), "0"),
            "size_bytes": "10000 + n % 1000",
            "failures": "''",
        }
    return ", ".join(made), ", ".join(made.values())


async def measure(system: System, sizes: tuple[int, int] = FULL) -> list[Row]:
    """Every figure: what, the ratio, and what it is a ratio of."""
    owner = await asyncpg.connect(system.settings.database_owner_url.reveal(), server_settings={"jit": "off"})
    try:
        with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
            bench = Bench(system, owner, pool, sizes)
            await bench.run()
            return bench.rows
    finally:
        await owner.close()


async def main(sizes: tuple[int, int]) -> None:
    """Measure and print."""
    with tempfile.TemporaryDirectory(prefix="paddock-bench-") as folder:
        system = System(Path(folder) / "data", free_ports(1)[0], 1, lambda _: None)
        async with system.running():
            print(f"{'figure':<58}{'ratio':>8}   to")
            for what, ratio, to in await measure(system, sizes):
                print(f"{what:<58}{ratio:>8}   {to}", flush=True)


if __name__ == "__main__":
    os.environ.setdefault("PADDOCK_LOG_LEVEL", "WARNING")
    asyncio.run(main(SMALL if "--small" in sys.argv[1:] else FULL))
