"""Test that Python in the sandbox behaves as usual (kind D): folder, user, builtins, child processes, results."""

import asyncio
from typing import Any

import pytest

from tests.support.case_inputs import find_case_folder
from tests.support.clients import TenantClient
from tests.support.model_agents import stream_events
from workers.output import MAX_LOG_BYTES


async def _deploy_case(tenant: TenantClient, case: str, name: str) -> str:
    agent = await tenant.create_agent()
    version = await tenant.build_version(agent["id"], (find_case_folder(case) / f"{name}.tar.gz").read_bytes())
    assert version["status"] == "ready", version["build_log"]
    return str(agent["id"])


async def _list_log_lines(tenant: TenantClient, execution: dict[str, Any]) -> list[str]:
    return [
        event["message"] for event in await tenant.list_events(execution["id"]) if event["metadata"]["type"] == "log"
    ]


@pytest.mark.parametrize(
    ("name", "output"),
    [("reads-when-called", {"told": "You sort letters."}), ("reads-at-import", {"cities": 2})],
)
async def test_files_open_by_relative_path(shared_tenant: TenantClient, name: str, output: dict[str, Any]) -> None:
    agent_id = await _deploy_case(shared_tenant, "03-files-by-relative-path", name)
    assert (await shared_tenant.run_agent(agent_id))["output_data"] == output


WRITING_SOURCE = "def handle(p):\n    with open('out.txt', 'w') as file:\n        file.write('x')\n"


async def test_write_into_the_agents_folder_fails_with_advice(shared_tenant: TenantClient) -> None:
    ended = await shared_tenant.run_agent(await shared_tenant.deploy_agent(WRITING_SOURCE))
    assert ended["error_type"] == "OSError"
    assert "out.txt" in ended["error_message"]
    assert "write beneath /work, whose files are kept, or beneath /tmp" in ended["error_message"]


# Child Pythons as agents start them: with or without an environment, in another folder, isolated, through a shell.
STARTING_SOURCE = """
import json, os, subprocess, sys
ONE = "import helper, idna, sys; print(helper.X, idna.__version__, sys.version.split()[0])"
def run_command(*command, **more):
    ran = subprocess.run(command, capture_output=True, text=True, **more)
    return ran.stdout.strip() or ran.stderr.strip()[-300:]
def handle(p):
    return {
        "version": sys.version.split()[0],
        "all": sorted({
            run_command(sys.executable, "-c", ONE), run_command("python", "-c", ONE), run_command("python3", "-c", ONE),
            run_command("python%d.%d" % sys.version_info[:2], "-c", ONE), run_command(sys.executable, "-c", ONE, env={}),
            run_command("python", "-c", ONE, cwd="/tmp"), run_command("python", "-I", "-c", ONE), run_command("python", "-E", "-s", "-c", ONE),
            run_command("sh", "-c", "python -m starts"), run_command("python", "starts.py"), run_command("python3", "/agent/starts.py"),
            run_command("/usr/bin/env", "python3", "starts.py"),
        }),
        "packages": json.loads(run_command("python", "-c", "import importlib.metadata as m, json;"
            "print(json.dumps(sorted(d.name for d in m.distributions())))")),
        "queue": run_command("python", "-c", "import queue; print(queue.MINE)"),
    }
"""


@pytest.mark.parametrize("models", ["", "models: [smollm2]\n"], ids=["fork server", "bubblewrap"])
async def test_child_pythons_see_packages_and_modules(shared_tenant: TenantClient, models: str) -> None:
    files = {"helper.py": "X = 7\n", "queue.py": "MINE = 'mine'\n", "requirements.txt": "idna==3.10\n"}
    files["starts.py"] = (
        STARTING_SOURCE.partition("ONE = ")[0].strip() + "\nimport helper, idna\nif __name__ == '__main__':\n"
    )
    files["starts.py"] += "    print(helper.X, idna.__version__, sys.version.split()[0])\n"
    agent_id = await shared_tenant.deploy_agent(
        STARTING_SOURCE, f"name: starts\nentrypoint: agent:handle\n{models}", **files
    )
    ended = await shared_tenant.run_agent(agent_id)
    output = ended["output_data"]
    assert output is not None, ended
    assert output["all"] == [f"7 3.10 {output['version']}"]
    assert output["packages"] == ["idna"]
    assert output["queue"] == "mine"


