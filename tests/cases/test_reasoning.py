"""What a model reasoned is given back to its provider with the results of its tools, and to nobody else."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest
from msgspec.structs import replace

from domain.llms import (
    ChatMessage,
    ModelCall,
    ModelError,
    ModelOptions,
    ModelReply,
    ModelTarget,
    ModelToolCall,
    ToolSpec,
)
from infra.http import Outbound
from infra.llm import PydanticLlm
from tests.cases.test_streams import DONE, chunk
from tests.contracts.test_llm import Here
from tests.journeys.test_model_failures import kill_worker
from tests.support.case_inputs import find_case_folder
from tests.support.clients import TenantClient
from tests.support.fake_provider import FakeProvider, ProviderRequest, ScriptedAnswer, build_call, run_fake_provider
from tests.support.model_agents import (
    create_model_agent,
    generate_name,
    run_execution,
    start_execution,
    stream_events,
    wait_for_status,
)
from tests.support.scripted_model import call_model, serve_body

LIST = ToolSpec(name="filesystem_list", description="Lists.", parameters={"type": "object", "properties": {}})
THINKING = {"thinking": {"type": "enabled", "budget_tokens": 1024}, "max_tokens": 4000}


@pytest.fixture
async def strict() -> AsyncIterator[FakeProvider]:
    """A provider as strict as today's models are."""
    async with run_fake_provider() as one:
        one.is_strict = True
        yield one


def turns(*thoughts: str) -> Any:
    """A rule: tool calls after each thought, and then an answer. Two calls at once the first time."""

    def rule(asked: ProviderRequest) -> ScriptedAnswer:
        if asked.path.endswith("/responses"):
            done = sum(item.get("type") == "reasoning" for item in asked.body["input"])
        else:
            done = sum("tool_use" in str(message["content"]) for message in asked.body["messages"][1::2])
        if done >= len(thoughts):
            return ScriptedAnswer(tokens=["Done."])
        calls = [build_call("filesystem_list") for _ in range(1 if done else 2)]
        return ScriptedAnswer(tokens=["I look."] if done else [], thinking=thoughts[done], calls=calls, reasoning=5)

    return rule


async def converse(
    served: FakeProvider, provider: str, model: str, parameters: dict[str, Any], steps: int
) -> list[ChatMessage]:
    """Go through the steps of a run with one tool."""
    llm = PydanticLlm(Outbound(("127.0.0.1",)), Here())
    target = ModelTarget(name="m", provider=provider, model=model, base_url=served.url, parameters=parameters)
    messages = [ChatMessage(role="user", content="go")]
    try:
        for _ in range(steps):
            async for part in llm.stream(ModelCall(target=target, messages=tuple(messages), tools=(LIST,))):
                if isinstance(part, ModelReply):
                    messages.append(part.message)
            messages += [ChatMessage(role="tool", content="[]", tool_call_id=one.id) for one in messages[-1].tool_calls]
    finally:
        await llm.close()
    return messages


@pytest.mark.parametrize(
    ("provider", "model", "parameters"),
    [
        ("anthropic", "claude-sonnet-4", THINKING),
        ("openai", "gpt-5", {}),
        ("openai", "o4-mini", {"reasoning_effort": "low"}),
    ],
)
async def test_several_turns_with_tools(strict: FakeProvider, provider: str, model: str, parameters: dict[str, Any]):
    strict.add_rule(turns("Let me see.", "And now?", "Once more."))
    messages = await converse(strict, provider, model, parameters, 4)
    assert messages[-1].content == "Done."
    kept = [message.provider_parts for message in messages if message.tool_calls]
    assert len(kept) == 3
    assert all(parts is not None for parts in kept)
    last = strict.requests[-1].body
    if provider == "openai":
        kinds = [item.get("type", "message") for item in last["input"]]
        assert kinds == [
            *("message", "reasoning", "function_call", "function_call", "function_call_output", "function_call_output"),
            *("reasoning", "message", "function_call", "function_call_output"),
            *("reasoning", "message", "function_call", "function_call_output"),
        ]
        assert last["store"] is False
        assert last["input"][1]["summary"] == [{"type": "summary_text", "text": "Let me see."}]
        assert last["input"][1]["id"].startswith("rs_")
    else:
        assert last["thinking"] == THINKING["thinking"]
        blocks = [block["type"] for block in last["messages"][1]["content"]]
        assert blocks == ["thinking", "tool_use", "tool_use"]
        assert last["messages"][1]["content"][0] == {
            "type": "thinking",
            "thinking": "Let me see.",
            "signature": "c2lnbmVk",
        }


