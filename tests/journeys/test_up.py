"""Test the commands `paddock up` and `paddock demo`: they start, work, stop, and leave no process behind."""

import asyncio
import contextlib
import json
import os
import signal
import socket
import stat
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import httpx
import pytest

from infra.embedded.ports import find_free_ports
from scripts.installation import get_command_name

ROOT = Path(__file__).resolve().parents[2]
DRAIN_LINE = " run     info    the worker drains reason=SIGTERM"


@asynccontextmanager
async def run_paddock(*arguments: str, **environment: str) -> AsyncIterator[asyncio.subprocess.Process]:
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "scripts.cli", *arguments),
        cwd=ROOT,
        env={**{name: value for name, value in os.environ.items() if not name.startswith("R2_")}, **environment},
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
        limit=1 << 20,
    )
    try:
        yield process
    finally:
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        await process.wait()


async def wait_until_ready(process: asyncio.subprocess.Process) -> list[str]:
    lines = []
    assert process.stdout is not None
    async for line in process.stdout:
        lines.append(line.decode().rstrip())
        if lines[-1].startswith("ready http"):
            return lines
    raise AssertionError("\n".join(lines))


def _list_processes_using(folder: Path) -> list[tuple[int, str]]:
    """Return live processes that have a file of a folder open or work in it."""
    processes = []
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if (process / "stat").read_text().rsplit(")", 1)[1].split()[0] == "Z":
                continue
            links = [process / "cwd", *(process / "fd").iterdir()]
            if any(os.readlink(link).startswith(str(folder)) for link in links if link.is_symlink()):
                processes.append((int(process.name), (process / "comm").read_text().strip()))
    return processes


async def test_demo_once_shows_the_main_job_and_ends(tmp_path: Path) -> None:
    port = str(find_free_ports(1)[0])
    async with run_paddock("demo", "--once", "--data", str(tmp_path / "data"), "--port", port) as process:
        output, _ = await process.communicate()
        text = output.decode()
        assert process.returncode == 0, text
        assert "It works" in text
        assert "{'result': 'Hello, Ada!'}" in text
        assert "NothingToSummarize" in text
        # The demo shows the build logs but not its own requests.
        assert "      | Installing requirements." in text
        # The log of the processes is in a named file that only its owner can read.
        log = tmp_path / "data" / "paddock.log"
        assert f"  log       {log}" in text
        assert "line=Installing requirements." not in text
        assert " request method=" not in text
        assert "line=Installing requirements." in log.read_text()
        assert " request method=POST path=/api/v1/agents " in log.read_text()
        assert stat.S_IMODE(log.stat().st_mode) == 0o600
        # The output contains no commands for the stopped server.
        assert "curl" not in text
        assert text.rstrip().split("To try it yourself: ")[1].split()[1] == "up"
    assert _list_processes_using(tmp_path) == []


async def test_quiet_up_writes_its_log_to_a_file(tmp_path: Path) -> None:
    data, port = tmp_path / "data", str(find_free_ports(1)[0])
    log = data / "paddock.log"
    for _ in range(2):
        async with run_paddock("up", "--once", "--data", str(data), "--port", port, "--quiet") as process:
            output, _ = await process.communicate()
        text = output.decode()
        assert process.returncode == 0, text
        assert DRAIN_LINE not in text, text
        assert str(log) in text, text
        assert DRAIN_LINE in log.read_text()
    # The log file of the previous run is kept.
    assert DRAIN_LINE in (data / "paddock.log.old").read_text()
    async with run_paddock("up", "--quiet", "--verbose") as process:
        output, _ = await process.communicate()
    assert (process.returncode, b"not allowed with argument" in output) == (2, True)


async def _check_other_commands(data: Path, queues_command: str, key: str) -> None:
    """Check that other commands find the running installation."""
    assert queues_command.endswith(f" queues --data {data}")
    for arguments, expected in (
        (("admin-key",), key),
        (("plan", "default", "premium"), "default is now premium"),
        (("keys", "rotate"), "keys sealed again: 0; already sealed"),
        (("queues",), "lane"),
    ):
        async with run_paddock(*arguments, "--data", str(data)) as command:
            output, _ = await command.communicate()
        assert command.returncode == 0, output.decode()
        assert expected in output.decode()


