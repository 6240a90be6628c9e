"""Every attack is held by the whole fence, and gets through when the guards named beside it are taken away."""

import asyncio
import contextlib
import ctypes
import hashlib
import json
import os
import secrets
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

from tests.attacks.remains import KINDS
from tests.support.clients import TenantClient
from tests.support.fake_provider import FakeProvider
from tests.support.model_agents import create_model

ROOT = Path(__file__).resolve().parents[2]

# attack → the guards it takes to be gone
ATTACKS: dict[str, list[str]] = {
    "host_files": ["root"],
    "host_packages": ["packages"],
    "other_versions": ["root"],
    "write_outside": ["read_only"],
    "worker_environment": ["environment"],
    "inherited_descriptors": ["descriptors"],
    "host_tcp": ["network", "seccomp"],
    "host_abstract_socket": ["network", "seccomp"],
    "any_socket": ["seccomp"],
    "keyring": ["seccomp"],
    "forbidden_calls": ["seccomp"],
    "nested_namespaces": ["seccomp", "userns"],
    "ptrace": ["seccomp"],
    "siblings_limits": ["seccomp"],
    "other_processes": ["processes"],
    "capabilities": ["capabilities"],
    "kernel_settings": ["proc_masks"],
    "shared_ipc": ["ipc"],
    "shared_session": ["session"],
    "root_only_file": ["uid"],
    "fork_bomb": ["limits"],
    "thread_bomb": ["limits"],
    "memory_of_one": ["limits", "watch", "cgroup"],
    "memory_shared": ["watch", "seccomp", "cgroup"],
    "memory_of_many": ["watch", "cgroup"],
    "memory_of_the_kernel": ["cgroup", "seccomp"],
    "memory_of_many_sockets": ["cgroup"],
    "memory_of_ended_threads": ["watch", "cgroup"],
    "memory_of_hoppers": ["watch", "cgroup"],
    "memory_not_to_be_dumped": ["watch", "cgroup"],
    "limits_of_its_own": ["limits"],
    "disk": ["tmp_size"],
    "inodes": ["watch"],
    "inodes_of_an_ended_thread": ["watch"],
    "terminals": ["terminals"],
    "calls_for_the_whole_host": ["seccomp"],
    "processors": ["cpu"],
    "daemon": ["processes"],
    "stubborn": ["processes"],
}
# The same for programs with a gateway, besides the ones above. What `manifest` and `words` are: `runner.GATEWAY_GUARDS`.
GATEWAY_ATTACKS: dict[str, list[str]] = {
    "gateway_host": ["network"],
    "gateway_sockets": ["seccomp"],
    "gateway_unix": ["seccomp"],
    "gateway_others": ["network"],
    "gateway_models": ["manifest"],
    "gateway_words": ["words"],
    "gateway_key": ["environment"],
    "gateway_memory": ["watch", "cgroup"],
}
# The same for programs with declared hosts. What `admission` and `declaration` are: `runner.GATEWAY_GUARDS`.
EGRESS_ATTACKS: dict[str, list[str]] = {
    "egress_undeclared": ["network"],
    "egress_others": ["seccomp"],
    "egress_private": ["admission"],
    "egress_proxy": ["declaration", "admission"],
}
# A gateway is asked through a socket.
NOT_WITH_A_GATEWAY = {"any_socket"}
# An ordinary user's sandbox has that user's id on the host: it owns its own files, and root's stay closed to it.
ROOT_ONLY = {"root_only_file"}
# What the kernel holds for a tree is bounded by control groups alone, which an ordinary user may not be given.
NEEDS_GROUPS = {"memory_of_many_sockets"}
# A timeout kills the first process of a sandbox by itself, namespace or not; the daemon shows what the namespace adds.
ALWAYS_HELD = {"stubborn"}


WAYS = ("bubblewrap", "forkserver")


