"""Full disks and similar faults, injected at their source: each is an outage with a name, logged once a minute, and ends by itself."""

import asyncio
import errno
import secrets
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import asyncpg
import msgspec
import pytest
import structlog

from domain.shared.errors import DomainError
from infra import disks, outage_log, polling, r2
from infra.polling import retry_through_outage
from infra.postgres.db import create_engine
from infra.postgres.store import PostgresStore
from scripts.system import System
from tests.support.clients import TenantClient
from tests.support.isolated_database import NOW, open_isolated_database

BUSY_TABLES = ("executions", "workers", "agents", "agent_versions", "evaluations", "execution_events", "api_keys")


@asynccontextmanager
async def inject_failure(system: System, state: str) -> AsyncIterator[None]:
    """Make each write to the busiest tables fail as Postgres itself fails it."""
    owner = await asyncpg.connect(system.settings.database_owner_url.reveal())
    await owner.execute(
        f"CREATE FUNCTION out_of_order() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN "
        f"RAISE EXCEPTION 'could not extend file \"base/5/16384\": injected' USING ERRCODE = '{state}'; END $$; "
        "GRANT EXECUTE ON FUNCTION out_of_order TO PUBLIC"
    )
    try:
        for table in BUSY_TABLES:
            await owner.execute(
                f"CREATE TRIGGER out_of_order BEFORE INSERT OR UPDATE ON {table} FOR EACH STATEMENT "
                "EXECUTE FUNCTION out_of_order()"
            )
        yield
    finally:
        await owner.execute("DROP FUNCTION out_of_order() CASCADE")
        await owner.close()


@pytest.mark.parametrize(
    ("state", "code", "word"),
    [
        ("53100", "storage_full", "disk of the database is full"),
        ("25006", "database_read_only", "takes no writes"),
        ("53300", "database_busy", "no connection left"),
        ("53200", "database_busy", "out of memory"),
        ("57014", "database_slow", "did not answer in the time"),
    ],
)
async def test_outage_has_a_name_and_one_log_line_a_minute(
    system: System, shared_tenant: TenantClient, state: str, code: str, word: str
) -> None:
    echo = await shared_tenant.deploy_agent(
        "import time\ndef handle(p):\n    time.sleep(p.get('for', 0))\n    return p\n"
    )
    execution = await shared_tenant.start_execution(echo, {"for": 4})
    while (await shared_tenant.http.get(f"/executions/{execution['id']}")).json()["status"] != "running":
        await asyncio.sleep(0.05)
    first_line = len(system.lines)  # type: ignore[attr-defined]
    async with inject_failure(system, state):
        for _ in range(5):
            for path in ("/evaluations", f"/agents/{echo}/execute"):
                body = {"prompt": "a", "response": "b"} if path == "/evaluations" else {"payload": {}}
                answer = await shared_tenant.http.post(path, json=body)
                assert (answer.status_code, answer.json()["error"]) == (503, code), answer.text
                assert word in answer.json()["detail"]
                assert answer.headers["retry-after"]
        assert (await shared_tenant.http.get("/agents")).status_code == 200
        await asyncio.sleep(1.5)
    execution_after = await shared_tenant.wait_for_end(execution["id"])
    assert (execution_after["status"], execution_after["attempt"]) == ("completed", 1)
    assert (await shared_tenant.run_agent(echo, {"n": 1}))["status"] == "completed"
    lines = [line for line in system.lines[first_line:] if " request " not in line]  # type: ignore[attr-defined]
    assert not [line for line in lines if "Traceback" in line or "unexpected" in line], lines
    for component in ("api", "run", "upkeep"):
        outage_lines = [line for line in lines if line.split()[1] == component and f"code={code}" in line]
        # A process may have logged the same outage within the minute before this test.
        assert len(outage_lines) <= 1, outage_lines


