"""Attack the embedded object storage as another user of the machine, on every port but that of S3."""

import asyncio
import subprocess
from pathlib import Path

import httpx
import pytest
from aiobotocore.session import get_session

from infra.embedded import seaweedfs
from infra.embedded.certificates import write_certificates
from infra.embedded.seaweedfs import ACCESS_KEY, EmbeddedSeaweed, find_binary
from scripts.system import System

# Names of the ports, each followed by the one for gRPC.
PORTS = ("master", "volume", "filer", "s3")


def get_ports(storage: EmbeddedSeaweed) -> dict[str, int]:
    return {
        f"{name}{kind}": storage._ports[2 * number + at]
        for number, name in enumerate(PORTS)
        for at, kind in enumerate(("", "_grpc"))
    }


async def run_weed_shell(storage: EmbeddedSeaweed, command: str, cwd: Path) -> str:
    """Return what `weed shell` reads from the master and the filer by gRPC, with the configuration in a folder."""
    port_by_name = get_ports(storage)
    shell = await asyncio.create_subprocess_exec(
        *(str(find_binary()), "shell", f"-master=127.0.0.1:{port_by_name['master']}.{port_by_name['master_grpc']}"),
        f"-filer=127.0.0.1:{port_by_name['filer']}.{port_by_name['filer_grpc']}",
        cwd=cwd,
        env={"PATH": "/usr/bin:/bin", "HOME": str(cwd)},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )
    try:
        output, _ = await asyncio.wait_for(shell.communicate(f"{command}\nexit\n".encode()), 6)
        return output.decode(errors="replace")
    except TimeoutError:
        return "no answer"
    finally:
        if shell.returncode is None:
            shell.kill()
            await shell.wait()


async def can_delete_all(storage: EmbeddedSeaweed, scheme: str) -> bool:
    """Return whether the master deletes every object of the bucket for an anonymous HTTP request."""
    async with httpx.AsyncClient(verify=False, timeout=5) as http:
        try:
            url = f"{scheme}://127.0.0.1:{get_ports(storage)['master']}/col/delete?collection=paddock"
            return (await http.get(url)).status_code < 300
        except (httpx.HTTPError, OSError):
            return False


async def test_requests_without_a_certificate_are_refused(system: System, tmp_path: Path) -> None:
    storage = system.services[2]
    assert storage is not None
    assert "paddock" not in await run_weed_shell(storage, "fs.ls /buckets", tmp_path)
    for scheme in ("http", "https"):
        assert not await can_delete_all(storage, scheme)
    # S3 answers everyone, and requires a signature.
    assert httpx.get(storage.endpoint_url).status_code == 403
    for name, port in get_ports(storage).items():
        if name in ("s3", "filer"):
            continue
        for url in (f"http://127.0.0.1:{port}/", f"https://127.0.0.1:{port}/"):
            try:
                assert httpx.get(url, verify=False, timeout=5).status_code >= 400, url
            except (httpx.HTTPError, OSError):
                continue


async def test_certificate_of_another_authority_is_refused(system: System, tmp_path: Path) -> None:
    """Refuse it also with the same name."""
    storage = system.services[2]
    assert storage is not None
    write_certificates(tmp_path / "certificates", "paddock-seaweedfs")
    (tmp_path / "security.toml").write_text(seaweedfs._build_security("0" * 64, tmp_path / "certificates"))
    assert "paddock" not in await run_weed_shell(storage, "fs.ls /buckets", tmp_path)


async def test_shell_works_with_the_right_certificate(system: System) -> None:
    """Check the shell itself, as the two tests above would also pass with a broken one."""
    storage = system.services[2]
    assert storage is not None
    assert "paddock" in await run_weed_shell(storage, "fs.ls /buckets", storage._folder)


async def test_files_with_keys_are_readable_by_their_owner_only(system: System) -> None:
    storage = system.services[2]
    assert storage is not None
    files = [
        storage._folder / "security.toml",
        storage._folder / "s3.json",
        *(storage._folder / "certificates").iterdir(),
    ]
    assert len(files) == 5
    assert {file.stat().st_mode & 0o777 for file in files} == {0o600}
    assert (storage._folder / "certificates").stat().st_mode & 0o777 == 0o700


async def test_attack_succeeds_without_the_guard(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    build_security = seaweedfs._build_security

    def build_without_tls(signing_key: str, certificates: Path) -> str:
        return build_security(signing_key, certificates).partition("[grpc]")[0]

    monkeypatch.setattr(seaweedfs, "_build_security", build_without_tls)
    storage = EmbeddedSeaweed(tmp_path / "seaweedfs", "0" * 64, "0" * 64)
    await storage.start()
    (tmp_path / "attacker").mkdir()
    credentials = {"region_name": "auto", "aws_access_key_id": ACCESS_KEY, "aws_secret_access_key": "0" * 64}
    async with get_session().create_client("s3", endpoint_url=storage.endpoint_url, **credentials) as client:
        await client.create_bucket(Bucket="paddock")
        await client.put_object(Bucket="paddock", Key="kept", Body=b"1")
    try:
        assert "volume" in await run_weed_shell(storage, "volume.list", tmp_path / "attacker")
        assert await can_delete_all(storage, "http")
    finally:
        await storage.stop()
