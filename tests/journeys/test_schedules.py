"""Test schedules with the body that seeds/kasal.md shows, and the executions they start."""

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

CREW_DOCUMENTS = {
    "agents_yaml": "a: {role: Reader, llm: smollm2}",
    "tasks_yaml": "t: {description: '{report_date}', agent: a}",
}
DAILY_SCHEDULE = {
    "name": "Daily Reports",
    "cron_expression": "0 9 * * *",
    "inputs": {"report_date": "today"},
    "enabled": True,
}
SCHEDULES_PATH = "/scheduler/schedules"


async def create_object(acme: TenantClient, path: str, **body: Any) -> dict[str, Any]:
    answer = await acme.http.post(path, json=body)
    assert answer.status_code == 201, answer.text
    return dict(answer.json())


def read_field_errors(answer: httpx.Response) -> dict[str, str]:
    """Return the message of each invalid field of a 422."""
    assert answer.status_code == 422, answer.text
    return {error["field"]: error["message"] for error in answer.json()["errors"]}


def parse_moment(text: str) -> datetime:
    return datetime.fromisoformat(text)


@pytest.fixture
async def owner(system) -> AsyncIterator[asyncpg.Connection]:
    connection = await asyncpg.connect(system.settings.database_owner_url.reveal())
    yield connection
    await connection.close()


async def make_due_now(owner: asyncpg.Connection, schedule: dict[str, Any]) -> datetime:
    """Make the schedule due at the current minute, and then not for a year; return that minute."""
    at = datetime.now(UTC).replace(second=0, microsecond=0)
    query = "UPDATE schedules SET next_run_at = $2, cron_expression = $3 WHERE id = $1"
    await owner.execute(query, ids.decode_id("sched", schedule["id"]), at, f"{at:%M %H %d %m} *")
    return at


async def wait_until(acme: TenantClient, path: str, condition: Any) -> dict[str, Any]:
    for _ in range(600):
        body = (await acme.http.get(path)).json()
        if condition(body):
            return dict(body)
        await asyncio.sleep(0.05)
    raise AssertionError(body)


