"""Test that malicious and invalid archives fail their build with a clear message, and that bad results are reported."""

import asyncio
import gzip
import io
import os
import tarfile
from collections.abc import Callable

import pytest

from tests.support.clients import DEFAULT_MANIFEST, TenantClient, pack_archive


def _pack_members(*members: tuple[tarfile.TarInfo, bytes], mode: str = "w:gz") -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode=mode) as packing:  # type: ignore[call-overload]
        for member, data in members:
            member.size = len(data) if member.isreg() else 0
            packing.addfile(member, io.BytesIO(data))
    return buffer.getvalue()


def _build_member(name: str, kind: bytes = tarfile.REGTYPE, link: str = "") -> tarfile.TarInfo:
    member = tarfile.TarInfo(name)
    member.type, member.linkname = kind, link
    return member


def _build_tar_bomb() -> bytes:
    big = _build_member("zeros")
    big.size = 600 << 20
    buffer = io.BytesIO()
    with gzip.GzipFile(fileobj=buffer, mode="wb", compresslevel=1) as packed:
        packed.write(big.tobuf())
        for _ in range(600):
            packed.write(b"\0" * (1 << 20))
        packed.write(b"\0" * 1024)
    return buffer.getvalue()


def _build_many_entries() -> bytes:
    buffer = io.BytesIO()
    with gzip.GzipFile(fileobj=buffer, mode="wb", compresslevel=1) as packed:
        for number in range(100_000):
            packed.write(_build_member(f"f{number}").tobuf())
        packed.write(b"\0" * 1024)
    return buffer.getvalue()


