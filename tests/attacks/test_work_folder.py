"""Attack the host and object storage through the work folder of a run: what it leaves there, and how much."""

from typing import Any

import pytest

from scripts.system import System
from tests.conftest import run_system
from tests.support.clients import TenantClient, register_tenant

MIB = 1 << 20
ATTACKER = """
import os, socket, subprocess, sys, time

def handle(payload):
    os.chdir("/work")
    with open("own.txt", "w") as file:
        file.write("own")
    return globals()[payload["attack"]](payload)

def links(p):
    os.symlink("/etc/passwd", "passwd")
    os.symlink("/", "root")
    os.symlink("../../../../../etc", "etc")
    os.symlink("/proc/self/environ", "environ")
    os.symlink("own.txt", "own-link")
    os.mkdir("in")
    os.link("own.txt", "in/hard")
    return True

def odd_files(p):
    refused = []
    for make in (
        lambda: os.mkfifo("pipe"),
        lambda: os.mknod("device", 0o20666, os.makedev(1, 5)),
        lambda: os.mknod("socket", 0o140666),
        lambda: socket.socket(socket.AF_UNIX).bind("listener"),
        lambda: open("n" * 300, "w"),
        lambda: os.mkdir("/work/../outside"),
        lambda: os.mkdir("/outside"),
        lambda: os.rename("/work", "/work2"),
        lambda: os.rmdir("/work"),
    ):
        try:
            make()
            refused.append(False)
        except OSError:
            refused.append(True)
    for name in (b"back\\\\slash", b"line\\nbreak", b"\\xff\\xfe", b"\\x1b[31mred", "\u202eevil".encode()):
        with open(name, "wb") as file:
            file.write(b"x")
    os.mkdir("closed")
    open("closed/a", "w").close()
    os.chmod("closed", 0)
    open("closed.txt", "w").close()
    os.chmod("closed.txt", 0)
    return refused

def many(p):
    for number in range(10_000):
        open(f"many-{number:05}", "w").close()
    return True

def deep(p):
    for _ in range(300):
        os.mkdir("d" * 100)
        os.chdir("d" * 100)
    return True

def sparse(p):
    for number in range(50):
        with open(f"sparse-{number:02}", "wb") as file:
            file.truncate((90 << 20) + number)
    with open("vast", "wb") as file:
        try:
            file.truncate(1 << 40)
        except OSError:
            pass
    return True

def fill(p):
    written = 0
    try:
        for number in range(10):
            with open(f"full-{number}", "wb") as file:
                for _ in range(64):
                    written += file.write(b"x" * (1 << 20))
    except OSError:
        pass
    return written

def survivors(p):
    source = '''
import os, time
while True:
    for name in ("a", "b"):
        with open(f"/work/grown-{name}", "ab") as file:
            file.write(b"x" * 50_000)
        try:
            os.rename("/work/folder", "/work/moved")
            os.symlink("/etc", "/work/folder")
            os.unlink("/work/folder")
            os.rename("/work/moved", "/work/folder")
        except OSError:
            pass
'''
    os.mkdir("folder")
    open("folder/passwd", "w").close()
    for _ in range(4):
        subprocess.Popen([sys.executable, "-c", source], start_new_session=True)
    while not os.path.exists("grown-a"):
        time.sleep(0.01)
    return True

def import_time(p):
    return open("data.csv").read()
"""
EARLY = """
import os
os.symlink("/etc", "/work/in")
os.symlink("/etc/hosts", "/work/data.csv")
def handle(payload):
    return "started"
"""


@pytest.fixture(scope="module")
async def attacker(shared_tenant: TenantClient) -> str:
    return await shared_tenant.deploy_agent(ATTACKER, "name: attacker\nentrypoint: agent:handle\nmemory: 1024\n")


async def run_attack(tenant: TenantClient, agent_id: str, attack: str) -> tuple[dict[str, Any], dict[str, int], str]:
    """Return the execution, the sizes of the files that it left, and what its log says about those that are not kept."""
    execution = await tenant.run_agent(agent_id, {"attack": attack}, timeout=60)
    listed = (await tenant.http.get(f"/executions/{execution['id']}/files?limit=1000")).json()["items"]
    messages = [entry["message"] for entry in await tenant.list_events(execution["id"])]
    notices = [message for message in messages if message.startswith("Not kept")]
    assert len(notices) <= 1
    assert execution["status"] == "completed", execution
    return execution, {file["path"]: file["size_bytes"] for file in listed}, "".join(notices)


