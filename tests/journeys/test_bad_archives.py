"""Archives that mean harm or are merely wrong: each gets its own clear answer, and nothing is stored of it."""

import asyncio
import gzip
import io
import os
import tarfile
from collections.abc import Callable

import pytest

from tests.support.clients import DEFAULT_MANIFEST, TenantClient, pack_archive


def _tar(*members: tuple[tarfile.TarInfo, bytes], mode: str = "w:gz") -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode=mode) as packing:  # type: ignore[call-overload]
        for member, data in members:
            member.size = len(data) if member.isreg() else 0
            packing.addfile(member, io.BytesIO(data))
    return buffer.getvalue()


def _member(name: str, kind: bytes = tarfile.REGTYPE, link: str = "") -> tarfile.TarInfo:
    made = tarfile.TarInfo(name)
    made.type, made.linkname = kind, link
    return made


def _bomb() -> bytes:
    big = _member("zeros")
    big.size = 600 << 20
    buffer = io.BytesIO()
    with gzip.GzipFile(fileobj=buffer, mode="wb", compresslevel=1) as packed:
        packed.write(big.tobuf())
        for _ in range(600):
            packed.write(b"\0" * (1 << 20))
        packed.write(b"\0" * 1024)
    return buffer.getvalue()


def _many() -> bytes:
    buffer = io.BytesIO()
    with gzip.GzipFile(fileobj=buffer, mode="wb", compresslevel=1) as packed:
        for number in range(100_000):
            packed.write(_member(f"f{number}").tobuf())
        packed.write(b"\0" * 1024)
    return buffer.getvalue()


