"""Started again on the folders of a system that was killed: never two servers on one, and nothing lost."""

import asyncio
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from pathlib import Path

import asyncpg
import pytest
from aiobotocore.session import get_session
from redis.asyncio import Redis

from infra.embedded.leftovers import end_leftovers, find_leftovers
from infra.embedded.postgres import find_binaries
from infra.embedded.seaweedfs import ACCESS_KEY
from tests.support.folder_holder import TEST_SECRET, create_servers

ROOT = Path(__file__).resolve().parents[2]


@asynccontextmanager
async def held(folder: Path) -> AsyncIterator[tuple[asyncio.subprocess.Process, list[str]]]:
    """The parts in a process of their own; it, and how to reach them."""
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "tests.support.folder_holder", str(folder), cwd=ROOT, stdout=subprocess.PIPE
    )
    try:
        assert process.stdout is not None
        urls = (await asyncio.wait_for(process.stdout.readline(), 90)).decode().split()
        assert len(urls) == 3
        yield process, urls
    finally:
        with suppress(ProcessLookupError):
            process.kill()
        await process.wait()


def parent(pid: int) -> int:
    with suppress(OSError):
        return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
    return 0


def called(pid: int, word: str) -> bool:
    with suppress(OSError):
        return word in Path(f"/proc/{pid}/cmdline").read_text()
    return False


def masters(data: Path) -> list[int]:
    """Processes that work on the folder and were started by none of the others."""
    all_of_them = find_leftovers(data, "postgres")
    return [pid for pid in all_of_them if parent(pid) not in all_of_them]


def generations(data: Path) -> int:
    """To how many segments of shared memory the processes on the folder are attached: one for each server."""
    found: set[str] = set()
    for pid in find_leftovers(data, "postgres"):
        with suppress(OSError):
            lines = Path(f"/proc/{pid}/maps").read_text().splitlines()
            found |= {line.split()[4] for line in lines if "/SYSV" in line}
    return len(found)


@contextmanager
def stopped(pids: list[int]) -> Iterator[None]:
    """SIGSTOP; what is still there in the end goes on."""
    for pid in pids:
        os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        for pid in pids:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGCONT)


@pytest.mark.parametrize("which", ["checkpointer", "all", "none", "orphan"])
async def test_started_at_once_on_the_folder_of_a_killed_system(tmp_path: Path, which: str) -> None:
    data = tmp_path / "postgres" / "data"
    async with held(tmp_path) as (process, urls):
        owner = await asyncpg.connect(urls[0])
        await owner.execute("CREATE TABLE kept (n integer); INSERT INTO kept SELECT generate_series(1, 1000)")
        await owner.execute("CHECKPOINT")
        await owner.execute("UPDATE kept SET n = n + 1000; INSERT INTO kept SELECT generate_series(1, 1000)")
        redis = Redis.from_url(urls[1])
        await redis.set("kept", "1")
        await redis.execute_command("WAITAOF", 1, 0, 5000)
        await redis.aclose()
        (first,) = masters(data)
        backends = [pid for pid in find_leftovers(data, "postgres") if pid != first]
        stop = {
            "checkpointer": [pid for pid in backends if called(pid, "checkpointer")],
            "orphan": [pid for pid in backends if called(pid, "checkpointer")],
            "all": [
                *find_leftovers(data, "postgres"),
                *find_leftovers(tmp_path / "valkey", "valkey-server"),
                *find_leftovers(tmp_path / "seaweedfs", "weed"),
            ],
            "none": [],
        }[which]
        assert stop or which == "none"
        with stopped(stop):
            if which == "orphan":
                os.kill(first, signal.SIGKILL)
            process.kill()
            await process.wait()
            again = create_servers(tmp_path)
            again[0].leftover_grace_seconds = 2.0
            starting = asyncio.gather(*(part.start() for part in again))
            most = 0
            while not starting.done():
                most = max(most, generations(data))
                await asyncio.sleep(0.002)
            try:
                await starting
                assert most == 1
                assert len(masters(data)) == 1
                assert first not in find_leftovers(data, "postgres")
                assert not set(stop) & set(find_leftovers(data, "postgres"))
                assert len(find_leftovers(tmp_path / "valkey", "valkey-server")) == 1
                assert len(find_leftovers(tmp_path / "seaweedfs", "weed")) == 1
                new = await asyncpg.connect(again[0].owner_url)
                assert await new.fetchval("SELECT array_agg(n ORDER BY n) FROM kept") == list(range(1, 2001))
                await new.close()
                fresh = Redis.from_url(again[1].url)
                assert await fresh.get("kept") == b"1"
                await fresh.aclose()
            finally:
                with suppress(Exception):
                    await starting
                await asyncio.gather(*(part.stop() for part in again))
        owner.terminate()