async def test_links_lead_nowhere(shared_tenant: TenantClient, attacker: str) -> None:
    execution, sizes, notice = await run_attack(shared_tenant, attacker, "links")
    assert sizes == {"own.txt": 3, "in/hard": 3}
    for name in ("passwd", "root", "etc", "environ", "own-link"):
        assert repr(name) in notice
        answer = await shared_tenant.http.get(f"/executions/{execution['id']}/files/{name}")
        assert answer.status_code == 404, answer.text
    assert "no regular file" in notice


async def test_odd_names_and_kinds_are_named_and_not_kept(shared_tenant: TenantClient, attacker: str) -> None:
    execution, sizes, notice = await run_attack(shared_tenant, attacker, "odd_files")
    assert execution["output_data"] == [True] * 9, "these are refused inside"
    # A worker that is root reads what the agent closed for itself; another names it.
    assert sizes.keys() - {"closed/a", "closed.txt"} == {"own.txt", "\u202eevil"}
    for name in ("back\\\\slash", "line\\nbreak", "xff", "x1b"):
        assert name in notice, notice
    assert "\x1b" not in notice


async def test_many_files_are_counted(shared_tenant: TenantClient, attacker: str) -> None:
    _, sizes, notice = await run_attack(shared_tenant, attacker, "many")
    assert len(sizes) == 500
    assert "9491 more (at most 500 files are kept)" in notice


async def test_deep_folders_are_named(shared_tenant: TenantClient, attacker: str) -> None:
    _, sizes, notice = await run_attack(shared_tenant, attacker, "deep")
    assert sizes == {"own.txt": 3}
    assert "folders may lie 32 deep" in notice
    assert len(notice) < 400


async def test_sparse_files_do_not_fill_object_storage(shared_tenant: TenantClient, attacker: str) -> None:
    _, sizes, notice = await run_attack(shared_tenant, attacker, "sparse")
    assert sum(sizes.values()) <= 256 * MIB
    assert sizes.keys() == {"own.txt", "sparse-00", "sparse-01", "vast"}
    assert sizes["vast"] == 0, "a limit of the sandbox holds it"
    assert "all files together may have" in notice


async def test_a_full_folder_is_an_error_of_the_agent_alone(shared_tenant: TenantClient, attacker: str) -> None:
    execution, sizes, notice = await run_attack(shared_tenant, attacker, "fill")
    assert execution["output_data"] <= 256 * MIB
    assert sum(sizes.values()) <= 256 * MIB
    assert notice == ""


async def test_processes_that_go_on_writing_change_nothing(shared_tenant: TenantClient, attacker: str) -> None:
    for _ in range(5):
        execution, sizes, _ = await run_attack(shared_tenant, attacker, "survivors")
        assert sizes["own.txt"] == 3
        for path in ("grown-a", "grown-b"):
            if path in sizes:
                content = (await shared_tenant.http.get(f"/executions/{execution['id']}/files/{path}")).content
                assert content == b"x" * sizes[path]
        assert sizes.get("folder/passwd", sizes.get("moved/passwd", 0)) == 0


@pytest.mark.parametrize("path", ["data.csv", "in/hosts"])
async def test_links_that_the_import_left_are_not_followed(shared_tenant: TenantClient, path: str) -> None:
    """A warm slot has imported the code before its files are written."""
    agent_id = await shared_tenant.deploy_agent(EARLY)
    upload = await shared_tenant.http.post("/files", files={"file": ("data.csv", b"127.0.0.1 evil\n")})
    for _ in range(2):
        execution = await shared_tenant.run_agent(agent_id, files={path: upload.json()["id"]})
        assert (execution["status"], execution["error_type"]) == ("failed", "file_unavailable"), execution
        assert repr(path) in execution["error_message"]


WRITER = """
import os
def handle(payload):
    for name, size in payload["files"].items():
        with open(f"/work/{name}", "wb") as file:
            file.write(os.urandom(size))
    return "done"
"""


@pytest.fixture(scope="module")
async def small_system():
    async with run_system(
        PADDOCK_TENANT_MAX_STORED_BYTES=str(8 * MIB),
        PADDOCK_WORK_MAX_FILES="5",
        PADDOCK_WORK_FILE_BYTES=str(4 * MIB),
        PADDOCK_WORK_TOTAL_BYTES=str(6 * MIB),
    ) as system:
        yield system


async def test_limits_of_what_a_run_leaves_are_settings(small_system: System) -> None:
    async with register_tenant(small_system.url) as tenant:
        agent_id = await tenant.deploy_agent(WRITER)
        execution = await tenant.run_agent(agent_id, {"files": {"a": 4 * MIB + 1, "b": 3 * MIB, "c": 4 * MIB, "d": 5}})
        assert execution["status"] == "completed"
        files = (await tenant.http.get(f"/executions/{execution['id']}/files")).json()["items"]
        assert [file["path"] for file in files] == ["b", "d"]
        execution = await tenant.run_agent(agent_id, {"files": {f"f{number}": 1 for number in range(9)}})
        files = (await tenant.http.get(f"/executions/{execution['id']}/files")).json()["items"]
        assert [file["path"] for file in files] == [f"f{number}" for number in range(5)]


