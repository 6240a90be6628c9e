"""Models and model agents of a tenant, as tests make and run them."""

import asyncio
import json
import secrets
from typing import Any

from tests.support.clients import TenantClient
from tests.support.fake_provider import FakeProvider

WAIT_HEADERS = {"Prefer": "wait=30"}


def generate_name(prefix: str = "script") -> str:
    """A name of a model that nobody else scripts."""
    return f"{prefix}-{secrets.token_hex(4)}"


async def create_model(acme: TenantClient, provider: FakeProvider, name: str, **more: Any) -> str:
    """Register a model of the provider on this machine; its name."""
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


async def stream_events(acme: TenantClient, execution_id: str) -> list[dict[str, Any]]:
    """The whole log, as it is streamed."""
    found: list[dict[str, Any]] = []
    async with acme.http.stream("GET", f"/executions/{execution_id}/events") as answer:
        async for line in answer.aiter_lines():
            # Without data it only keeps the connection open.
            if line.startswith("data:") and line[5:].strip():
                found.append(json.loads(line[5:]))
    return found


def join_tokens(told: list[dict[str, Any]]) -> str:
    """The words of all answers."""
    return "".join(one["content"] for one in told if one["type"] == "token")


async def wait_for_status(acme: TenantClient, execution_id: str, status: str, patience: float = 90.0) -> dict[str, Any]:
    """The execution once it has come to a status."""
    for _ in range(int(patience / 0.05)):
        found = (await acme.http.get(f"/executions/{execution_id}")).json()
        if found["status"] == status:
            return dict(found)
        await asyncio.sleep(0.05)
    raise AssertionError(found)