VALID_ARCHIVE = pack_archive({"agent.py": "def handle(p): return p\n"})
DEEP_PATH = "/".join("d" for _ in range(40)) + "/x"
# name → the uploaded archive, and the message of the build
BUILD_MESSAGE_BY_CASE: dict[str, tuple[Callable[[], bytes], str]] = {
    "truncated": (lambda: VALID_ARCHIVE[: len(VALID_ARCHIVE) // 2], "cut short"),
    "gzip of no tar": (lambda: gzip.compress(b"no tar at all" * 100), "no tar archive"),
    "damaged in the middle": (lambda: VALID_ARCHIVE[:40] + b"\xff\xff" + VALID_ARCHIVE[42:], "damaged"),
    "empty": (lambda: _pack_members(), "empty"),
    "tar bomb": (_build_tar_bomb, "larger than"),
    "symbolic link": (lambda: _pack_members((_build_member("etc", tarfile.SYMTYPE, "/etc"), b"")), "symbolic link"),
    "hard link": (lambda: _pack_members((_build_member("x", tarfile.LNKTYPE, "agent.yaml"), b"")), "hard link"),
    "dot dot": (lambda: _pack_members((_build_member("../out"), b"x")), "'..' is not allowed"),
    "dot dot inside": (lambda: _pack_members((_build_member("a/../../out"), b"x")), "'..' is not allowed"),
    "absolute": (lambda: _pack_members((_build_member("/etc/cron.d/x"), b"x")), "absolute"),
    "device": (lambda: _pack_members((_build_member("null", tarfile.CHRTYPE), b"")), "a device"),
    "pipe": (lambda: _pack_members((_build_member("fifo", tarfile.FIFOTYPE), b"")), "a pipe"),
    "twice": (lambda: _pack_members((_build_member("a"), b"1"), (_build_member("a"), b"2")), "twice"),
    "file as folder": (
        lambda: _pack_members((_build_member("a"), b"1"), (_build_member("a/b"), b"2")),
        "cannot be unpacked",
    ),
    "too deep": (lambda: _pack_members((_build_member(DEEP_PATH), b"x")), "deeper than"),
    "a hundred thousand": (_build_many_entries, "more than 10000 entries"),
    "no manifest": (lambda: pack_archive({"agent.py": ""}, None), "no agent.yaml or anymind.yaml"),
    "broken YAML": (lambda: pack_archive({"agent.py": ""}, "name: [\n"), "agent.yaml, line"),
    "manifest not UTF-8": (lambda: pack_archive({"agent.yaml": b"name: \xff"}, None), "not UTF-8"),
    "missing module": (lambda: pack_archive({"other.py": ""}), "ModuleNotFoundError"),
    "missing function": (lambda: pack_archive({"agent.py": "x = 1\n"}), "AttributeError"),
    "not callable": (lambda: pack_archive({"agent.py": "handle = 1\n"}), "cannot be called"),
    "does not compile": (lambda: pack_archive({"agent.py": "def handle(:\n"}), "SyntaxError"),
    "raises at import": (lambda: pack_archive({"agent.py": "raise RuntimeError('not today')\n"}), "not today"),
    "exits at import": (lambda: pack_archive({"agent.py": "import os\nos._exit(0)\n"}), "before it returned"),
    "prints a gigabyte": (
        lambda: pack_archive({"agent.py": "for _ in range(1024): print('x' * (1 << 20))\ndef handle(p): return 1\n"}),
        "printed more than 16777216 bytes",
    ),
    "unknown requirement": (
        lambda: pack_archive(
            {"agent.py": "def handle(p): return 1\n", "requirements.txt": "no-such-thing-paddock==1\n"}
        ),
        "cannot be installed",
    ),
    "requirement by path": (
        lambda: pack_archive({"agent.py": "def handle(p): return 1\n", "requirements.txt": "-r /etc/passwd\n"}),
        "requirements.txt, line 1",
    ),
}


@pytest.mark.parametrize("case", BUILD_MESSAGE_BY_CASE)
async def test_invalid_archive_fails_its_build(shared_tenant: TenantClient, case: str) -> None:
    build_archive, message = BUILD_MESSAGE_BY_CASE[case]
    agent = await shared_tenant.create_agent()
    version = await shared_tenant.build_version(agent["id"], build_archive())
    assert version["status"] == "failed", version
    assert message in version["build_log"], version["build_log"]
    assert message in version["error_message"] or "\n" in version["error_message"]
    assert (await shared_tenant.http.get(f"/agents/{agent['id']}")).json()["status"] == "failed"
    refused = await shared_tenant.http.post(f"/agents/{agent['id']}/execute", json={})
    assert refused.status_code == 409
    assert refused.json()["error"] == "version_not_ready"


async def test_endless_import_ends_at_the_time_limit(shared_tenant: TenantClient) -> None:
    agent = await shared_tenant.create_agent()
    version = await shared_tenant.build_version(
        agent["id"], pack_archive({"agent.py": "import time\ntime.sleep(10**6)\n"})
    )
    assert version["status"] == "failed"
    assert "longer than 30 s" in version["build_log"]


async def test_upload_that_is_no_gzip_is_refused(shared_tenant: TenantClient) -> None:
    agent = await shared_tenant.create_agent()
    for data in (b"PK\x03\x04zip", b"\x1f", b"x" * 100_000):
        refused = await shared_tenant.upload_archive(agent["id"], data)
        if data == b"\x1f":
            continue
        assert refused.status_code == 400
        actual = "a zip file" if data[:2] == b"PK" else "not gzip"
        assert f".tar.gz archive: this one is {actual}." in refused.json()["detail"]
        assert "tar -czf" in refused.json()["detail"]
    assert (
        await shared_tenant.http.post(f"/uploads/agent/{agent['id']}", files={"other": ("x", VALID_ARCHIVE)})
    ).status_code == 422
    two_files = [("file", ("a", VALID_ARCHIVE)), ("file", ("b", VALID_ARCHIVE))]
    assert (await shared_tenant.http.post(f"/uploads/agent/{agent['id']}", files=two_files)).status_code == 422
    empty = await shared_tenant.upload_archive(agent["id"], b"")
    assert empty.status_code == 422
    assert empty.json()["errors"][0]["field"] == "file"
    plain = await shared_tenant.http.post(f"/uploads/agent/{agent['id']}", json={})
    assert plain.status_code == 400


async def test_version_cannot_be_executed_before_it_is_ready(shared_tenant: TenantClient) -> None:
    agent = await shared_tenant.create_agent()
    slow = pack_archive({"agent.py": "import time\ntime.sleep(1)\ndef handle(p): return 1\n"})
    version = (await shared_tenant.upload_archive(agent["id"], slow)).json()
    early = await shared_tenant.http.post(f"/agents/{agent['id']}/execute", json={"agent_version_id": version["id"]})
    assert early.status_code == 409
    assert early.json()["error"] == "version_not_ready"


async def test_nested_folder_with_anymind_yaml_is_accepted(shared_tenant: TenantClient) -> None:
    agent = await shared_tenant.create_agent()
    nested = pack_archive({"x/anymind.yaml": DEFAULT_MANIFEST, "x/agent.py": "def handle(p): return 'nested'\n"}, None)
    version = await shared_tenant.build_version(agent["id"], nested)
    assert version["status"] == "ready", version["build_log"]
    assert (await shared_tenant.run_agent(agent["id"]))["output_data"] == "nested"


async def test_failed_version_keeps_the_previous_version_active(shared_tenant: TenantClient) -> None:
    agent_id = await shared_tenant.deploy_agent("def handle(p): return 'v1'\n")
    failed_version = await shared_tenant.build_version(agent_id, pack_archive({"agent.py": "raise 1\n"}))
    assert failed_version["status"] == "failed"
    agent = (await shared_tenant.http.get(f"/agents/{agent_id}")).json()
    assert agent["status"] == "ready"
    assert (await shared_tenant.run_agent(agent_id))["output_data"] == "v1"


@pytest.mark.parametrize(
    ("source", "error_type", "message"),
    [
        ("def handle(p): return object()", "result_not_json", "object"),
        ("def handle(p): return float('nan')", "result_not_json", "JSON"),
        ("def handle(p): return 'x' * (2 << 20)", "result_too_large", "1048576"),
        ("def handle(p): return '\\ud800'", "result_not_json", "broken text"),
        ("def handle(p):\n    x = []\n    for _ in range(500): x = [x]\n    return x", "result_not_json", "129"),
        ("def handle(p): raise KeyError('\\ud800')", "KeyError", "ud800"),
        ("def handle(p): raise SystemExit(3)", "SystemExit", "3"),
        ("import os\ndef handle(p): os._exit(7)", "crashed", "status 7"),
        ("import ctypes\ndef handle(p): ctypes.string_at(0)", "crashed", "SIGSEGV"),
        ("def handle(p):\n    while True: pass", "timeout", "longer than 2 s"),
        (
            "import os\ndef handle(p):\n    for fd in range(3, 250):\n        try: os.write(fd, b'{\"x\": 1}\\n[[[')\n        except OSError: pass\n    os._exit(0)",
            "result_not_json",
            "not JSON",
        ),
    ],
)
async def test_failed_run_has_its_error_type(
    shared_tenant: TenantClient, source: str, error_type: str, message: str
) -> None:
    agent_id = await shared_tenant.deploy_agent(source)
    ended = await shared_tenant.run_agent(agent_id, timeout=2)
    assert (ended["status"], ended["attempt"]) == ("failed", 1), ended
    assert ended["error_type"] == error_type, ended
    assert message in ended["error_message"]
    assert ended["output_data"] is None


async def test_async_entrypoint_returns_big_numbers_and_text(shared_tenant: TenantClient) -> None:
    agent_id = await shared_tenant.deploy_agent(
        "async def handle(p): return {**p, 'big': 2**200, 'nul': '\\0', 'e': '\\u20ac'}\n"
    )
    ended = await shared_tenant.run_agent(agent_id, {"a": 10**30})
    assert ended["output_data"] == {"a": 10**30, "big": 2**200, "nul": "\0", "e": "€"}


async def test_log_lines_appear_during_the_run(shared_tenant: TenantClient) -> None:
    agent_id = await shared_tenant.deploy_agent(
        "import sys, time\ndef handle(p):\n    print('first', flush=True)\n    print('WARNING: hot', file=sys.stderr)\n    time.sleep(20)\n"
    )
    execution = await shared_tenant.start_execution(agent_id)
    for _ in range(400):
        lines = [
            event for event in await shared_tenant.list_events(execution["id"]) if event["metadata"]["type"] == "log"
        ]
        if len(lines) == 2:
            break
        await asyncio.sleep(0.05)
    assert {(line["message"], line["level"], line["metadata"]["stream"]) for line in lines} == {
        ("first", "INFO", "stdout"),
        ("WARNING: hot", "WARNING", "stderr"),
    }
    assert (await shared_tenant.http.post(f"/executions/{execution['id']}/cancel")).json()["status"] == "cancelled"


def test_host_files_are_untouched() -> None:
    assert not os.path.exists("/etc/cron.d/x")
