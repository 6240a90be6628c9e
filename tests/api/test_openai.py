"""Agents, crews and workflows answer OpenAI's clients: the `openai` package calls them unchanged."""

from collections.abc import AsyncIterator
from typing import Any

import openai
import pytest

from scripts.system import System
from tests.support.clients import TenantClient
from tests.support.fake_provider import FakeProvider, build_call
from tests.support.model_agents import create_model, create_model_agent, generate_name

WEATHER_TOOL: dict[str, Any] = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "Return the weather of a city.",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
    },
}


def ask(text: str) -> list[Any]:
    return [{"role": "user", "content": text}]


@pytest.fixture
async def client(acme: TenantClient, system: System) -> AsyncIterator[openai.AsyncOpenAI]:
    key = await acme.create_key(scopes=["run:agents"])
    async with openai.AsyncOpenAI(api_key=key, base_url=f"{system.url}/v1", max_retries=0) as client:
        yield client


async def test_models_are_what_can_run(acme: TenantClient, client: openai.AsyncOpenAI, provider: FakeProvider) -> None:
    agent = await create_model_agent(acme, await create_model(acme, provider, generate_name()))
    await acme.create_agent("draft")
    steps = [{"id": "a", "agent": agent["name"], "prompt": "Go"}]
    assert (await acme.http.post("/workflows", json={"name": "flow", "steps": steps})).status_code == 201
    models = [model async for model in client.models.list()]
    assert [(model.id, model.owned_by) for model in models] == [
        (agent["name"], acme.tenant_id),
        ("workflow:flow", acme.tenant_id),
    ]
    for name in (agent["name"], agent["id"], f"agent:{agent['name']}"):
        assert (await client.models.retrieve(name)).id == agent["name"]
    for name in ("nothing", "draft:x", "crew:flow"):
        with pytest.raises(openai.NotFoundError) as refused:
            await client.models.retrieve(name)
        assert refused.value.code == "model_not_found"


async def test_a_model_agent_reads_the_whole_conversation(
    acme: TenantClient, client: openai.AsyncOpenAI, provider: FakeProvider
) -> None:
    model = await create_model(acme, provider, generate_name())
    agent = await create_model_agent(acme, model, instructions="Be brief.")
    provider.queue_text("Your name is Ada.", to=model)
    answer = await client.chat.completions.with_raw_response.create(
        model=agent["name"],
        messages=[
            {"role": "system", "content": "Speak English."},
            {"role": "user", "content": "I am Ada."},
            {"role": "assistant", "content": "Hello."},
            {"role": "user", "content": "Who am I?"},
        ],
        temperature=0.5,
        max_completion_tokens=50,
        stop=["END"],
    )
    completion = answer.parse()
    assert completion.choices[0].message.content == "Your name is Ada."
    assert (completion.choices[0].finish_reason, completion.model) == ("stop", agent["name"])
    assert completion.usage is not None
    assert completion.usage.total_tokens > 0
    sent = provider.requests[-1].body
    assert [message["role"] for message in sent["messages"]] == ["system", "system", "user", "assistant", "user"]
    assert (sent["temperature"], sent["stop"]) == (0.5, ["END"])
    execution = (await acme.http.get(f"/executions/{answer.headers['x-paddock-execution-id']}")).json()
    assert (execution["status"], execution["result"]) == ("completed", {"content": "Your name is Ada."})
    assert float(answer.headers["x-paddock-cost"]) == execution["total_cost"]
    trace = (await acme.http.get(f"/execution-trace/{execution['id']}")).json()
    assert answer.headers["x-paddock-trace-id"] == trace["trace_id"]


async def test_a_stream_has_the_answer_in_pieces(
    acme: TenantClient, client: openai.AsyncOpenAI, provider: FakeProvider
) -> None:
    model = await create_model(acme, provider, generate_name())
    agent = await create_model_agent(acme, model)
    provider.queue_text("Paris is the capital of France.", to=model)
    stream = await client.chat.completions.create(
        model=f"agent:{agent['name']}", messages=ask("Go"), stream=True, stream_options={"include_usage": True}
    )
    chunks = [chunk async for chunk in stream]
    assert chunks[0].choices[0].delta.role == "assistant"
    pieces = [chunk.choices[0].delta.content for chunk in chunks if chunk.choices]
    assert "".join(piece or "" for piece in pieces) == "Paris is the capital of France."
    assert chunks[-2].choices[0].finish_reason == "stop"
    assert chunks[-1].choices == []
    assert chunks[-1].usage is not None
    assert chunks[-1].usage.completion_tokens > 0


