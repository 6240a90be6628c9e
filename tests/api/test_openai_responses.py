"""Responses of OpenAI's clients are runs of threads: they follow each other, branch, run in the background and stream."""

from collections.abc import AsyncIterator
from typing import Any

import openai
import pytest

from scripts.system import System
from tests.support.clients import TenantClient, wait_for_result
from tests.support.fake_provider import FakeProvider, build_call
from tests.support.model_agents import create_model, create_model_agent, generate_name

WEATHER_TOOL: Any = {
    "type": "function",
    "name": "get_weather",
    "parameters": {"type": "object", "properties": {"city": {"type": "string"}}},
}


@pytest.fixture
async def client(acme: TenantClient, system: System) -> AsyncIterator[openai.AsyncOpenAI]:
    key = await acme.create_key(scopes=["run:agents", "read:executions"])
    async with openai.AsyncOpenAI(api_key=key, base_url=f"{system.url}/v1", max_retries=0) as client:
        yield client


@pytest.fixture
async def agent(acme: TenantClient, provider: FakeProvider) -> str:
    model = await create_model(acme, provider, generate_name())
    return str((await create_model_agent(acme, model, name=generate_name("agent")))["name"])


async def test_responses_follow_each_other_in_one_thread(
    acme: TenantClient, client: openai.AsyncOpenAI, provider: FakeProvider, agent: str
) -> None:
    provider.queue_text("Hello, Ada.")
    first = await client.responses.create(model=agent, input="I am Ada.", instructions="Be brief.")
    assert (first.output_text, first.status, first.instructions) == ("Hello, Ada.", "completed", "Be brief.")
    assert first.conversation is not None
    assert first.usage is not None
    provider.queue_text("You are Ada.")
    second = await client.responses.create(model=agent, input="Who am I?", previous_response_id=first.id)
    assert second.conversation == first.conversation
    # Instructions are for their request alone.
    assert [message["content"] for message in provider.requests[-1].messages] == [
        "I am Ada.",
        "Hello, Ada.",
        "Who am I?",
    ]
    thread = (await acme.http.get(f"/threads/{first.conversation.id}/messages")).json()
    assert [message["role"] for message in thread["items"]] == ["user", "assistant", "user", "assistant"]
    provider.queue_text("Still Ada.")
    third = await client.responses.create(model=agent, input="And now?", conversation=first.conversation.id)
    assert third.conversation == first.conversation
    assert len(provider.requests[-1].messages) == 5
    stored = await client.responses.retrieve(second.id)
    assert (stored.output, stored.status, stored.usage) == (second.output, "completed", second.usage)


async def test_a_response_may_be_continued_twice(
    client: openai.AsyncOpenAI, provider: FakeProvider, agent: str
) -> None:
    first = await client.responses.create(model=agent, input="one")
    answers = [
        await client.responses.create(model=agent, input=text, previous_response_id=first.id)
        for text in ("two", "three")
    ]
    # The second branch begins where the first one did.
    assert [message["content"] for message in provider.requests[-1].messages] == ["one", first.output_text, "three"]
    assert len({answer.conversation.id for answer in (first, *answers) if answer.conversation}) == 2


async def test_unstored_responses_leave_no_thread(
    client: openai.AsyncOpenAI, provider: FakeProvider, agent: str
) -> None:
    stored = await client.responses.create(model=agent, input="one")
    answer = await client.responses.create(model=agent, input="two", previous_response_id=stored.id, store=False)
    assert answer.conversation is None
    assert [message["content"] for message in provider.requests[-1].messages] == ["one", stored.output_text, "two"]
    for call in (client.responses.retrieve(answer.id), client.responses.retrieve("resp_nothing")):
        with pytest.raises(openai.NotFoundError):
            await call
    with pytest.raises(openai.BadRequestError) as refused:
        await client.responses.create(model=agent, input="three", previous_response_id=answer.id)
    assert (refused.value.code, refused.value.param) == ("previous_response_not_found", "previous_response_id")


async def test_a_response_of_another_agent_or_tenant_cannot_be_continued(
    acme: TenantClient, other_tenant: TenantClient, system: System, client: openai.AsyncOpenAI, agent: str
) -> None:
    first = await client.responses.create(model=agent, input="one")
    assert first.conversation is not None
    code_agent = await acme.deploy_agent("def handle(payload): return payload\n")
    with pytest.raises(openai.BadRequestError) as refused:
        await client.responses.create(model=code_agent, input="two", previous_response_id=first.id)
    assert refused.value.param == "previous_response_id"
    foreign_agent = await other_tenant.deploy_agent("def handle(payload): return payload\n")
    key = await other_tenant.create_key(scopes=["run:agents", "read:executions"])
    async with openai.AsyncOpenAI(api_key=key, base_url=f"{system.url}/v1", max_retries=0) as foreigner:
        with pytest.raises(openai.BadRequestError):
            await foreigner.responses.create(model=foreign_agent, input="two", previous_response_id=first.id)
        conversation = first.conversation.id
        with pytest.raises(openai.NotFoundError):
            await foreigner.responses.create(model=foreign_agent, input="two", conversation=conversation)
        for call in (
            foreigner.responses.retrieve(first.id),
            foreigner.responses.cancel(first.id),
            foreigner.conversations.retrieve(conversation),
            foreigner.conversations.delete(conversation),
        ):
            with pytest.raises(openai.NotFoundError):
                await call


