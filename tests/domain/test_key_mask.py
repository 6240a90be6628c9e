"""A provider's key does not come back in its answers, wherever their pieces end."""

from collections.abc import AsyncGenerator

from hypothesis import given
from hypothesis import strategies as st

from domain.llms.messages import Ask, CallPart, Message, Part, Reply, Target, Text, Thought, ToolCall
from domain.shared.secrets import Secret
from infra.llm.key_mask import KeyMask, stream_masked

KEY = "abcabcabd"


def ask(key: str | None) -> Ask:
    target = Target(name="m", provider="p", model="m", api_key=None if key is None else Secret(key))
    return Ask(target=target, messages=(Message(role="user", content="x"),))


@given(st.lists(st.sampled_from(["abc", "abcabc", "abd", KEY, "a", "b", "c", "d", "x", ""]), max_size=20))
def test_pieces_together_are_the_text_with_stars(pieces: list[str]) -> None:
    mask = KeyMask(KEY)
    got = [mask.add(piece) for piece in pieces]
    assert "".join([*got, mask.finish()]) == "".join(pieces).replace(KEY, "***")


async def collect(key: str | None, *parts: Part) -> list[Part]:
    async def stream(_: Ask) -> AsyncGenerator[Part, None]:
        for part in parts:
            yield part

    return [part async for part in stream_masked(ask(key), stream)]


def answer(text: str, arguments: str) -> Reply:
    call = ToolCall(id="1", name="f", arguments=arguments)
    return Reply(message=Message(role="assistant", content=text, tool_calls=(call,)), finish="stop", usage=None)


async def test_no_part_and_no_reply_holds_the_key() -> None:
    parts: list[Part] = []
    for character in f"my key is {KEY}!":
        parts += [Thought(character), Text(character)]
    parts.append(CallPart(index=0, id="1", name="f"))
    parts += [CallPart(index=0, arguments=character) for character in f'{{"k": "{KEY}"}}']
    got = await collect(KEY, *parts, answer(f"my key is {KEY}!", f'{{"k": "{KEY}"}}'))
    assert "".join(one.text for one in got if isinstance(one, Text)) == "my key is ***!"
    assert "".join(one.text for one in got if isinstance(one, Thought)) == "my key is ***!"
    assert "".join(one.arguments for one in got if isinstance(one, CallPart)) == '{"k": "***"}'
    reply = got[-1]
    assert isinstance(reply, Reply)
    assert (reply.message.content, reply.message.tool_calls[0].arguments) == ("my key is ***!", '{"k": "***"}')


async def test_what_may_have_become_the_key_comes_before_the_end() -> None:
    got = await collect(KEY, Text("so abcabc"), answer("so abcabc", "{}"))
    assert got[:2] == [Text("so "), Text("abcabc")]
    assert isinstance(got[-1], Reply)


async def test_without_a_key_and_with_a_word_for_one_answers_are_as_they_come() -> None:
    for key in (None, "ollama"):
        parts = [Text("ollama"), answer("ollama", "{}")]
        assert await collect(key, *parts) == parts


async def test_names_and_ids_of_calls_do_not_hold_the_key() -> None:
    call = ToolCall(id=f"call-{KEY}", name=KEY, arguments="{}")
    reply = Reply(message=Message(role="assistant", tool_calls=(call,)), finish="tool_calls", usage=None)
    got = await collect(KEY, CallPart(index=0, id=f"call-{KEY}", name=KEY, arguments="{}"), reply)
    assert got[0] == CallPart(index=0, id="call-***", name="***", arguments="{}")
    assert KEY not in str(got)
