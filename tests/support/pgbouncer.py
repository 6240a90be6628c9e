"""Run what stands before a managed Postgres: PgBouncer, a proxy that drops a parameter, an owner who is no superuser."""

import asyncio
import secrets
import shutil
import signal
import sys
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from urllib.parse import urlsplit

import asyncpg
import pytest

from infra.embedded.child_process import (
    ChildCommand,
    create_nobody_setup,
    create_parent_bond,
    start_child,
)
from infra.embedded.ports import find_free_ports, is_listening
from infra.postgres.role import APP_ROLE
from scripts.system import System
from tests.support.case_inputs import INPUTS_FOLDER

needs_pgbouncer = pytest.mark.skipif(
    shutil.which("pgbouncer", path="/usr/sbin:/usr/bin:/usr/local/bin") is None,
    reason="pgbouncer is not installed; with it (apt-get install pgbouncer), these tests run",
)


class ManagedDatabase:
    """A database as hosting providers offer it: its owner is no superuser, and the application logs in as the owner."""

    def __init__(self, server_url: str, name: str, login: str, password: str) -> None:
        self.server_url, self.name, self.login, self.password = server_url, name, login, password
        self.superuser_url = urlsplit(server_url)._replace(path=f"/{name}").geturl()

    def build_url(self, port: int | None = None) -> str:
        port = port or urlsplit(self.server_url).port or 0
        return f"postgresql://{self.login}:{self.password}@127.0.0.1:{port}/{self.name}"


@asynccontextmanager
async def create_managed_database(system: System) -> AsyncIterator[ManagedDatabase]:
    """Create a database beside the running system's, not migrated; dropped at the end."""
    server_url = system.settings.database_owner_url.reveal()
    database = ManagedDatabase(
        server_url, f"managed_{secrets.token_hex(6)}", f"owner_{secrets.token_hex(6)}", secrets.token_hex(8)
    )
    server = await asyncpg.connect(server_url)
    try:
        await server.execute(f"CREATE ROLE {database.login} LOGIN NOSUPERUSER PASSWORD '{database.password}'")
        await server.execute(f"GRANT {APP_ROLE} TO {database.login} WITH ADMIN OPTION")
        await server.execute(f"CREATE DATABASE {database.name} OWNER {database.login}")
        yield database
    finally:
        await server.execute(f"DROP DATABASE IF EXISTS {database.name} WITH (FORCE)")
        await server.execute(f"DROP ROLE IF EXISTS {database.login}")
        await server.close()


@asynccontextmanager
async def run_pgbouncer(behind: ManagedDatabase, *, size: int = 6) -> AsyncIterator[int]:
    """Run PgBouncer in transaction mode, configured with only the login; yields its port."""
    (port,) = find_free_ports(1)
    program = shutil.which("pgbouncer", path="/usr/sbin:/usr/bin:/usr/local/bin")
    assert program is not None
    with tempfile.TemporaryDirectory(prefix="paddock-pgbouncer-") as name:
        folder = Path(name)
        (folder / "users.txt").write_text(f'"{behind.login}" "{behind.password}"\n')
        (folder / "pgbouncer.ini").write_text(
            f"[databases]\n* = host=127.0.0.1 port={urlsplit(behind.server_url).port}\n"
            f"[pgbouncer]\nlisten_addr = 127.0.0.1\nlisten_port = {port}\nauth_type = scram-sha-256\n"
            f"auth_file = {folder}/users.txt\npool_mode = transaction\ndefault_pool_size = {size}\n"
            "max_client_conn = 400\nunix_socket_dir =\n"
        )
        part = start_child(
            ChildCommand(
                name="pgbouncer",
                args=[program, str(folder / "pgbouncer.ini")],
                log=folder / "log",
                cwd=folder,
                environment={"PATH": "/usr/bin:/bin"},
                before_exec=create_nobody_setup(signal.SIGKILL),
            )
        )
        try:
            await part.wait_until(lambda: is_listening(port), 30)
            yield port
        finally:
            await part.stop()


@asynccontextmanager
async def run_role_dropping_proxy(server_url: str) -> AsyncIterator[int]:
    """Run the proxy that drops `role` from the start of a session; yields its port."""
    (port,) = find_free_ports(1)
    with tempfile.TemporaryDirectory(prefix="paddock-proxy-") as name:
        part = start_child(
            ChildCommand(
                name="proxy",
                args=[
                    sys.executable,
                    str(INPUTS_FOLDER / "drop_role_proxy.py"),
                    str(port),
                    str(urlsplit(server_url).port),
                ],
                log=Path(name) / "log",
                cwd=Path(name),
                environment={},
                before_exec=create_parent_bond(signal.SIGKILL),
            )
        )
        try:
            await part.wait_until(lambda: is_listening(port), 30)
            yield port
        finally:
            await part.stop()
            await asyncio.sleep(0)
