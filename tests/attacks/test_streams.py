"""Attack the pipe by which an entrypoint streams: floods, endless generators, and messages that it forges."""

import asyncio
from typing import Any

import pytest

from tests.support.clients import TenantClient
from tests.support.model_agents import stream_events

# Writes bytes of its own to the pipe of its messages and its result.
FORGER = """
import os

def pack(kind, body, number=0, size=None):
    length = len(body) if size is None else size
    return b"~" + kind + number.to_bytes(4, "big") + length.to_bytes(4, "big") + body

def send(context, *parts):
    data = b"".join(parts)
    while data:
        data = data[os.write(context._writer._file.fileno(), data):]

def handle(payload, context):
    context.emit("first")
    attack = payload["attack"]
    if attack == "kind":
        send(context, pack(b"x", b"1"))
    elif attack == "size":
        send(context, pack(b"o", b"", size=1 << 31))
    elif attack == "large_output":
        send(context, pack(b"o", b'"' + b"x" * 500_000 + b'"', 2))
    elif attack == "broken":
        send(context, pack(b"o", b"{", 2), pack(b"p", b"nope"), pack(b"o", b'"\\xff"', 3), pack(b"o", b"", 4))
    elif attack == "deep":
        send(context, pack(b"o", b"[" * 100_000 + b"]" * 100_000, 2))
    elif attack == "progress":
        send(context, *(pack(b"p", body) for body in (
            b'{"fraction": 7}', b'{"fraction": "x"}', b'{"message": 1}', b"[]", b'{"message": "' + b"x" * 9000 + b'"}',
        )))
    elif attack == "state":
        send(context, pack(b"s", b'{"forged": true}'))
    elif attack == "state_twice":
        context.state
        send(context, pack(b"r", b"null") * 1000)
    elif attack == "answer":
        send(context, b'{}\\n"forged"', pack(b"o", b"1", 2))
        os._exit(0)
    elif attack == "half":
        send(context, pack(b"o", b"1", 2, size=100))
        os._exit(0)
    elif attack == "marks":
        for number in (0, 5, 3, 2**32 - 1):
            os.write(1, b"\\x00\\x1bpaddock\\x1b\\x00" + number.to_bytes(4, "big") + b"line %d\\n" % number)
        context.emit("second")
        print("end")
    elif attack == "numbers":
        send(context, pack(b"o", b"9", 2**32 - 1), pack(b"o", b"8", 1))
        print("end")
    return "own"
"""
# What comes of each: the status, the error, the values that are kept, and how many messages are left out.
OUTCOMES: dict[str, tuple[str, str | None, list[Any], int]] = {
    "kind": ("failed", "crashed", ["first"], 0),
    "size": ("failed", "crashed", ["first"], 0),
    "large_output": ("completed", None, ["first"], 1),
    "broken": ("completed", None, ["first"], 4),
    "deep": ("completed", None, ["first"], 1),
    "progress": ("completed", None, ["first"], 5),
    "state": ("completed", None, ["first"], 0),
    "state_twice": ("completed", None, ["first"], 0),
    "answer": ("failed", "result_not_json", ["first"], 0),
    "half": ("failed", "crashed", ["first"], 0),
    "marks": ("completed", None, ["first", "second"], 0),
    "numbers": ("completed", None, ["first", 9, 8], 0),
}


def pick_values(events: list[dict[str, Any]], kind: str, field: str) -> list[Any]:
    return [event[field] for event in events if event["type"] == kind]


@pytest.fixture(scope="module")
async def forger(shared_tenant: TenantClient) -> str:
    return await shared_tenant.deploy_agent(FORGER)


@pytest.mark.parametrize("attack", OUTCOMES)
async def test_forged_messages_harm_their_own_run_alone(shared_tenant: TenantClient, forger: str, attack: str) -> None:
    status, error_type, values, left_out = OUTCOMES[attack]
    execution = await shared_tenant.run_agent(forger, {"attack": attack})
    assert (execution["status"], execution["error_type"]) == (status, error_type), execution
    assert execution["attempt"] == 1
    events = await stream_events(shared_tenant, execution["id"])
    assert pick_values(events, "output", "value") == values
    assert sum(pick_values(events, "warning", "left_out")) == left_out
    assert pick_values(events, "progress", "message") == []
    if attack in ("marks", "numbers"):
        assert "end" in pick_values(events, "log", "message"), "no output is lost"
    states = (await shared_tenant.http.get(f"/agents/{forger}/states")).json()
    assert states["total"] == 0
    assert (await shared_tenant.run_agent(forger, {"attack": "none"}))["result"] == "own"


async def test_a_flood_without_an_end_fills_no_log_and_starves_no_run(shared_tenant: TenantClient) -> None:
    source = "def handle(p):\n    while True:\n        yield {'filling': 'x' * p['size']}\n"
    flooder = await shared_tenant.deploy_agent(source)
    floods = [await shared_tenant.start_execution(flooder, {"size": size}, timeout=8) for size in (0, 250_000)]
    await asyncio.sleep(1)
    hello = (await shared_tenant.http.get("/agents/hello")).json()["id"]
    for _ in range(3):
        greeting = await shared_tenant.run_agent(hello, {"name": "Ada"})
        assert greeting["status"] == "completed"
    assert [(await shared_tenant.http.get(f"/executions/{flood['id']}")).json()["id"] for flood in floods]
    for flood, most in zip(floods, (10_000, 16), strict=True):
        ended = await shared_tenant.wait_for_end(flood["id"])
        assert (ended["status"], ended["error_type"], ended["attempt"]) == ("failed", "timeout", 1)
        events = await stream_events(shared_tenant, flood["id"])
        assert len(pick_values(events, "output", "value")) == most
        (left_out,) = pick_values(events, "warning", "left_out")
        assert left_out > 0


async def test_a_flood_of_progress_is_an_event_a_second(shared_tenant: TenantClient) -> None:
    source = """
import time

def handle(payload, context):
    end = time.monotonic() + 3
    count = 0
    while time.monotonic() < end:
        count += 1
        context.progress(min(1, count / 1e9), f"step {count}")
    return count
"""
    execution = await shared_tenant.run_agent(await shared_tenant.deploy_agent(source))
    assert execution["result"] > 1000
    events = await stream_events(shared_tenant, execution["id"])
    messages = pick_values(events, "progress", "message")
    assert 2 <= len(messages) <= 20
    assert messages[-1] == f"step {execution['result']}", "the last state is never lost"


async def test_a_state_past_its_limit_is_not_kept(shared_tenant: TenantClient) -> None:
    source = "def handle(p, context):\n    context.state = 'x' * (p['bytes'] - 2)\n"
    agent_id = await shared_tenant.deploy_agent(source)
    failed = await shared_tenant.run_agent(agent_id, {"bytes": 1024 * 1024 + 1})
    assert (failed["status"], failed["error_type"]) == ("failed", "state_too_large")
    assert "1048577 bytes of JSON; at most 1048576" in failed["error_message"]
    assert (await shared_tenant.run_agent(agent_id, {"bytes": 1024 * 1024}))["status"] == "completed"
    states = (await shared_tenant.http.get(f"/agents/{agent_id}/states")).json()["items"]
    assert [state["size_bytes"] for state in states] == [1024 * 1024]
