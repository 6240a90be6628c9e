"""Ring the bell: published messages wake workers and waiters; builds are arq jobs too.

Runs are claimed in Postgres, where fairness can be decided, so their ring is one message without a job
(docs/adr/0008). Builds take seconds, and arq distributes them to workers: a job per row and attempt lets a worker claim
a build, not a certain row. arq keeps no state that matters: no results, no retries, no pickles. Upkeep rings lost jobs
again.
"""

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, Final, cast

import msgspec
import structlog
from arq.connections import ArqRedis
from arq.constants import in_progress_key_prefix, job_key_prefix
from arq.worker import Worker, func
from redis.asyncio import ConnectionPool, Redis

from domain.shared.jobs import Job, Lane, RowChange
from infra.redis import CHANGED_CHANNEL, REDIS_OUTAGE_ERRORS, REVOKED_CHANNEL, REVOKED_STATUSES, RING_CHANNEL, Bell

# Longer than any job may take. Upkeep finds a lost job long before arq would.
JOB_TIMEOUT_SECONDS: Final = 2 * 3600
_MAX_JOB_VARIANTS: Final = 10
# While Redis is unavailable: seconds between attempts, and how many rings are kept.
RING_RETRY_SECONDS: Final = 0.5
# Seconds after which a build worker polls without a ring.
BUILD_POLL_SECONDS: Final = 5.0
MAX_PENDING_RINGS: Final = 10_000

_log = structlog.get_logger("paddock.queue")
_decoder = msgspec.msgpack.Decoder()


def get_queue_name(lane: Lane) -> str:
    """Return the name of the sorted set of a lane's waiting jobs."""
    return f"paddock:queue:{lane}"


def create_arq_client(url: str) -> ArqRedis:
    """Return a client with arq's commands, msgpack serialization and short timeouts."""
    pool = ConnectionPool.from_url(url, socket_connect_timeout=0.5, socket_timeout=2.0, health_check_interval=30)
    return ArqRedis(pool, job_serializer=msgspec.msgpack.encode, job_deserializer=_decoder.decode)


class ArqQueue:
    """Ring lanes and wake waiters, as `domain.ports.Queue` describes."""

    def __init__(self, redis: ArqRedis) -> None:
        self._redis = redis
        self._is_down = False
        self._jobs: list[Job] = []
        self._changed: list[RowChange] = []
        self._ringing: asyncio.Task[None] | None = None

    async def ring_jobs(self, jobs: Sequence[Job], changes: Sequence[RowChange] = ()) -> None:
        """Ring for jobs and wake waiters, without waiting for it: rings gather while a message is sent.

        While Redis is unavailable, the latest rings are kept until it is back.
        """
        self._jobs = [*self._jobs, *jobs][-MAX_PENDING_RINGS:]
        self._changed = [*self._changed, *changes][-MAX_PENDING_RINGS:]
        if self._ringing is None:
            self._ringing = asyncio.create_task(self._ring_all())

    async def close(self) -> None:
        """Send the remaining rings, unless Redis is unavailable."""
        if self._ringing is not None:
            if self._is_down:
                self._ringing.cancel()
            await asyncio.wait((self._ringing,))

    async def ring_lost_jobs(self, jobs: Sequence[Job]) -> int:
        """Ring for runs and records, and for lost builds: no queue lists them and no worker has them.

        A job that was taken although its row still waits belongs to a worker that died in between. arq would block its
        id for `JOB_TIMEOUT_SECONDS`, so it is rung under another id; the row's lease keeps two workers apart in any
        case. Return the number of rung builds. Errors: those of redis.
        """
        rung = [job for job in jobs if job.lane == "build" and await self._ring_if_lost(job)]
        lanes = {job.lane for job in rung} | {job.lane for job in jobs if job.lane != "build"}
        if lanes:
            await self._publish(lanes, ())
        return len(rung)

    async def count_jobs(self, lane: Lane) -> int:
        """Return the number of jobs in the lane's queue."""
        return int(await self._redis.zcard(get_queue_name(lane)))

    async def _ring_all(self) -> None:
        try:
            while self._jobs or self._changed:
                jobs, self._jobs = self._jobs, []
                changed, self._changed = self._changed, []
                try:
                    await self._ring(jobs, changed)
                    self._is_down = False
                except REDIS_OUTAGE_ERRORS as error:
                    if not self._is_down:
                        _log.warning("redis is unavailable; rings wait until it is back", error=str(error))
                    self._is_down = True
                    self._jobs, self._changed = (
                        [*jobs, *self._jobs][-MAX_PENDING_RINGS:],
                        [*changed, *self._changed][-MAX_PENDING_RINGS:],
                    )
                    await asyncio.sleep(RING_RETRY_SECONDS)
        finally:
            self._ringing = None

    async def _ring(self, jobs: Sequence[Job], changed: Sequence[RowChange]) -> None:
        for job in jobs:
            if job.lane == "build":
                await self._enqueue(job, job.id)
        await self._publish({job.lane for job in jobs}, changed)

    async def _ring_if_lost(self, job: Job) -> bool:
        for number in range(_MAX_JOB_VARIANTS):
            job_id = job.id if number == 0 else f"{job.id}:{number}"
            async with self._redis.pipeline(transaction=False) as pipe:
                pipe.zscore(get_queue_name(job.lane), job_id)
                pipe.exists(in_progress_key_prefix + job_id)
                pipe.exists(job_key_prefix + job_id)
                score, is_running, is_stored = await pipe.execute()
            if score is not None and not is_running:
                return False
            if not is_stored and not is_running:
                return await self._enqueue(job, job_id)
        return False

    async def _enqueue(self, job: Job, job_id: str) -> bool:
        job_handle = await self._redis.enqueue_job(
            job.lane, job.row_id, job.tenant_id, _job_id=job_id, _queue_name=get_queue_name(job.lane)
        )
        return job_handle is not None

    async def _publish(self, lanes: set[Lane], changed: Sequence[RowChange]) -> None:
        messages = [(RING_CHANNEL + lane, "") for lane in lanes]
        changes_by_channel = dict[str, list[str]]()
        for change in changed:
            prefix = change.row_id.partition("_")[0]
            for channel in (
                (CHANGED_CHANNEL, REVOKED_CHANNEL) if change.status in REVOKED_STATUSES else (CHANGED_CHANNEL,)
            ):
                changes_by_channel.setdefault(channel + prefix, []).append(f"{change.row_id}:{change.status}")
        messages += [(channel, " ".join(changes)) for channel, changes in changes_by_channel.items()]
        if len(messages) == 1:
            await self._redis.publish(*messages[0])
            return
        async with self._redis.pipeline(transaction=False) as pipe:
            for channel, message in messages:
                pipe.publish(channel, message)
            await pipe.execute()


