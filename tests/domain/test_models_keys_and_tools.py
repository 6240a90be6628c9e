"""Test the rules for models, provider keys and tools: names, slugs, parameters, addresses and references."""

from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

import jsonschema
import pytest
from cryptography.fernet import Fernet
from hypothesis import given
from hypothesis import strategies as st

from domain import llms, provider_keys, tools
from domain.llms import Model, check_base_url, check_parameters
from domain.provider_keys import NewProviderKey, PatchProviderKey, get_last_four
from domain.shared import ids, names
from domain.shared.errors import DomainError
from domain.shared.secrets import Secret
from domain.tools import BUILT_IN_TOOLS, BuiltInToolState
from infra.credentials import Keyring
from infra.settings import SettingsError, read_settings
from tests.domain.test_pages_scopes_and_settings import REQUIRED_SETTINGS

NOW = datetime(2030, 1, 1, tzinfo=UTC)


def refuse_field(call: Any) -> str:
    with pytest.raises(DomainError) as caught:
        call()
    assert caught.value.code == "invalid_field"
    return caught.value.errors[0].field


def test_slug_examples() -> None:
    assert names.make_slug("OpenAI API Key") == "openai_api_key"
    assert names.make_slug("  Clé  n° 2!") == "cle_n_2"
    assert names.make_slug("searchTool--v2") == "searchtool_v2"


@given(st.text(max_size=200))
def test_slug_is_idempotent_and_a_valid_tool_name(name: str) -> None:
    slug = names.make_slug(name)
    assert names.make_slug(slug) == slug
    assert "__" not in slug
    assert len(slug) <= 64
    assert slug == "" or all(letter in "abcdefghijklmnopqrstuvwxyz0123456789_" for letter in slug)


@pytest.mark.parametrize(
    "name", ["a/b", "a\\b", "a:b", "a\nb", " a", "a ", "..", "model_01m8mq09n9es4v8dn25gxgpnqz", "x" * 129, "\x7f"]
)
def test_names_that_break_a_path_are_refused(name: str) -> None:
    assert refuse_field(lambda: names.check_name(name, "model")) == "name"


@pytest.mark.parametrize(
    "url",
    [
        *("ftp://x", "http://", "//x", "x", "https://u:p@x", "https://u@x", "http://x?q=1", "http://x#f", "http://x y"),
        *("http://x\\y", "http://x:99999", "http://x:0", "http://[", "http://x\n", "http://é", "file:///etc/passwd"),
    ],
)
def test_invalid_base_url_is_refused(url: str) -> None:
    assert refuse_field(lambda: check_base_url("base_url", url)) == "base_url"


@pytest.mark.parametrize("url", ["http://127.0.0.1:8080/v1", "https://x.example.com", "http://[::1]:1/v1/"])
def test_valid_base_url_is_accepted(url: str) -> None:
    assert check_base_url("base_url", url) == url


@pytest.mark.parametrize(
    ("name", "good", "bad"),
    [
        ("temperature", [0, 2, 0.7], [-0.1, 2.1, "0.7", True, None]),
        ("max_tokens", [1, 2000], [0, 1.5, "2", True, 10**9]),
        ("top_p", [0, 1], [1.1, "1"]),
        ("presence_penalty", [-2, 2], [3]),
        ("frequency_penalty", [-2, 2], [-3]),
        ("seed", [0, -5], [1.5, "1", 2**64]),
        ("stop", ["x", ["x", "y"]], [1, [1]]),
        ("parallel_tool_calls", [True], [1, "yes"]),
        ("messages", [], [[]]),
        ("stream", [], [True]),
        ("api_key", [], ["sk-x"]),
        ("extra_headers", [], [{"X": "y"}]),
        ("top_k", [40], [0.5]),
        ("logit_bias", [{"50256": -100}], ["x"]),
        ("extra_body", [{"top_k": 3, "any": {}}], ["x", {"model": "dearer"}, {"extra_body": {"stream": True}}]),
        ("max_completion_tokens", [100], [0, "2"]),
        ("max_output_tokens", [100], [0, "2"]),
        ("reasoning_effort", ["low", {"any": [1]}], []),
    ],
)
def test_known_parameters_are_validated_and_others_pass(name: str, good: list[Any], bad: list[Any]) -> None:
    for value in good:
        assert check_parameters({name: value}) == {name: value}
    for value in bad:
        assert refuse_field(lambda value=value: check_parameters({name: value})) == f"parameters.{name}"


