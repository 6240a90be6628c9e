"""Agents, crews and workflows answer OpenAI's clients: the `openai` package calls them unchanged."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import httpx
import openai
import pytest

from scripts.system import System
from tests.support.clients import TenantClient, wait_for_result
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

PIXEL = "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAQAAAC1HAwCAAAAC0lEQVR42mNk+A8AAQUBAScY42YAAAAASUVORK5CYII="


def ask(text: str) -> list[Any]:
    return [{"role": "user", "content": text}]


@pytest.fixture
async def client(acme: TenantClient, system: System) -> AsyncIterator[openai.AsyncOpenAI]:
    key = await acme.create_key(scopes=["run:agents"])
    async with openai.AsyncOpenAI(api_key=key, base_url=f"{system.url}/v1", max_retries=0) as client:
        yield client


@pytest.fixture
async def agent_name(acme: TenantClient, provider: FakeProvider) -> str:
    return str((await create_model_agent(acme, await create_model(acme, provider, generate_name("echo"))))["name"])


@pytest.fixture
async def sync_client(acme: TenantClient, system: System) -> AsyncIterator[openai.OpenAI]:
    with openai.OpenAI(api_key=await acme.create_key(), base_url=f"{system.url}/v1", max_retries=0) as client:
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


async def test_a_conversation_on_the_server_takes_new_messages_alone(
    acme: TenantClient, client: openai.AsyncOpenAI, provider: FakeProvider
) -> None:
    model = await create_model(acme, provider, generate_name())
    agent = await create_model_agent(acme, model)
    first = await client.chat.completions.with_raw_response.create(
        model=agent["name"], messages=ask("I am Ada."), extra_body={"thread": True}
    )
    thread_id = first.headers["x-paddock-thread-id"]
    for named in ({"extra_body": {"thread_id": thread_id}}, {"extra_headers": {"x-paddock-thread": thread_id}}):
        await client.chat.completions.create(model=agent["name"], messages=ask("Who am I?"), **named)  # type: ignore[arg-type]
    assert [message["role"] for message in provider.requests[-1].messages] == ["user", "assistant"] * 2 + ["user"]
    call = build_call("get_weather", {"city": "Rome"}, id="call_5")
    provider.queue_text("", calls=[call], to=model)
    thread: Any = {"extra_body": {"thread_id": thread_id}, "model": agent["name"], "tools": [WEATHER_TOOL]}
    answer = await client.chat.completions.create(messages=ask("Weather?"), **thread)
    assert answer.choices[0].finish_reason == "tool_calls"
    provider.queue_text("Sunny.", to=model)
    results: Any = [{"role": "tool", "tool_call_id": "call_5", "content": "sun"}]
    answer = await client.chat.completions.create(messages=results, **thread)
    assert answer.choices[0].message.content == "Sunny."
    with pytest.raises(openai.NotFoundError):
        await client.chat.completions.create(
            model=agent["name"], messages=ask("Go"), extra_body={"thread_id": "thread_01k3v9rt0hf7btqeqn5j8x2a4c"}
        )


async def test_text_of_all_steps_is_the_answer_streamed_or_whole(
    acme: TenantClient, client: openai.AsyncOpenAI, provider: FakeProvider
) -> None:
    model = await create_model(acme, provider, generate_name())
    agent = await create_model_agent(acme, model, tools=["filesystem_list"])
    texts = []
    for is_streamed in (True, False):
        provider.queue_text("I look.", calls=[build_call("filesystem_list", {})], to=model)
        provider.queue_text("No files.", to=model)
        if is_streamed:
            stream = await client.chat.completions.create(model=agent["name"], messages=ask("Go"), stream=True)
            texts.append("".join([chunk.choices[0].delta.content or "" async for chunk in stream]))
        else:
            answer = await client.chat.completions.create(model=agent["name"], messages=ask("Go"))
            texts.append(answer.choices[0].message.content or "")
    assert texts == ["I look.\n\nNo files."] * 2


async def test_an_answer_that_is_begun_again_is_whole_or_fails(
    acme: TenantClient, client: openai.AsyncOpenAI, provider: FakeProvider
) -> None:
    model = await create_model(acme, provider, generate_name())
    agent = await create_model_agent(acme, model)
    # The provider breaks off after `w0 w1 w2`; the second try has other words, or the same ones and more.
    provider.queue_cut(3, to=model)
    provider.queue_text("Whole.", to=model)
    answer = await client.chat.completions.create(model=agent["name"], messages=ask("Go"))
    assert answer.choices[0].message.content == "Whole."
    provider.queue_cut(3, to=model)
    provider.queue_text("Something else.", to=model)
    with pytest.raises(openai.APIError) as failed:
        stream = await client.chat.completions.create(model=agent["name"], messages=ask("Go"), stream=True)
        async for _ in stream:
            pass
    assert failed.value.code == "answer_changed"


async def test_a_client_that_hangs_up_cancels_its_run(
    acme: TenantClient, client: openai.AsyncOpenAI, provider: FakeProvider
) -> None:
    model = await create_model(acme, provider, generate_name())
    agent = await create_model_agent(acme, model)
    provider.queue_hang(2, to=model)
    stream = await client.chat.completions.create(model=agent["name"], messages=ask("Go"), stream=True)
    await anext(aiter(stream))
    await stream.close()
    provider.queue_hang(0, to=model)
    with pytest.raises(openai.APITimeoutError):
        await client.chat.completions.create(model=agent["name"], messages=ask("Go"), timeout=3)

    async def list_cancelled() -> bool:
        runs = (await acme.http.get(f"/executions?agent_id={agent['id']}")).json()["items"]
        return [run["status"] for run in runs] == ["cancelled"] * 2

    assert await wait_for_result(list_cancelled)


async def test_errors_have_the_shape_of_openai(acme: TenantClient, client: openai.AsyncOpenAI, system: System) -> None:
    url = f"{system.url}/v1"
    async with openai.AsyncOpenAI(api_key="pdk_nonsense", base_url=url, max_retries=0) as keyless_client:
        with pytest.raises(openai.AuthenticationError) as refused:
            await keyless_client.models.list()
        assert refused.value.code == "invalid_api_key"
    powerless = await acme.create_key(scopes=["read:agents"])
    async with openai.AsyncOpenAI(api_key=powerless, base_url=url, max_retries=0) as powerless_client:
        with pytest.raises(openai.PermissionDeniedError):
            await powerless_client.models.list()
    limited = await acme.create_key(scopes=["run:agents"], rate_limit_per_minute=1)
    async with openai.AsyncOpenAI(api_key=limited, base_url=url, max_retries=0) as limited_client:
        await limited_client.models.list()
        with pytest.raises(openai.RateLimitError) as exceeded:
            await limited_client.models.list()
        assert int(exceeded.value.response.headers["retry-after"]) > 0
    agent_id = await acme.deploy_agent("def handle(payload): raise ValueError('no horses')\n")
    async with openai.AsyncOpenAI(api_key=client.api_key, base_url=url, max_retries=2) as retrying_client:
        with pytest.raises(openai.InternalServerError, match="ValueError: no horses") as failed:
            await retrying_client.chat.completions.create(model=agent_id, messages=ask("Go"))
    assert failed.value.code == "ValueError"
    runs = (await acme.http.get(f"/executions?agent_id={agent_id}")).json()["items"]
    assert len(runs) == 1, "a client must not repeat a failed run by itself"
    headers = {"Authorization": f"Bearer {client.api_key}"}
    nonsense: list[tuple[bytes, int]] = [
        (b"", 400),
        (b"[]", 400),
        (b"{", 400),
        (b"[" * 5000, 400),
        (b'{"model": 5, "messages": []}', 400),
        (b'{"model": "x", "messages": [{"role": "user", "content": "Go"}]}', 404),
        (b'{"model": "x", "messages": [{"role": "wizard", "content": "Go"}]}', 400),
        (b'{"model": "x", "messages": [{"role": "tool", "tool_call_id": "a", "content": "Go"}]}', 400),
        (b'{"model": "x", "messages": [{"role": "user", "content": "Go"}], "unknown": 1}', 400),
        (b'{"model": "x", "messages": [{"role": "user", "content": "Go"}], "mode": "wild"}', 400),
        (b'{"model": "x", "messages": [{"role": "user", "content": "Go"}], "metadata": []}', 400),
        (b'{"model": "x", "messages": [{"role": "user", "content": [{"type": []}]}]}', 400),
        (b'{"model": "x", "messages": [{"role": "user", "content": [{"type": {}}]}]}', 400),
    ]
    async with httpx.AsyncClient(headers=headers) as http:
        for body, status in nonsense:
            answer = await http.post(f"{url}/chat/completions", content=body)
            assert (answer.status_code, set(answer.json()["error"])) == (
                status,
                {"message", "type", "param", "code"},
            ), (body, answer.text)
        for fields in (b'"include": [[]]', b'"include": [{}]', b'"tools": [[]]'):
            body = b'{"model": "x", "input": "Go", ' + fields + b"}"
            answer = await http.post(f"{url}/responses", content=body)
            assert (answer.status_code, "message" in answer.json()["error"]) == (400, True), (body, answer.text)
        for method, path, status in (("GET", "/nothing", 404), ("PUT", "/models", 405), ("POST", "/embeddings", 404)):
            answer = await http.request(method, f"{url}{path}")
            assert (answer.status_code, "message" in answer.json()["error"]) == (status, True), answer.text


async def test_images_reach_the_model_and_no_code(
    acme: TenantClient, client: openai.AsyncOpenAI, provider: FakeProvider
) -> None:
    model = await create_model(acme, provider, generate_name())
    agent = await create_model_agent(acme, model)
    image = {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{PIXEL}"}}
    messages: Any = [{"role": "user", "content": [{"type": "text", "text": "What is this?"}, image]}]
    await client.chat.completions.create(model=agent["name"], messages=messages)
    assert PIXEL in str(provider.requests[-1].messages)
    code_agent = await acme.deploy_agent("def handle(payload): return payload\n")
    with pytest.raises(openai.BadRequestError) as refused:
        await client.chat.completions.create(model=code_agent, messages=messages)
    assert refused.value.param == "messages[0].content"


async def test_open_webui_accepts_the_connection(
    acme: TenantClient, client: openai.AsyncOpenAI, provider: FakeProvider, system: System
) -> None:
    """Send what Open WebUI sends: `GET /models` to verify a connection, then a stream with its usual fields."""
    agent = await create_model_agent(acme, await create_model(acme, provider, generate_name()))
    headers = {"Authorization": f"Bearer {client.api_key}", "Content-Type": "application/json"}
    async with httpx.AsyncClient(headers=headers, timeout=60) as http:
        verified = await http.get(f"{system.url}/v1/models")
        assert verified.status_code == 200
        assert agent["name"] in [model["id"] for model in verified.json()["data"]]
        body = {
            "stream": True,
            "model": agent["name"],
            "messages": ask("Hello"),
            "stream_options": {"include_usage": True},
        }
        async with http.stream("POST", f"{system.url}/v1/chat/completions", json=body) as answer:
            assert answer.headers["content-type"].startswith("text/event-stream")
            lines = [line async for line in answer.aiter_lines() if line]
    assert lines[-1] == "data: [DONE]"


async def test_the_plain_client_works_too(sync_client: openai.OpenAI, agent_name: str) -> None:
    await asyncio.to_thread(use_plain_client, sync_client, agent_name)


def use_plain_client(sync_client: openai.OpenAI, agent_name: str) -> None:
    answer = sync_client.chat.completions.create(model=agent_name, messages=ask("Hello"))
    assert answer.choices[0].message.content == "Hello"
    stream = sync_client.chat.completions.create(model=agent_name, messages=ask("Hello"), stream=True)
    assert "".join(chunk.choices[0].delta.content or "" for chunk in stream) == "Hello"
    assert sync_client.responses.create(model=agent_name, input="Hello").output_text == "Hello"


async def test_json_of_a_schema_comes_whole(
    acme: TenantClient, client: openai.AsyncOpenAI, provider: FakeProvider
) -> None:
    model = await create_model(acme, provider, generate_name())
    agent = await create_model_agent(acme, model)
    schema = {"type": "object", "properties": {"age": {"type": "integer"}}, "required": ["age"]}
    answer_format: Any = {"type": "json_schema", "json_schema": {"name": "person", "schema": schema}}
    provider.queue_text("no json", to=model)
    provider.queue_text('{"age": 36}', to=model)
    stream = await client.chat.completions.create(
        model=agent["name"], messages=ask("Go"), response_format=answer_format, stream=True
    )
    assert "".join([chunk.choices[0].delta.content or "" async for chunk in stream]) == '{"age":36}'


async def test_files_of_a_message_are_files_of_the_run(
    acme: TenantClient, system: System, provider: FakeProvider
) -> None:
    source = "def handle(payload):\n    return open('/work/notes.txt').read() + open('/work/more.txt').read() + payload['task']\n"
    agent_id = await acme.deploy_agent(source)
    uploaded = (await acme.http.post("/files", files={"file": ("more.txt", b" and more ")})).json()
    parts: Any = [
        {"type": "text", "text": "Read this."},
        {"type": "file", "file": {"filename": "notes.txt", "file_data": "data:text/plain;base64,bm90ZXM="}},
        {"type": "file", "file": {"filename": "more.txt", "file_id": uploaded["id"]}},
    ]
    messages: Any = [{"role": "user", "content": parts}]
    url = f"{system.url}/v1"
    async with openai.AsyncOpenAI(api_key=await acme.create_key(), base_url=url, max_retries=0) as client:
        answer = await client.chat.completions.create(model=agent_id, messages=messages)
        text = "notes and more Read this.\n(file: notes.txt)\n(file: more.txt)"
        assert answer.choices[0].message.content == text
        item: Any = {"type": "input_file", "filename": "notes.txt", "file_data": "bm90ZXM="}
        parts_of_input: Any = [item, {**item, "filename": "more.txt"}, {"type": "input_text", "text": "Go"}]
        response = await client.responses.create(model=agent_id, input=[{"role": "user", "content": parts_of_input}])
        assert response.output_text.startswith("notesnotes")
        toolless = await create_model_agent(acme, await create_model(acme, provider, generate_name()))
        with pytest.raises(openai.BadRequestError, match="no tools"):
            await client.chat.completions.create(model=toolless["name"], messages=messages)
        parts[1]["file"]["file_data"] = "no base64"
        with pytest.raises(openai.BadRequestError) as refused:
            await client.chat.completions.create(model=agent_id, messages=messages)
        assert refused.value.param == "messages[0].content[1].file_data"
    key = await acme.create_key(scopes=["run:agents"])
    parts[1]["file"]["file_data"] = "bm90ZXM="
    async with openai.AsyncOpenAI(api_key=key, base_url=url, max_retries=0) as client:
        with pytest.raises(openai.PermissionDeniedError):
            await client.chat.completions.create(model=agent_id, messages=messages)


async def test_usage_of_a_workflow_is_that_of_its_steps(
    acme: TenantClient, client: openai.AsyncOpenAI, provider: FakeProvider
) -> None:
    agent = await create_model_agent(acme, await create_model(acme, provider, generate_name()))
    steps = [{"id": name, "agent": agent["name"], "prompt": "{{ inputs.task }}"} for name in ("a", "b")]
    assert (await acme.http.post("/workflows", json={"name": "twice", "steps": steps})).status_code == 201
    single = await client.chat.completions.create(model=agent["name"], messages=ask("Hello"))
    both = await client.chat.completions.create(model="twice", messages=ask("Hello"))
    assert single.usage is not None
    assert both.usage is not None
    assert both.usage.total_tokens == 2 * single.usage.total_tokens > 0
