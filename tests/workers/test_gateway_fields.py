"""Compare the tables of fields with the packages of OpenAI and Anthropic, and with the documentation."""

import json
import re
from pathlib import Path
from typing import Any, Final

import msgspec
import pytest
from anthropic.types import message_create_params
from anthropic.types.beta import message_create_params as beta_message_create_params
from hypothesis import given, settings
from hypothesis import strategies as st
from openai.types.chat import completion_create_params
from openai.types.responses import response_create_params

from domain.llms import MessageImage, ModelOptions
from domain.shared.secrets import Secret
from infra.credentials import Keyring
from infra.wires import anthropic_wire, openai_wire, responses_wire
from infra.wires.anthropic_wire.fields import FIELD_RULES as MESSAGE_RULES
from infra.wires.anthropic_wire.schema import MessageBody
from infra.wires.common import FieldRules
from infra.wires.openai_wire.fields import FIELD_RULES as CHAT_RULES
from infra.wires.openai_wire.schema import ChatRequest
from infra.wires.responses_wire.fields import FIELD_RULES as RESPONSE_RULES
from infra.wires.responses_wire.schema import ResponseBody
from workers.run import ReasoningSealer

DOCUMENT: Final = Path(__file__).parents[2].joinpath("docs/gateway.md").read_text()
# Headers, which the packages take as parameters.
HEADERS: Final = frozenset({"betas", "anthropic_beta"})
WIRES: Final[list[tuple[str, Any, FieldRules, frozenset[str]]]] = [
    (
        "Chat completions",
        ChatRequest,
        CHAT_RULES,
        frozenset(completion_create_params.CompletionCreateParamsBase.__annotations__) | {"stream"},
    ),
    (
        "Responses",
        ResponseBody,
        RESPONSE_RULES,
        frozenset(response_create_params.ResponseCreateParamsBase.__annotations__) | {"stream"},
    ),
    (
        "Messages",
        MessageBody,
        MESSAGE_RULES,
        frozenset(message_create_params.MessageCreateParamsBase.__annotations__)
        | frozenset(beta_message_create_params.MessageCreateParamsBase.__annotations__),
    ),
]


def parse_body(section: str, **fields: Any) -> Any:
    seal = ReasoningSealer(Keyring((Secret("k" * 32),), "s" * 32), "tenant_1")
    base: dict[str, Any] = {"model": "m"}
    if section == "Responses":
        body = {**base, "input": "hello", **fields}
        return responses_wire.ResponsesWire(seal).parse_request(json.dumps(body).encode())[0]
    body = {**base, "messages": [{"role": "user", "content": "hello"}], **fields}
    if section == "Messages":
        return anthropic_wire.MessagesWire(seal).parse_request(json.dumps({"max_tokens": 50, **body}).encode())[0]
    return openai_wire.parse_request(json.dumps(body).encode())


@pytest.mark.parametrize(("section", "body", "rules", "parameters"), WIRES, ids=[wire[0] for wire in WIRES])
def test_every_parameter_of_the_package_has_its_place_in_the_tables(
    section: str, body: Any, rules: FieldRules, parameters: frozenset[str]
) -> None:
    decided = {*body.__struct_fields__, *rules.ignored, *rules.neutral_values}
    assert parameters - decided - HEADERS == set()


@pytest.mark.parametrize(("section", "body", "rules", "parameters"), WIRES, ids=[wire[0] for wire in WIRES])
def test_the_documentation_has_every_field_in_its_row(
    section: str, body: Any, rules: FieldRules, parameters: frozenset[str]
) -> None:
    chapter = DOCUMENT.split(f"\n## {section}\n")[1].split("\n## ")[0]
    rows = {
        name.strip(): set(re.findall(r"`([a-z_]+)[^`]*`", cells))
        for name, cells in re.findall(r"^\| ([^|]+) \|(.*)\|$", chapter, re.MULTILINE)
    }
    assert set(body.__struct_fields__) - rows["passed on"] == set()
    assert rules.ignored - rows["no effect"] == set()
    assert rules.neutral_values.keys() - rows["refused"] == set()


NAMED_OPTIONS: Final[dict[str, dict[str, tuple[str, st.SearchStrategy[Any]]]]] = {
    "Chat completions": {
        "temperature": ("temperature", st.floats(0, 2)),
        "top_p": ("top_p", st.floats(0, 1)),
        "top_k": ("top_k", st.integers(1, 100)),
        "min_p": ("min_p", st.floats(0.01, 1)),
        "repetition_penalty": ("repetition_penalty", st.floats(1.1, 2)),
        "presence_penalty": ("presence_penalty", st.floats(-2, 2)),
        "frequency_penalty": ("frequency_penalty", st.floats(-2, 2)),
        "seed": ("seed", st.integers(-9, 9)),
        "max_tokens": ("max_tokens", st.integers(1, 999)),
        "logit_bias": ("logit_bias", st.dictionaries(st.sampled_from(["1", "22"]), st.integers(-100, 100), min_size=1)),
        "verbosity": ("verbosity", st.sampled_from(["low", "high"])),
        "service_tier": ("service_tier", st.sampled_from(["default", "flex", "priority"])),
    },
    "Responses": {
        "temperature": ("temperature", st.floats(0, 2)),
        "top_p": ("top_p", st.floats(0, 1)),
        "top_k": ("top_k", st.integers(1, 100)),
        "max_output_tokens": ("max_tokens", st.integers(1, 999)),
        "service_tier": ("service_tier", st.sampled_from(["default", "flex", "priority"])),
    },
    "Messages": {
        "temperature": ("temperature", st.floats(0, 2)),
        "top_p": ("top_p", st.floats(0, 1)),
        "top_k": ("top_k", st.integers(1, 100)),
        "max_tokens": ("max_tokens", st.integers(1, 999)),
        "service_tier": ("service_tier", st.sampled_from(["standard_only"])),
    },
}


@pytest.mark.parametrize("section", list(NAMED_OPTIONS))
@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_every_accepted_option_is_an_option_of_the_call(section: str, data: st.DataObject) -> None:
    """Any subset of the options arrives as it was sent, and nothing else is set."""
    options = NAMED_OPTIONS[section]
    names = data.draw(st.sets(st.sampled_from(sorted(options))))
    sent = {name: data.draw(options[name][1]) for name in sorted(names)}
    parsed = parse_body(section, **sent).options
    changed = {
        field: getattr(parsed, field)
        for field in ModelOptions.__struct_fields__
        if getattr(parsed, field) != getattr(ModelOptions(), field)
    }
    if section == "Messages":
        sent = {"max_tokens": 50, **sent}
    assert changed == {options[name][0]: value for name, value in sent.items()}


def test_an_image_is_described_by_its_type_size_and_hash() -> None:
    image = MessageImage(data=b"\x89PNG" * 100_000, media_type="image/png")
    assert len(repr(image)) < 200
    assert "image/png, 400000 bytes, sha256 " in repr(image)
    assert "https://example.com/x" in repr(MessageImage(url="https://example.com/x"))


def test_a_message_with_an_image_keeps_its_label_as_text() -> None:
    content = [
        {"type": "text", "text": "Look."},
        {"type": "image_url", "image_url": {"url": "data:image/png;base64,aGVsbG8="}},
    ]
    [message] = parse_body("Chat completions", messages=[{"role": "user", "content": content}]).messages
    assert message.content.startswith("Look.\n[image image/png, 5 bytes, sha256 2cf24dba5fb0a30e")
    assert len(msgspec.json.encode(message.content)) < 200
