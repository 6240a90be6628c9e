"""The embedded database as one file and back, by Postgres' own programs."""

import asyncio
import subprocess
from pathlib import Path
from urllib.parse import urlsplit

from infra.embedded.children import EmbeddedServiceError
from infra.embedded.postgres import find_binaries


async def dump_database(owner_url: str, file: Path) -> None:
    """Write all of a database into a new file, as it is at one moment; nobody waits for it. Errors: `PartFailed`."""
    await _run_program("pg_dump", owner_url, "--format=custom", f"--file={file}")


async def load_database(owner_url: str, file: Path) -> None:
    """Fill an empty database from such a file, wholly or not at all. Errors: `PartFailed`."""
    await _run_program("pg_restore", owner_url, "--exit-on-error", "--single-transaction", str(file))


async def _run_program(program: str, owner_url: str, *args: str) -> None:
    at = urlsplit(owner_url)
    # The password is in the environment, since arguments are visible to every user of the machine.
    environment = {"PATH": "/usr/bin:/bin", "LC_ALL": "C.UTF-8", "TZ": "UTC", "PGPASSWORD": at.password or ""}
    started = await asyncio.create_subprocess_exec(
        *(str(find_binaries() / program), f"--host={at.hostname}", f"--port={at.port}", f"--username={at.username}"),
        *(f"--dbname={at.path.removeprefix('/')}", "--no-password", *args),
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
    )
    try:
        _, said = await started.communicate()
    except BaseException:
        if started.returncode is None:
            started.kill()
            await started.wait()
        raise
    if started.returncode != 0:
        raise EmbeddedServiceError(
            f"{program} ended with status {started.returncode}.\n{said.decode(errors='replace')[-2000:]}"
        )