async def test_health_reports_a_full_disk_until_there_is_space(system: System, monkeypatch) -> None:
    async with open_isolated_database(system) as database:
        store = PostgresStore(create_engine(database.url, pool_size=2, application="tests"), None, lambda: NOW)  # type: ignore[arg-type]
        await store.check_health()
        with pytest.raises(DomainError) as error:
            async with store.system_transaction() as tx:
                await tx._raw.execute("DO $$ BEGIN RAISE EXCEPTION 'x' USING ERRCODE = '53100'; END $$")  # type: ignore[attr-defined]
        assert error.value.code == "storage_full"
        # The disk was full: the health check writes, and fails because it still is.
        monkeypatch.setattr(
            "infra.postgres.store._FILL_DISK_SQL", "DO $$ BEGIN RAISE EXCEPTION 'x' USING ERRCODE = '53100'; END $$"
        )
        for _ in range(2):
            with pytest.raises(DomainError, match="disk of the database is full"):
                await store.check_health()
        monkeypatch.undo()
        await store.check_health()
        assert store._was_full is False
        await store.close()


async def test_read_only_database_is_not_ready(system: System) -> None:
    async with open_isolated_database(system) as database:
        name = await database.owner.fetchval("SELECT current_database()")
        await database.owner.execute(f"ALTER DATABASE {name} SET default_transaction_read_only = on")
        store = PostgresStore(create_engine(database.url, pool_size=1, application="tests"), None, lambda: NOW)  # type: ignore[arg-type]
        with pytest.raises(DomainError) as error:
            await store.check_health()
        assert error.value.code == "database_read_only"
        await store.close()


async def test_exhausted_connections_and_timeouts_have_names(system: System) -> None:
    limited_role = f"few_{secrets.token_hex(4)}"
    async with open_isolated_database(system) as database:
        await database.owner.execute(
            f"CREATE ROLE {limited_role} LOGIN PASSWORD '{limited_role}' CONNECTION LIMIT 1; GRANT paddock_app TO {limited_role}"
        )
        host = database.url.rpartition("@")[2]
        engine = create_engine(f"postgresql://{limited_role}:{limited_role}@{host}", pool_size=2, application="tests")
        store = PostgresStore(engine, None, lambda: NOW)  # type: ignore[arg-type]
        try:
            async with store.system_transaction():
                with pytest.raises(DomainError) as error:
                    async with store.system_transaction():
                        pass
            assert (error.value.code, "no connection left" in error.value.detail) == ("database_busy", True)
            async with store.system_transaction() as tx:
                await tx._raw.execute("SET LOCAL statement_timeout = 1")  # type: ignore[attr-defined]
                with pytest.raises(DomainError) as error:
                    async with store.system_transaction():
                        pass
            with pytest.raises(DomainError) as error:
                async with store.system_transaction() as tx:
                    await tx._raw.execute("SET LOCAL statement_timeout = 1; SELECT pg_sleep(5)")  # type: ignore[attr-defined]
            assert error.value.code == "database_slow"
            with pytest.raises(DomainError) as error:
                async with store.system_transaction() as tx:
                    await tx._raw.execute("SELECT pg_sleep(5)", timeout=0.05)  # type: ignore[attr-defined]
            assert error.value.code == "database_slow"
        finally:
            await store.close()
            engine_with_wrong_password = create_engine(
                f"postgresql://{limited_role}:wrong@{host}", pool_size=1, application="tests"
            )
            with pytest.raises(DomainError, match="refuses the login"):
                await PostgresStore(engine_with_wrong_password, None, lambda: NOW).check_health()  # type: ignore[arg-type]
            await engine_with_wrong_password.dispose()
            await database.owner.execute(f"DROP OWNED BY {limited_role}; DROP ROLE {limited_role}")