GOOD = pack_archive({"agent.py": "def handle(p): return p\n"})
DEEP = "/".join("d" for _ in range(40)) + "/x"
# name → what is uploaded, and what the build says of it
CASES: dict[str, tuple[Callable[[], bytes], str]] = {
    "truncated": (lambda: GOOD[: len(GOOD) // 2], "cut short"),
    "gzip of no tar": (lambda: gzip.compress(b"no tar at all" * 100), "no tar archive"),
    "damaged in the middle": (lambda: GOOD[:40] + b"\xff\xff" + GOOD[42:], "damaged"),
    "empty": (lambda: _tar(), "empty"),
    "tar bomb": (_bomb, "larger than"),
    "symbolic link": (lambda: _tar((_member("etc", tarfile.SYMTYPE, "/etc"), b"")), "symbolic link"),
    "hard link": (lambda: _tar((_member("x", tarfile.LNKTYPE, "agent.yaml"), b"")), "hard link"),
    "dot dot": (lambda: _tar((_member("../out"), b"x")), "'..' is not allowed"),
    "dot dot inside": (lambda: _tar((_member("a/../../out"), b"x")), "'..' is not allowed"),
    "absolute": (lambda: _tar((_member("/etc/cron.d/x"), b"x")), "absolute"),
    "device": (lambda: _tar((_member("null", tarfile.CHRTYPE), b"")), "a device"),
    "pipe": (lambda: _tar((_member("fifo", tarfile.FIFOTYPE), b"")), "a pipe"),
    "twice": (lambda: _tar((_member("a"), b"1"), (_member("a"), b"2")), "twice"),
    "file as folder": (lambda: _tar((_member("a"), b"1"), (_member("a/b"), b"2")), "cannot be unpacked"),
    "too deep": (lambda: _tar((_member(DEEP), b"x")), "deeper than"),
    "a hundred thousand": (_many, "more than 10000 entries"),
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


@pytest.mark.parametrize("case", CASES)
async def test_bad_archive(shared_tenant: TenantClient, case: str) -> None:
    make, told = CASES[case]
    agent = await shared_tenant.create_agent()
    version = await shared_tenant.build_version(agent["id"], make())
    assert version["status"] == "failed", version
    assert told in version["build_log"], version["build_log"]
    assert told in version["error_message"] or "\n" in version["error_message"]
    assert (await shared_tenant.http.get(f"/agents/{agent['id']}")).json()["status"] == "failed"
    refused = await shared_tenant.http.post(f"/agents/{agent['id']}/execute", json={})
    assert refused.status_code == 409
    assert refused.json()["error"] == "version_not_ready"


async def test_sleeping_for_ever_at_import_ends_with_the_import_s_limit(shared_tenant: TenantClient) -> None:
    agent = await shared_tenant.create_agent()
    version = await shared_tenant.build_version(
        agent["id"], pack_archive({"agent.py": "import time\ntime.sleep(10**6)\n"})
    )
    assert version["status"] == "failed"
    assert "longer than 30 s" in version["build_log"]


async def test_what_is_no_gzip_is_refused_at_the_door(shared_tenant: TenantClient) -> None:
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
        await shared_tenant.http.post(f"/uploads/agent/{agent['id']}", files={"other": ("x", GOOD)})
    ).status_code == 422
    twice = [("file", ("a", GOOD)), ("file", ("b", GOOD))]
    assert (await shared_tenant.http.post(f"/uploads/agent/{agent['id']}", files=twice)).status_code == 422
    empty = await shared_tenant.upload_archive(agent["id"], b"")
    assert empty.status_code == 422
    assert empty.json()["errors"][0]["field"] == "file"
    plain = await shared_tenant.http.post(f"/uploads/agent/{agent['id']}", json={})
    assert plain.status_code == 400


async def test_a_version_is_not_executed_before_it_is_ready(shared_tenant: TenantClient) -> None:
    agent = await shared_tenant.create_agent()
    slow = pack_archive({"agent.py": "import time\ntime.sleep(1)\ndef handle(p): return 1\n"})
    version = (await shared_tenant.upload_archive(agent["id"], slow)).json()
    early = await shared_tenant.http.post(f"/agents/{agent['id']}/execute", json={"agent_version_id": version["id"]})
    assert early.status_code == 409
    assert early.json()["error"] == "version_not_ready"


async def test_a_single_folder_and_the_other_manifest_s_name_work(shared_tenant: TenantClient) -> None:
    agent = await shared_tenant.create_agent()
    nested = pack_archive({"x/anymind.yaml": DEFAULT_MANIFEST, "x/agent.py": "def handle(p): return 'nested'\n"}, None)
    version = await shared_tenant.build_version(agent["id"], nested)
    assert version["status"] == "ready", version["build_log"]
    assert (await shared_tenant.run_agent(agent["id"]))["output_data"] == "nested"


async def test_nothing_that_was_there_is_lost_by_a_bad_version(shared_tenant: TenantClient) -> None:
    agent_id = await shared_tenant.deploy_agent("def handle(p): return 'v1'\n")
    bad = await shared_tenant.build_version(agent_id, pack_archive({"agent.py": "raise 1\n"}))
    assert bad["status"] == "failed"
    agent = (await shared_tenant.http.get(f"/agents/{agent_id}")).json()
    assert agent["status"] == "ready"
    assert (await shared_tenant.run_agent(agent_id))["output_data"] == "v1"


@pytest.mark.parametrize(
    ("source", "error_type", "told"),
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
async def test_bad_results(shared_tenant: TenantClient, source: str, error_type: str, told: str) -> None:
    agent_id = await shared_tenant.deploy_agent(source)
    ended = await shared_tenant.run_agent(agent_id, timeout=2)
    assert (ended["status"], ended["attempt"]) == ("failed", 1), ended
    assert ended["error_type"] == error_type, ended
    assert told in ended["error_message"]
    assert ended["output_data"] is None


async def test_async_entrypoints_and_big_numbers_and_text(shared_tenant: TenantClient) -> None:
    agent_id = await shared_tenant.deploy_agent(
        "async def handle(p): return {**p, 'big': 2**200, 'nul': '\\0', 'e': '\\u20ac'}\n"
    )
    ended = await shared_tenant.run_agent(agent_id, {"a": 10**30})
    assert ended["output_data"] == {"a": 10**30, "big": 2**200, "nul": "\0", "e": "€"}


async def test_logs_appear_while_the_agent_runs(shared_tenant: TenantClient) -> None:
    agent_id = await shared_tenant.deploy_agent(
        "import sys, time\ndef handle(p):\n    print('first', flush=True)\n    print('WARNING: hot', file=sys.stderr)\n    time.sleep(20)\n"
    )
    execution = await shared_tenant.start_execution(agent_id)
    for _ in range(400):
        lines = [one for one in await shared_tenant.list_events(execution["id"]) if one["metadata"]["type"] == "log"]
        if len(lines) == 2:
            break
        await asyncio.sleep(0.05)
    assert {(one["message"], one["level"], one["metadata"]["stream"]) for one in lines} == {
        ("first", "INFO", "stdout"),
        ("WARNING: hot", "WARNING", "stderr"),
    }
    assert (await shared_tenant.http.post(f"/executions/{execution['id']}/cancel")).json()["status"] == "cancelled"


def test_this_process_could_not_have_been_harmed() -> None:
    assert not os.path.exists("/etc/cron.d/x")