async def test_schedules_as_kasal_shows_them(acme: TenantClient) -> None:
    web = acme.http
    crew = await create_object(acme, "/crews", name="Reporters", **CREW_DOCUMENTS)
    answer = await web.post(SCHEDULES_PATH, json={**DAILY_SCHEDULE, "crew_id": crew["id"]})
    assert answer.status_code == 201, answer.text
    schedule = answer.json()
    assert {name: schedule[name] for name in DAILY_SCHEDULE} == DAILY_SCHEDULE
    assert (schedule["crew_id"], schedule["agent_id"], schedule["workflow_id"]) == (crew["id"], None, None)
    assert (schedule["timezone"], schedule["overlap"], schedule["catch_up"]) == ("UTC", "skip", 1)
    assert (schedule["tenant_id"], schedule["user_id"]) == (acme.tenant_id, acme.account["id"])
    for name in ("last_run_at", "last_execution_id", "last_status", "last_error", "model", "mode", "cost_limit"):
        assert schedule[name] is None
    for name in ("run_count", "missed_count", "skipped_count", "failed_count"):
        assert schedule[name] == 0
    due, now = parse_moment(schedule["next_run_at"]), datetime.now(UTC)
    assert (due.hour, due.minute, due.second) == (9, 0, 0)
    assert now < due <= now + timedelta(days=1)

    listed = (await web.get(SCHEDULES_PATH)).json()
    listed_schedule = {name: value for name, value in schedule.items() if name != "upcoming"}
    assert listed == {"items": [listed_schedule], "total": 1, "limit": 100, "offset": 0, "has_more": False}
    for reference in (schedule["id"], "Daily Reports"):
        upcoming = [(due + timedelta(days=day)).isoformat().replace("+00:00", "Z") for day in range(5)]
        assert (await web.get(f"{SCHEDULES_PATH}/{reference}")).json() == {**schedule, "upcoming": upcoming}

    toggled = await web.patch(f"{SCHEDULES_PATH}/{schedule['id']}/toggle")
    assert toggled.status_code == 200
    assert (toggled.json()["enabled"], toggled.json()["next_run_at"]) == (False, None)
    assert (await web.get(f"{SCHEDULES_PATH}/{schedule['id']}")).json()["upcoming"] == upcoming
    assert (await web.get(f"{SCHEDULES_PATH}?enabled=true")).json()["items"] == []
    assert (await web.get(f"{SCHEDULES_PATH}?enabled=false")).json()["total"] == 1
    toggled = await web.patch(f"{SCHEDULES_PATH}/Daily Reports/toggle")
    assert (toggled.json()["enabled"], toggled.json()["next_run_at"]) == (True, schedule["next_run_at"])

    body = {"cron_expression": "@weekly", "timezone": "America/New_York", "catch_up": 3, "overlap": "queue"}
    for verb in (web.patch, web.put):
        changed = await verb(f"{SCHEDULES_PATH}/{schedule['id']}", json=body)
        assert changed.status_code == 200, changed.text
        assert {name: changed.json()[name] for name in body} == body
        assert parse_moment(changed.json()["next_run_at"]).weekday() == 6
        body = {"name": "Weekly Reports", "mode": "yolo", "model": "smollm2", "cost_limit": 0.5}
    assert changed.json()["inputs"] == DAILY_SCHEDULE["inputs"]
    body = {"mode": None, "model": None, "cost_limit": None, "inputs": {"report_date": "yesterday"}}
    changed = await web.patch(f"{SCHEDULES_PATH}/Weekly Reports", json=body)
    assert {name: changed.json()[name] for name in body} == body

    assert (
        await web.post(SCHEDULES_PATH, json={**DAILY_SCHEDULE, "name": "Weekly Reports", "crew_id": "Reporters"})
    ).status_code == 409
    other = await create_object(acme, SCHEDULES_PATH, **{**DAILY_SCHEDULE, "name": "Other"}, crew_id="Reporters")
    assert (await web.patch(f"{SCHEDULES_PATH}/{other['id']}", json={"name": "Weekly Reports"})).status_code == 409
    assert (await web.delete(f"{SCHEDULES_PATH}/Weekly Reports")).status_code == 204
    assert (await web.get(f"{SCHEDULES_PATH}/{schedule['id']}")).status_code == 404
    assert [item["name"] for item in (await web.get(SCHEDULES_PATH)).json()["items"]] == ["Other"]


async def test_upkeep_starts_due_schedules(acme: TenantClient, owner) -> None:
    web = acme.http
    agent = await acme.deploy_agent("def handle(p):\n    return {'seen': p}\n")
    schedule = await create_object(
        acme, SCHEDULES_PATH, name="Minutely", cron_expression="30 4 * * *", agent_id=agent, inputs={"a": [1]}
    )
    path = f"{SCHEDULES_PATH}/{schedule['id']}"
    due = await make_due_now(owner, schedule)
    started = await wait_until(acme, path, lambda body: body["run_count"] == 1)
    assert parse_moment(started["next_run_at"]) > due + timedelta(days=300)
    assert started["last_execution_id"] is not None
    assert due <= parse_moment(started["last_run_at"]) <= datetime.now(UTC)
    ended = await acme.wait_for_end(started["last_execution_id"])
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
    assert [
        execution["id"] for execution in (await web.get(f"/executions?schedule_id={schedule['id']}")).json()["items"]
    ] == [ended["id"]]
    # Its executions outlive the schedule.
    assert (await web.delete(path)).status_code == 204
    assert (await web.get(f"{path}/runs")).status_code == 404
    assert (await web.get(f"/executions/{ended['id']}")).json()["schedule_id"] == schedule["id"]