async def test_child_pythons_of_the_case_work(shared_tenant: TenantClient) -> None:
    agent_id = await _deploy_case(shared_tenant, "16-pythons-started-by-the-agent", "helper")
    assert (await shared_tenant.run_agent(agent_id))["output_data"] == {"c": "3.10", "m": "3.10"}


async def test_exit_and_getuser_work(shared_tenant: TenantClient) -> None:
    exits = await _deploy_case(shared_tenant, "17-exit-and-getuser", "exits")
    ended = await shared_tenant.run_agent(exits)
    assert (ended["status"], ended["error_type"], ended["error_message"]) == ("failed", "SystemExit", "2")
    assert "no city given" in await _list_log_lines(shared_tenant, ended)
    assert (await shared_tenant.run_agent(exits, {"city": "Ulm"}))["output_data"] == {"city": "Ulm"}
    user = await _deploy_case(shared_tenant, "17-exit-and-getuser", "user")
    assert (await shared_tenant.run_agent(user))["output_data"] == {"user": "agent", "home": "/tmp", "name": "agent"}


BUILTINS_SOURCE = """
import builtins, grp, os, pwd
def handle(p):
    try:
        quit("enough")
    except SystemExit as ended:
        code = ended.code
    return {
        "quit": code,
        "names": [name for name in ("exit", "help", "copyright", "credits", "license") if not hasattr(builtins, name)],
        "home": pwd.getpwnam("agent").pw_dir, "group": grp.getgrgid(os.getgid()).gr_name,
        "expanded": os.path.expanduser("~agent/x"), "cwd": os.getcwd(), "pwd": os.environ["PWD"],
    }
"""


@pytest.mark.parametrize("models", ["", "models: [smollm2]\n"], ids=["fork server", "bubblewrap"])
async def test_builtins_and_user_database_are_complete(shared_tenant: TenantClient, models: str) -> None:
    agent_id = await shared_tenant.deploy_agent(BUILTINS_SOURCE, f"name: builtins\nentrypoint: agent:handle\n{models}")
    assert (await shared_tenant.run_agent(agent_id))["output_data"] == {
        "quit": "enough",
        "names": [],
        "home": "/tmp",
        "group": "agent",
        "expanded": "/tmp/x",
        "cwd": "/agent",
        "pwd": "/agent",
    }


async def test_results_that_are_not_json_are_explained(shared_tenant: TenantClient) -> None:
    agent_id = await _deploy_case(shared_tenant, "35-results-that-are-nearly-json", "results")
    refused = {
        "nan": "`scores[1]` is nan",
        "inf": "`best` is inf",
        "datetime": "`at` is a datetime.datetime. Return its .isoformat()",
        "decimal": "`sum` is a decimal.Decimal",
        "uuid": "`id` is a uuid.UUID",
        "enum": "`colour` is a main.Colour. Return its .value",
        "dataclass": "`at[0]` is a main.Point",
        "set": "`tags` is a set. Return its list()",
        "bytes": "`raw` is a bytes",
        "int keys": "has the keys 1 and '1', which are one key in JSON",
        "lone surrogate": "`text` holds broken text",
    }
    # A generator is a stream: the last of what it yields is its result.
    accepted = {"big int": {"n": 2**70}, "tuple": [1, 2], "none": None, "generator": {"n": 1}}
    for kind, message in refused.items():
        ended = await shared_tenant.run_agent(agent_id, {"kind": kind})
        assert ended["error_type"] == "result_not_json", ended
        assert message in ended["error_message"]
    for kind, output in accepted.items():
        ended = await shared_tenant.run_agent(agent_id, {"kind": kind})
        assert (ended["status"], ended["output_data"]) == ("completed", output)


async def test_sqlite_files_in_the_archive(shared_tenant: TenantClient) -> None:
    """Open SQLite files of the archive: WAL mode fails in the read-only folder, and the page on agents says what to do."""
    cities = await _deploy_case(shared_tenant, "37-sqlite-in-the-archive", "cities")
    assert (await shared_tenant.run_agent(cities, {"file": "plain.db"}))["output_data"] == {"cities": ["Ulm", "Bern"]}
    wal = await shared_tenant.run_agent(cities, {"file": "wal.db"})
    assert wal["error_message"] == "unable to open database file"
    page = (find_case_folder("37-sqlite-in-the-archive").parents[3] / "docs" / "agents.md").read_text()
    assert wal["error_message"] in page
    assert "immutable=1" in page
    scratch = await _deploy_case(shared_tenant, "37-sqlite-in-the-archive", "scratch")
    assert (await shared_tenant.run_agent(scratch))["output_data"] == {"mode": "wal", "rows": 1}