async def test_a_lock_file_that_names_a_stranger_does_not_keep_postgres_from_starting(tmp_path: Path) -> None:
    (postgres, *_) = create_servers(tmp_path)
    await postgres.start()
    await postgres.stop()
    data = tmp_path / "postgres" / "data"
    with subprocess.Popen(["/bin/sleep", "600"], cwd=data) as stranger:
        try:
            (data / "postmaster.pid").write_text(f"{stranger.pid}\n{data}\n0\n{postgres.port}\n\n127.0.0.1\n\n")
            await postgres.start()
            assert stranger.poll() is None
            await postgres.stop()
        finally:
            stranger.kill()


async def test_a_server_that_somebody_else_runs_on_the_folder_is_ended_before_ours_starts(tmp_path: Path) -> None:
    """By hand, with other words on its command line: it is known by its program and where it works."""
    (postgres, *_) = create_servers(tmp_path)
    await postgres.start()
    other, (own,) = create_servers(tmp_path)[0], masters(tmp_path / "postgres" / "data")
    assert own == postgres.child.process.pid
    await other.start()
    try:
        assert not postgres.child.is_alive()
        assert masters(tmp_path / "postgres" / "data") == [other.child.process.pid]
    finally:
        await other.stop()


async def test_what_is_no_server_of_the_folder_is_left_alone(tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    with subprocess.Popen(["/bin/sleep", "600"], cwd=tmp_path) as shell:
        try:
            assert find_leftovers(tmp_path, "postgres") == []
            assert find_leftovers(tmp_path, "sleep") == [shell.pid]
            assert find_leftovers(elsewhere, "sleep") == []
            (tmp_path / "link").symlink_to(tmp_path)
            assert find_leftovers(tmp_path / "link", "sleep") == [shell.pid]
            await end_leftovers(elsewhere, "sleep", signal.SIGTERM, grace_seconds=0.1)
            assert shell.poll() is None
            await end_leftovers(tmp_path, "sleep", signal.SIGTERM, leader=1, grace_seconds=0.1)
        finally:
            shell.kill()
    assert shell.returncode == -signal.SIGKILL


def test_postgres_is_looked_for_under_its_name() -> None:
    assert (find_binaries() / "postgres").resolve().name == "postgres"


async def test_objects_outlive_a_kill(tmp_path: Path) -> None:
    async with held(tmp_path) as (process, urls):
        given = {"region_name": "auto", "aws_access_key_id": ACCESS_KEY, "aws_secret_access_key": TEST_SECRET}
        async with get_session().create_client("s3", endpoint_url=urls[2], **given) as client:
            await client.create_bucket(Bucket="paddock")
            await client.put_object(Bucket="paddock", Key="kept", Body=b"1" * 100_000)
        with stopped(find_leftovers(tmp_path / "seaweedfs", "weed")):
            process.kill()
            await process.wait()
            again = create_servers(tmp_path)[2]
            await again.start()
    try:
        async with get_session().create_client("s3", endpoint_url=again.endpoint_url, **given) as client:
            body = (await client.get_object(Bucket="paddock", Key="kept"))["Body"]
            assert await body.read() == b"1" * 100_000
    finally:
        await again.stop()
