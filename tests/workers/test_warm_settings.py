"""Slots that wait with an old secret or variable are ended when it changes, whether or not a run comes."""

import asyncio
from pathlib import Path
from typing import Any

from infra.wiring import Resources
from tests.support.clients import TenantClient
from workers.run.warm_settings import MAX_WATCHED_PROGRAMS, WarmSettings


class RetiredFolders:
    """Stand in for a sandbox, and remember whose slots were retired."""

    def __init__(self) -> None:
        self.folders: list[str] = []

    def retire_slots(self, code: Path) -> None:
        self.folders.append(code.name)


def open_settings() -> tuple[WarmSettings, list[str]]:
    sandbox: Any = RetiredFolders()
    return WarmSettings(sandbox), sandbox.folders


def test_a_change_retires_the_programs_that_were_given_the_row() -> None:
    settings, retired = open_settings()
    for code, sources in (("a", {"secret_1", "agent_1"}), ("b", {"secret_1", "agent_2"}), ("c", {"agent_3"})):
        with settings.watch_run(Path(code), frozenset(sources), settings.change_count):
            pass
    assert retired == []
    settings.retire_changed("secret_1")
    assert retired == ["a", "b"]
    settings.retire_changed("agent_3")
    assert retired == ["a", "b", "c"]
    settings.retire_changed("secret_9")
    assert len(retired) == 3
    settings.retire_changed(None)
    assert retired[3:] == ["a", "b", "c"]


def test_a_change_between_the_reading_and_the_end_of_a_run_is_not_missed() -> None:
    for row_id in ("secret_1", None):
        settings, retired = open_settings()
        loaded_at = settings.change_count
        settings.retire_changed(row_id)
        with settings.watch_run(Path("a"), frozenset({"secret_1"}), loaded_at):
            # Its slots begin to be made only now.
            assert retired == []
        assert retired == ["a"]
        with settings.watch_run(Path("a"), frozenset({"secret_1"}), settings.change_count):
            pass
        assert retired == ["a"]


def test_only_recent_programs_are_remembered() -> None:
    settings, retired = open_settings()
    for number in range(MAX_WATCHED_PROGRAMS + 5):
        with settings.watch_run(Path(str(number)), frozenset({"secret_1"}), settings.change_count):
            pass
    settings.retire_changed("secret_1")
    assert len(retired) == MAX_WATCHED_PROGRAMS


async def test_workers_hear_of_changed_secrets_and_variables(acme: TenantClient, resources: Resources) -> None:
    changes: asyncio.Queue[str | None] = asyncio.Queue()
    resources.bell.listen_to_changes(changes.put_nowait)

    async def wait_for_change(row_id: str) -> None:
        async with asyncio.timeout(20):
            while await changes.get() != row_id:
                pass

    agent = await acme.create_agent()
    secret = (await acme.http.post("/secrets", json={"name": "TOKEN", "value": "a-value"})).json()
    await acme.http.patch("/secrets/TOKEN", json={"value": "another-value"})
    await wait_for_change(secret["id"])
    await acme.http.patch(f"/agents/{agent['id']}", json={"env": {"A": "b"}})
    await wait_for_change(agent["id"])
    await acme.http.delete("/secrets/TOKEN")
    await wait_for_change(secret["id"])
    await acme.http.delete(f"/agents/{agent['id']}")
    await wait_for_change(agent["id"])