async def test_tools_on_chat_completions_are_what_is_refused(strict: FakeProvider):
    with pytest.raises(ModelError, match="use /v1/responses instead"):
        await converse(strict, "openai_compatible", "gpt-5", {}, 1)
    assert [asked.path for asked in strict.requests] == ["/v1/chat/completions"]


async def said_to(
    served: FakeProvider, messages: list[ChatMessage], provider: str, model: str, **parameters: Any
) -> dict[str, Any]:
    """What another provider is sent of a conversation."""
    llm = PydanticLlm(Outbound(("127.0.0.1",)), Here())
    target = ModelTarget(name="n", provider=provider, model=model, base_url=served.url, parameters=parameters)
    try:
        async for _ in llm.stream(ModelCall(target=target, messages=tuple(messages), tools=(LIST,))):
            pass
    finally:
        await llm.close()
    return served.requests[-1].body


async def test_nobody_else_is_given_it(strict: FakeProvider):
    async with run_fake_provider() as other:
        strict.add_rule(turns("Let me see."))
        for provider, model, parameters in (("anthropic", "claude-x", THINKING), ("openai", "gpt-5", {})):
            messages = (await converse(strict, provider, model, parameters, 1))[:-1]
            messages += [ChatMessage(role="tool", content="[]", tool_call_id=one.id) for one in messages[-1].tool_calls]
            for told in (
                await said_to(other, messages, "openai", "gpt-5"),
                await said_to(other, messages, "openai_compatible", "m"),
                await said_to(other, messages, "anthropic", "claude-x"),
            ):
                assert "Let me see." not in str(told)
                assert "sealed-" not in str(told)
                assert "c2lnbmVk" not in str(told)


async def test_a_fallback_that_thinks_goes_on_without_where_another_called_the_tools(strict: FakeProvider):
    call_made = ModelToolCall(id="functions.filesystem_list:0", name="filesystem_list", arguments="{}")
    messages = [
        ChatMessage(role="user", content="go"),
        ChatMessage(role="assistant", tool_calls=(call_made,)),
        ChatMessage(role="tool", content="[]", tool_call_id=call_made.id),
    ]
    told = await said_to(strict, messages, "anthropic", "claude-sonnet-4", **THINKING)
    assert told["thinking"] == {"type": "disabled"}
    told = await said_to(
        strict, [*messages, ChatMessage(role="assistant", content="a"), messages[0]], "anthropic", "c", **THINKING
    )
    assert told["thinking"]["type"] == "enabled"


async def test_a_budget_for_thoughts_stays_below_what_a_call_may_answer(strict: FakeProvider):
    llm = PydanticLlm(Outbound(("127.0.0.1",)), Here())
    parameters = {"thinking": {"type": "enabled", "budget_tokens": 8000}, "max_tokens": 16000}
    target = ModelTarget(name="m", provider="anthropic", model="claude-x", base_url=strict.url, parameters=parameters)
    try:
        for most, thinking in (
            (None, {"type": "enabled", "budget_tokens": 8000}),
            (4000, {"type": "enabled", "budget_tokens": 2000}),
            (500, {"type": "disabled"}),
        ):
            ask = ModelCall(
                target=target, messages=(ChatMessage(role="user", content="x"),), options=ModelOptions(max_tokens=most)
            )
            async for _ in llm.stream(ask):
                pass
            assert strict.requests[-1].body["thinking"] == thinking
    finally:
        await llm.close()


async def test_deepseek_and_google_have_back_what_they_wrote():
    signature = {"google": {"thought_signature": "c2ln"}}
    made = {"id": "c", "function": {"name": "filesystem_list", "arguments": "{}"}, "extra_content": signature}
    body = chunk(reasoning_content="Let ") + chunk(reasoning_content="me see.") + chunk(tool_calls=[made])
    async with run_fake_provider() as other:
        async with serve_body(body + chunk("tool_calls") + DONE) as url:
            played = await call_model(url)
        assert played.reply is not None
        kept = played.reply.message.provider_parts
        assert kept is not None
        # As if the same server were there to be asked again.
        same = f"chat openai_compatible {other.url}"
        message = replace(played.reply.message, provider_parts=replace(kept, writer=same))
        messages = [
            ChatMessage(role="user", content="go"),
            message,
            ChatMessage(role="tool", content="[]", tool_call_id="c"),
        ]
        told = (await said_to(other, messages, "openai_compatible", "m"))["messages"][1]
        assert told["reasoning_content"] == "Let me see."
        assert told["tool_calls"][0]["extra_content"] == signature
        told = (await said_to(other, [messages[0], played.reply.message, messages[2]], "openai_compatible", "m"))[
            "messages"
        ][1]
        assert "reasoning_content" not in told
        assert "extra_content" not in told["tool_calls"][0]