RESERVED_PARAMETERS = [
    *("model", "models", "messages", "system", "input", "prompt", "instructions", "tools", "functions", "n", "best_of"),
    *("stream", "previous_response_id", "conversation", "background", "num_predict", "max_new_tokens", "extra_query"),
    *("extra_headers", "Model", "MESSAGES", " n ", "extra-headers", "openai_previous_response_id", "openai_background"),
    *("openai_native_tools", "openai_conversation_id", "anthropic_container", "openai_transport"),
    *("generationConfig", "systemInstruction", "candidateCount", "cached_content", "bedrock_inference_profile"),
    *("bedrock_prompt_variables", "additionalModelRequestFields"),
    *("numPredict", "bestOf", "toolChoice", "baseUrl", "maxNewTokens", "previousResponseId"),
]


@pytest.mark.parametrize("name", RESERVED_PARAMETERS)
def test_reserved_parameters_are_refused_under_any_spelling(name: str) -> None:
    for parameters in ({name: 1}, {"extra_body": {name: 1}}):
        with pytest.raises(DomainError) as caught:
            check_parameters(parameters)
        [error] = caught.value.errors
        assert error.field == f"parameters.{next(iter(parameters))}"
        assert repr(name) in error.message or error.field == f"parameters.{name}"


@pytest.mark.parametrize(
    "name",
    [
        *("max_tokens", "max_completion_tokens", "max_output_tokens"),
        *("Max_Tokens", "max-tokens", "maxTokens", "maxOutputTokens", "MaxCompletionTokens"),
    ],
)
def test_token_limit_has_one_place(name: str) -> None:
    assert refuse_field(lambda: check_parameters({"extra_body": {name: 100_000}})) == "parameters.extra_body"
    if name.islower() and "-" not in name:
        assert llms.find_token_limit({name: 7}) == 7
    assert llms.find_token_limit({"max_tokens": 9, "max_completion_tokens": 7}) == 7
    assert llms.find_token_limit({"max_tokens": "9"}) is None
    # A limit that an older registration put into `extra_body` still counts.
    assert llms.find_token_limit({"extra_body": {"max_tokens": 5}}) == 5


def test_keys_are_never_printed_beyond_their_last_four_characters() -> None:
    assert repr(NewProviderKey(name="n", service="openai", key="sk-hidden")) == "NewProviderKey(name='n')"
    assert "sk-hidden" not in repr(PatchProviderKey(key="sk-hidden"))
    assert get_last_four("x" * 19) is None
    assert get_last_four("x" * 16 + "abcd") == "abcd"
    for wrong in ("with\nnewline", " leading", "trailing ", "sk-tab\t", "ключ", "nul\0"):
        with pytest.raises(DomainError) as caught:
            provider_keys.check_key_text(wrong)
        assert wrong.strip() not in caught.value.detail


def test_first_encryption_key_seals_and_every_key_opens() -> None:
    old, new, secret = Secret("o" * 32), Secret("n" * 32), "s" * 32
    default, first, both, second = (Keyring(keys, secret) for keys in ((), (old,), (new, old), (new,)))
    sealed = first.seal(b"sk-1")
    assert both.open(sealed) == b"sk-1"
    with pytest.raises(ValueError, match="PADDOCK_ENCRYPTION_KEYS"):
        second.open(sealed)
    with pytest.raises(ValueError, match="PADDOCK_ENCRYPTION_KEYS"):
        second.reseal(sealed)
    resealed = both.reseal(sealed)
    assert resealed is not None
    assert second.open(resealed) == b"sk-1"
    assert both.reseal(resealed) is None
    # What the default key sealed still opens, and is resealed with the first encryption key.
    migrated = second.reseal(default.seal(b"sk-2"))
    assert migrated is not None
    assert Keyring((new,), "another secret").open(migrated) == b"sk-2"
    with pytest.raises(ValueError, match="PADDOCK_ENCRYPTION_KEYS"):
        both.open(Fernet(Fernet.generate_key()).encrypt(b"x"))


def test_encryption_keys_are_read_from_settings() -> None:
    settings = read_settings({**REQUIRED_SETTINGS, "PADDOCK_ENCRYPTION_KEYS": f"{'a' * 32}, {'b' * 40}"})
    assert [key.reveal() for key in settings.encryption_keys] == ["a" * 32, "b" * 40]
    assert "aaa" not in repr(settings)
    assert read_settings(REQUIRED_SETTINGS).encryption_keys == ()
    with pytest.raises(SettingsError, match="PADDOCK_ENCRYPTION_KEYS") as caught:
        read_settings({**REQUIRED_SETTINGS, "PADDOCK_ENCRYPTION_KEYS": "short-one"})
    assert "short-one" not in str(caught.value)