def _ordinary_user(uid: int) -> Callable[[], None]:
    """For `preexec_fn`: an ordinary user, who can nevertheless reach the interpreter under a closed home."""
    libc = ctypes.CDLL(None, use_errno=True)
    closed = [folder for folder in (Path(sys.base_prefix), ROOT) if not _reachable(folder)]

    def before_exec() -> None:
        if closed:
            assert libc.unshare(0x00020000) == 0
            assert libc.mount(None, b"/", None, 1 << 18 | 0x4000, None) == 0
            # Open the way to it in a mount namespace of its own: a bind on itself, then the closed parents
            # are covered by an empty folder that holds nothing but the way.
            held = [os.open(folder, os.O_PATH | os.O_DIRECTORY) for folder in closed]
            for folder in closed:
                top = "/" + folder.parts[1]
                assert libc.mount(b"tmpfs", top.encode(), b"tmpfs", 0, b"mode=755") == 0
            for fd, folder in zip(held, closed, strict=True):
                os.makedirs(folder, exist_ok=True)
                assert libc.mount(f"/proc/self/fd/{fd}".encode(), str(folder).encode(), None, 0x1000, None) == 0
        os.setgroups([])
        os.setresgid(uid, uid, uid)
        os.setresuid(uid, uid, uid)

    return before_exec


def _reachable(folder: Path) -> bool:
    return all(parent.stat().st_mode & 0o001 for parent in (folder, *folder.parents))


def _run(plan: list[tuple[str, list[str]]], user: str, way: str) -> dict[tuple[str, bool], dict[str, Any]]:
    return {(one["attack"], not one["without"]): one for one in _told([way], json.dumps(plan), user)}


def _told(arguments: list[str], plan: str, user: str) -> list[dict[str, Any]]:
    before = _ordinary_user(54321) if user == "ordinary" and os.geteuid() == 0 else None
    done = subprocess.run(
        [sys.executable, "-m", "tests.attacks.runner", *arguments],
        input=plan,
        capture_output=True,
        text=True,
        cwd=ROOT,
        preexec_fn=before,
        timeout=600,
        check=False,
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), *filter(None, sys.path)]), "HOME": "/tmp"},
    )
    assert done.returncode == 0, done.stderr[-4000:]
    return [json.loads(line) for line in done.stdout.splitlines()]


USERS = [
    pytest.param("root", marks=pytest.mark.skipif(os.geteuid() != 0, reason="needs root to run as root")),
    "ordinary",
]