async def test_a_stream_has_its_events_in_order(client: openai.AsyncOpenAI, provider: FakeProvider, agent: str) -> None:
    provider.queue_text("Paris it is.", thinking="Hm.")
    stream = await client.responses.create(model=agent, input="Which one?", stream=True)
    events = [event async for event in stream]
    kinds = [event.type for event in events]
    assert kinds[:2] == ["response.created", "response.in_progress"]
    assert kinds[-1] == "response.completed"
    order = ["response.output_item.added", "response.content_part.added", "response.output_text.delta"]
    places = [kinds.index(kind) for kind in (*order, "response.output_text.done")]
    assert places == sorted(places)
    assert [event.sequence_number for event in events] == list(range(len(events)))
    text = "".join(event.delta for event in events if event.type == "response.output_text.delta")
    completed: Any = events[-1]
    assert (text, completed.response.output_text) == ("Paris it is.", "Paris it is.")
    again = [event async for event in await client.responses.retrieve(completed.response.id, stream=True)]
    assert [event.type for event in again] == kinds


async def test_functions_of_the_caller_make_a_round_trip(
    client: openai.AsyncOpenAI, provider: FakeProvider, agent: str
) -> None:
    provider.queue_text("", calls=[build_call("get_weather", {"city": "Rome"}, id="call_9")])
    first = await client.responses.create(model=agent, input="Weather?", tools=[WEATHER_TOOL])
    [call] = [item for item in first.output if item.type == "function_call"]
    assert (call.call_id, call.name, call.arguments) == ("call_9", "get_weather", '{"city": "Rome"}')
    provider.queue_text("Sunny.")
    output: Any = [{"type": "function_call_output", "call_id": "call_9", "output": "sun"}]
    second = await client.responses.create(
        model=agent, input=output, previous_response_id=first.id, tools=[WEATHER_TOOL]
    )
    assert second.output_text == "Sunny."
    assert [message["role"] for message in provider.requests[-1].messages] == ["user", "assistant", "tool"]


async def delete_stored(acme: TenantClient, system: System, response_id: str) -> None:
    key = await acme.create_key(scopes=["write:executions"])
    async with openai.AsyncOpenAI(api_key=key, base_url=f"{system.url}/v1") as client:
        await client.responses.delete(response_id)


async def test_background_responses_are_fetched_cancelled_and_deleted(
    acme: TenantClient, system: System, client: openai.AsyncOpenAI, provider: FakeProvider, agent: str
) -> None:
    provider.queue_text("Done.")
    queued = await client.responses.create(model=agent, input="Go", background=True)
    assert queued.status == "queued"

    async def fetch_completed() -> Any:
        response = await client.responses.retrieve(queued.id)
        return response if response.status == "completed" else None

    assert (await wait_for_result(fetch_completed)).output_text == "Done."
    await delete_stored(acme, system, queued.id)
    with pytest.raises(openai.NotFoundError):
        await client.responses.retrieve(queued.id)
    provider.queue_hang(2)
    running = await client.responses.create(model=agent, input="Go", background=True)
    cancelled = await client.responses.cancel(running.id)
    assert (cancelled.status, (await client.responses.retrieve(running.id)).status) == ("cancelled", "cancelled")


async def test_a_reader_who_may_start_nothing_streams_a_response_to_its_end(
    acme: TenantClient, system: System, client: openai.AsyncOpenAI, provider: FakeProvider, agent: str
) -> None:
    # Longer than the seconds after which the rights of a stream's reader are checked again.
    provider.queue_slow(tokens=20, delay=0.3)
    queued = await client.responses.create(model=agent, input="Go", background=True)
    await provider.wait_for_request()
    key = await acme.create_key(scopes=["read:executions"])
    async with openai.AsyncOpenAI(api_key=key, base_url=f"{system.url}/v1", max_retries=0) as reader:
        stream = await reader.responses.retrieve(queued.id, stream=True)
        types = [event.type async for event in stream]
    assert types[-1] == "response.completed"


async def test_conversations_are_threads(
    acme: TenantClient, client: openai.AsyncOpenAI, provider: FakeProvider, agent: str
) -> None:
    items: Any = [{"role": "user", "content": "I am Ada."}, {"role": "assistant", "content": "Hello."}]
    conversation = await client.conversations.create(items=items, metadata={"topic": "names"})
    assert (await client.conversations.retrieve(conversation.id)).metadata == {"topic": "names"}
    await client.responses.create(model=agent, input="Who am I?", conversation=conversation.id)
    assert len(provider.requests[-1].messages) == 3
    assert (await acme.http.get(f"/threads/{conversation.id}")).json()["last_seq"] == 4
    assert (await client.conversations.delete(conversation.id)).deleted
    with pytest.raises(openai.NotFoundError):
        await client.conversations.retrieve(conversation.id)