def test_built_in_tools_have_valid_ids_names_and_schemas() -> None:
    assert len({tool.id for tool in BUILT_IN_TOOLS}) == len(BUILT_IN_TOOLS)
    for tool in BUILT_IN_TOOLS:
        assert ids.decode_id("tool", tool.id) is not None
        assert names.make_slug(tool.name) == tool.name
        jsonschema.Draft202012Validator.check_schema(tool.parameters)
        assert tool.parameters["additionalProperties"] is False
    kinds = {tool.name: (tool.category, tool.effects, tool.fenced) for tool in BUILT_IN_TOOLS}
    assert kinds == {
        "filesystem_read": ("filesystem", False, True),
        "filesystem_write": ("filesystem", True, True),
        "filesystem_list": ("filesystem", False, True),
        "python": ("code", True, True),
        "http_request": ("network", True, False),
        "search_artifacts": ("knowledge", False, True),
    }


@dataclass
class FakeTransaction:
    """Provide the part of a transaction that resolving models and tools reads."""

    models: dict[str, Model] = field(default_factory=dict)
    keys: dict[str, bytes] = field(default_factory=dict)
    off: frozenset[str] = frozenset()
    now: datetime = NOW

    @property
    def llms(self) -> "FakeTransaction":
        return self

    provider_keys = tools = llms

    async def find(self, name: str) -> Model | None:
        return self.models.get(name)

    async def find_sealed_for_service(self, service: str) -> bytes | None:
        return self.keys.get(service)

    async def find_sealed(self, slug: str) -> bytes | None:
        return self.keys.get(slug)

    async def list_by_references(self, references: list[str]) -> list[Any]:
        return []

    async def get_built_in_state(self) -> BuiltInToolState:
        return BuiltInToolState(since=NOW, off=dict.fromkeys(self.off, NOW))


async def refuse_fields(awaited: Any) -> list[str]:
    with pytest.raises(DomainError) as caught:
        await awaited
    assert caught.value.code == "invalid_field"
    return [error.field for error in caught.value.errors]


@pytest.mark.parametrize(
    ("name", "provider"),
    [
        *(("gpt-4", "openai"), ("o3-mini", "openai"), ("chatgpt-4o-latest", "openai"), ("text-davinci-003", "openai")),
        *(("claude-sonnet-4", "anthropic"), ("deepseek-chat", "deepseek"), ("gemini-2.5-flash", "gemini")),
        *(("mistral-large-latest", "mistral"), ("codestral-2508", "mistral")),
    ],
)
async def test_well_known_model_names_resolve_without_an_entry(name: str, provider: str) -> None:
    resolved = await llms.resolve_model(FakeTransaction(keys={provider: b"sealed"}), name)
    assert (resolved.model.provider, resolved.model.model, resolved.sealed_key) == (provider, name, b"sealed")
    assert (await llms.resolve_model(FakeTransaction(), name)).sealed_key is None


async def test_unknown_model_names_are_refused_by_field() -> None:
    assert await refuse_fields(llms.resolve_model(FakeTransaction(), "omega-1")) == ["model"]
    assert await refuse_fields(llms.resolve_model(FakeTransaction(), "gpt-4", "unknown-provider")) == ["provider"]
    assert await refuse_fields(llms.resolve_model(FakeTransaction(), "databricks-dbrx")) == ["model"]
    for provider in ("openai_compatible", "azure", "bedrock"):
        assert await refuse_fields(llms.resolve_model(FakeTransaction(), "x", provider)) == ["model"]
    resolved = await llms.resolve_model(FakeTransaction(), "openrouter/deepseek/deepseek-chat")
    assert (resolved.model.provider, resolved.model.model) == ("openrouter", "deepseek/deepseek-chat")
    assert (await llms.resolve_model(FakeTransaction(), "llama3:8b", "ollama")).model.provider == "ollama"


async def test_unknown_tools_are_refused_by_index() -> None:
    assert await refuse_fields(tools.resolve_tools(FakeTransaction(), ["no"] * 64)) == [
        f"tools[{number}]" for number in range(64)
    ]
    python = next(tool for tool in BUILT_IN_TOOLS if tool.name == "python")
    resolved = await tools.resolve_tools(FakeTransaction(), ["python", "filesystem_read", python.id])
    assert [tool.slug for tool in resolved] == ["python", "filesystem_read"]
    with pytest.raises(DomainError) as caught:
        references = ["python", "search_tool", "http_request/x", "http_request"]
        await tools.resolve_tools(FakeTransaction(off=frozenset({python.id})), references)
    assert [error.field for error in caught.value.errors] == ["tools[0]", "tools[1]", "tools[2]"]
    assert "disabled" in caught.value.errors[0].message
    assert "search_tool" in caught.value.errors[1].message
