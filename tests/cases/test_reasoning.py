"""Test that reasoning is returned to its provider with the tool results, and to no other provider."""

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
from tests.cases.test_model_streams import DONE_EVENT, format_chunk
from tests.journeys.test_model_failures import kill_model_worker
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
from tests.support.model_calls import FakeLocalModel
from tests.support.scripted_model import call_model, serve_body

LIST_TOOL = ToolSpec(name="filesystem_list", description="Lists.", parameters={"type": "object", "properties": {}})
THINKING_PARAMETERS = {"thinking": {"type": "enabled", "budget_tokens": 1024}, "max_tokens": 4000}


@pytest.fixture
async def strict_provider() -> AsyncIterator[FakeProvider]:
    """Yield a provider that validates requests as strictly as current models do."""
    async with run_fake_provider() as fake_provider:
        fake_provider.is_strict = True
        yield fake_provider


def build_turn_rule(*thoughts: str) -> Any:
    """Return a rule that calls tools after each thought and then answers; the first time with two calls."""

    def choose_answer(request: ProviderRequest) -> ScriptedAnswer:
        if request.path.endswith("/responses"):
            finished_turns = sum(item.get("type") == "reasoning" for item in request.body["input"])
        else:
            finished_turns = sum("tool_use" in str(message["content"]) for message in request.body["messages"][1::2])
        if finished_turns >= len(thoughts):
            return ScriptedAnswer(tokens=["Done."])
        calls = [build_call("filesystem_list") for _ in range(1 if finished_turns else 2)]
        return ScriptedAnswer(
            tokens=["I look."] if finished_turns else [], thinking=thoughts[finished_turns], calls=calls, reasoning=5
        )

    return choose_answer


async def run_conversation(
    fake_provider: FakeProvider, provider: str, model: str, parameters: dict[str, Any], steps: int
) -> list[ChatMessage]:
    """Run the steps of a conversation with one tool; return its messages."""
    llm = PydanticLlm(Outbound(("127.0.0.1",)), FakeLocalModel())
    target = ModelTarget(name="m", provider=provider, model=model, base_url=fake_provider.url, parameters=parameters)
    messages = [ChatMessage(role="user", content="go")]
    try:
        for _ in range(steps):
            async for part in llm.stream(ModelCall(target=target, messages=tuple(messages), tools=(LIST_TOOL,))):
                if isinstance(part, ModelReply):
                    messages.append(part.message)
            messages += [
                ChatMessage(role="tool", content="[]", tool_call_id=call.id) for call in messages[-1].tool_calls
            ]
    finally:
        await llm.close()
    return messages


@pytest.mark.parametrize(
    ("provider", "model", "parameters"),
    [
        ("anthropic", "claude-sonnet-4", THINKING_PARAMETERS),
        ("openai", "gpt-5", {}),
        ("openai", "o4-mini", {"reasoning_effort": "low"}),
    ],
)
async def test_reasoning_is_returned_over_several_turns_with_tools(
    strict_provider: FakeProvider, provider: str, model: str, parameters: dict[str, Any]
):
    strict_provider.add_rule(build_turn_rule("Let me see.", "And now?", "Once more."))
    messages = await run_conversation(strict_provider, provider, model, parameters, 4)
    assert messages[-1].content == "Done."
    provider_parts = [message.provider_parts for message in messages if message.tool_calls]
    assert len(provider_parts) == 3
    assert all(parts is not None for parts in provider_parts)
    last_body = strict_provider.requests[-1].body
    if provider == "openai":
        item_types = [item.get("type", "message") for item in last_body["input"]]
        assert item_types == [
            *("message", "reasoning", "function_call", "function_call", "function_call_output", "function_call_output"),
            *("reasoning", "message", "function_call", "function_call_output"),
            *("reasoning", "message", "function_call", "function_call_output"),
        ]
        assert last_body["store"] is False
        assert last_body["input"][1]["summary"] == [{"type": "summary_text", "text": "Let me see."}]
        assert last_body["input"][1]["id"].startswith("rs_")
    else:
        assert last_body["thinking"] == THINKING_PARAMETERS["thinking"]
        blocks = [block["type"] for block in last_body["messages"][1]["content"]]
        assert blocks == ["thinking", "tool_use", "tool_use"]
        assert last_body["messages"][1]["content"][0] == {
            "type": "thinking",
            "thinking": "Let me see.",
            "signature": "c2lnbmVk",
        }


