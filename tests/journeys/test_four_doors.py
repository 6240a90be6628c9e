"""A conversation of twenty turns goes through four doors in turn, and all of them see the same thread."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any, Final

import openai
from mcp import Client

from scripts.system import System
from tests.journeys.test_model_failures import kill_model_worker
from tests.support.clients import TenantClient
from tests.support.fake_provider import FakeProvider, ProviderRequest, ScriptedAnswer, build_call
from tests.support.mcp_clients import connect_client, read_text
from tests.support.model_agents import create_model, create_model_agent, generate_name, run_execution

TURN_COUNT: Final = 20
# Turns whose worker is killed while the model answers.
KILLED_TURNS: Final = (6, 15)


class Doors:
    """Send the turns of one thread to one agent, through the door whose turn it is."""

    def __init__(self, acme: TenantClient, agent: str, thread_id: str, web: openai.AsyncOpenAI, mcp: Client) -> None:
        self._acme, self._agent, self._thread_id, self._web, self._mcp = acme, agent, thread_id, web, mcp
        self._doors: list[Callable[[str], Awaitable[str]]] = [
            self._ask_api,
            self._ask_chat,
            self._ask_responses,
            self._ask_mcp,
        ]

    async def ask(self, turn: int, text: str) -> str:
        """Return the answer."""
        return await self._doors[turn % len(self._doors)](text)

    async def _ask_api(self, text: str) -> str:
        ended = await run_execution(self._acme, self._agent, task=text, thread_id=self._thread_id, mode="yolo")
        assert ended["status"] == "completed", ended
        return str(ended["result"]["content"])

    async def _ask_chat(self, text: str) -> str:
        answer = await self._web.chat.completions.create(
            model=self._agent,
            messages=[{"role": "user", "content": text}],
            extra_body={"thread_id": self._thread_id},
        )
        return str(answer.choices[0].message.content)

    async def _ask_responses(self, text: str) -> str:
        answer = await self._web.responses.create(model=self._agent, input=text, conversation=self._thread_id)
        return answer.output_text

    async def _ask_mcp(self, text: str) -> str:
        # Names of tools have underscores.
        result = await self._mcp.call_tool(self._agent.replace("-", "_"), {"task": text, "thread_id": self._thread_id})
        assert not result.is_error, result
        return read_text(result)

    async def list_messages(self) -> list[dict[str, Any]]:
        """Return the messages of the thread."""
        answer = await self._acme.http.get(f"/threads/{self._thread_id}/messages?limit=1000")
        return list(answer.json()["items"])


class Guide:
    """Answer questions by their numbers, each as often as it is asked: every third after a call of a tool."""

    def __init__(self, model: str) -> None:
        self.model = model
        # The turn that gets no answer the next time.
        self.silent_turn: int | None = None
        self.silences = asyncio.Queue[int]()

    def answer(self, asked: ProviderRequest) -> ScriptedAnswer | None:
        """Return the answer to a request."""
        if asked.model != self.model:
            return None
        turn = int(asked.get_last_text().removeprefix("Question "))
        if needs_tool(turn) and asked.messages[-1]["role"] == "user":
            return ScriptedAnswer(calls=[build_call("filesystem_list", {}, id=f"call_{turn}")])
        if self.silent_turn == turn:
            self.silent_turn = None
            self.silences.put_nowait(turn)
            return ScriptedAnswer(ending="hang")
        return ScriptedAnswer(tokens=[f"Answer {turn}"])


def needs_tool(turn: int) -> bool:
    return turn % 3 == 1


@asynccontextmanager
async def open_doors(system: System, acme: TenantClient, model: str, **agent: Any) -> AsyncIterator[Doors]:
    name = (await create_model_agent(acme, model, name=generate_name("guide"), expose=["mcp"], **agent))["name"]
    thread = (await acme.http.post("/threads", json={"title": "A long talk"})).json()
    key = await acme.create_key()
    async with (
        openai.AsyncOpenAI(api_key=key, base_url=f"{system.url}/v1", max_retries=0, timeout=120) as web,
        connect_client(system.url, key) as mcp,
    ):
        yield Doors(acme, name, thread["id"], web, mcp)


async def test_twenty_turns_with_tools_and_killed_workers(
    system: System, acme: TenantClient, provider: FakeProvider
) -> None:
    guide = Guide(await create_model(acme, provider, generate_name()))
    provider.add_rule(guide.answer)
    async with open_doors(system, acme, guide.model, tools=["filesystem_list"]) as doors:
        for turn in range(TURN_COUNT):
            asking = asyncio.create_task(doors.ask(turn, f"Question {turn}"))
            if turn in KILLED_TURNS:
                guide.silent_turn = turn
                assert await asyncio.wait_for(guide.silences.get(), 60) == turn
                kill_model_worker(system)
            assert await asking == f"Answer {turn}"
            # The last request has the whole conversation so far, each message once.
            asked = [(message["role"], message["content"]) for message in provider.requests[-1].messages]
            assert [text for role, text in asked if role == "user"] == list_texts("Question", turn + 1)
            assert [text for role, text in asked if role == "assistant" and text] == list_texts("Answer", turn)
        messages = await doors.list_messages()
    expected: list[tuple[str, str]] = []
    for turn in range(TURN_COUNT):
        calls = [("assistant", ""), ("tool", f"call_{turn}")] if needs_tool(turn) else []
        expected += [("user", f"Question {turn}"), *calls, ("assistant", f"Answer {turn}")]
    assert [(message["role"], message["tool_call_id"] or message["content"] or "") for message in messages] == expected
    assert [message["seq"] for message in messages] == list(range(1, len(expected) + 1))
    called = [call["id"] for message in messages for call in message["tool_calls"] or []]
    assert called == [message["tool_call_id"] for message in messages if message["role"] == "tool"]


def list_texts(word: str, count: int) -> list[str]:
    return [f"{word} {number}" for number in range(count)]


async def test_twenty_turns_with_the_local_model(system: System, acme: TenantClient) -> None:
    options = {"instructions": "Answer with a few words.", "max_tokens": 12, "temperature": 0}
    questions = [f"Say the number {turn}." for turn in range(TURN_COUNT)]
    async with open_doors(system, acme, "smollm2", **options) as doors:
        answers = [await doors.ask(turn, question) for turn, question in enumerate(questions)]
        messages = await doors.list_messages()
    assert [message["role"] for message in messages] == ["user", "assistant"] * TURN_COUNT
    assert [message["content"] for message in messages[::2]] == questions
    assert [message["content"] for message in messages[1::2]] == answers
    assert len({message["execution_id"] for message in messages}) == TURN_COUNT
