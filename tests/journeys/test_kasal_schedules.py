"""The Scheduler part of seeds/kasal.md, with the body it shows, as api.md settles it."""

import asyncio
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from typing import Any

import asyncpg
import httpx
import pytest

from domain.shared import ids
from tests.support.clients import TenantClient
from tests.support.model_agents import generate_name

CREW = {"agents_yaml": "a: {role: Reader, llm: smollm2}", "tasks_yaml": "t: {description: '{report_date}', agent: a}"}
DAILY = {
    "name": "Daily Reports",
    "cron_expression": "0 9 * * *",
    "inputs": {"report_date": "today"},
    "enabled": True,
}
ALL = "/scheduler/schedules"


async def made(acme: TenantClient, path: str, **body: Any) -> dict[str, Any]:
    answer = await acme.http.post(path, json=body)
    assert answer.status_code == 201, answer.text
    return dict(answer.json())


def wrong(answer: httpx.Response) -> dict[str, str]:
    """Which fields are wrong, and why."""
    assert answer.status_code == 422, answer.text
    return {one["field"]: one["message"] for one in answer.json()["errors"]}


def moment(text: str) -> datetime:
    return datetime.fromisoformat(text)


@pytest.fixture
async def owner(system) -> AsyncIterator[asyncpg.Connection]:
    connection = await asyncpg.connect(system.settings.database_owner_url.reveal())
    yield connection
    await connection.close()


async def due_now(owner: asyncpg.Connection, schedule: dict[str, Any]) -> datetime:
    """Make it due at the minute that has begun last, and not again for a year."""
    at = datetime.now(UTC).replace(second=0, microsecond=0)
    query = "UPDATE schedules SET next_run_at = $2, cron_expression = $3 WHERE id = $1"
    await owner.execute(query, ids.decode_id("sched", schedule["id"]), at, f"{at:%M %H %d %m} *")
    return at


async def until(acme: TenantClient, path: str, there: Any) -> dict[str, Any]:
    for _ in range(600):
        found = (await acme.http.get(path)).json()
        if there(found):
            return dict(found)
        await asyncio.sleep(0.05)
    raise AssertionError(found)


async def test_schedules_as_kasal_shows_them(acme: TenantClient) -> None:
    web = acme.http
    crew = await made(acme, "/crews", name="Reporters", **CREW)
    answer = await web.post(ALL, json={**DAILY, "crew_id": crew["id"]})
    assert answer.status_code == 201, answer.text
    schedule = answer.json()
    assert {name: schedule[name] for name in DAILY} == DAILY
    assert (schedule["crew_id"], schedule["agent_id"], schedule["workflow_id"]) == (crew["id"], None, None)
    assert (schedule["timezone"], schedule["overlap"], schedule["catch_up"]) == ("UTC", "skip", 1)
    assert (schedule["tenant_id"], schedule["user_id"]) == (acme.tenant_id, acme.account["id"])
    for name in ("last_run_at", "last_execution_id", "last_status", "last_error", "model", "mode", "cost_limit"):
        assert schedule[name] is None
    for name in ("run_count", "missed_count", "skipped_count", "failed_count"):
        assert schedule[name] == 0
    due, now = moment(schedule["next_run_at"]), datetime.now(UTC)
    assert (due.hour, due.minute, due.second) == (9, 0, 0)
    assert now < due <= now + timedelta(days=1)

    listed = (await web.get(ALL)).json()
    shown = {name: value for name, value in schedule.items() if name != "upcoming"}
    assert listed == {"items": [shown], "total": 1, "limit": 100, "offset": 0, "has_more": False}
    for reference in (schedule["id"], "Daily Reports"):
        upcoming = [(due + timedelta(days=day)).isoformat().replace("+00:00", "Z") for day in range(5)]
        assert (await web.get(f"{ALL}/{reference}")).json() == {**schedule, "upcoming": upcoming}

    toggled = await web.patch(f"{ALL}/{schedule['id']}/toggle")
    assert toggled.status_code == 200
    assert (toggled.json()["enabled"], toggled.json()["next_run_at"]) == (False, None)
    assert (await web.get(f"{ALL}/{schedule['id']}")).json()["upcoming"] == upcoming
    assert (await web.get(f"{ALL}?enabled=true")).json()["items"] == []
    assert (await web.get(f"{ALL}?enabled=false")).json()["total"] == 1
    toggled = await web.patch(f"{ALL}/Daily Reports/toggle")
    assert (toggled.json()["enabled"], toggled.json()["next_run_at"]) == (True, schedule["next_run_at"])

    body = {"cron_expression": "@weekly", "timezone": "America/New_York", "catch_up": 3, "overlap": "queue"}
    for verb in (web.patch, web.put):
        changed = await verb(f"{ALL}/{schedule['id']}", json=body)
        assert changed.status_code == 200, changed.text
        assert {name: changed.json()[name] for name in body} == body
        assert moment(changed.json()["next_run_at"]).weekday() == 6
        body = {"name": "Weekly Reports", "mode": "yolo", "model": "smollm2", "cost_limit": 0.5}
    assert changed.json()["inputs"] == DAILY["inputs"]
    body = {"mode": None, "model": None, "cost_limit": None, "inputs": {"report_date": "yesterday"}}
    changed = await web.patch(f"{ALL}/Weekly Reports", json=body)
    assert {name: changed.json()[name] for name in body} == body

    assert (await web.post(ALL, json={**DAILY, "name": "Weekly Reports", "crew_id": "Reporters"})).status_code == 409
    other = await made(acme, ALL, **{**DAILY, "name": "Other"}, crew_id="Reporters")
    assert (await web.patch(f"{ALL}/{other['id']}", json={"name": "Weekly Reports"})).status_code == 409
    assert (await web.delete(f"{ALL}/Weekly Reports")).status_code == 204
    assert (await web.get(f"{ALL}/{schedule['id']}")).status_code == 404
    assert [one["name"] for one in (await web.get(ALL)).json()["items"]] == ["Other"]


