"""A provider's key does not come back in its answers, wherever their pieces end."""

from collections.abc import AsyncGenerator

from hypothesis import given
from hypothesis import strategies as st

from domain.llms import (
    ChatMessage,
    ModelCall,
    ModelReply,
    ModelTarget,
    ModelToolCall,
    ReasoningDelta,
    ReplyPart,
    TextDelta,
    ToolCallDelta,
)
from domain.shared.secrets import Secret
from infra.llm.key_mask import KeyMask, stream_masked

KEY = "abcabcabd"


def ask(key: str | None) -> ModelCall:
    target = ModelTarget(name="m", provider="p", model="m", api_key=None if key is None else Secret(key))
    return ModelCall(target=target, messages=(ChatMessage(role="user", content="x"),))


@given(st.lists(st.sampled_from(["abc", "abcabc", "abd", KEY, "a", "b", "c", "d", "x", ""]), max_size=20))
def test_pieces_together_are_the_text_with_stars(pieces: list[str]) -> None:
    mask = KeyMask(KEY)
    got = [mask.mask_piece(piece) for piece in pieces]
    assert "".join([*got, mask.flush_text()]) == "".join(pieces).replace(KEY, "***")


async def collect(key: str | None, *parts: ReplyPart) -> list[ReplyPart]:
    async def stream(_: ModelCall) -> AsyncGenerator[ReplyPart, None]:
        for part in parts:
            yield part

    return [part async for part in stream_masked(ask(key), stream)]


def answer(text: str, arguments: str) -> ModelReply:
    call = ModelToolCall(id="1", name="f", arguments=arguments)
    return ModelReply(
        message=ChatMessage(role="assistant", content=text, tool_calls=(call,)), finish="stop", usage=None
    )


async def test_no_part_and_no_reply_holds_the_key() -> None:
    parts: list[ReplyPart] = []
    for character in f"my key is {KEY}!":
        parts += [ReasoningDelta(character), TextDelta(character)]
    parts.append(ToolCallDelta(index=0, id="1", name="f"))
    parts += [ToolCallDelta(index=0, arguments=character) for character in f'{{"k": "{KEY}"}}']
    got = await collect(KEY, *parts, answer(f"my key is {KEY}!", f'{{"k": "{KEY}"}}'))
    assert "".join(one.text for one in got if isinstance(one, TextDelta)) == "my key is ***!"
    assert "".join(one.text for one in got if isinstance(one, ReasoningDelta)) == "my key is ***!"
    assert "".join(one.arguments for one in got if isinstance(one, ToolCallDelta)) == '{"k": "***"}'
    reply = got[-1]
    assert isinstance(reply, ModelReply)
    assert (reply.message.content, reply.message.tool_calls[0].arguments) == ("my key is ***!", '{"k": "***"}')


async def test_what_may_have_become_the_key_comes_before_the_end() -> None:
    got = await collect(KEY, TextDelta("so abcabc"), answer("so abcabc", "{}"))
    assert got[:2] == [TextDelta("so "), TextDelta("abcabc")]
    assert isinstance(got[-1], ModelReply)


async def test_without_a_key_and_with_a_word_for_one_answers_are_as_they_come() -> None:
    for key in (None, "ollama"):
        parts = [TextDelta("ollama"), answer("ollama", "{}")]
        assert await collect(key, *parts) == parts


async def test_names_and_ids_of_calls_do_not_hold_the_key() -> None:
    call = ModelToolCall(id=f"call-{KEY}", name=KEY, arguments="{}")
    reply = ModelReply(message=ChatMessage(role="assistant", tool_calls=(call,)), finish="tool_calls", usage=None)
    got = await collect(KEY, ToolCallDelta(index=0, id=f"call-{KEY}", name=KEY, arguments="{}"), reply)
    assert got[0] == ToolCallDelta(index=0, id="call-***", name="***", arguments="{}")
    assert KEY not in str(got)