async def test_queued_run_starts_when_the_previous_one_ends(acme: TenantClient, owner) -> None:
    agent = await acme.deploy_agent("import time\ndef handle(p):\n    time.sleep(60)\n")
    body = {"name": "Slow", "cron_expression": "30 4 * * *", "agent_id": agent, "overlap": "queue"}
    schedule = await create_object(acme, SCHEDULES_PATH, **body)
    path = f"{SCHEDULES_PATH}/{schedule['id']}"
    first = (await acme.http.post(f"{path}/run")).json()
    await make_due_now(owner, schedule)
    await wait_until(acme, f"{path}/runs", lambda body: body["items"] and body["items"][0]["outcome"] == "queued")
    assert (await acme.http.post(f"/executions/{first['id']}/cancel")).status_code == 200
    runs = await wait_until(acme, f"{path}/runs", lambda body: body["items"][0]["outcome"] == "fired")
    second = runs["items"][0]["execution_id"]
    assert second not in (None, first["id"])
    await acme.http.post(f"/executions/{second}/cancel")


async def test_schedule_can_be_run_immediately(acme: TenantClient) -> None:
    web = acme.http
    agent = await acme.deploy_agent("def handle(p):\n    return p['n'] + 1\n")
    body = {"name": "Yearly", "cron_expression": "@yearly", "agent_id": agent, "inputs": {"n": 1}, "enabled": False}
    schedule = await create_object(acme, SCHEDULES_PATH, **body)
    path = f"{SCHEDULES_PATH}/{schedule['id']}"
    started = await web.post(f"{path}/run", headers={"Prefer": "wait=30", "Idempotency-Key": generate_name("key")})
    assert started.status_code == 201, started.text
    assert (started.json()["status"], started.json()["result"], started.json()["schedule_id"]) == (
        "completed",
        2,
        schedule["id"],
    )
    read_schedule = (await web.get(path)).json()
    assert (read_schedule["run_count"], read_schedule["last_execution_id"]) == (1, started.json()["id"])
    assert (read_schedule["last_status"], read_schedule["enabled"], read_schedule["next_run_at"]) == (
        "completed",
        False,
        None,
    )
    assert (await web.get(f"{path}/runs")).json()["total"] == 0
    key = {"Idempotency-Key": generate_name("key")}
    first, repeated = [await web.post(f"{path}/run", headers=key) for _ in range(2)]
    assert (repeated.json()["id"], repeated.headers["Idempotency-Replayed"]) == (first.json()["id"], "true")
    assert (await web.get(path)).json()["run_count"] == 2
    await web.patch(f"/agents/{agent}", json={"status": "archived"})
    assert (await web.post(f"{path}/run")).status_code == 409


async def test_schedule_gives_files_and_a_state_to_its_runs(acme: TenantClient) -> None:
    source = (
        "def handle(p, context):\n    context.state['runs'] = context.state.get('runs', 0) + 1\n"
        "    return open(context.files['data.csv']).read()\n"
    )
    agent = await acme.deploy_agent(source)
    file = (await acme.http.post("/files", files={"file": ("data.csv", b"a,b")})).json()
    body = {"name": "Yearly", "cron_expression": "@yearly", "agent_id": agent, "files": {"data.csv": file["id"]}}
    schedule = await create_object(acme, SCHEDULES_PATH, **body, state="yearly")
    assert (schedule["files"], schedule["state"]) == (body["files"], "yearly")
    for _ in range(2):
        path = f"{SCHEDULES_PATH}/{schedule['id']}/run"
        started = (await acme.http.post(path, headers={"Prefer": "wait=30"})).json()
        assert (started["status"], started["result"]) == ("completed", "a,b"), started
    assert (await acme.http.get(f"/agents/{agent}/states/yearly")).json()["value"] == {"runs": 2}
    assert (await acme.http.delete(f"/files/{file['id']}")).status_code == 204
    gone = await acme.http.post(path)
    assert list(read_field_errors(gone)) == ["files"]
    many = {"data.csv": "x" * 70_000}
    refused = await acme.http.post(SCHEDULES_PATH, json={**body, "name": "Other", "files": many})
    assert "at most 65536 are allowed" in refused.text


