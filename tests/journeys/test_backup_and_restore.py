"""Test backup under load and restore elsewhere: accepted records are restored, and missing objects are reported."""

import asyncio
import json
import os
import shutil
import sys
import tempfile
from collections.abc import AsyncIterator, Coroutine
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

from infra.embedded.ports import find_free_ports
from scripts.backup import _get_object_path, create_backup, restore_backup
from scripts.system import System
from tests.conftest import FAST_SETTINGS, run_system
from tests.support.clients import TenantClient, pack_archive, register_tenant

ROOT = Path(__file__).resolve().parents[2]
WORKER_SOURCE = """
import os
def handle(payload, context):
    context.state["runs"] = context.state.get("runs", 0) + 1
    with open("/work/left.txt", "w") as file:
        file.write(f"left {context.state['runs']}")
    return [open(context.files["data.csv"]).read(), len(os.environ["TOKEN"]), context.state["runs"]]
"""
ECHO_SOURCE = "def handle(p):\n    print('said')\n    return p\n"


async def run_paddock(*args: str) -> tuple[int, str]:
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "scripts.cli", *args),
        cwd=ROOT,
        env={**os.environ, **FAST_SETTINGS},
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    output, _ = await process.communicate()
    assert process.returncode is not None
    return process.returncode, output.decode()


async def run_refused(command: Coroutine[Any, Any, int], capsys: pytest.CaptureFixture[str]) -> tuple[int, str]:
    """Run a command that is refused in this process: a process of its own would import everything for it."""
    capsys.readouterr()
    status = await command
    return status, capsys.readouterr().err


@asynccontextmanager
async def run_system_on(data: Path) -> AsyncIterator[System]:
    before = dict(os.environ)
    os.environ.update(FAST_SETTINGS)
    try:
        system = System(data, find_free_ports(1)[0], 1, lambda line: None)
        async with system.run():
            yield system
    finally:
        os.environ.clear()
        os.environ.update(before)


async def submit_load(owner: TenantClient, agent_id: str, accepted: dict[str, list[str]], stop: asyncio.Event) -> None:
    """Submit records, executions and uploads until the event is set."""
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
            uploaded = await owner.upload_archive(other["id"], pack_archive({"agent.py": ECHO_SOURCE}))
            assert uploaded.status_code == 201, uploaded.text
            accepted.setdefault("versions", []).append(f"/agents/{other['id']}/versions/{uploaded.json()['id']}")
            await owner.http.post(f"/executions/{accepted['/executions'][0]}/cancel")
        # Enough to happen during every part of the backup; without a pause it would be minutes of work to check.
        await asyncio.sleep(0.1)


async def test_backup_under_load_restores_all_records_accepted_before_it(capsys: pytest.CaptureFixture[str]) -> None:
    with tempfile.TemporaryDirectory(prefix="paddock-backup-") as name:
        folder, stop = Path(name), asyncio.Event()
        async with run_system() as system:
            refused = await run_refused(restore_backup(folder / "none", folder / "x"), capsys)
            assert (refused[0], "is no backup" in refused[1]) == (1, True)
            async with register_tenant(system.url) as owner:
                key = await owner.create_key()
                agent_id = await owner.deploy_agent(ECHO_SOURCE)
                work = await prepare_agent_work(owner)
                accepted: dict[str, list[str]] = {}
                loading = [asyncio.create_task(submit_load(owner, agent_id, accepted, stop)) for _ in range(2)]
                await asyncio.sleep(4)
                before = {path: list(ids_) for path, ids_ in accepted.items()}
                status, output = await run_paddock("backup", str(folder / "backup"), "--data", str(system.data))
                stop.set()
                await asyncio.gather(*loading)
                assert status == 0, output
                second_backup = await run_refused(create_backup(folder / "backup", system.data), capsys)
                assert (second_backup[0], "already exists" in second_backup[1]) == (1, True)
        assert {path.stat().st_mode & 0o77 for path in (folder / "backup", folder / "backup" / "secrets.json")} == {0}
        status, output = await run_paddock("restore", str(folder / "backup"), "--data", str(folder / "restored"))
        assert status == 0, output
        second_restore = await run_refused(restore_backup(folder / "backup", folder / "restored"), capsys)
        assert (second_restore[0], "is not empty" in second_restore[1]) == (1, True)
        async with run_system_on(folder / "restored") as restored:
            headers = {"X-API-Key": key}
            async with httpx.AsyncClient(base_url=f"{restored.url}/api/v1", headers=headers, timeout=60) as http:
                await check_restored(http, before)
                started = await http.post(f"/agents/{agent_id}/execute", json={"payload": {"n": 0}})
                ended = await http.get(f"/executions/{started.json()['id']}", headers={"Prefer": "wait=60"})
                assert (ended.json()["status"], ended.json()["result"]) == ("completed", {"n": 0})
                await check_agent_work(http, work)
        # The installation is stopped: its services are started for the backup only.
        status, output = await run_paddock("backup", str(folder / "cold"), "--data", str(folder / "restored"))
        assert status == 0, output
        await check_damaged_backup(folder)


