"""Dump the embedded database to one file and load it, with Postgres' own programs."""

import asyncio
import subprocess
from pathlib import Path
from urllib.parse import urlsplit

from infra.embedded.child_process import EmbeddedServiceError
from infra.embedded.postgres import find_binaries


async def dump_database(owner_url: str, file: Path) -> None:
    """Write all of a database into a new file, as it is at one moment; no other session waits.

    Errors: `EmbeddedServiceError`.
    """
    await _run_program("pg_dump", owner_url, "--format=custom", f"--file={file}")


async def load_database(owner_url: str, file: Path) -> None:
    """Fill an empty database from a dump, wholly or not at all. Errors: `EmbeddedServiceError`."""
    await _run_program("pg_restore", owner_url, "--exit-on-error", "--single-transaction", str(file))


async def _run_program(program: str, owner_url: str, *args: str) -> None:
    url = urlsplit(owner_url)
    # The password is in the environment, since arguments are visible to every user of the machine.
    environment = {"PATH": "/usr/bin:/bin", "LC_ALL": "C.UTF-8", "TZ": "UTC", "PGPASSWORD": url.password or ""}
    process = await asyncio.create_subprocess_exec(
        *(str(find_binaries() / program), f"--host={url.hostname}", f"--port={url.port}", f"--username={url.username}"),
        *(f"--dbname={url.path.removeprefix('/')}", "--no-password", *args),
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
    )
    try:
        _, stderr = await process.communicate()
    except BaseException:
        if process.returncode is None:
            process.kill()
            await process.wait()
        raise
    if process.returncode != 0:
        raise EmbeddedServiceError(
            f"{program} ended with status {process.returncode}.\n{stderr.decode(errors='replace')[-2000:]}"
        )