# The same, as runs of agents


async def registered(acme: TenantClient, served: FakeProvider, provider: str, model: str, **more: Any) -> str:
    name = generate_name(provider)
    body = {"name": name, "provider": provider, "model": model, "base_url": served.url, **more}
    answer = await acme.http.post("/models", json=body)
    assert answer.status_code == 201, answer.text
    return name


async def test_runs_of_agents_with_models_that_reason(acme: TenantClient, strict: FakeProvider) -> None:
    strict.add_rule(turns("Let me see.", "And now?"))
    for provider, model, parameters in (("anthropic", "claude-x", THINKING), ("openai", "gpt-5", {})):
        name = await registered(acme, strict, provider, model, parameters=parameters)
        made = await create_model_agent(acme, name, tools=["filesystem_list"])
        ended = await run_execution(acme, made["id"], task="go", mode="yolo")
        assert (ended["status"], ended["output_data"]) == ("completed", {"content": "Done."}), ended
        told = await stream_events(acme, ended["id"])
        assert "Let me see." in "".join(one["content"] for one in told if one["type"] == "thinking")
        assert not [one for one in told if one["type"] == "warning" and "worker" not in one["message"]]
        [first, *_] = [one for one in told if one["type"] == "cost"]
        assert (first["reasoning_tokens"], first["estimated"]) == (5, False)


async def test_reasoning_outlives_a_killed_worker(system, acme: TenantClient, strict: FakeProvider) -> None:
    waits = asyncio.Event()
    rule = turns("Let me see.", "And now?")

    def slowly(asked: ProviderRequest) -> ScriptedAnswer | None:
        if len(strict.requests) == 2 and not waits.is_set():
            waits.set()
            return ScriptedAnswer(ending="hang")
        return rule(asked)

    strict.add_rule(slowly)
    name = await registered(acme, strict, "openai", "gpt-5")
    made = await create_model_agent(acme, name, tools=["filesystem_list"])
    execution_id = await start_execution(acme, made["id"], task="go", mode="yolo")
    await asyncio.wait_for(waits.wait(), 60)
    kill_worker(system)
    ended = await wait_for_status(acme, execution_id, "completed", 90)
    assert (ended["status"], ended["output_data"]) == ("completed", {"content": "Done."}), ended
    assert ended["attempt"] > 1


async def test_a_fallback_at_another_provider(acme: TenantClient, serve_case) -> None:
    url = await serve_case(find_case_folder("26-ids-of-calls-at-another-provider"))
    for body in (
        {"name": "kimi", "provider": "openai_compatible", "model": "kimi", "base_url": f"{url}/v1"},
        {"name": "claude", "provider": "anthropic", "model": "claude-x", "base_url": url},
    ):
        assert (await acme.http.post("/models", json=body)).status_code == 201
    made = await create_model_agent(acme, "kimi", fallback_model="claude", tools=["filesystem_list"])
    ended = await run_execution(acme, made["id"], task="x")
    assert (ended["status"], ended["output_data"]) == ("completed", {"content": "Paris."}), ended
    log = (await acme.http.get(f"{url}/log")).json()
    # Kimi has its own ids back; Claude those that it takes, the same in call and result.
    [again, *_] = [
        one["body"] for one in log if one["path"].endswith("/chat/completions") and len(one["body"]["messages"]) > 2
    ]
    assert again["messages"][1]["tool_calls"][0]["id"] == "functions.filesystem_list:0"
    [asked] = [one["body"] for one in log if one["path"].endswith("/messages")]
    used, told = asked["messages"][1]["content"][0], asked["messages"][2]["content"][0]
    assert used["id"] == told["tool_use_id"] != "functions.filesystem_list:0"