class BellWorker(Worker):
    """Run arq jobs as soon as they are rung, and survive outages of Redis."""

    bell: Bell
    lane: Lane
    # Returns whether no new jobs may be taken; the code that stops the worker also wakes the bell.
    is_stopping: Callable[[], bool]

    async def main(self) -> None:
        """Take jobs when the bell rings, a slot becomes free or `BUILD_POLL_SECONDS` pass, until `is_stopping`.

        Running jobs are awaited before it returns.
        """
        self.wake = self.bell.get_lane_event(self.lane)
        is_down = False
        while not self.is_stopping():
            self.wake.clear()
            try:
                await self._poll_iteration()
                is_down = False
            except REDIS_OUTAGE_ERRORS as error:
                if not is_down:
                    _log.warning("redis is unavailable; no new jobs until it is back", error=str(error))
                is_down = True
                await asyncio.sleep(0.5)
                continue
            if self.is_stopping():
                break
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self.wake.wait(), BUILD_POLL_SECONDS)
        if self.tasks:
            await asyncio.wait(list(self.tasks.values()))

    async def start_jobs(self, job_ids: list[bytes]) -> None:
        """Start jobs as arq does, but release the slot that arq reserved if Redis is unavailable."""
        try:
            await super().start_jobs(job_ids)
        except REDIS_OUTAGE_ERRORS:
            self.job_counter -= 1
            self.sem.release()
            raise

    def _release_sem_dec_counter_on_complete(self) -> None:
        super()._release_sem_dec_counter_on_complete()
        self.wake.set()


def create_lane_worker(
    redis: ArqRedis,
    bell: Bell,
    lane: Lane,
    slots: int,
    work: Callable[[], Awaitable[None]],
    is_stopping: Callable[[], bool] = lambda: False,
) -> BellWorker:
    """Return a worker of a lane that calls `work()` for each job, `slots` at a time, until `is_stopping`."""

    async def run(*_: Any) -> None:
        try:
            await work()
        except asyncio.CancelledError:
            # Its row is queued again with another ring, so this job ends without an error.
            if not is_stopping():
                raise

    lane_worker = BellWorker(
        functions=[func(cast(Any, run), name=lane, timeout=JOB_TIMEOUT_SECONDS, keep_result=0, max_tries=1_000)],
        queue_name=get_queue_name(lane),
        redis_pool=redis,
        max_jobs=slots,
        keep_result=0,
        job_timeout=JOB_TIMEOUT_SECONDS,
        handle_signals=False,
        health_check_interval=3600,
        log_results=False,
        retry_jobs=False,
        job_serializer=msgspec.msgpack.encode,
        job_deserializer=_decoder.decode,
    )
    lane_worker.bell, lane_worker.lane, lane_worker.is_stopping = bell, lane, is_stopping
    return lane_worker


async def ping_redis(redis: Redis) -> None:
    """Check the connection. Errors: those of redis."""
    await redis.ping()