# Each attack is shown to be real once per way of making sandboxes; a warm slot has the same fence, and must hold as well.
@pytest.fixture(scope="module", params=USERS)
def user(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(scope="module", params=["bubblewrap", "forkserver", "bubblewrap-warm", "forkserver-warm"])
def way(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(scope="module")
def results(user: str, way: str) -> tuple[str, dict[tuple[str, bool], dict[str, Any]]]:
    plan = [(name, guards) for name, removed in ATTACKS.items() for guards in ([], removed)]
    if way.endswith("-warm"):
        plan = [(name, guards) for name, guards in plan if not guards]
    return user, _run(plan, user, way)


@pytest.mark.parametrize("attack", ATTACKS)
def test_the_fence_holds(results, attack: str) -> None:
    user, told = results
    if attack in ROOT_ONLY and user != "root":
        assert told[(attack, True)]["broke"], "an ordinary user's agent reads what that user owns in its own version"
        return
    result = told[(attack, True)]
    if attack in NEEDS_GROUPS and not result["groups"]:
        assert user != "root", "a root worker on a host with version 1 or 2 has groups"
        assert result["broke"], "docs/security.md says that this is not held without groups"
        return
    assert result.get("broke") is False, result
    assert result["error_type"] != "sandbox_unavailable", result


@pytest.mark.parametrize("attack", [name for name in ATTACKS if name not in ALWAYS_HELD])
def test_the_attack_is_real(results, way: str, attack: str) -> None:
    user, told = results
    if way.endswith("-warm"):
        return
    if attack in ROOT_ONLY and user != "root":
        assert (attack, False) in told
        return
    result = told[(attack, False)]
    assert result.get("broke") is True, result


@pytest.fixture(
    scope="module",
    params=[f"{made_by}-gateway{warm}" for made_by in WAYS for warm in ("", "-warm")],
)
def with_gateway(user: str, request: pytest.FixtureRequest) -> tuple[str, dict[tuple[str, bool], dict[str, Any]]]:
    plan = [(name, []) for name in ATTACKS if name not in NOT_WITH_A_GATEWAY | ROOT_ONLY]
    plan += [(name, []) for name in GATEWAY_ATTACKS]
    if not request.param.endswith("-warm"):
        plan += list(GATEWAY_ATTACKS.items())
    return request.param, _run(plan, user, request.param)


def test_the_fence_holds_with_a_gateway_as_well(with_gateway) -> None:
    _, told = with_gateway
    for result in [result for (_, whole), result in told.items() if whole]:
        if result["attack"] in NEEDS_GROUPS and not result["groups"]:
            continue
        assert result.get("broke") is False, result
        # An attack that fell over is none that was held; one that was ended for what it did is.
        assert result["error_type"] not in ("sandbox_unavailable", "AssertionError", "KeyError", "NameError"), result


def test_the_attacks_on_a_gateway_are_real(with_gateway) -> None:
    way, told = with_gateway
    if not way.endswith("-warm"):
        for attack in GATEWAY_ATTACKS:
            assert told[(attack, False)].get("broke") is True, told[(attack, False)]


@pytest.fixture(scope="module", params=[f"{made_by}-egress{warm}" for made_by in WAYS for warm in ("", "-warm")])
def with_hosts(user: str, request: pytest.FixtureRequest) -> tuple[str, dict[tuple[str, bool], dict[str, Any]]]:
    plan: list[tuple[str, list[str]]] = [(name, []) for name in EGRESS_ATTACKS]
    if not request.param.endswith("-warm"):
        plan += list(EGRESS_ATTACKS.items())
    return request.param, _run(plan, user, request.param)


@pytest.mark.parametrize("attack", EGRESS_ATTACKS)
def test_the_fence_holds_with_declared_hosts_as_well(with_hosts, attack: str) -> None:
    way, told = with_hosts
    held = told[(attack, True)]
    assert (held.get("broke"), held["error_type"]) == (False, None), held
    if not way.endswith("-warm"):
        assert told[(attack, False)].get("broke") is True, told[(attack, False)]


def test_a_stubborn_agent_is_ended_by_its_timeout(results) -> None:
    _, told = results
    result = told[("stubborn", True)]
    assert (result["error_type"], result["broke"]) == ("timeout", False)
    assert result["seconds"] < 20


def test_memory_errors_say_so(results) -> None:
    _, told = results
    for attack in ("memory_of_one", "memory_shared", "memory_of_many", "memory_of_ended_threads", "memory_of_hoppers"):
        result = told[(attack, True)]
        if attack in ("memory_of_one", "memory_shared") and result["error_type"] in ("OSError", "PermissionError"):
            continue  # mmap itself was refused
        assert result["error_type"] == "out_of_memory", result
        assert "MiB" in result["error_message"]
    for attack in ("inodes", "inodes_of_an_ended_thread"):
        assert told[(attack, True)]["error_type"] == "too_many_files"


@pytest.mark.parametrize("way", ["bubblewrap-warm", "forkserver-warm"], scope="function")
def test_nothing_is_left_behind_for_the_next_run(user: str, way: str) -> None:
    kinds = _told([way, "remains"], "", user)
    assert {one["kind"] for one in kinds} == set(KINDS)
    for one in kinds:
        assert one["together"]["found"] is True, f"{one['kind']} is not looked for properly"
        assert [run["found"] for run in one["apart"]] == [None, False, None, False, False], one["kind"]
        assert all(run["waited"] for run in one["apart"]), "these were no warm slots"


# The fork server's slots live in its process namespace and end with it; those of bubblewrap are sent a signal.
@pytest.mark.parametrize(
    ("outliving", "without", "lives"),
    [
        ("bubblewrap", "", False),
        ("bubblewrap", "seccomp", True),
        ("forkserver", "", False),
        ("forkserver", "seccomp", False),
        ("forkserver", "seccomp,processes", True),
    ],
)
def test_no_agent_outlives_its_worker(user: str, outliving: str, without: str, lives: bool) -> None:
    name = f"pdk-{os.getpid() % 10000}-{len(without)}{outliving[0]}"
    with subprocess.Popen(
        [sys.executable, "-m", "tests.attacks.runner", outliving, "outlive", name, without],
        stdout=subprocess.PIPE,
        cwd=ROOT,
        preexec_fn=_ordinary_user(54321) if user == "ordinary" and os.geteuid() == 0 else None,
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), *filter(None, sys.path)]), "HOME": "/tmp"},
    ) as runner:
        assert runner.stdout is not None
        assert runner.stdout.readline() == b"here\n"
        assert _named(name)
        runner.kill()
    for _ in range(200):
        if not (left := _named(name)):
            break
        time.sleep(0.01)
    for pid in left:
        os.kill(pid, signal.SIGKILL)
    assert bool(left) is lives


