"""Test `paddock up` on a disk that fills up: a named error, few log lines, and automatic recovery."""

import asyncio
import json
import os
import secrets
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import httpx
import pytest

from infra.embedded.ports import find_free_ports

ROOT = Path(__file__).resolve().parents[2]


def can_mount(folder: Path) -> bool:
    tried = subprocess.run(
        ["unshare", "-m", "mount", "-t", "tmpfs", "-o", "size=1m", "none", str(folder)],
        capture_output=True,
        check=False,
    )
    return tried.returncode == 0


async def test_full_disk_is_reported_and_recovers(tmp_path: Path) -> None:
    disk, (port,) = tmp_path / "disk", find_free_ports(1)
    disk.mkdir()
    if shutil.which("unshare") is None or not can_mount(disk):
        pytest.skip("no file system can be mounted here, not even in a separate namespace")
    up_command = f"exec {sys.executable} -m scripts.cli up --data {disk}/data --port {port}"
    log = (tmp_path / "log").open("wb")
    process = subprocess.Popen(
        ["unshare", "-m", "sh", "-c", f"mount -t tmpfs -o size=400m none {disk} && {up_command}"],
        cwd=ROOT,
        env={**os.environ, "PADDOCK_LEASE_SECONDS": "2", "PADDOCK_UPKEEP_SECONDS": "0.3"},
        stdout=log,
        stderr=subprocess.STDOUT,
    )
    inside = Path(f"/proc/{process.pid}/root{disk}")
    fill = inside / "fill"

    def read_log_lines() -> list[str]:
        return (tmp_path / "log").read_text(errors="replace").splitlines()

    try:
        for _ in range(900):
            if any(line.startswith("ready ") for line in read_log_lines()):
                break
            assert process.poll() is None, read_log_lines()
            await asyncio.sleep(0.1)
        key = json.loads((inside / "data" / "running.json").read_text())["admin_key"]
        url = f"http://127.0.0.1:{port}"
        async with httpx.AsyncClient(base_url=url, headers={"X-API-Key": key}, timeout=60) as http:

            async def post_evaluation() -> httpx.Response:
                record = {"prompt": secrets.token_hex(100_000), "response": "Four.", "agent_name": "sums"}
                return await http.post("/api/v1/evaluations", json=record)

            accepted = [(await post_evaluation()).json()["id"] for _ in range(3)]
            with fill.open("wb") as file:
                free = os.statvfs(inside)
                os.posix_fallocate(file.fileno(), 0, free.f_bavail * free.f_frsize - 12 * 1024 * 1024)
            # Until Postgres has no space for rows, then none for its log, and exits.
            refused: list[httpx.Response] = []
            while len(refused) < 60:
                answer = await post_evaluation()
                if answer.status_code == 201:
                    accepted.append(answer.json()["id"])
                else:
                    refused.append(answer)
            assert {(answer.status_code, answer.json()["error"]) for answer in refused} == {(503, "storage_full")}
            health = (await http.get("/health")).json()
            assert (health["status"], health["services"]["database"]) == ("unhealthy", "unhealthy")
            assert "disk of the database is full" in health["problems"]["database"]
            assert "disk of object storage is full" in health["problems"]["storage"]
            assert (await http.get("/health/ready")).status_code == 503
            await asyncio.sleep(3)
            lines = [line for line in read_log_lines() if " request " not in line]
            assert not [line for line in lines if "Traceback" in line], lines
            for component in ("api", "run", "llm", "plan", "build", "record", "upkeep"):
                component_lines = [
                    line for line in lines if f" {component} " in line[:24] and "code=storage_full" in line
                ]
                assert len(component_lines) <= 1, component_lines
            fill.unlink()
            for _ in range(600):
                if (await http.get("/health")).json()["status"] == "healthy":
                    break
                await asyncio.sleep(0.1)
            assert (await post_evaluation()).status_code == 201
            for evaluation_id in accepted:
                assert (await http.get(f"/api/v1/evaluations/{evaluation_id}")).status_code == 200
    finally:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(60)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        log.close()
