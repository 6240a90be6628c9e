"""Inside the sandbox it is Python as its authors know it (kind D): folder, user, builtins, started Pythons, results."""

import asyncio
from typing import Any

import pytest

from tests.support.case_inputs import find_case_folder
from tests.support.clients import TenantClient


async def _deployed(tenant: TenantClient, case: str, name: str) -> str:
    agent = await tenant.create_agent()
    version = await tenant.build_version(agent["id"], (find_case_folder(case) / f"{name}.tar.gz").read_bytes())
    assert version["status"] == "ready", version["build_log"]
    return str(agent["id"])


async def _lines(tenant: TenantClient, execution: dict[str, Any]) -> list[str]:
    return [one["message"] for one in await tenant.list_events(execution["id"]) if one["metadata"]["type"] == "log"]


@pytest.mark.parametrize(
    ("name", "output"),
    [("reads-when-called", {"told": "You sort letters."}), ("reads-at-import", {"cities": 2})],
)
async def test_files_by_relative_path(shared_tenant: TenantClient, name: str, output: dict[str, Any]) -> None:
    agent_id = await _deployed(shared_tenant, "03-files-by-relative-path", name)
    assert (await shared_tenant.run_agent(agent_id))["output_data"] == output


WRITES = "def handle(p):\n    with open('out.txt', 'w') as file:\n        file.write('x')\n"


async def test_a_write_into_the_folder_says_where_to_write_instead(shared_tenant: TenantClient) -> None:
    ended = await shared_tenant.run_agent(await shared_tenant.deploy_agent(WRITES))
    assert ended["error_type"] == "OSError"
    assert "out.txt" in ended["error_message"]
    assert "write to a path beneath /tmp" in ended["error_message"]


# A started Python, as agents start one: with an environment of its own or none, elsewhere, isolated, through a shell.
STARTS = """
import json, os, subprocess, sys
ONE = "import helper, idna, sys; print(helper.X, idna.__version__, sys.version.split()[0])"
def told(*command, **more):
    ran = subprocess.run(command, capture_output=True, text=True, **more)
    return ran.stdout.strip() or ran.stderr.strip()[-300:]
def handle(p):
    return {
        "version": sys.version.split()[0],
        "all": sorted({
            told(sys.executable, "-c", ONE), told("python", "-c", ONE), told("python3", "-c", ONE),
            told("python%d.%d" % sys.version_info[:2], "-c", ONE), told(sys.executable, "-c", ONE, env={}),
            told("python", "-c", ONE, cwd="/tmp"), told("python", "-I", "-c", ONE), told("python", "-E", "-s", "-c", ONE),
            told("sh", "-c", "python -m starts"), told("python", "starts.py"), told("python3", "/agent/starts.py"),
            told("/usr/bin/env", "python3", "starts.py"),
        }),
        "found": json.loads(told("python", "-c", "import importlib.metadata as m, json;"
            "print(json.dumps(sorted(d.name for d in m.distributions())))")),
        "mine": told("python", "-c", "import queue; print(queue.MINE)"),
    }
"""


@pytest.mark.parametrize("models", ["", "models: [smollm2]\n"], ids=["fork server", "bubblewrap"])
async def test_pythons_started_by_the_agent(shared_tenant: TenantClient, models: str) -> None:
    files = {"helper.py": "X = 7\n", "queue.py": "MINE = 'mine'\n", "requirements.txt": "idna==3.10\n"}
    files["starts.py"] = STARTS.partition("ONE = ")[0].strip() + "\nimport helper, idna\nif __name__ == '__main__':\n"
    files["starts.py"] += "    print(helper.X, idna.__version__, sys.version.split()[0])\n"
    agent_id = await shared_tenant.deploy_agent(STARTS, f"name: starts\nentrypoint: agent:handle\n{models}", **files)
    ended = await shared_tenant.run_agent(agent_id)
    told = ended["output_data"]
    assert told is not None, ended
    assert told["all"] == [f"7 3.10 {told['version']}"]
    assert told["found"] == ["idna"]
    assert told["mine"] == "mine"


async def test_the_case_of_pythons_started_by_the_agent(shared_tenant: TenantClient) -> None:
    agent_id = await _deployed(shared_tenant, "16-pythons-started-by-the-agent", "helper")
    assert (await shared_tenant.run_agent(agent_id))["output_data"] == {"c": "3.10", "m": "3.10"}


async def test_exit_and_the_user_s_name(shared_tenant: TenantClient) -> None:
    exits = await _deployed(shared_tenant, "17-exit-and-getuser", "exits")
    ended = await shared_tenant.run_agent(exits)
    assert (ended["status"], ended["error_type"], ended["error_message"]) == ("failed", "SystemExit", "2")
    assert "no city given" in await _lines(shared_tenant, ended)
    assert (await shared_tenant.run_agent(exits, {"city": "Ulm"}))["output_data"] == {"city": "Ulm"}
    user = await _deployed(shared_tenant, "17-exit-and-getuser", "user")
    assert (await shared_tenant.run_agent(user))["output_data"] == {"user": "agent", "home": "/tmp", "name": "agent"}


