"""Bill calls without an answer, on the running system."""

import asyncio
from typing import Any

from tests.cases.test_model_streams import format_chunk, format_event
from tests.support.clients import TenantClient
from tests.support.fake_provider import FakeProvider, ScriptedAnswer
from tests.support.model_agents import (
    create_model,
    create_model_agent,
    generate_name,
    run_execution,
    start_execution,
    stream_events,
)
from tests.support.scripted_model import serve_body

PRICE = {"input": 1000.0, "output": 1000.0}


async def list_costs(acme: TenantClient, execution_id: str) -> list[dict[str, Any]]:
    return (await acme.http.get(f"/costs?execution_id={execution_id}")).json()["items"]


async def test_call_cancelled_before_the_first_token_is_billed_for_its_prompt(
    acme: TenantClient, provider: FakeProvider
) -> None:
    name = await create_model(acme, provider, generate_name(), price=PRICE)
    agent = await create_model_agent(acme, name)
    provider.queue_answer(ScriptedAnswer(wait=300), to=name)
    execution_id = await start_execution(acme, agent["id"], task="x" * 4000)
    async with asyncio.timeout(60):
        while not any(request.model == name for request in provider.requests):
            await asyncio.sleep(0.05)
    # The worker notes a moment later what was sent.
    await asyncio.sleep(0.3)
    assert (await acme.http.post(f"/executions/{execution_id}/cancel")).status_code == 200
    async with asyncio.timeout(60):
        while not (cost_items := await list_costs(acme, execution_id)):
            await asyncio.sleep(0.1)
    for cost in cost_items:  # one, unless a busy host made the worker lose its lease
        assert cost["prompt_tokens"] >= 1000
        assert (cost["completion_tokens"], cost["estimated"]) == (0, True)
        assert cost["cost_usd"] >= 1.0


async def test_reported_usage_is_billed_when_the_call_fails(acme: TenantClient) -> None:
    usage = {"prompt_tokens": 1000, "completion_tokens": 5}
    body = (
        format_chunk(content="Paris is")
        + format_event({"choices": [], "usage": usage})
        + format_event({"error": {"message": "m", "code": 400}})
    )
    async with serve_body(body) as url:
        name = generate_name()
        registration = {
            "name": name,
            "provider": "openai_compatible",
            "model": "m",
            "base_url": f"{url}/v1",
            "price": PRICE,
        }
        assert (await acme.http.post("/models", json=registration)).status_code == 201
        execution = await run_execution(acme, (await create_model_agent(acme, name))["id"], task="x")
    assert (execution["status"], execution["error_type"]) == ("failed", "refused")
    [cost] = await list_costs(acme, execution["id"])
    assert (cost["prompt_tokens"], cost["completion_tokens"], cost["estimated"]) == (1000, 5, False)


async def test_unreachable_provider_costs_nothing(acme: TenantClient) -> None:
    name = generate_name()
    registration = {
        "name": name,
        "provider": "openai_compatible",
        "model": "m",
        "base_url": "http://127.0.0.1:1/v1",
        "price": PRICE,
    }
    assert (await acme.http.post("/models", json=registration)).status_code == 201
    execution = await run_execution(acme, (await create_model_agent(acme, name))["id"], task="x" * 4000)
    assert (execution["status"], execution["error_type"]) == ("failed", "unavailable")
    assert [cost["cost_usd"] for cost in await list_costs(acme, execution["id"])] == [0.0] * 4


async def test_answer_of_reasoning_alone_at_the_token_limit_fails(acme: TenantClient, provider: FakeProvider) -> None:
    name = await create_model(acme, provider, generate_name())
    provider.queue_answer(ScriptedAnswer(thinking="Let me see", finish="length"), to=name)
    execution = await run_execution(acme, (await create_model_agent(acme, name))["id"], task="x")
    assert (execution["status"], execution["error_type"]) == ("failed", "refused")
    assert "max_tokens" in execution["error_message"]


async def test_filtered_answer_completes_with_a_warning(acme: TenantClient, provider: FakeProvider) -> None:
    name = await create_model(acme, provider, generate_name())
    provider.queue_answer(ScriptedAnswer(tokens=["Par"], finish="content_filter"), to=name)
    execution = await run_execution(acme, (await create_model_agent(acme, name))["id"], task="x")
    assert (execution["status"], execution["output_data"]) == ("completed", {"content": "Par"})
    assert any(
        "filter" in event["message"]
        for event in await stream_events(acme, execution["id"])
        if event["type"] == "warning"
    )