async def test_tools_on_chat_completions_are_refused_by_reasoning_models(strict_provider: FakeProvider):
    with pytest.raises(ModelError, match="use /v1/responses instead"):
        await run_conversation(strict_provider, "openai_compatible", "gpt-5", {}, 1)
    assert [request.path for request in strict_provider.requests] == ["/v1/chat/completions"]


async def send_conversation(
    fake_provider: FakeProvider, messages: list[ChatMessage], provider: str, model: str, **parameters: Any
) -> dict[str, Any]:
    """Send a conversation to another provider; return the body of its request."""
    llm = PydanticLlm(Outbound(("127.0.0.1",)), FakeLocalModel())
    target = ModelTarget(name="n", provider=provider, model=model, base_url=fake_provider.url, parameters=parameters)
    try:
        async for _ in llm.stream(ModelCall(target=target, messages=tuple(messages), tools=(LIST_TOOL,))):
            pass
    finally:
        await llm.close()
    return fake_provider.requests[-1].body


async def test_reasoning_is_not_sent_to_another_provider(strict_provider: FakeProvider):
    async with run_fake_provider() as other:
        strict_provider.add_rule(build_turn_rule("Let me see."))
        for provider, model, parameters in (("anthropic", "claude-x", THINKING_PARAMETERS), ("openai", "gpt-5", {})):
            messages = (await run_conversation(strict_provider, provider, model, parameters, 1))[:-1]
            messages += [
                ChatMessage(role="tool", content="[]", tool_call_id=call.id) for call in messages[-1].tool_calls
            ]
            for body in (
                await send_conversation(other, messages, "openai", "gpt-5"),
                await send_conversation(other, messages, "openai_compatible", "m"),
                await send_conversation(other, messages, "anthropic", "claude-x"),
            ):
                assert "Let me see." not in str(body)
                assert "sealed-" not in str(body)
                assert "c2lnbmVk" not in str(body)


async def test_thinking_is_disabled_after_tool_calls_of_another_model(strict_provider: FakeProvider):
    tool_call = ModelToolCall(id="functions.filesystem_list:0", name="filesystem_list", arguments="{}")
    messages = [
        ChatMessage(role="user", content="go"),
        ChatMessage(role="assistant", tool_calls=(tool_call,)),
        ChatMessage(role="tool", content="[]", tool_call_id=tool_call.id),
    ]
    body = await send_conversation(strict_provider, messages, "anthropic", "claude-sonnet-4", **THINKING_PARAMETERS)
    assert body["thinking"] == {"type": "disabled"}
    body = await send_conversation(
        strict_provider,
        [*messages, ChatMessage(role="assistant", content="a"), messages[0]],
        "anthropic",
        "c",
        **THINKING_PARAMETERS,
    )
    assert body["thinking"]["type"] == "enabled"


async def test_thinking_budget_stays_below_max_tokens(strict_provider: FakeProvider):
    llm = PydanticLlm(Outbound(("127.0.0.1",)), FakeLocalModel())
    parameters = {"thinking": {"type": "enabled", "budget_tokens": 8000}, "max_tokens": 16000}
    target = ModelTarget(
        name="m", provider="anthropic", model="claude-x", base_url=strict_provider.url, parameters=parameters
    )
    try:
        for max_tokens, thinking in (
            (None, {"type": "enabled", "budget_tokens": 8000}),
            (4000, {"type": "enabled", "budget_tokens": 2000}),
            (500, {"type": "disabled"}),
        ):
            model_call = ModelCall(
                target=target,
                messages=(ChatMessage(role="user", content="x"),),
                options=ModelOptions(max_tokens=max_tokens),
            )
            async for _ in llm.stream(model_call):
                pass
            assert strict_provider.requests[-1].body["thinking"] == thinking
    finally:
        await llm.close()


async def test_deepseek_and_google_get_their_own_reasoning_back():
    signature = {"google": {"thought_signature": "c2ln"}}
    tool_call = {"id": "c", "function": {"name": "filesystem_list", "arguments": "{}"}, "extra_content": signature}
    body = (
        format_chunk(reasoning_content="Let ")
        + format_chunk(reasoning_content="me see.")
        + format_chunk(tool_calls=[tool_call])
    )
    async with run_fake_provider() as other:
        async with serve_body(body + format_chunk("tool_calls") + DONE_EVENT) as url:
            result = await call_model(url)
        assert result.reply is not None
        provider_parts = result.reply.message.provider_parts
        assert provider_parts is not None
        # As if the same server were called again.
        writer = f"chat openai_compatible {other.url}"
        message = replace(result.reply.message, provider_parts=replace(provider_parts, writer=writer))
        messages = [
            ChatMessage(role="user", content="go"),
            message,
            ChatMessage(role="tool", content="[]", tool_call_id="c"),
        ]
        message_sent = (await send_conversation(other, messages, "openai_compatible", "m"))["messages"][1]
        assert message_sent["reasoning_content"] == "Let me see."
        assert message_sent["tool_calls"][0]["extra_content"] == signature
        message_sent = (
            await send_conversation(other, [messages[0], result.reply.message, messages[2]], "openai_compatible", "m")
        )["messages"][1]
        assert "reasoning_content" not in message_sent
        assert "extra_content" not in message_sent["tool_calls"][0]


