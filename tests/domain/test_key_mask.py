"""Test that a provider's key is masked in its answers, wherever their pieces end."""

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
from infra.llm.key_mask import KeyMask, list_secrets, mask_secrets, stream_masked

PROVIDER_KEY = "abcabcabd"


def build_call(key: str | None) -> ModelCall:
    target = ModelTarget(name="m", provider="p", model="m", api_key=None if key is None else Secret(key))
    return ModelCall(target=target, messages=(ChatMessage(role="user", content="x"),))


@given(st.lists(st.sampled_from(["abc", "abcabc", "abd", PROVIDER_KEY, "a", "b", "c", "d", "x", ""]), max_size=20))
def test_masked_pieces_join_to_the_masked_text(pieces: list[str]) -> None:
    mask = KeyMask(PROVIDER_KEY)
    parts_received = [mask.mask_piece(piece) for piece in pieces]
    assert "".join([*parts_received, mask.flush_text()]) == "".join(pieces).replace(PROVIDER_KEY, "***")


SECRET_PARTS = ("s3cr3t/key", "t0k3n+part")


@given(
    st.lists(
        st.sampled_from(["s3cr3t/", "s3cr3t", "/key", *SECRET_PARTS, "t0k3n+", "part", "s", "t", ":", ""]), max_size=20
    )
)
def test_no_secret_of_several_passes_in_pieces(pieces: list[str]) -> None:
    mask = KeyMask(*SECRET_PARTS)
    masked = "".join([*map(mask.mask_piece, pieces), mask.flush_text()])
    assert masked == mask_secrets("".join(pieces), SECRET_PARTS)
    assert not any(secret in masked for secret in SECRET_PARTS)


def test_secrets_of_a_key_of_aws_are_its_secret_parts() -> None:
    secret, token = "wJalrXUtnFEMIK7MDENGbPxRfiCYEXAMPLEKEY", "IQoJb3JpZ2luX2VjEXAMPLETOKEN"
    for key, secrets in (
        (f"AKIAIOSFODNN7EXAMPLE:{secret}", (secret,)),
        (f"ASIAIOSFODNN7EXAMPLE:{secret}:{token}", (secret, token)),
        (token, (token,)),
        ("not:one", ("not:one",)),
        ("", ()),
    ):
        target = ModelTarget(name="m", provider="bedrock", model="m", api_key=Secret(key))
        assert list_secrets(target) == secrets
    target = ModelTarget(name="m", provider="openai", model="m", api_key=Secret(f"AKIAIOSFODNN7EXAMPLE:{secret}"))
    assert list_secrets(target) == (f"AKIAIOSFODNN7EXAMPLE:{secret}",)


async def collect(key: str | None, *parts: ReplyPart) -> list[ReplyPart]:
    async def stream_parts(_: ModelCall) -> AsyncGenerator[ReplyPart, None]:
        for part in parts:
            yield part

    return [part async for part in stream_masked(build_call(key), stream_parts)]


def build_reply(text: str, arguments: str) -> ModelReply:
    call = ModelToolCall(id="1", name="f", arguments=arguments)
    return ModelReply(
        message=ChatMessage(role="assistant", content=text, tool_calls=(call,)), finish="stop", usage=None
    )


async def test_no_part_and_no_reply_contains_the_key() -> None:
    parts: list[ReplyPart] = []
    for character in f"my key is {PROVIDER_KEY}!":
        parts += [ReasoningDelta(character), TextDelta(character)]
    parts.append(ToolCallDelta(index=0, id="1", name="f"))
    parts += [ToolCallDelta(index=0, arguments=character) for character in f'{{"k": "{PROVIDER_KEY}"}}']
    parts_received = await collect(
        PROVIDER_KEY, *parts, build_reply(f"my key is {PROVIDER_KEY}!", f'{{"k": "{PROVIDER_KEY}"}}')
    )
    assert "".join(part.text for part in parts_received if isinstance(part, TextDelta)) == "my key is ***!"
    assert "".join(part.text for part in parts_received if isinstance(part, ReasoningDelta)) == "my key is ***!"
    assert "".join(part.arguments for part in parts_received if isinstance(part, ToolCallDelta)) == '{"k": "***"}'
    reply = parts_received[-1]
    assert isinstance(reply, ModelReply)
    assert (reply.message.content, reply.message.tool_calls[0].arguments) == ("my key is ***!", '{"k": "***"}')


async def test_withheld_prefix_of_the_key_is_sent_before_the_reply() -> None:
    parts_received = await collect(PROVIDER_KEY, TextDelta("so abcabc"), build_reply("so abcabc", "{}"))
    assert parts_received[:2] == [TextDelta("so "), TextDelta("abcabc")]
    assert isinstance(parts_received[-1], ModelReply)


async def test_answers_are_unchanged_without_a_real_key() -> None:
    for key in (None, "ollama"):
        parts = [TextDelta("ollama"), build_reply("ollama", "{}")]
        assert await collect(key, *parts) == parts


async def test_names_and_ids_of_tool_calls_are_masked() -> None:
    call = ModelToolCall(id=f"call-{PROVIDER_KEY}", name=PROVIDER_KEY, arguments="{}")
    reply = ModelReply(message=ChatMessage(role="assistant", tool_calls=(call,)), finish="tool_calls", usage=None)
    parts_received = await collect(
        PROVIDER_KEY, ToolCallDelta(index=0, id=f"call-{PROVIDER_KEY}", name=PROVIDER_KEY, arguments="{}"), reply
    )
    assert parts_received[0] == ToolCallDelta(index=0, id="call-***", name="***", arguments="{}")
    assert PROVIDER_KEY not in str(parts_received)
