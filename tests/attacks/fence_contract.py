"""Every attack is held by the whole fence, and gets through when the guards named beside it are taken away.

Each attack is shown to be real once per way of making sandboxes; a warm slot has the same fence, and must hold as well.
A file per backend, so that two test processes share the work.
"""

import contextlib
import os
import signal
import time
from pathlib import Path

import pytest

from tests.attacks.catalog import ALWAYS_HELD, ATTACKS, NEEDS_GROUPS, ROOT_ONLY
from tests.attacks.leftovers import LEFTOVER_KINDS
from tests.attacks.runner_process import run_runner, start_runner


class FenceContract:
    """What a backend's fence holds. A subclass names the backend; its module has the fixture `way`."""

    backend: str

    @pytest.mark.parametrize("attack", ATTACKS)
    def test_fence_holds(self, results, attack: str) -> None:
        user, by_attack = results
        if attack in ROOT_ONLY and user != "root":
            assert by_attack[(attack, True)]["broke"], (
                "an ordinary user's agent reads what that user owns in its own version"
            )
            return
        result = by_attack[(attack, True)]
        if attack in NEEDS_GROUPS and not result["groups"]:
            assert user != "root", "a root worker on a host with version 1 or 2 has groups"
            assert result["broke"], "docs/security.md says that this is not held without groups"
            return
        assert result.get("broke") is False, result
        assert result["error_type"] != "sandbox_unavailable", result

    @pytest.mark.parametrize("attack", [name for name in ATTACKS if name not in ALWAYS_HELD])
    def test_attack_is_real(self, results, way: str, attack: str) -> None:
        user, by_attack = results
        if way.endswith("-warm"):
            return
        if attack in ROOT_ONLY and user != "root":
            assert (attack, False) in by_attack
            return
        result = by_attack[(attack, False)]
        assert result.get("broke") is True, result

    def test_stubborn_agent_is_ended_by_its_timeout(self, results) -> None:
        _, by_attack = results
        result = by_attack[("stubborn", True)]
        assert (result["error_type"], result["broke"]) == ("timeout", False)
        assert result["seconds"] < 20

    def test_memory_errors_have_their_type(self, results) -> None:
        _, by_attack = results
        for attack in (
            "memory_of_one",
            "memory_shared",
            "memory_of_many",
            "memory_of_ended_threads",
            "memory_of_hoppers",
        ):
            result = by_attack[(attack, True)]
            if attack in ("memory_of_one", "memory_shared") and result["error_type"] in ("OSError", "PermissionError"):
                continue  # mmap itself was refused
            assert result["error_type"] == "out_of_memory", result
            assert "MiB" in result["error_message"]
        for attack in ("inodes", "inodes_of_work", "inodes_of_an_ended_thread"):
            assert by_attack[(attack, True)]["error_type"] == "too_many_files"

    def test_runs_leave_nothing_for_the_next(self, user: str) -> None:
        leftovers = run_runner([f"{self.backend}-warm", "leftovers"], "", user)
        assert {leftover["kind"] for leftover in leftovers} == set(LEFTOVER_KINDS)
        for leftover in leftovers:
            kind = leftover["kind"]
            assert leftover["together"]["found"] is True, f"{kind} is not looked for properly"
            assert [run["found"] for run in leftover["apart"]] == [None, False, None, False, False], kind
            assert all(run["waited"] for run in leftover["apart"]), "the slots were not warm"


def check_outliving(user: str, backend: str, without: str, outlives: bool) -> None:
    """Check whether an agent that wants to go on outlives its killed worker, without some guards."""
    name = f"pdk-{os.getpid() % 10000}-{len(without)}{backend[0]}"
    with start_runner([backend, "outlive", name, without], user) as runner:
        assert runner.stdout is not None
        assert runner.stdout.readline() == b"here\n"
        assert _list_pids_of_command(name)
        runner.kill()
    for _ in range(200):
        if not (survivors := _list_pids_of_command(name)):
            break
        time.sleep(0.01)
    for pid in survivors:
        os.kill(pid, signal.SIGKILL)
    assert bool(survivors) is outlives


def _list_pids_of_command(name: str) -> list[int]:
    pids = []
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if (folder / "comm").read_text().strip() == name:
                pids.append(int(folder.name))
    return pids
