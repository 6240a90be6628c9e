"""Show what uploaded code streams while it runs, as its readers see it: over SSE, WebSockets and in its log."""

import json
from typing import Any

from websockets.asyncio.client import connect

from tests.support.clients import TenantClient
from tests.support.model_agents import stream_events

STREAMER = """
import time

def handle(payload, context):
    for number in range(payload.get("count", 3)):
        print("line", number)
        context.progress((number + 1) / 3, f"step {number}")
        yield {"number": number}
        time.sleep(payload.get("pause", 0))
    return {"streamed": number + 1}
"""


def pick(events: list[dict[str, Any]], kind: str) -> list[dict[str, Any]]:
    return [event for event in events if event["type"] == kind]


async def test_a_generator_streams_its_outputs_in_order_with_its_log(shared_tenant: TenantClient, system) -> None:
    agent_id = await shared_tenant.deploy_agent(STREAMER)
    execution = await shared_tenant.start_execution(agent_id)
    events = await stream_events(shared_tenant, execution["id"])
    assert [event["seq"] for event in events] == list(range(1, len(events) + 1))
    kinds = [event["type"] for event in events if event["type"] in ("log", "output")]
    assert kinds == ["log", "output"] * 3
    assert [(event["number"], event["value"]) for event in pick(events, "output")] == [
        (n + 1, {"number": n}) for n in range(3)
    ]
    assert pick(events, "progress")[-1]["message"] == "step 2", "the last state is never lost"
    assert events[-1]["status"] == "completed"
    ended = await shared_tenant.wait_for_end(execution["id"])
    assert ended["result"] == {"streamed": 3}
    assert ended["logs"] == "line 0\nline 1\nline 2"
    assert await stream_events(shared_tenant, execution["id"], after=3) == events[3:]
    logs = (await shared_tenant.http.get(f"/execution-logs/{execution['id']}")).json()["items"]
    assert {entry["metadata"]["type"] for entry in logs} == {"status", "log"}, "outputs are no lines of a log"
    key = await shared_tenant.create_key()
    url = f"ws://127.0.0.1:{system.port}/api/v1/execution-logs/{execution['id']}/stream"
    async with connect(url, additional_headers={"X-API-Key": key}) as socket:
        assert [json.loads(message) async for message in socket] == events


async def test_outputs_are_seen_while_the_run_goes_on(shared_tenant: TenantClient, system) -> None:
    agent_id = await shared_tenant.deploy_agent(STREAMER)
    headers = {"X-API-Key": await shared_tenant.create_key()}
    async with connect(
        f"ws://127.0.0.1:{system.port}/api/v1/agents/{agent_id}/stream", additional_headers=headers
    ) as ws:
        await ws.send(json.dumps({"payload": {"count": 2, "pause": 3}}))
        while (event := json.loads(await ws.recv()))["type"] != "output":
            pass
        assert event["value"] == {"number": 0}
        running = (await shared_tenant.http.get("/executions?status=running&limit=5")).json()["items"]
        assert running, "its run goes on"
        while (event := json.loads(await ws.recv()))["type"] != "complete":
            pass
        assert event["result"] == {"streamed": 2}


async def test_what_was_yielded_stays_when_a_generator_fails(shared_tenant: TenantClient) -> None:
    agent_id = await shared_tenant.deploy_agent("def handle(p):\n    yield 'kept'\n    raise ValueError('midway')\n")
    execution = await shared_tenant.run_agent(agent_id)
    assert (execution["status"], execution["error_type"], execution["result"]) == ("failed", "ValueError", None)
    events = await stream_events(shared_tenant, execution["id"])
    assert [event["value"] for event in pick(events, "output")] == ["kept"]


async def test_a_flood_is_cut_and_says_how_much_was_left_out(shared_tenant: TenantClient) -> None:
    source = "def handle(p):\n    for n in range(p['n']):\n        yield n if p['small'] else 'x' * 200_000\n"
    agent_id = await shared_tenant.deploy_agent(source)
    for small, count, stored_count in ((True, 12_000, 10_000), (False, 30, 20)):
        execution = await shared_tenant.run_agent(agent_id, {"n": count, "small": small}, timeout=60)
        assert execution["status"] == "completed", execution
        events = await stream_events(shared_tenant, execution["id"])
        assert len(pick(events, "output")) == stored_count
        (warning,) = pick(events, "warning")
        assert warning["left_out"] == count - stored_count
        assert f"{count - stored_count} outputs were left out" in warning["message"]
    assert isinstance(execution["result"], str), "the last yield is the result, also of those that were left out"


BAR = r"""
import sys, time

def handle(payload):
    for number in range(251):
        sys.stderr.write(f"\r{number * 2 // 5}%|####    | {number}/250")
        sys.stderr.flush()
        time.sleep(0.01)
    sys.stderr.write("\n")
    print("done")
"""


async def test_a_progress_bar_is_progress_and_its_end_a_line(shared_tenant: TenantClient) -> None:
    execution = await shared_tenant.run_agent(await shared_tenant.deploy_agent(BAR))
    events = await stream_events(shared_tenant, execution["id"])
    progress = pick(events, "progress")
    assert 1 <= len(progress) <= 8
    fractions = [event["fraction"] for event in progress]
    assert fractions == sorted(fractions)
    assert progress[-1]["message"] == "100%|####    | 250/250"
    assert [event["message"] for event in pick(events, "log")] == ["100%|####    | 250/250", "done"]


async def test_the_example_streams_and_continues_its_total(acme: TenantClient) -> None:
    agent_id = await acme.deploy_example("survey")
    execution = await acme.run_agent(agent_id, {"texts": ["one two", "two three four"]})
    assert execution["result"] == {
        "words": 5,
        "common": [["two", 2], ["one", 1], ["three", 1]],
        "words_of_all_runs": 5,
    }
    events = await stream_events(acme, execution["id"])
    assert [event["value"] for event in pick(events, "output")] == [{"text": 1, "words": 2}, {"text": 2, "words": 3}]
    assert (pick(events, "progress")[-1]["fraction"], pick(events, "progress")[-1]["message"]) == (1, "2 of 2 texts")
    again = await acme.run_agent(agent_id, {"texts": ["one"]})
    assert again["result"]["words_of_all_runs"] == 6


async def test_a_code_step_of_a_workflow_streams(shared_tenant: TenantClient) -> None:
    agent_id = await shared_tenant.deploy_agent(STREAMER)
    steps = [
        {"id": "streams", "agent": agent_id},
        {
            "id": "uses",
            "agent": "hello",
            "depends_on": ["streams"],
            "inputs": {"name": "{{ steps.streams.outputs.streamed }}"},
        },
    ]
    answer = await shared_tenant.http.post("/workflows", json={"name": "streams-in-a-step", "steps": steps})
    assert answer.status_code == 201, answer.text
    run = (await shared_tenant.http.post("/workflows/streams-in-a-step/execute", json={})).json()
    assert (await shared_tenant.wait_for_end(run["id"]))["status"] == "completed"
    children = (await shared_tenant.http.get(f"/executions?parent_id={run['id']}")).json()["items"]
    child = next(child for child in children if child["step"] == "streams")
    assert len(pick(await stream_events(shared_tenant, child["id"]), "output")) == 3
