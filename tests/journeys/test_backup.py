"""Backed up while it works, restored elsewhere: what was accepted before is there, and what is missing is said."""

import asyncio
import json
import os
import shutil
import sys
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

from infra.embedded.child_process import find_free_ports
from scripts.system import System
from tests.conftest import FAST_SETTINGS, run_system
from tests.support.clients import TenantClient, pack_archive, register_tenant

ROOT = Path(__file__).resolve().parents[2]
ECHO = "def handle(p):\n    print('said')\n    return p\n"


async def paddock(*args: str) -> tuple[int, str]:
    ran = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "scripts.cli", *args),
        cwd=ROOT,
        env={**os.environ, **FAST_SETTINGS},
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    said, _ = await ran.communicate()
    assert ran.returncode is not None
    return ran.returncode, said.decode()


@asynccontextmanager
async def on(data: Path) -> AsyncIterator[System]:
    before = dict(os.environ)
    os.environ.update(FAST_SETTINGS)
    try:
        system = System(data, find_free_ports(1)[0], 1, lambda line: None)
        async with system.run():
            yield system
    finally:
        os.environ.clear()
        os.environ.update(before)


async def load(owner: TenantClient, agent_id: str, accepted: dict[str, list[str]], stop: asyncio.Event) -> None:
    """Records, runs and uploads, for as long as it is wanted."""
    number = 0
    while not stop.is_set():
        number += 1
        for path, body in (
            ("/evaluations", {"prompt": "a", "response": "b", "agent_name": "load"}),
            (f"/agents/{agent_id}/execute", {"payload": {"n": number}}),
        ):
            answer = await owner.http.post(path, json=body)
            assert answer.status_code in (200, 201, 202), answer.text
            accepted.setdefault("/evaluations" if "eval" in path else "/executions", []).append(answer.json()["id"])
        if number % 5 == 0:
            other = await owner.create_agent()
            made = await owner.upload_archive(other["id"], pack_archive({"agent.py": ECHO}))
            assert made.status_code == 201, made.text
            accepted.setdefault("versions", []).append(f"/agents/{other['id']}/versions/{made.json()['id']}")
            await owner.http.delete(f"/executions/{accepted['/executions'][0]}")


async def test_a_backup_under_load_restores_what_was_accepted_before_it_began() -> None:
    with tempfile.TemporaryDirectory(prefix="paddock-backup-") as name:
        folder, stop = Path(name), asyncio.Event()
        async with run_system() as system:
            refused = await paddock("restore", str(folder / "none"), "--data", str(folder / "x"))
            assert (refused[0], "is no backup" in refused[1]) == (1, True)
            async with register_tenant(system.url) as owner:
                key = await owner.create_key()
                agent_id = await owner.deploy_agent(ECHO)
                accepted: dict[str, list[str]] = {}
                loading = [asyncio.create_task(load(owner, agent_id, accepted, stop)) for _ in range(2)]
                await asyncio.sleep(4)
                before = {path: list(ids_) for path, ids_ in accepted.items()}
                status, said = await paddock("backup", str(folder / "backup"), "--data", str(system.data))
                stop.set()
                await asyncio.gather(*loading)
                assert status == 0, said
                again = await paddock("backup", str(folder / "backup"), "--data", str(system.data))
                assert (again[0], "already exists" in again[1]) == (1, True)
        assert {path.stat().st_mode & 0o77 for path in (folder / "backup", folder / "backup" / "secrets.json")} == {0}
        status, said = await paddock("restore", str(folder / "backup"), "--data", str(folder / "restored"))
        assert status == 0, said
        twice = await paddock("restore", str(folder / "backup"), "--data", str(folder / "restored"))
        assert (twice[0], "is not empty" in twice[1]) == (1, True)
        async with on(folder / "restored") as restored:
            headers = {"X-API-Key": key}
            async with httpx.AsyncClient(base_url=f"{restored.url}/api/v1", headers=headers, timeout=60) as http:
                await found(http, before)
                ran = await http.post(f"/agents/{agent_id}/execute", json={"payload": {"n": 0}})
                ended = await http.get(f"/executions/{ran.json()['id']}", headers={"Prefer": "wait=60"})
                assert (ended.json()["status"], ended.json()["result"]) == ("completed", {"n": 0})
        # Not running: its parts are started for the backup alone.
        status, said = await paddock("backup", str(folder / "cold"), "--data", str(folder / "restored"))
        assert status == 0, said
        await loses(folder)


async def found(http: httpx.AsyncClient, before: dict[str, list[str]]) -> None:
    for path in ("/evaluations", "/executions"):
        for one in before[path]:
            assert (await http.get(f"{path}/{one}")).status_code == 200, one
    for execution_id in before["/executions"]:
        ended: dict[str, Any] = {}
        for _ in range(10):
            ended = (await http.get(f"/executions/{execution_id}", headers={"Prefer": "wait=30"})).json()
            if ended["status"] in ("completed", "failed", "cancelled"):
                break
        assert ended["status"] in ("completed", "cancelled"), ended
    for path in before["versions"]:
        version: dict[str, Any] = {}
        for _ in range(10):
            version = (await http.get(path, headers={"Prefer": "wait=30"})).json()
            if version["status"] in ("ready", "failed"):
                break
        assert version["status"] == "ready", version


async def loses(folder: Path) -> None:
    """Objects that are gone from a backup, or damaged in it, are named; a restore that broke off is not started."""
    lines = (folder / "cold" / "objects.jsonl").read_text().splitlines()
    kept = {line["key"]: line for line in map(json.loads, lines)}
    gone, damaged = sorted(key for key in kept if key.startswith("uploads/"))[:2]
    (folder / "cold" / "objects.jsonl").write_text("\n".join(one for one in lines if gone not in one) + "\n")
    from scripts.backup import _get_object_path

    _get_object_path(folder / "cold", damaged).write_bytes(b"something else")
    status, said = await paddock("restore", str(folder / "cold"), "--data", str(folder / "lossy"))
    assert status == 2, said
    assert "1 objects are damaged" in said
    assert "2 objects are needed by rows" in said
    assert gone in said
    assert damaged in said
    (folder / "cold" / "database.dump").write_bytes(b"no dump")
    status, said = await paddock("restore", str(folder / "cold"), "--data", str(folder / "broken"))
    assert (status, "pg_restore ended" in said) == (1, True), said
    status, said = await paddock("up", "--data", str(folder / "broken"), "--port", str(find_free_ports(1)[0]), "--once")
    assert (status, "was not finished" in said) == (1, True), said
    shutil.rmtree(folder / "broken")


@pytest.mark.parametrize("folder", ["nothing", "."])
async def test_what_is_no_installation_is_not_backed_up(tmp_path: Path, folder: str) -> None:
    status, said = await paddock("backup", str(tmp_path / "backup"), "--data", str(tmp_path / folder))
    assert (status, "no installation" in said) == (1, True)
    assert not (tmp_path / "backup").exists()