async def test_upkeep_starts_what_is_due(acme: TenantClient, owner) -> None:
    web = acme.http
    agent = await acme.deploy_agent("def handle(p):\n    return {'seen': p}\n")
    schedule = await made(acme, ALL, name="Minutely", cron_expression="30 4 * * *", agent_id=agent, inputs={"a": [1]})
    path = f"{ALL}/{schedule['id']}"
    due = await due_now(owner, schedule)
    met = await until(acme, path, lambda found: found["run_count"] == 1)
    assert moment(met["next_run_at"]) > due + timedelta(days=300)
    assert met["last_execution_id"] is not None
    assert due <= moment(met["last_run_at"]) <= datetime.now(UTC)
    ended = await acme.wait_for_end(met["last_execution_id"])
    assert (ended["result"], ended["schedule_id"], ended["kind"]) == ({"seen": {"a": [1]}}, schedule["id"], "agent")
    assert ended["user_id"] == acme.account["id"]
    assert (await web.get(path)).json()["last_status"] == "completed"
    runs = (await web.get(f"{path}/runs")).json()
    assert runs["total"] == 1
    assert runs["items"][0] | {"settled_at": ""} == {
        "schedule_id": schedule["id"],
        "due_at": due.isoformat().replace("+00:00", "Z"),
        "outcome": "fired",
        "execution_id": ended["id"],
        "reason": None,
        "settled_at": "",
    }
    assert (await web.get(f"{path}/runs?outcome=missed")).json()["total"] == 0
    assert [one["id"] for one in (await web.get(f"/executions?schedule_id={schedule['id']}")).json()["items"]] == [
        ended["id"]
    ]
    # What it has started outlives it.
    assert (await web.delete(path)).status_code == 204
    assert (await web.get(f"{path}/runs")).status_code == 404
    assert (await web.get(f"/executions/{ended['id']}")).json()["schedule_id"] == schedule["id"]


async def test_what_waits_begins_when_the_one_before_ends(acme: TenantClient, owner) -> None:
    agent = await acme.deploy_agent("import time\ndef handle(p):\n    time.sleep(60)\n")
    body = {"name": "Slow", "cron_expression": "30 4 * * *", "agent_id": agent, "overlap": "queue"}
    schedule = await made(acme, ALL, **body)
    path = f"{ALL}/{schedule['id']}"
    first = (await acme.http.post(f"{path}/run")).json()
    await due_now(owner, schedule)
    await until(acme, f"{path}/runs", lambda found: found["items"] and found["items"][0]["outcome"] == "queued")
    assert (await acme.http.post(f"/executions/{first['id']}/cancel")).status_code == 200
    runs = await until(acme, f"{path}/runs", lambda found: found["items"][0]["outcome"] == "fired")
    second = runs["items"][0]["execution_id"]
    assert second not in (None, first["id"])
    await acme.http.post(f"/executions/{second}/cancel")