async def test_invalid_schedule_is_refused_by_field(acme: TenantClient, other_tenant: TenantClient) -> None:
    web = acme.http
    code = await acme.deploy_agent("def handle(p): return 1\n")
    model = await create_object(acme, "/agents", name="modelled", model="smollm2")
    crew = await create_object(acme, "/crews", name="Reporters", **CREW_DOCUMENTS)
    foreign_agent = (await other_tenant.create_agent())["id"]

    async def refuse_schedule(**body: Any) -> dict[str, str]:
        return read_field_errors(
            await web.post(SCHEDULES_PATH, json={"name": "S", "cron_expression": "* * * * *", **body})
        )

    assert list(await refuse_schedule()) == ["crew_id"]
    assert list(await refuse_schedule(agent_id=code, crew_id=crew["id"])) == ["crew_id"]
    assert "no agent" in (await refuse_schedule(agent_id="missing"))["agent_id"]
    assert "no agent" in (await refuse_schedule(agent_id=foreign_agent))["agent_id"]
    assert "no crew" in (await refuse_schedule(crew_id="missing"))["crew_id"]
    assert "no workflow" in (await refuse_schedule(workflow_id="missing"))["workflow_id"]
    for line in ("0 0 30 2 *", "0 0 31 4,6 *", "* * */20 * 1L", "61 * * * *", "nonsense", "0 * * * * *"):
        assert list(await refuse_schedule(agent_id=code, cron_expression=line)) == ["cron_expression"]
    assert list(await refuse_schedule(agent_id=code, timezone="Mars/Olympus")) == ["timezone"]
    assert list(await refuse_schedule(agent_id=code, overlap="replace")) == ["overlap"]
    for catch_up in (-1, 101, 1.5):
        assert list(await refuse_schedule(agent_id=code, catch_up=catch_up)) == ["catch_up"]
    assert list(await refuse_schedule(agent_id=code, agent="x")) == ["agent"]
    # A schedule whose start would be refused each time.
    assert list(await refuse_schedule(agent_id=code, mode="safe")) == ["mode"]
    assert list(await refuse_schedule(agent_id=code, cost_limit=1.0)) == ["cost_limit"]
    assert list(await refuse_schedule(agent_id=model["id"])) == ["inputs"]
    assert list(await refuse_schedule(agent_id=model["id"], inputs={"task": "Go"}, model="unheard-of")) == ["model"]
    assert list(await refuse_schedule(crew_id=crew["id"])) == ["inputs.report_date"]
    deep: Any = {}
    for _ in range(200):
        deep = {"a": deep}
    assert list(await refuse_schedule(agent_id=code, inputs=deep)) == ["inputs"]
    # Several errors together.
    errors = await refuse_schedule(name="a/b", cron_expression="x", timezone="y", agent_id="z")
    assert list(errors) == ["name", "cron_expression", "timezone", "agent_id"]
    assert (await web.get(SCHEDULES_PATH)).json()["total"] == 0
    assert (await web.get("/executions")).json()["total"] == 0

    schedule = await create_object(
        acme, SCHEDULES_PATH, name="S", cron_expression="* * * * *", agent_id=code, enabled=False
    )
    path = f"{SCHEDULES_PATH}/{schedule['id']}"
    for change in ({"cron_expression": "0 0 30 2 *"}, {"timezone": "x"}, {"agent_id": "x"}, {"mode": "safe"}):
        assert list(read_field_errors(await web.patch(path, json=change))) == list(change)
    assert list(read_field_errors(await web.patch(path, json={"agent_id": code, "crew_id": crew["id"]}))) == ["crew_id"]
    assert {**(await web.get(path)).json(), "upcoming": ""} == {**schedule, "upcoming": ""}
    # A new target replaces the old one.
    changed = await web.patch(path, json={"crew_id": "Reporters", "inputs": DAILY_SCHEDULE["inputs"]})
    assert (changed.json()["agent_id"], changed.json()["crew_id"]) == (None, crew["id"])
    # An agent without a version may get one before the schedule is due.
    draft = await acme.create_agent()
    assert (
        await web.post(SCHEDULES_PATH, json={**DAILY_SCHEDULE, "name": "T", "agent_id": draft["id"]})
    ).status_code == 201


