"""Test times in queries and bodies, cron lines with their upcoming times, and the envelope of lists.

Cases 28-cron-days-that-end-on-sunday and 29-times-in-queries.
"""

from datetime import UTC, datetime
from typing import Any

import pytest

from domain.shared.errors import TIME_RULE
from tests.journeys.test_crews import create_object, list_refused_fields
from tests.support.clients import TenantClient
from tests.support.model_agents import create_model_agent

TIME_FILTERS = [
    *(("/stats", "start_date", "end_date"), ("/artifacts", "start_date", "end_date")),
    *(("/evaluations", "since", "until"), ("/evaluations/stats", "since", "until")),
    *(("/evaluations/export", "since", "until"), ("/artifacts/export", "start_date", "end_date")),
    *(("/executions", "since", "until"), ("/execution-history", "since", "until")),
    *(("/runtime/executions", "since", "until"), ("/costs", "since", "until"), ("/costs/summary", "since", "until")),
]
TIME_FORMS = [
    *("2026-02-01", "20260201", "2026-02-01T08:30", "2026-02-01T08:30Z", "2026-02-01 08:30:00"),
    *("2026-02-01T08:30:00+01:00", "2026-02-01T08:30:00%2B01:00", "1767225600", "1767225600000", "1767225600.5"),
]


@pytest.mark.parametrize(("path", "since", "until"), TIME_FILTERS)
async def test_every_time_filter_accepts_the_same_forms(acme: TenantClient, path: str, since: str, until: str) -> None:
    for form in TIME_FORMS:
        for name in (since, until):
            answer = await acme.http.get(f"{path}?{name}={form}")
            assert answer.status_code == 200, (path, name, form, answer.text)
    for invalid_time in ("yesterday", "2026-13-01", "", "2026-02"):
        for name in (since, until):
            refused = await acme.http.get(f"{path}?{name}={invalid_time}")
            assert (refused.status_code, list_refused_fields(refused)) == (422, [name]), (
                path,
                invalid_time,
                refused.text,
            )
            assert refused.json()["errors"][0]["message"] == TIME_RULE


async def test_date_as_end_includes_its_whole_day(acme: TenantClient) -> None:
    for at in ("2026-02-01T23:59:59Z", "2026-02-02T00:00:00Z"):
        await create_object(acme, "/evaluations", prompt="p", response="r", created_at=at)
        await create_object(acme, "/artifacts/upload", run_id="r", created_at=at)
    for path, since, until, count in (
        ("/evaluations", "since", "until", "total"),
        ("/evaluations/stats", "since", "until", "total_evaluations"),
        ("/artifacts", "start_date", "end_date", "total"),
        ("/stats", "start_date", "end_date", "total_artifacts"),
    ):
        for query, expected in (
            (f"{until}=2026-02-01", 1),
            (f"{until}=2026-02-02", 2),
            (f"{until}=2026-02-01T00:00:00Z", 0),
            (f"{since}=2026-02-02", 1),
            (f"{since}=2026-02-01&{until}=2026-02-01", 1),
            (f"{until}=1769990400", 1),
        ):
            assert (await acme.http.get(f"{path}?{query}")).json()[count] == expected, (path, query)


async def test_times_in_bodies_are_parsed(acme: TenantClient) -> None:
    for sent in ("2026-02-01T12:00Z", "2026-02-01 12:00", "2026-02-01T13:00 01:00", 1769947200, 1769947200000):
        created = await create_object(acme, "/evaluations", prompt="p", response="r", created_at=sent)
        assert created["created_at"] == "2026-02-01T12:00:00Z"
        call = {"tool_name": "t", "start_time": sent, "end_time": sent}
        body: dict[str, Any] = {"created_at": sent, "tool_calls": [call], "time_env": {"timestamp": sent}}
        artifact = await create_object(acme, "/artifacts/upload", **body)
        assert artifact["created_at"] == "2026-02-01T12:00:00Z"
    key = await create_object(acme, "/api-keys", name="dated", expires_at="2099-02-01")
    assert key["expires_at"] == "2099-02-02T00:00:00Z"
    patched = await acme.http.patch(f"/api-keys/{key['id']}", json={"expires_at": 4073630400})
    assert patched.json()["expires_at"] == "2099-02-01T12:00:00Z"
    for path, body_sent in (
        ("/evaluations", {"prompt": "p", "response": "r", "created_at": "soon"}),
        ("/artifacts/upload", {"created_at": "soon"}),
    ):
        refused = await acme.http.post(path, json=body_sent)
        assert (list_refused_fields(refused), refused.json()["errors"][0]["message"]) == (["created_at"], TIME_RULE)
    refused = await acme.http.post("/api-keys", json={"name": "x", "expires_at": "soon"})
    assert (list_refused_fields(refused), refused.json()["errors"][0]["message"]) == (["expires_at"], TIME_RULE)