async def prepare_agent_work(owner: TenantClient) -> dict[str, Any]:
    """Run an agent with a secret, a file and a state, which leaves a file; return what it has and what it left."""
    answer = await owner.http.post("/secrets", json={"name": "TOKEN", "value": "value-of-the-token"})
    assert answer.status_code == 201, answer.text
    file = (await owner.http.post("/files", files={"file": ("data.csv", b"a,b")})).json()
    agent_id = await owner.deploy_agent(WORKER_SOURCE, "name: worker\nentrypoint: agent:handle\nsecrets: [TOKEN]\n")
    ended = await owner.run_agent(agent_id, files={"data.csv": file["id"]})
    assert ended["status"] == "completed", ended
    return {"agent": agent_id, "file": file["id"], "execution": ended["id"]}


async def check_agent_work(http: httpx.AsyncClient, work: dict[str, Any]) -> None:
    assert (await http.get(f"/files/{work['file']}/content")).content == b"a,b"
    assert (await http.get(f"/executions/{work['execution']}/files/left.txt")).content == b"left 1"
    body = {"files": {"data.csv": work["file"]}}
    started = await http.post(f"/agents/{work['agent']}/execute", json=body, headers={"Prefer": "wait=60"})
    assert started.json()["status"] == "completed", started.text
    assert started.json()["result"] == ["a,b", len("value-of-the-token"), 2]


async def check_restored(http: httpx.AsyncClient, before: dict[str, list[str]]) -> None:
    for path in ("/evaluations", "/executions"):
        for row_id in before[path]:
            assert (await http.get(f"{path}/{row_id}")).status_code == 200, row_id
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


async def check_damaged_backup(folder: Path) -> None:
    """Check that missing and damaged objects are named, and that an incomplete restore cannot be started."""
    lines = (folder / "cold" / "objects.jsonl").read_text().splitlines()
    objects = {line["key"]: line for line in map(json.loads, lines)}
    missing_key, damaged_key = sorted(key for key in objects if key.startswith("uploads/"))[:2]
    (folder / "cold" / "objects.jsonl").write_text("\n".join(line for line in lines if missing_key not in line) + "\n")
    _get_object_path(folder / "cold", damaged_key).write_bytes(b"something else")
    status, output = await run_paddock("restore", str(folder / "cold"), "--data", str(folder / "lossy"))
    assert status == 2, output
    assert "1 objects are damaged" in output
    assert "2 objects are needed by rows" in output
    assert missing_key in output
    assert damaged_key in output
    (folder / "cold" / "database.dump").write_bytes(b"no dump")
    status, output = await run_paddock("restore", str(folder / "cold"), "--data", str(folder / "broken"))
    assert (status, "pg_restore ended" in output) == (1, True), output
    status, output = await run_paddock(
        "up", "--data", str(folder / "broken"), "--port", str(find_free_ports(1)[0]), "--once"
    )
    assert (status, "was not finished" in output) == (1, True), output
    shutil.rmtree(folder / "broken")


@pytest.mark.parametrize("folder", ["nothing", "."])
async def test_folder_without_an_installation_is_not_backed_up(
    tmp_path: Path, folder: str, capsys: pytest.CaptureFixture[str]
) -> None:
    status, output = await run_refused(create_backup(tmp_path / "backup", tmp_path / folder), capsys)
    assert (status, "no installation" in output) == (1, True)
    assert not (tmp_path / "backup").exists()