async def test_a_callers_tools_make_a_round_trip(
    acme: TenantClient, client: openai.AsyncOpenAI, provider: FakeProvider
) -> None:
    model = await create_model(acme, provider, generate_name())
    agent = await create_model_agent(acme, model, tools=["filesystem_list"])
    messages = ask("How is the weather in Paris?")
    calls = [build_call("get_weather", {"city": "Paris"}, id="call_1"), build_call("filesystem_list", {}, id="call_2")]
    provider.queue_text("I look.", calls=calls, to=model)
    answer = await client.chat.completions.with_raw_response.create(
        model=agent["name"], messages=messages, tools=[WEATHER_TOOL], tool_choice="auto"
    )
    choice = answer.parse().choices[0]
    assert choice.finish_reason == "tool_calls"
    assert choice.message.content == "I look."
    assert choice.message.tool_calls is not None
    [call] = choice.message.tool_calls
    assert (call.id, call.function.name, call.function.arguments) == ("call_1", "get_weather", '{"city": "Paris"}')
    offered = {tool["function"]["name"] for tool in provider.requests[-1].body["tools"]}
    assert offered == {"filesystem_list", "get_weather"}
    events = await acme.http.get(f"/executions/{answer.headers['x-paddock-execution-id']}/events")
    assert "'filesystem_list' are not called" in events.text
    assert "tool_result" not in events.text

    provider.queue_text("It is sunny.", to=model)
    messages += [
        choice.message.model_dump(exclude_none=True),
        {"role": "tool", "tool_call_id": "call_1", "content": "sun"},
    ]
    stream = await client.chat.completions.create(
        model=agent["name"], messages=messages, tools=[WEATHER_TOOL], stream=True
    )
    text = "".join([chunk.choices[0].delta.content or "" async for chunk in stream])
    assert text == "It is sunny."
    assert [message["role"] for message in provider.requests[-1].messages] == ["user", "assistant", "tool"]


async def test_code_and_workflows_answer_the_last_message(acme: TenantClient, client: openai.AsyncOpenAI) -> None:
    source = (
        "def handle(payload, context):\n"
        "    for word in payload['task'].split(): yield word + ' '\n"
        "    return {'content': f\"{len(context.messages)} messages before\"}\n"
    )
    agent_id = await acme.deploy_agent(source)
    messages = [*ask("one"), {"role": "assistant", "content": "two"}, *ask("three four")]
    answer = await client.chat.completions.create(model=agent_id, messages=messages, temperature=1.5)
    assert answer.choices[0].message.content == "three four "
    stream = await client.chat.completions.create(model=agent_id, messages=messages, stream=True)
    assert [chunk.choices[0].delta.content async for chunk in stream][1:-1] == ["three ", "four "]
    echo_id = await acme.deploy_agent("def handle(payload, context):\n    return [payload, len(context.messages)]\n")
    answer = await client.chat.completions.create(model=echo_id, messages=messages)
    assert answer.choices[0].message.content == '[{"task":"three four"},2]'
    steps = [{"id": "a", "agent": echo_id, "prompt": "{{ inputs.topic }}"}]
    flow = {"name": "flow", "inputs": {"topic": {"type": "string"}}, "steps": steps}
    assert (await acme.http.post("/workflows", json=flow)).status_code == 201
    answer = await client.chat.completions.create(model="workflow:flow", messages=ask("horses"))
    assert '"task":"horses"' in str(answer.choices[0].message.content)


async def test_options_without_effect_are_refused(acme: TenantClient, client: openai.AsyncOpenAI) -> None:
    agent_id = await acme.deploy_agent("def handle(payload): return payload\n")
    refused: list[tuple[str, dict[str, Any]]] = [
        ("seed", {"seed": 1}),
        ("reasoning_effort", {"reasoning_effort": "low"}),
        ("response_format", {"response_format": {"type": "json_object"}}),
        ("tools", {"tools": [WEATHER_TOOL]}),
        ("n", {"n": 2}),
        ("top_p", {"top_p": 0.5}),
    ]
    for param, option in refused:
        with pytest.raises(openai.BadRequestError) as error:
            await client.chat.completions.create(model=agent_id, messages=ask("Go"), **option)
        assert error.value.param == param
    accepted_options: dict[str, Any] = {"n": 1, "user": "ada", "temperature": 0.1, "top_p": 1, "presence_penalty": 0}
    answer = await client.chat.completions.create(model=agent_id, messages=ask("Go"), **accepted_options)
    assert answer.choices[0].message.content == '{"task":"Go"}'