async def test_cron_lines_and_upcoming_times(acme: TenantClient) -> None:
    """Accept day ranges that end on Sunday, and show the upcoming times of a disabled schedule."""
    created_agent = await create_model_agent(acme, "smollm2")

    async def create_schedule(line: str, number: int) -> Any:
        body = {"name": f"c{number}", "cron_expression": line, "agent_id": created_agent["id"], "inputs": {"task": "x"}}
        return await acme.http.post("/scheduler/schedules", json={**body, "enabled": False})

    days = {"MON-SUN": {0, 1, 2, 3, 4, 5, 6}, "SAT-SUN": {5, 6}, "6-7": {5, 6}, "FRI-MON": {4, 5, 6, 0}}
    for number, (span, weekdays) in enumerate(days.items()):
        schedule = (await create_schedule(f"0 9 * * {span}", number)).json()
        assert (schedule["enabled"], schedule["next_run_at"]) == (False, None)
        upcoming = [datetime.fromisoformat(at) for at in schedule["upcoming"]]
        assert {at.weekday() for at in upcoming} <= weekdays
        assert upcoming[0] > datetime.now(UTC)
        assert (await acme.http.get(f"/scheduler/schedules/{schedule['id']}")).json()["upcoming"] == schedule[
            "upcoming"
        ]
    toggled = (await acme.http.patch("/scheduler/schedules/c0/toggle")).json()
    assert toggled["upcoming"][0] == toggled["next_run_at"]
    patched = (await acme.http.patch("/scheduler/schedules/c0", json={"cron_expression": "0 10 * * *"})).json()
    assert patched["upcoming"][0] == patched["next_run_at"]
    invalid_lines = (
        "*/90 * * * *",
        "0 9 L-3 * *",
        "0 9 15W * *",
        "0 9 ? * MON",
        "0 0 9 * * *",
        "@reboot",
        "0 9 * * MONTAG",
    )
    messages = ("at most 60", "'L-3'", "'15W'", "'?'", "seconds", "'@reboot'", "'MONTAG'")
    for number, (line, message) in enumerate(zip(invalid_lines, messages, strict=True), 10):
        refused = await create_schedule(line, number)
        assert (refused.status_code, list_refused_fields(refused)) == (422, ["cron_expression"])
        assert message in refused.json()["detail"]


async def test_every_list_has_the_page_envelope(acme: TenantClient) -> None:
    calls = [{"id": f"c{n}", "tool_name": "t"} for n in range(3)]
    artifact = await create_object(acme, "/artifacts/upload", tool_calls=calls)
    series = ("/stats/timeseries?days=3", "/evaluations/timeseries?days=3&bucket=hour")
    for path, count in ((series[0], 3), (series[1], 72), ("/queues", 5)):
        body = (await acme.http.get(path)).json()
        assert (len(body["items"]), body["total"], body["offset"], body["has_more"]) == (count, count, 0, False), path
    for path in series:
        body = (await acme.http.get(path)).json()
        assert (body["data"], body["days"]) == (body["items"], 3)
        assert body["start_date"] == body["data"][0]["date"]
        assert body["end_date"] > body["data"][-1]["date"]
    path = f"/artifacts/{artifact['kurral_id']}/tool-calls"
    body = (await acme.http.get(f"{path}?limit=2&offset=0")).json()
    assert ([item["call"]["id"] for item in body["items"]], body["total"], body["has_more"]) == (["c0", "c1"], 3, True)
    assert [item["call"]["id"] for item in (await acme.http.get(f"{path}?skip=2")).json()["items"]] == ["c2"]


async def test_no_route_returns_a_bare_array(acme: TenantClient) -> None:
    document = (await acme.http.get(str(acme.http.base_url).replace("/api/v1/", "/openapi.json"))).json()
    bare = [
        (method, path)
        for path, item in document["paths"].items()
        for method, operation in item.items()
        for status, answer in operation["responses"].items()
        for content in answer.get("content", {}).values()
        if status.startswith("2") and content.get("schema", {}).get("type") == "array"
    ]
    assert bare == []