async def _check_commands_without_installation(data: Path) -> None:
    for arguments in (("admin-key",), ("plan", "default", "premium"), ("keys", "rotate")):
        async with run_paddock(*arguments, "--data", str(data)) as command:
            output, _ = await command.communicate()
        assert command.returncode == 1
        assert "PADDOCK_DATABASE_URL is not set" in output.decode()


def test_printed_command_can_be_called(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program = tmp_path / ".venv/bin/paddock"
    program.parent.mkdir(parents=True)
    program.write_text("#!/bin/sh\n")
    program.chmod(0o755)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", [str(program), "up"])
    monkeypatch.setenv("PATH", "/usr/bin:/bin")
    assert get_command_name() == ".venv/bin/paddock"
    monkeypatch.setenv("PATH", f"{program.parent}:/usr/bin:/bin")
    assert get_command_name() == "paddock"
    monkeypatch.setenv("PATH", "/usr/bin:/bin")
    monkeypatch.chdir("/")
    assert get_command_name() == str(program).lstrip("/")


def test_setup_shows_its_progress(tmp_path: Path) -> None:
    """Run the installing target of the Makefile with the smallest lock file."""
    installed = subprocess.run(
        ["make", "-s", "packages", f"VENV={tmp_path / 'venv'}", "LOCK=requirements-uv.lock"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert installed.returncode == 0, installed.stderr
    assert f"Installing 1 packages into {tmp_path / 'venv'}" in installed.stdout
    assert "MB" in installed.stdout
    assert "Resolved 1 package" in installed.stdout
    refused = subprocess.run(
        ["make", "-s", "packages", f"VENV={tmp_path / 'venv'}", f"LOCK={tmp_path / 'none.lock'}"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert refused.returncode != 0


async def test_demo_fails_when_the_main_job_does(tmp_path: Path) -> None:
    """Return the exit code of the main job, which fails because the fence cannot be built."""
    port = str(find_free_ports(1)[0])
    environment = {"PADDOCK_BWRAP": "/usr/bin/false"}
    arguments = ("demo", "--once", "--verbose", "--data", str(tmp_path / "data"), "--port", port)
    async with run_paddock(*arguments, **environment) as process:
        output, _ = await process.communicate()
    text = output.decode()
    assert process.returncode == 1, text
    assert " request method=POST path=/api/v1/agents " in text
    assert not (tmp_path / "data" / "paddock.log").exists()
    assert "No runs on this host" in text
    assert "sandbox_unavailable" in text


async def test_killed_up_leaves_no_orphans_and_restarts_where_other_commands_find_it(tmp_path: Path) -> None:
    data, port = tmp_path / "data", str(find_free_ports(1)[0])
    async with run_paddock("up", "--data", str(data), "--port", port) as process:
        await wait_until_ready(process)
        running = json.loads((data / "running.json").read_text())
        headers = {"X-API-Key": running["admin_key"]}
        async with httpx.AsyncClient(base_url=f"{running['url']}/api/v1", headers=headers) as http:
            assert (await http.post("/agents", json={"name": "kept"})).status_code == 201
        assert len(_list_processes_using(data)) > 3
        process.send_signal(signal.SIGKILL)
        await process.wait()
        for _ in range(200):
            if not _list_processes_using(data):
                break
            await asyncio.sleep(0.05)
        assert _list_processes_using(data) == []
    async with run_paddock("up", "--data", str(data), "--port", port) as process:
        lines = await wait_until_ready(process)
        assert any(running["admin_key"] in line for line in lines), "the admin key stays the same"
        async with httpx.AsyncClient(base_url=f"{running['url']}/api/v1", headers=headers) as http:
            assert (await http.get("/agents/kept")).status_code == 200
        # A second process on the same data or port exits with a message and does not affect the first.
        for arguments, message in (
            (("--data", str(data), "--port", str(find_free_ports(1)[0])), "another `paddock up` is running"),
            (("--data", str(tmp_path / "other"), "--port", port), f"port {port} cannot be used"),
        ):
            async with run_paddock("up", *arguments) as second:
                output, _ = await second.communicate()
                assert second.returncode == 1
                assert message in output.decode()
        (queues_command,) = [line.split("queues", 1)[1].strip() for line in lines if line.startswith("  queues")]
        await _check_other_commands(data, queues_command, running["admin_key"])
        queues = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "scripts.cli", "queues", "--data", str(data)),
            cwd=ROOT,
            stdout=asyncio.subprocess.PIPE,
        )
        queues_output, _ = await queues.communicate()
        assert queues.returncode == 0
        assert "run" in queues_output.decode()
        assert "slots busy" in queues_output.decode()
        for name in ("secrets.json", "running.json"):
            assert stat.S_IMODE((data / name).stat().st_mode) == 0o600
        assert stat.S_IMODE(data.stat().st_mode) == 0o700
        process.send_signal(signal.SIGINT)
        assert await asyncio.wait_for(process.wait(), 30) == 0
    assert _list_processes_using(data) == []
    await _check_commands_without_installation(data)


async def test_up_runs_on_external_services(system, tmp_path: Path) -> None:
    """Replace the embedded services by `PADDOCK_DATABASE_URL` (of a superuser), `PADDOCK_REDIS_URL` and `R2_*`."""
    settings = system.settings
    environment = {
        "PADDOCK_DATABASE_URL": settings.database_owner_url.reveal(),
        "PADDOCK_REDIS_URL": settings.redis_url.reveal().removesuffix("/0") + "/1",
        "R2_ENDPOINT_URL": settings.r2_endpoint_url,
        "R2_ACCESS_KEY_ID": settings.r2_access_key_id,
        "R2_SECRET_ACCESS_KEY": settings.r2_secret_access_key.reveal(),
        "R2_BUCKET_NAME": "another",
    }
    port = str(find_free_ports(1)[0])
    async with run_paddock("up", "--once", "--data", str(tmp_path / "data"), "--port", port, **environment) as process:
        output, _ = await process.communicate()
    text = output.decode()
    assert process.returncode == 0, text
    assert "PADDOCK_DATABASE_URL" in text
    assert not (tmp_path / "data" / "postgres").exists()
    # Without --quiet, the log is printed and written to no file.
    assert DRAIN_LINE in text
    assert "paddock.log" not in text
    assert not (tmp_path / "data" / "paddock.log").exists()


@pytest.mark.parametrize("arguments", [["frobnicate"], ["worker"], ["worker", "fly"], ["up", "--port", "many"]])
async def test_invalid_command_prints_usage(arguments: list[str]) -> None:
    async with run_paddock(*arguments) as process:
        output, _ = await process.communicate()
        assert process.returncode == 2
        assert b"usage: paddock" in output


async def test_process_without_settings_names_the_missing_variable() -> None:
    async with run_paddock("api", PADDOCK_DATABASE_URL="") as process:
        output, _ = await process.communicate()
        assert process.returncode == 1
        assert b"PADDOCK_DATABASE_URL is not set" in output


@pytest.mark.parametrize("port", ["99999", "0", "-1", "http", "٨٠٠٠"])
async def test_ports_that_do_not_exist_are_refused_in_a_sentence(tmp_path: Path, port: str) -> None:
    async with run_paddock("up", f"--port={port}", "--data", str(tmp_path / "data")) as process:
        output, _ = await asyncio.wait_for(process.communicate(), 60)
    assert process.returncode == 2
    assert "must be a port from 1 to 65535" in output.decode()
    assert not (tmp_path / "data").exists()


async def test_a_refused_start_prints_its_reason_alone(tmp_path: Path) -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = str(other.getsockname()[1])
        async with run_paddock("up", "--port", port, "--data", str(tmp_path / "data")) as process:
            output, _ = await process.communicate()
    lines = output.decode().splitlines()
    assert process.returncode == 1
    assert len(lines) == 1, lines
    assert port in lines[0]


def test_a_fork_server_whose_command_was_refused_ends_without_a_word() -> None:
    program = "import os; os.getppid = lambda: 1; import scripts.fork_server_lifetime"
    ended = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, check=False)
    assert (ended.returncode, ended.stdout, ended.stderr) == (1, b"", b"")