def _named(name: str) -> list[int]:
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if (folder / "comm").read_text().strip() == name:
                found.append(int(folder.name))
    return found


async def test_every_attack_on_the_path_of_executions(shared_tenant: TenantClient, system) -> None:
    """The same agent, uploaded, built and executed through HTTP by a real worker."""
    source = (Path(__file__).parent / "agent.py").read_text()
    agent_id = await shared_tenant.deploy_agent(
        source, "name: attacks\nentrypoint: agent:handle\nmemory: 200MB\ntimeout: 25\n"
    )
    base = {
        "marker": str(ROOT / "pyproject.toml"),
        "data": str(system.data),
        "code": str(system.data / "cache" / "bundles" / "x"),
        "secret": system.environment["PADDOCK_SECRET_KEY"],
        "port": system.port,
        "address": "127.0.0.2",
        "abstract": "none",
        "runner": os.getpid(),
        "ipc": os.readlink("/proc/self/ns/ipc"),
        "name": "pdk-http",
        "much": 400,
        "processor": min(os.sched_getaffinity(0)),
    }
    for attack in ATTACKS:
        if attack in ROOT_ONLY or (attack in NEEDS_GROUPS and os.geteuid() != 0):
            continue
        timeout = 3 if attack == "stubborn" else 25
        ended = await shared_tenant.run_agent(agent_id, {**base, "attack": attack}, timeout=timeout)
        assert not (ended["output_data"] or {}).get("broke"), (attack, ended["output_data"])
        assert ended["error_type"] not in ("NameError", "KeyError", "sandbox_unavailable"), ended
    comms = [path.read_text().strip() for path in Path("/proc").glob("[0-9]*/comm") if path.exists()]
    assert "pdk-http" not in comms


async def test_every_attack_on_a_gateway_on_the_path_of_executions(
    acme: TenantClient, system, provider: FakeProvider
) -> None:
    """The same, with a model of a provider on this machine, whose key is what the agent looks for."""
    key, settings = f"sk-pdk-{secrets.token_hex(16)}", system.settings
    kept = await acme.http.post("/provider-keys", json={"name": "small-s", "service": "script", "key": key})
    assert kept.status_code == 201, kept.text
    for name in ("small", "large"):
        await create_model(acme, provider, name, api_key_name="small-s")
    source = (Path(__file__).parent / "agent.py").read_text()
    manifest = "name: attacks\nentrypoint: agent:handle\nmemory: 200MB\ntimeout: 25\nmodels: [small]\n"
    agent_id = await acme.deploy_agent(source, manifest)
    parts = [settings.database_url.reveal(), settings.redis_url.reveal(), settings.r2_endpoint_url, provider.url]
    base = {
        "port": system.port,
        "ports": [urlsplit(url).port for url in parts],
        "address": "127.0.0.2",
        "abstract": "none",
        "much": 400,
        "key": hashlib.sha256(key.encode()).hexdigest(),
        "kinds": ["late"],
    }
    beside = await acme.start_execution(agent_id, {**base, "attack": "gateway_wait"})
    while not (printed := [one["message"] for one in await acme.list_events(beside["id"]) if one["message"].isdigit()]):
        await asyncio.sleep(0.1)
    for attack in GATEWAY_ATTACKS:
        ended = await acme.run_agent(agent_id, {**base, "attack": attack, "other": int(printed[0])}, timeout=25)
        assert not (ended["output_data"] or {}).get("broke"), (attack, ended["output_data"])
        assert ended["error_type"] in (None, "out_of_memory"), ended
    assert provider.requests[-1].api_key == key
    assert "large" not in {one.model for one in provider.requests if one.api_key == key}
    await acme.http.post(f"/executions/{beside['id']}/cancel")


async def test_endless_output_is_kept_to_its_limit(shared_tenant: TenantClient) -> None:
    source = (Path(__file__).parent / "agent.py").read_text()
    agent_id = await shared_tenant.deploy_agent(source, "name: loud\nentrypoint: agent:handle\n")
    ended = await shared_tenant.run_agent(agent_id, {"attack": "output", "much": 200})
    assert ended["status"] == "completed"
    logs = [one for one in await shared_tenant.list_events(ended["id"]) if one["metadata"]["type"] == "log"]
    assert sum(len(one["message"]) + 1 for one in logs) <= 66 * 1024
    assert "Only the first 65536 bytes and 4000 lines of output are kept" in logs[-1]["message"]