FORGING_SOURCE = """
import json, os
class timeout(Exception): pass
class worker_lost(Exception): pass
def write(data):
    for fd in range(3, 250):
        try:
            os.write(fd, data)
        except OSError:
            pass
    os._exit(0)
def handle(p):
    if p["how"] == "class":
        raise {"timeout": timeout, "worker_lost": worker_lost}[p["type"]]("forged")
    if p["how"] == "exit":
        os._exit(137)
    write(json.dumps({"error_type": p["type"], "error_message": p.get("message", "forged"),
        "stack": p.get("stack")}).encode() + b"\\n")
"""


async def test_error_types_of_the_platform_cannot_be_forged(shared_tenant: TenantClient) -> None:
    agent_id = await shared_tenant.deploy_agent(FORGING_SOURCE)
    for how, kind in [
        ("class", "timeout"),
        ("class", "worker_lost"),
        ("pipe", "timeout"),
        ("pipe", "out_of_memory"),
        ("pipe", "result_not_json"),
        ("pipe", "sandbox_unavailable"),
        ("pipe", "cancelled"),
    ]:
        ended = await shared_tenant.run_agent(agent_id, {"how": how, "type": kind})
        assert (ended["error_type"], ended["error_message"]) == (f"agent.{kind}", "forged"), ended
    invalid_type = await shared_tenant.run_agent(agent_id, {"how": "pipe", "type": "timeout\n12:00:00 api error"})
    assert invalid_type["error_type"] == "Exception"
    assert (await shared_tenant.run_agent(agent_id, {"how": "exit"}))["error_type"] == "crashed"


async def test_long_errors_of_an_agent_are_truncated(shared_tenant: TenantClient) -> None:
    agent_id = await shared_tenant.deploy_agent(FORGING_SOURCE)
    forged = {"how": "pipe", "type": "ValueError", "message": "m" * 500_000, "stack": "s" * 500_000}
    ended = await shared_tenant.run_agent(agent_id, forged)
    assert ended["error_type"] == "ValueError"
    assert ended["error_message"] == "m" * 4000
    # What it wrote into the pipe of its output is in the log as well.
    assert sum(map(len, await _list_log_lines(shared_tenant, ended))) <= MAX_LOG_BYTES + 16_500
    raised = await shared_tenant.run_agent(
        await shared_tenant.deploy_agent("def handle(p): raise ValueError('x' * 1_000_000)\n")
    )
    assert raised["error_message"] == "x" * 4000


async def test_long_and_redrawn_output_lines_are_collapsed(shared_tenant: TenantClient) -> None:
    case = "21-long-and-redrawn-lines-of-output"
    ended = await shared_tenant.run_agent(await _deploy_case(shared_tenant, case, "long-lines"))
    assert "".join(await _list_log_lines(shared_tenant, ended)) == "价格" * 3000 + "é" * 5000
    progress_lines = await _list_log_lines(
        shared_tenant, await shared_tenant.run_agent(await _deploy_case(shared_tenant, case, "progress-much"))
    )
    assert "RESULT: 42 letters sorted" in progress_lines
    assert len(progress_lines) <= 4
    execution = await shared_tenant.start_execution(await _deploy_case(shared_tenant, case, "progress"))
    while (await shared_tenant.http.get(f"/executions/{execution['id']}")).json()["status"] in ("pending", "preparing"):
        await asyncio.sleep(0.1)
    ended = await shared_tenant.wait_for_end(execution["id"])
    last_state, last_line = await _list_log_lines(shared_tenant, ended)
    assert "100/100" in last_state
    assert last_line == "done: 100 letters sorted"
    events = await stream_events(shared_tenant, ended["id"])
    fractions = [event["fraction"] for event in events if event["type"] == "progress"]
    assert fractions == sorted(fractions)
    assert 1 <= len(fractions) < 12, "some of the states, and no more than one in a second"