async def test_full_object_storage_has_a_name_and_health_reports_it(resources, system: System, monkeypatch) -> None:
    """Check the free space on the disk, as the embedded storage reports only that it failed."""
    blobs = r2.S3Blobs(system.settings)
    async with blobs:
        assert blobs._disk == system.data / "seaweedfs"
        for response, is_disk_full, code in (
            ({"Error": {"Code": "InternalError"}, "ResponseMetadata": {"HTTPStatusCode": 500}}, True, "storage_full"),
            (
                {"Error": {"Code": "InternalError"}, "ResponseMetadata": {"HTTPStatusCode": 500}},
                False,
                "storage_unavailable",
            ),
            (
                {"Error": {"Code": "XMinioStorageFull"}, "ResponseMetadata": {"HTTPStatusCode": 507}},
                False,
                "storage_full",
            ),
            ({"Error": {"Code": "QuotaExceeded"}, "ResponseMetadata": {"HTTPStatusCode": 403}}, False, "storage_full"),
        ):
            blobs._was_full = False
            with monkeypatch.context() as patches:

                async def refuse(response=response, **_: object) -> None:
                    raise r2.ClientError(response, "PutObject")

                patches.setattr(blobs._client, "put_object", refuse)
                patches.setattr(r2, "is_full", lambda folder, least=0, is_disk_full=is_disk_full: is_disk_full)
                with pytest.raises(DomainError) as error:
                    await blobs.write_object("uploads/x", r2._stream_once(b"x"))
                assert error.value.code == code
                if code == "storage_full":
                    with pytest.raises(DomainError) as error:
                        await blobs.check_connection()
                    assert error.value.code == "storage_full"
            await blobs.check_connection()
            assert blobs._was_full is False


def test_disk_with_space_is_not_full(tmp_path) -> None:
    assert not disks.is_full(tmp_path)
    assert disks.is_full(tmp_path, 1 << 62)
    assert not disks.is_full(tmp_path / "gone")
    assert not disks.is_full(None)
    assert disks.find_embedded_folder(tmp_path, "seaweedfs", "http://127.0.0.1:1") is None
    (tmp_path / "seaweedfs").mkdir()
    assert disks.find_embedded_folder(tmp_path, "seaweedfs", "http://127.0.0.1:1") == tmp_path / "seaweedfs"
    assert disks.find_embedded_folder(tmp_path, "seaweedfs", "https://x.r2.cloudflarestorage.com") is None


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
async def test_full_disk_of_a_worker_is_waited_out(number: int, monkeypatch) -> None:
    tries = 0

    async def fetch() -> str:
        nonlocal tries
        tries += 1
        if tries < 4:
            raise OSError(number, "no room")
        return "there"

    monkeypatch.setattr(outage_log, "_logged_at", {})
    with structlog.testing.capture_logs() as logs:
        monkeypatch.setattr(polling, "_log", structlog.get_logger())
        assert await retry_through_outage(fetch) == "there"
    assert [(line["event"], line["code"]) for line in logs] == [("work waits for an outage to end", "storage_full")]
    with pytest.raises(OSError, match="denied"):
        await retry_through_outage(_deny_access)


async def _deny_access() -> None:
    raise OSError(errno.EACCES, "denied")


async def test_health_reports_a_worker_whose_disk_is_full(
    system: System, shared_tenant: TenantClient, monkeypatch
) -> None:
    from workers import heartbeat
    from workers.heartbeat import Heartbeat
    from workers.main import describe_worker

    problems = []

    class FakeTx:
        now = NOW

        class workers:  # noqa: N801
            @staticmethod
            async def save(info) -> None:
                problems.append(info.problem)

    class FakeStore:
        @asynccontextmanager
        async def system_transaction(self):
            yield FakeTx

    class FakeResources:
        settings, store, clock = system.settings, FakeStore(), staticmethod(lambda: NOW)

    for is_disk_full in (False, True):
        monkeypatch.setattr(heartbeat, "is_full", lambda folder, is_disk_full=is_disk_full: is_disk_full)
        for lane in ("run", "upkeep"):
            info = msgspec.structs.replace(describe_worker(FakeResources, lane, 1), id=f"{lane}@here")
            await Heartbeat(FakeStore(), info, system.settings.data_dir).send()
    assert problems[:2] == [None, None]
    assert "disk of the worker run@here is full" in problems[2]
    assert problems[3] is None
