"""Another user of the machine at the embedded object storage's back doors: every port but that of S3."""

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


def ports(storage: EmbeddedSeaweed) -> dict[str, int]:
    return {
        f"{name}{kind}": storage._ports[2 * number + at]
        for number, name in enumerate(PORTS)
        for at, kind in enumerate(("", "_grpc"))
    }


async def calls(storage: EmbeddedSeaweed, command: str, cwd: Path) -> str:
    """What `weed shell` gets out of the master and the filer, by gRPC, with what it finds in a folder."""
    at = ports(storage)
    shell = await asyncio.create_subprocess_exec(
        *(str(find_binary()), "shell", f"-master=127.0.0.1:{at['master']}.{at['master_grpc']}"),
        f"-filer=127.0.0.1:{at['filer']}.{at['filer_grpc']}",
        cwd=cwd,
        env={"PATH": "/usr/bin:/bin", "HOME": str(cwd)},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )
    try:
        said, _ = await asyncio.wait_for(shell.communicate(f"{command}\nexit\n".encode()), 6)
        return said.decode(errors="replace")
    except TimeoutError:
        return "no answer"
    finally:
        if shell.returncode is None:
            shell.kill()
            await shell.wait()


async def deletes_all(storage: EmbeddedSeaweed, scheme: str) -> bool:
    """Whether the master deletes every object of the bucket for anybody who asks by HTTP."""
    async with httpx.AsyncClient(verify=False, timeout=5) as http:
        try:
            url = f"{scheme}://127.0.0.1:{ports(storage)['master']}/col/delete?collection=paddock"
            return (await http.get(url)).status_code < 300
        except (httpx.HTTPError, OSError):
            return False


async def test_without_a_certificate_nothing_is_read_or_deleted(system: System, tmp_path: Path) -> None:
    storage = system.services[2]
    assert storage is not None
    assert "paddock" not in await calls(storage, "fs.ls /buckets", tmp_path)
    for scheme in ("http", "https"):
        assert not await deletes_all(storage, scheme)
    # What answers anybody: S3, which asks for a signature.
    assert httpx.get(storage.endpoint_url).status_code == 403
    for name, port in ports(storage).items():
        if name in ("s3", "filer"):
            continue
        for url in (f"http://127.0.0.1:{port}/", f"https://127.0.0.1:{port}/"):
            try:
                assert httpx.get(url, verify=False, timeout=5).status_code >= 400, url
            except (httpx.HTTPError, OSError):
                continue


async def test_a_certificate_of_another_authority_opens_nothing(system: System, tmp_path: Path) -> None:
    """Also one of the same name."""
    storage = system.services[2]
    assert storage is not None
    write_certificates(tmp_path / "certificates", "paddock-seaweedfs")
    (tmp_path / "security.toml").write_text(seaweedfs._build_security("0" * 64, tmp_path / "certificates"))
    assert "paddock" not in await calls(storage, "fs.ls /buckets", tmp_path)


async def test_the_shell_works_with_the_right_certificate(system: System) -> None:
    """Or the two above would show nothing."""
    storage = system.services[2]
    assert storage is not None
    assert "paddock" in await calls(storage, "fs.ls /buckets", storage._folder)


async def test_the_files_with_keys_are_their_owners_alone(system: System) -> None:
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


async def test_the_attack_succeeds_without_the_guard(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = seaweedfs._build_security

    def keys_alone(signing_key: str, certificates: Path) -> str:
        return whole(signing_key, certificates).partition("[grpc]")[0]

    monkeypatch.setattr(seaweedfs, "_build_security", keys_alone)
    storage = EmbeddedSeaweed(tmp_path / "seaweedfs", "0" * 64, "0" * 64)
    await storage.start()
    (tmp_path / "stranger").mkdir()
    given = {"region_name": "auto", "aws_access_key_id": ACCESS_KEY, "aws_secret_access_key": "0" * 64}
    async with get_session().create_client("s3", endpoint_url=storage.endpoint_url, **given) as client:
        await client.create_bucket(Bucket="paddock")
        await client.put_object(Bucket="paddock", Key="kept", Body=b"1")
    try:
        assert "volume" in await calls(storage, "volume.list", tmp_path / "stranger")
        assert await deletes_all(storage, "http")
    finally:
        await storage.stop()
