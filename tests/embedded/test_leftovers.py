"""Start on the folders of a system that was killed: never two servers on one folder, and no data lost."""

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
async def run_holder(folder: Path) -> AsyncIterator[tuple[asyncio.subprocess.Process, list[str]]]:
    """Run the servers in a separate process; yields it and their addresses."""
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


def get_parent(pid: int) -> int:
    with suppress(OSError):
        return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
    return 0


def has_argument(pid: int, word: str) -> bool:
    with suppress(OSError):
        return word in Path(f"/proc/{pid}/cmdline").read_text()
    return False


def list_masters(data: Path) -> list[int]:
    """List processes that work on the folder and were started by none of the others."""
    leftovers = find_leftovers(data, "postgres")
    return [pid for pid in leftovers if get_parent(pid) not in leftovers]


def count_generations(data: Path) -> int:
    """Count the segments of shared memory that processes on the folder use: one for each server."""
    segments: set[str] = set()
    for pid in find_leftovers(data, "postgres"):
        with suppress(OSError):
            lines = Path(f"/proc/{pid}/maps").read_text().splitlines()
            segments |= {line.split()[4] for line in lines if "/SYSV" in line}
    return len(segments)


@contextmanager
def pause_processes(pids: list[int]) -> Iterator[None]:
    """Send SIGSTOP, and SIGCONT at the end to those that still exist."""
    for pid in pids:
        os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        for pid in pids:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGCONT)


@pytest.mark.parametrize("which", ["checkpointer", "all", "none", "orphan"])
async def test_start_on_the_folder_of_a_killed_system(tmp_path: Path, which: str) -> None:
    data = tmp_path / "postgres" / "data"
    async with run_holder(tmp_path) as (process, urls):
        owner = await asyncpg.connect(urls[0])
        await owner.execute("CREATE TABLE kept (n integer); INSERT INTO kept SELECT generate_series(1, 1000)")
        await owner.execute("CHECKPOINT")
        await owner.execute("UPDATE kept SET n = n + 1000; INSERT INTO kept SELECT generate_series(1, 1000)")
        redis = Redis.from_url(urls[1])
        await redis.set("kept", "1")
        await redis.execute_command("WAITAOF", 1, 0, 5000)
        await redis.aclose()
        (first,) = list_masters(data)
        backends = [pid for pid in find_leftovers(data, "postgres") if pid != first]
        paused = {
            "checkpointer": [pid for pid in backends if has_argument(pid, "checkpointer")],
            "orphan": [pid for pid in backends if has_argument(pid, "checkpointer")],
            "all": [
                *find_leftovers(data, "postgres"),
                *find_leftovers(tmp_path / "valkey", "valkey-server"),
                *find_leftovers(tmp_path / "seaweedfs", "weed"),
            ],
            "none": [],
        }[which]
        assert paused or which == "none"
        with pause_processes(paused):
            if which == "orphan":
                os.kill(first, signal.SIGKILL)
            process.kill()
            await process.wait()
            servers = create_servers(tmp_path)
            servers[0].leftover_grace_seconds = 2.0
            starting = asyncio.gather(*(part.start() for part in servers))
            max_generations = 0
            while not starting.done():
                max_generations = max(max_generations, count_generations(data))
                await asyncio.sleep(0.002)
            try:
                await starting
                assert max_generations == 1
                assert len(list_masters(data)) == 1
                assert first not in find_leftovers(data, "postgres")
                assert not set(paused) & set(find_leftovers(data, "postgres"))
                assert len(find_leftovers(tmp_path / "valkey", "valkey-server")) == 1
                assert len(find_leftovers(tmp_path / "seaweedfs", "weed")) == 1
                connection = await asyncpg.connect(servers[0].owner_url)
                assert await connection.fetchval("SELECT array_agg(n ORDER BY n) FROM kept") == list(range(1, 2001))
                await connection.close()
                new_redis = Redis.from_url(servers[1].url)
                assert await new_redis.get("kept") == b"1"
                await new_redis.aclose()
            finally:
                with suppress(Exception):
                    await starting
                await asyncio.gather(*(part.stop() for part in servers))
        owner.terminate()


async def test_lock_file_with_an_unrelated_pid_does_not_block_postgres(tmp_path: Path) -> None:
    (postgres, *_) = create_servers(tmp_path)
    await postgres.start()
    await postgres.stop()
    data = tmp_path / "postgres" / "data"
    with subprocess.Popen(["/bin/sleep", "600"], cwd=data) as unrelated:
        try:
            (data / "postmaster.pid").write_text(f"{unrelated.pid}\n{data}\n0\n{postgres.port}\n\n127.0.0.1\n\n")
            await postgres.start()
            assert unrelated.poll() is None
            await postgres.stop()
        finally:
            unrelated.kill()


async def test_running_server_on_the_folder_is_ended_before_the_start(tmp_path: Path) -> None:
    """Recognize it by its program and its folder, with any command line."""
    (postgres, *_) = create_servers(tmp_path)
    await postgres.start()
    second_server, (first_pid,) = create_servers(tmp_path)[0], list_masters(tmp_path / "postgres" / "data")
    assert first_pid == postgres.child.process.pid
    await second_server.start()
    try:
        assert not postgres.child.is_alive()
        assert list_masters(tmp_path / "postgres" / "data") == [second_server.child.process.pid]
    finally:
        await second_server.stop()


async def test_unrelated_processes_are_left_alone(tmp_path: Path) -> None:
    other_folder = tmp_path / "elsewhere"
    other_folder.mkdir()
    with subprocess.Popen(["/bin/sleep", "600"], cwd=tmp_path) as shell:
        try:
            assert find_leftovers(tmp_path, "postgres") == []
            assert find_leftovers(tmp_path, "sleep") == [shell.pid]
            assert find_leftovers(other_folder, "sleep") == []
            (tmp_path / "link").symlink_to(tmp_path)
            assert find_leftovers(tmp_path / "link", "sleep") == [shell.pid]
            await end_leftovers(other_folder, "sleep", signal.SIGTERM, grace_seconds=0.1)
            assert shell.poll() is None
            await end_leftovers(tmp_path, "sleep", signal.SIGTERM, leader=1, grace_seconds=0.1)
        finally:
            shell.kill()
    assert shell.returncode == -signal.SIGKILL


def test_postgres_is_found_under_its_name() -> None:
    assert (find_binaries() / "postgres").resolve().name == "postgres"


async def test_objects_survive_a_kill(tmp_path: Path) -> None:
    async with run_holder(tmp_path) as (process, urls):
        credentials = {"region_name": "auto", "aws_access_key_id": ACCESS_KEY, "aws_secret_access_key": TEST_SECRET}
        async with get_session().create_client("s3", endpoint_url=urls[2], **credentials) as client:
            await client.create_bucket(Bucket="paddock")
            await client.put_object(Bucket="paddock", Key="kept", Body=b"1" * 100_000)
        with pause_processes(find_leftovers(tmp_path / "seaweedfs", "weed")):
            process.kill()
            await process.wait()
            storage = create_servers(tmp_path)[2]
            await storage.start()
    try:
        async with get_session().create_client("s3", endpoint_url=storage.endpoint_url, **credentials) as client:
            body = (await client.get_object(Bucket="paddock", Key="kept"))["Body"]
            assert await body.read() == b"1" * 100_000
    finally:
        await storage.stop()