async def test_schedule_changes_require_the_scope_to_run(acme: TenantClient) -> None:
    agent = await acme.deploy_agent("def handle(p): return 1\n")
    body = {"name": "S", "cron_expression": "* * * * *", "agent_id": agent}
    schedule = await create_object(acme, SCHEDULES_PATH, **{**body, "enabled": False, "name": "T"})
    path = f"{SCHEDULES_PATH}/{schedule['id']}"
    async with acme.open_client(await acme.create_key(scopes=["write:schedules", "read:schedules"])) as writer:
        calls = [
            writer.post(SCHEDULES_PATH, json=body),
            writer.patch(path, json={"catch_up": 2}),
            writer.post(f"{path}/run"),
        ]
        for answer in await asyncio.gather(*calls, writer.patch(f"{path}/toggle")):
            assert (answer.status_code, answer.json()["error"]) == (403, "missing_scope")
            assert "run:agents" in answer.json()["detail"]
        await acme.http.patch(f"{path}/toggle")
        assert (await writer.patch(f"{path}/toggle")).json()["enabled"] is False
        assert (await writer.get(f"{path}/runs")).status_code == 200
        assert (await writer.delete(path)).status_code == 204
    async with acme.open_client(await acme.create_key(scopes=["write:schedules", "run:agents"])) as runner:
        schedule = (await runner.post(SCHEDULES_PATH, json={**body, "enabled": False})).json()
        assert (await runner.post(f"{SCHEDULES_PATH}/S/run")).status_code == 201
        assert (await runner.get(f"{SCHEDULES_PATH}/S")).status_code == 403
    # The schedule runs for the user who changed it last.
    invite = (await acme.http.post("/users/invites", json={"email": f"{generate_name()}@example.com"})).json()
    registration = {"email": invite["email"], "password": "long enough", "tenant_id": acme.tenant_id}
    member = (
        await acme.http.post("/auth/register", json={**registration, "invite_token": invite["invite_token"]})
    ).json()
    bearer = {"Authorization": f"Bearer {member['access_token']}"}
    assert schedule["user_id"] == acme.account["id"]
    assert (await acme.http.patch(f"{SCHEDULES_PATH}/S", json={"catch_up": 2}, headers=bearer)).json()[
        "user_id"
    ] == member["id"]
    assert (await acme.http.patch(f"{SCHEDULES_PATH}/S/toggle")).json()["user_id"] == acme.account["id"]
    assert (await acme.http.patch(f"{SCHEDULES_PATH}/S/toggle", headers=bearer)).json()["user_id"] == acme.account["id"]


async def test_schedule_starts_a_crew_or_a_workflow(acme: TenantClient) -> None:
    """Start a crew or a workflow that is given by name."""
    crew = await create_object(acme, "/crews", name="Reporters", **CREW_DOCUMENTS)
    steps = [{"id": "news", "crew": "Reporters", "inputs": {"report_date": "today"}}]
    workflow = await create_object(acme, "/workflows", name="News", steps=steps)
    for number, (field, target, kind) in enumerate((("crew_id", crew, "crew"), ("workflow_id", workflow, "workflow"))):
        body = {**DAILY_SCHEDULE, "name": f"S{number}", field: target["name"], "mode": "sandbox", "cost_limit": 0.25}
        if kind == "workflow":
            body["inputs"] = {}
        schedule = await create_object(acme, SCHEDULES_PATH, **body)
        assert schedule[field] == target["id"]
        started = (await acme.http.post(f"{SCHEDULES_PATH}/{schedule['id']}/run")).json()
        assert (started["kind"], started[field], started["schedule_id"]) == (kind, target["id"], schedule["id"])
        assert (started["mode"], started["cost_limit"], started["input_data"]) == ("sandbox", 0.25, body["inputs"])
        await acme.http.post(f"/executions/{started['id']}/cancel")


async def test_schedules_are_listed_by_target(acme: TenantClient, resources) -> None:
    agent = await acme.deploy_agent("def handle(p): return 1\n")
    for name in ("One", "Two"):
        await create_object(acme, SCHEDULES_PATH, **{**DAILY_SCHEDULE, "name": name}, agent_id=agent)
    async with resources.store.tenant_transaction(acme.tenant_id) as tx:
        assert await tx.schedules.list_names_by_target("agent", agent) == ["One", "Two"]
        assert await tx.schedules.list_names_by_target("crew", ids.generate_id("crew")) == []