# The same with executions of agents


async def register_model(
    acme: TenantClient, fake_provider: FakeProvider, provider: str, model: str, **more: Any
) -> str:
    name = generate_name(provider)
    body = {"name": name, "provider": provider, "model": model, "base_url": fake_provider.url, **more}
    answer = await acme.http.post("/models", json=body)
    assert answer.status_code == 201, answer.text
    return name


async def test_agent_with_a_reasoning_model_completes(acme: TenantClient, strict_provider: FakeProvider) -> None:
    strict_provider.add_rule(build_turn_rule("Let me see.", "And now?"))
    for provider, model, parameters in (("anthropic", "claude-x", THINKING_PARAMETERS), ("openai", "gpt-5", {})):
        name = await register_model(acme, strict_provider, provider, model, parameters=parameters)
        created_agent = await create_model_agent(acme, name, tools=["filesystem_list"])
        ended = await run_execution(acme, created_agent["id"], task="go", mode="yolo")
        assert (ended["status"], ended["output_data"]) == ("completed", {"content": "Done."}), ended
        events = await stream_events(acme, ended["id"])
        assert "Let me see." in "".join(event["content"] for event in events if event["type"] == "thinking")
        assert not [event for event in events if event["type"] == "warning" and "worker" not in event["message"]]
        [first_cost, *_] = [event for event in events if event["type"] == "cost"]
        assert (first_cost["reasoning_tokens"], first_cost["estimated"]) == (5, False)


async def test_reasoning_survives_a_killed_worker(system, acme: TenantClient, strict_provider: FakeProvider) -> None:
    is_waiting = asyncio.Event()
    choose_turn = build_turn_rule("Let me see.", "And now?")

    def hang_once(request: ProviderRequest) -> ScriptedAnswer | None:
        if len(strict_provider.requests) == 2 and not is_waiting.is_set():
            is_waiting.set()
            return ScriptedAnswer(ending="hang")
        return choose_turn(request)

    strict_provider.add_rule(hang_once)
    name = await register_model(acme, strict_provider, "openai", "gpt-5")
    created_agent = await create_model_agent(acme, name, tools=["filesystem_list"])
    execution_id = await start_execution(acme, created_agent["id"], task="go", mode="yolo")
    await asyncio.wait_for(is_waiting.wait(), 60)
    kill_model_worker(system)
    ended = await wait_for_status(acme, execution_id, "completed", 90)
    assert (ended["status"], ended["output_data"]) == ("completed", {"content": "Done."}), ended
    assert ended["attempt"] > 1


async def test_fallback_at_another_provider_gets_valid_call_ids(acme: TenantClient, serve_case) -> None:
    url = await serve_case(find_case_folder("26-ids-of-calls-at-another-provider"))
    for body in (
        {"name": "kimi", "provider": "openai_compatible", "model": "kimi", "base_url": f"{url}/v1"},
        {"name": "claude", "provider": "anthropic", "model": "claude-x", "base_url": url},
    ):
        assert (await acme.http.post("/models", json=body)).status_code == 201
    created_agent = await create_model_agent(acme, "kimi", fallback_model="claude", tools=["filesystem_list"])
    ended = await run_execution(acme, created_agent["id"], task="x")
    assert (ended["status"], ended["output_data"]) == ("completed", {"content": "Paris."}), ended
    log = (await acme.http.get(f"{url}/log")).json()
    # Kimi gets its own ids back; Claude gets valid ids, the same in call and result.
    [second_body, *_] = [
        request["body"]
        for request in log
        if request["path"].endswith("/chat/completions") and len(request["body"]["messages"]) > 2
    ]
    assert second_body["messages"][1]["tool_calls"][0]["id"] == "functions.filesystem_list:0"
    [claude_body] = [request["body"] for request in log if request["path"].endswith("/messages")]
    tool_use, tool_result = claude_body["messages"][1]["content"][0], claude_body["messages"][2]["content"][0]
    assert tool_use["id"] == tool_result["tool_use_id"] != "functions.filesystem_list:0"