async def test_running_one_now(acme: TenantClient) -> None:
    web = acme.http
    agent = await acme.deploy_agent("def handle(p):\n    return p['n'] + 1\n")
    body = {"name": "Yearly", "cron_expression": "@yearly", "agent_id": agent, "inputs": {"n": 1}, "enabled": False}
    schedule = await made(acme, ALL, **body)
    path = f"{ALL}/{schedule['id']}"
    ran = await web.post(f"{path}/run", headers={"Prefer": "wait=30", "Idempotency-Key": generate_name("key")})
    assert ran.status_code == 201, ran.text
    assert (ran.json()["status"], ran.json()["result"], ran.json()["schedule_id"]) == ("completed", 2, schedule["id"])
    found = (await web.get(path)).json()
    assert (found["run_count"], found["last_execution_id"]) == (1, ran.json()["id"])
    assert (found["last_status"], found["enabled"], found["next_run_at"]) == ("completed", False, None)
    assert (await web.get(f"{path}/runs")).json()["total"] == 0
    key = {"Idempotency-Key": generate_name("key")}
    first, again = [await web.post(f"{path}/run", headers=key) for _ in range(2)]
    assert (again.json()["id"], again.headers["Idempotency-Replayed"]) == (first.json()["id"], "true")
    assert (await web.get(path)).json()["run_count"] == 2
    await web.patch(f"/agents/{agent}", json={"status": "archived"})
    assert (await web.post(f"{path}/run")).status_code == 409


async def test_every_mistake_is_named(acme: TenantClient, other_tenant: TenantClient) -> None:
    web = acme.http
    code = await acme.deploy_agent("def handle(p): return 1\n")
    model = await made(acme, "/agents", name="modelled", model="smollm2")
    crew = await made(acme, "/crews", name="Reporters", **CREW)
    theirs = (await other_tenant.create_agent())["id"]

    async def refused(**body: Any) -> dict[str, str]:
        return wrong(await web.post(ALL, json={"name": "S", "cron_expression": "* * * * *", **body}))

    assert list(await refused()) == ["crew_id"]
    assert list(await refused(agent_id=code, crew_id=crew["id"])) == ["crew_id"]
    assert "no agent" in (await refused(agent_id="nobody"))["agent_id"]
    assert "no agent" in (await refused(agent_id=theirs))["agent_id"]
    assert "no crew" in (await refused(crew_id="nobody"))["crew_id"]
    assert "no workflow" in (await refused(workflow_id="nobody"))["workflow_id"]
    for never in ("0 0 30 2 *", "0 0 31 4,6 *", "* * */20 * 1L", "61 * * * *", "nonsense", "0 * * * * *"):
        assert list(await refused(agent_id=code, cron_expression=never)) == ["cron_expression"]
    assert list(await refused(agent_id=code, timezone="Mars/Olympus")) == ["timezone"]
    assert list(await refused(agent_id=code, overlap="replace")) == ["overlap"]
    for catch_up in (-1, 101, 1.5):
        assert list(await refused(agent_id=code, catch_up=catch_up)) == ["catch_up"]
    assert list(await refused(agent_id=code, agent="x")) == ["agent"]
    # What could not be started would be refused each time.
    assert list(await refused(agent_id=code, mode="safe")) == ["mode"]
    assert list(await refused(agent_id=code, cost_limit=1.0)) == ["cost_limit"]
    assert list(await refused(agent_id=model["id"])) == ["inputs"]
    assert list(await refused(agent_id=model["id"], inputs={"task": "Go"}, model="unheard-of")) == ["model"]
    assert list(await refused(crew_id=crew["id"])) == ["inputs.report_date"]
    deep: Any = {}
    for _ in range(200):
        deep = {"a": deep}
    assert list(await refused(agent_id=code, inputs=deep)) == ["inputs"]
    # All at once.
    told = await refused(name="a/b", cron_expression="x", timezone="y", agent_id="z")
    assert list(told) == ["name", "cron_expression", "timezone", "agent_id"]
    assert (await web.get(ALL)).json()["total"] == 0
    assert (await web.get("/executions")).json()["total"] == 0

    schedule = await made(acme, ALL, name="S", cron_expression="* * * * *", agent_id=code, enabled=False)
    path = f"{ALL}/{schedule['id']}"
    for change in ({"cron_expression": "0 0 30 2 *"}, {"timezone": "x"}, {"agent_id": "x"}, {"mode": "safe"}):
        assert list(wrong(await web.patch(path, json=change))) == list(change)
    assert list(wrong(await web.patch(path, json={"agent_id": code, "crew_id": crew["id"]}))) == ["crew_id"]
    assert {**(await web.get(path)).json(), "upcoming": ""} == {**schedule, "upcoming": ""}
    # One takes the place of the other.
    changed = await web.patch(path, json={"crew_id": "Reporters", "inputs": DAILY["inputs"]})
    assert (changed.json()["agent_id"], changed.json()["crew_id"]) == (None, crew["id"])
    # An agent that has nothing to run yet may have when it is due.
    draft = await acme.create_agent()
    assert (await web.post(ALL, json={**DAILY, "name": "T", "agent_id": draft["id"]})).status_code == 201


