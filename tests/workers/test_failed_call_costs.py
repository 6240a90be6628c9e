"""What calls cost that never came to an answer, on the running system."""

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


async def costs(acme: TenantClient, execution_id: str) -> list[dict[str, Any]]:
    return (await acme.http.get(f"/costs?execution_id={execution_id}")).json()["items"]


async def test_a_call_that_is_cancelled_before_the_first_token_owes_its_prompt(
    acme: TenantClient, provider: FakeProvider
) -> None:
    name = await create_model(acme, provider, generate_name(), price=PRICE)
    made = await create_model_agent(acme, name)
    provider.queue_answer(ScriptedAnswer(wait=300), to=name)
    execution_id = await start_execution(acme, made["id"], task="x" * 4000)
    async with asyncio.timeout(60):
        while not any(asked.model == name for asked in provider.requests):
            await asyncio.sleep(0.05)
    # What was sent is noted in the worker a moment after it came here.
    await asyncio.sleep(0.3)
    assert (await acme.http.post(f"/executions/{execution_id}/cancel")).status_code == 200
    async with asyncio.timeout(60):
        while not (told := await costs(acme, execution_id)):
            await asyncio.sleep(0.1)
    for cost in told:  # one, unless a busy host made the worker lose its lease
        assert cost["prompt_tokens"] >= 1000
        assert (cost["completion_tokens"], cost["estimated"]) == (0, True)
        assert cost["cost_usd"] >= 1.0


async def test_what_was_reported_is_billed_also_when_the_call_fails(acme: TenantClient) -> None:
    usage = {"prompt_tokens": 1000, "completion_tokens": 5}
    body = (
        format_chunk(content="Paris is")
        + format_event({"choices": [], "usage": usage})
        + format_event({"error": {"message": "m", "code": 400}})
    )
    async with serve_body(body) as url:
        name = generate_name()
        told = {"name": name, "provider": "openai_compatible", "model": "m", "base_url": f"{url}/v1", "price": PRICE}
        assert (await acme.http.post("/models", json=told)).status_code == 201
        ended = await run_execution(acme, (await create_model_agent(acme, name))["id"], task="x")
    assert (ended["status"], ended["error_type"]) == ("failed", "refused")
    [cost] = await costs(acme, ended["id"])
    assert (cost["prompt_tokens"], cost["completion_tokens"], cost["estimated"]) == (1000, 5, False)


async def test_what_nobody_answered_costs_nothing(acme: TenantClient) -> None:
    name = generate_name()
    told = {
        "name": name,
        "provider": "openai_compatible",
        "model": "m",
        "base_url": "http://127.0.0.1:1/v1",
        "price": PRICE,
    }
    assert (await acme.http.post("/models", json=told)).status_code == 201
    ended = await run_execution(acme, (await create_model_agent(acme, name))["id"], task="x" * 4000)
    assert (ended["status"], ended["error_type"]) == ("failed", "unavailable")
    assert [cost["cost_usd"] for cost in await costs(acme, ended["id"])] == [0.0] * 4


async def test_an_answer_of_thoughts_alone_that_used_up_its_tokens_is_no_success(
    acme: TenantClient, provider: FakeProvider
) -> None:
    name = await create_model(acme, provider, generate_name())
    provider.queue_answer(ScriptedAnswer(thinking="Let me see", finish="length"), to=name)
    ended = await run_execution(acme, (await create_model_agent(acme, name))["id"], task="x")
    assert (ended["status"], ended["error_type"]) == ("failed", "refused")
    assert "max_tokens" in ended["error_message"]


async def test_an_answer_that_the_filter_cut_counts_with_a_warning(acme: TenantClient, provider: FakeProvider) -> None:
    name = await create_model(acme, provider, generate_name())
    provider.queue_answer(ScriptedAnswer(tokens=["Par"], finish="content_filter"), to=name)
    ended = await run_execution(acme, (await create_model_agent(acme, name))["id"], task="x")
    assert (ended["status"], ended["output_data"]) == ("completed", {"content": "Par"})
    assert any("filter" in one["message"] for one in await stream_events(acme, ended["id"]) if one["type"] == "warning")