BUILTINS = """
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
async def test_what_plain_python_has(shared_tenant: TenantClient, models: str) -> None:
    agent_id = await shared_tenant.deploy_agent(BUILTINS, f"name: builtins\nentrypoint: agent:handle\n{models}")
    assert (await shared_tenant.run_agent(agent_id))["output_data"] == {
        "quit": "enough",
        "names": [],
        "home": "/tmp",
        "group": "agent",
        "expanded": "/tmp/x",
        "cwd": "/agent",
        "pwd": "/agent",
    }


async def test_results_that_are_nearly_json(shared_tenant: TenantClient) -> None:
    agent_id = await _deployed(shared_tenant, "35-results-that-are-nearly-json", "results")
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
        "generator": "the result is a generator",
        "int keys": "has the keys 1 and '1', which are one key in JSON",
        "lone surrogate": "`text` holds broken text",
    }
    taken = {"big int": {"n": 2**70}, "tuple": [1, 2], "none": None}
    for kind, told in refused.items():
        ended = await shared_tenant.run_agent(agent_id, {"kind": kind})
        assert ended["error_type"] == "result_not_json", ended
        assert told in ended["error_message"]
    for kind, output in taken.items():
        ended = await shared_tenant.run_agent(agent_id, {"kind": kind})
        assert (ended["status"], ended["output_data"]) == ("completed", output)


async def test_sqlite_in_the_archive(shared_tenant: TenantClient) -> None:
    """A database in WAL mode cannot be opened in a folder that is read-only; the page on agents says what to do."""
    cities = await _deployed(shared_tenant, "37-sqlite-in-the-archive", "cities")
    assert (await shared_tenant.run_agent(cities, {"file": "plain.db"}))["output_data"] == {"cities": ["Ulm", "Bern"]}
    wal = await shared_tenant.run_agent(cities, {"file": "wal.db"})
    assert wal["error_message"] == "unable to open database file"
    page = (find_case_folder("37-sqlite-in-the-archive").parents[3] / "docs" / "agents.md").read_text()
    assert wal["error_message"] in page
    assert "immutable=1" in page
    scratch = await _deployed(shared_tenant, "37-sqlite-in-the-archive", "scratch")
    assert (await shared_tenant.run_agent(scratch))["output_data"] == {"mode": "wal", "rows": 1}


FORGES = """
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


async def test_the_platform_s_words_cannot_be_forged(shared_tenant: TenantClient) -> None:
    agent_id = await shared_tenant.deploy_agent(FORGES)
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
    odd = await shared_tenant.run_agent(agent_id, {"how": "pipe", "type": "timeout\n12:00:00 api error"})
    assert odd["error_type"] == "Exception"
    assert (await shared_tenant.run_agent(agent_id, {"how": "exit"}))["error_type"] == "crashed"


async def test_words_of_an_agent_are_cut_by_the_host(shared_tenant: TenantClient) -> None:
    agent_id = await shared_tenant.deploy_agent(FORGES)
    forged = {"how": "pipe", "type": "ValueError", "message": "m" * 500_000, "stack": "s" * 500_000}
    ended = await shared_tenant.run_agent(agent_id, forged)
    assert ended["error_type"] == "ValueError"
    assert ended["error_message"] == "m" * 4000
    assert sum(map(len, await _lines(shared_tenant, ended))) <= 16_000
    raised = await shared_tenant.run_agent(
        await shared_tenant.deploy_agent("def handle(p): raise ValueError('x' * 1_000_000)\n")
    )
    assert raised["error_message"] == "x" * 4000


async def test_long_and_redrawn_lines_of_output(shared_tenant: TenantClient) -> None:
    case = "21-long-and-redrawn-lines-of-output"
    ended = await shared_tenant.run_agent(await _deployed(shared_tenant, case, "long-lines"))
    assert "".join(await _lines(shared_tenant, ended)) == "价格" * 3000 + "é" * 5000
    much = await _lines(
        shared_tenant, await shared_tenant.run_agent(await _deployed(shared_tenant, case, "progress-much"))
    )
    assert "RESULT: 42 letters sorted" in much
    assert len(much) <= 4
    execution = await shared_tenant.start_execution(await _deployed(shared_tenant, case, "progress"))
    while (await shared_tenant.http.get(f"/executions/{execution['id']}")).json()["status"] in ("pending", "preparing"):
        await asyncio.sleep(0.1)
    ended = await shared_tenant.wait_for_end(execution["id"])
    lines = await _lines(shared_tenant, ended)
    assert lines[-1] == "done: 100 letters sorted"
    assert "100/100" in lines[-2]
    assert 1 < len(lines) - 1 < 12, "some of its states, and the last"
