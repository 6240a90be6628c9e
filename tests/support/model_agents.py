"""Create models and model agents of a tenant, and run them."""

import asyncio
import json
import secrets
from typing import Any

from tests.support.clients import TenantClient
from tests.support.fake_provider import FakeProvider

WAIT_HEADERS = {"Prefer": "wait=30"}


def generate_name(prefix: str = "script") -> str:
    """Return a unique name of a model."""
    return f"{prefix}-{secrets.token_hex(4)}"


async def create_model(acme: TenantClient, provider: FakeProvider, name: str, **more: Any) -> str:
    """Register a model of the provider on this machine and return its name."""
    body = {"name": name, "provider": "openai_compatible", "model": name, "base_url": provider.url, **more}
    answer = await acme.http.post("/models", json=body)
    assert answer.status_code == 201, answer.text
    return name


async def create_model_agent(acme: TenantClient, model_name: str | None, **more: Any) -> dict[str, Any]:
    body = {"name": generate_name("agent"), **({} if model_name is None else {"model": model_name}), **more}
    answer = await acme.http.post("/agents", json=body)
    assert answer.status_code == 201, answer.text
    return dict(answer.json())


async def start_execution(acme: TenantClient, agent_id: str, **body: Any) -> str:
    answer = await acme.http.post(f"/agents/{agent_id}/execute", json=body)
    assert answer.status_code == 201, answer.text
    return str(answer.json()["id"])


async def run_execution(acme: TenantClient, agent_id: str, **body: Any) -> dict[str, Any]:
    answer = await acme.http.post(f"/agents/{agent_id}/execute", json=body, headers=WAIT_HEADERS)
    assert answer.status_code == 201, answer.text
    return dict(answer.json())


async def stream_events(acme: TenantClient, execution_id: str, after: int = 0) -> list[dict[str, Any]]:
    """Return the log behind an event, read from the stream to its end."""
    events: list[dict[str, Any]] = []
    headers = {"Last-Event-ID": str(after)}
    async with acme.http.stream("GET", f"/executions/{execution_id}/events", headers=headers) as answer:
        async for line in answer.aiter_lines():
            # An event without data only keeps the connection open.
            if line.startswith("data:") and line[5:].strip():
                events.append(json.loads(line[5:]))
    return events


def join_tokens(events: list[dict[str, Any]]) -> str:
    """Return the text of the tokens, as a client shows it: without those of answers that were begun and discarded."""
    tokens: list[dict[str, Any]] = []
    for event in events:
        if event["type"] == "token":
            tokens.append(event)
        elif discarded_step := event.get("discards"):
            tokens = [token for token in tokens if token["step"] != discarded_step]
    return "".join(token["content"] for token in tokens)


async def wait_for_status(acme: TenantClient, execution_id: str, status: str, patience: float = 90.0) -> dict[str, Any]:
    """Return the execution once it has a status."""
    for _ in range(int(patience / 0.05)):
        execution = (await acme.http.get(f"/executions/{execution_id}")).json()
        if execution["status"] == status:
            return dict(execution)
        await asyncio.sleep(0.05)
    raise AssertionError(execution)