async def test_what_runs_leave_counts_against_the_quota(small_system: System) -> None:
    """Over it, files are left out by name, and uploads are refused; the runs do not fail."""
    async with register_tenant(small_system.url) as tenant, register_tenant(small_system.url) as other:
        agent_id = await tenant.deploy_agent(WRITER)
        first = await tenant.run_agent(agent_id, {"files": {"a": 3 * MIB, "b": 2 * MIB}})
        assert (await tenant.http.get(f"/executions/{first['id']}/files")).json()["total"] == 2
        second = await tenant.run_agent(agent_id, {"files": {"a": 2 * MIB, "b": 2 * MIB, "c": 10}})
        assert (second["status"], second["output_data"]) == ("completed", "done")
        files = (await tenant.http.get(f"/executions/{second['id']}/files")).json()["items"]
        assert [file["path"] for file in files] == ["a", "c"]
        (notice,) = [e["message"] for e in await tenant.list_events(second["id"]) if "Not kept" in e["message"]]
        assert "'b' (the tenant's storage is full" in notice
        refused = await tenant.http.post("/files", files={"file": ("x", b"x" * (2 * MIB))})
        assert (refused.status_code, refused.json()["error"]) == (413, "quota_exceeded")
        # Another tenant has room, and what is uploaded and given to a run counts once.
        upload = await other.http.post("/files", files={"file": ("x", b"x" * (3 * MIB))})
        assert upload.status_code == 201, upload.text
        other_agent = await other.deploy_agent(WRITER)
        for _ in range(3):
            run = await other.run_agent(other_agent, {"files": {}}, files={"x": upload.json()["id"]})
            assert run["status"] == "completed", run
        assert (await other.http.post("/files", files={"file": ("x", b"x" * (4 * MIB))})).status_code == 201


async def test_runs_at_the_same_time_do_not_pass_the_quota_together(small_system: System) -> None:
    async with register_tenant(small_system.url) as tenant:
        agent_id = await tenant.deploy_agent(WRITER)
        started = [await tenant.start_execution(agent_id, {"files": {"a": 3 * MIB}}) for _ in range(5)]
        ended = [await tenant.wait_for_end(execution["id"]) for execution in started]
        assert {execution["status"] for execution in ended} == {"completed"}
        counts = [(await tenant.http.get(f"/executions/{end['id']}/files")).json()["total"] for end in ended]
        assert sum(counts) == 2
        notices = [
            entry["message"]
            for end in ended
            for entry in await tenant.list_events(end["id"])
            if "the tenant's storage is full" in entry["message"]
        ]
        assert len(notices) == 3


async def test_tools_do_not_write_past_the_quota(small_system: System) -> None:
    async with register_tenant(small_system.url) as tenant:
        path = "/tools/filesystem_write/execute"
        answers = []
        for number in range(3):
            arguments = {"path": f"{number}.txt", "content": str(number) * (3 * MIB)}
            answers.append(await tenant.http.post(path, json={"args": arguments}, headers={"Prefer": "wait=60"}))
        assert [answer.is_success for answer in answers[:2]] == [True, True], answers[1].text
        assert "the tenant's storage is full" in answers[2].text


async def test_steps_of_a_plan_share_the_limits_of_one_workspace(small_system: System) -> None:
    """Also those that run at the same time, and a step finds only what fits."""
    async with register_tenant(small_system.url) as tenant:
        agent_id = await tenant.deploy_agent(WRITER)
        steps = [
            {"id": f"s{number}", "agent": agent_id, "inputs": {"files": {f"{number}-a": 10, f"{number}-b": 10}}}
            for number in range(4)
        ]
        steps.append({"id": "last", "agent": agent_id, "depends_on": [s["id"] for s in steps], "inputs": {"files": {}}})
        workflow = await tenant.http.post("/workflows", json={"name": "writers", "steps": steps})
        assert workflow.status_code == 201, workflow.text
        started = await tenant.http.post("/executions", json={"workflow_id": workflow.json()["id"], "inputs": {}})
        ended = await tenant.wait_for_end(started.json()["id"])
        assert ended["status"] == "completed", ended
        files = (await tenant.http.get(f"/executions/{ended['id']}/files")).json()
        assert 4 <= files["total"] <= 5, files