async def test_whoever_has_something_started_may_start_it(acme: TenantClient) -> None:
    agent = await acme.deploy_agent("def handle(p): return 1\n")
    body = {"name": "S", "cron_expression": "* * * * *", "agent_id": agent}
    schedule = await made(acme, ALL, **{**body, "enabled": False, "name": "T"})
    path = f"{ALL}/{schedule['id']}"
    async with acme.open_client(await acme.create_key(scopes=["write:schedules", "read:schedules"])) as writer:
        calls = [writer.post(ALL, json=body), writer.patch(path, json={"catch_up": 2}), writer.post(f"{path}/run")]
        for answer in await asyncio.gather(*calls, writer.patch(f"{path}/toggle")):
            assert (answer.status_code, answer.json()["error"]) == (403, "missing_scope")
            assert "run:agents" in answer.json()["detail"]
        await acme.http.patch(f"{path}/toggle")
        assert (await writer.patch(f"{path}/toggle")).json()["enabled"] is False
        assert (await writer.get(f"{path}/runs")).status_code == 200
        assert (await writer.delete(path)).status_code == 204
    async with acme.open_client(await acme.create_key(scopes=["write:schedules", "run:agents"])) as runner:
        schedule = (await runner.post(ALL, json={**body, "enabled": False})).json()
        assert (await runner.post(f"{ALL}/S/run")).status_code == 201
        assert (await runner.get(f"{ALL}/S")).status_code == 403
    # It is on behalf of whoever said last what it does.
    invite = (await acme.http.post("/users/invites", json={"email": f"{generate_name()}@example.com"})).json()
    join = {"email": invite["email"], "password": "long enough", "tenant_id": acme.tenant_id}
    member = (await acme.http.post("/auth/register", json={**join, "invite_token": invite["invite_token"]})).json()
    bearer = {"Authorization": f"Bearer {member['access_token']}"}
    assert schedule["user_id"] == acme.account["id"]
    assert (await acme.http.patch(f"{ALL}/S", json={"catch_up": 2}, headers=bearer)).json()["user_id"] == member["id"]
    assert (await acme.http.patch(f"{ALL}/S/toggle")).json()["user_id"] == acme.account["id"]
    assert (await acme.http.patch(f"{ALL}/S/toggle", headers=bearer)).json()["user_id"] == acme.account["id"]


async def test_what_a_schedule_starts(acme: TenantClient) -> None:
    """An agent, a crew or a workflow, as its id or its name."""
    crew = await made(acme, "/crews", name="Reporters", **CREW)
    steps = [{"id": "news", "crew": "Reporters", "inputs": {"report_date": "today"}}]
    flow = await made(acme, "/workflows", name="News", steps=steps)
    for number, (field, one, kind) in enumerate((("crew_id", crew, "crew"), ("workflow_id", flow, "workflow"))):
        body = {**DAILY, "name": f"S{number}", field: one["name"], "mode": "sandbox", "cost_limit": 0.25}
        if kind == "workflow":
            body["inputs"] = {}
        schedule = await made(acme, ALL, **body)
        assert schedule[field] == one["id"]
        ran = (await acme.http.post(f"{ALL}/{schedule['id']}/run")).json()
        assert (ran["kind"], ran[field], ran["schedule_id"]) == (kind, one["id"], schedule["id"])
        assert (ran["mode"], ran["cost_limit"], ran["input_data"]) == ("sandbox", 0.25, body["inputs"])
        await acme.http.post(f"/executions/{ran['id']}/cancel")


async def test_who_is_scheduled_is_known(acme: TenantClient, resources) -> None:
    agent = await acme.deploy_agent("def handle(p): return 1\n")
    for name in ("One", "Two"):
        await made(acme, ALL, **{**DAILY, "name": name}, agent_id=agent)
    async with resources.store.tenant_transaction(acme.tenant_id) as tx:
        assert await tx.schedules.list_names_by_target("agent", agent) == ["One", "Two"]
        assert await tx.schedules.list_names_by_target("crew", ids.generate_id("crew")) == []
