"""From a target to pydantic-ai's model of it: which provider speaks which wire, where it lives, how it is asked.

The libraries of OpenAI and Anthropic fill every gap from the process environment: keys, organisations, base URLs,
headers. None of that may reach a tenant's model, so every such argument is given, and what cannot be is put right.
"""

from collections.abc import Callable, Mapping
from typing import Any, Final, Literal, cast

import httpx2
from anthropic import AsyncAnthropic
from anthropic import Omit as AnthropicOmit
from openai import AsyncOpenAI, Omit
from pydantic_ai.models import Model
from pydantic_ai.models.anthropic import AnthropicModelSettings
from pydantic_ai.models.openai import OpenAIChatModelSettings, OpenAIResponsesModelSettings
from pydantic_ai.profiles import ModelProfile, merge_profile
from pydantic_ai.profiles.openai import OpenAIModelProfile
from pydantic_ai.providers.anthropic import AnthropicProvider
from pydantic_ai.providers.deepseek import DeepSeekProvider
from pydantic_ai.providers.ollama import OllamaProvider
from pydantic_ai.providers.openai import OpenAIProvider
from pydantic_ai.providers.openai_compatible import OpenAICompatibleProvider
from pydantic_ai.settings import ModelSettings

from domain import llms
from domain.llms import RESERVED_PARAMETERS, ModelCall, ModelError, ModelOptions, ModelTarget
from infra.llm import wire_models

Wire = Literal["anthropic", "responses", "chat"]
Profile = Callable[[str], ModelProfile | None]

# Where a provider lives unless told. Databricks and openai_compatible have no such place, `local` brings its own.
_DEFAULT_URLS: Final = {
    "openai": "https://api.openai.com/v1",
    "deepseek": "https://api.deepseek.com",
    "ollama": "http://127.0.0.1:11434/v1",
    "anthropic": "https://api.anthropic.com",
}
_MODEL_PROFILES: Final[dict[str, Profile]] = {
    "openai": OpenAIProvider.model_profile,
    "deepseek": DeepSeekProvider.model_profile,
    "ollama": OllamaProvider.model_profile,
    "databricks": OpenAICompatibleProvider.model_profile,
    "openai_compatible": OpenAICompatibleProvider.model_profile,
    "local": OpenAICompatibleProvider.model_profile,
}
MODEL_PROVIDERS: Final = frozenset({*_MODEL_PROFILES, "anthropic"})

# A target's parameters under the names that users know them by. All else goes to the provider as it stands.
_SETTING_NAMES: Final[dict[str, str]] = {
    **{name: name for name in ("temperature", "max_tokens", "top_p", "top_k", "seed", "presence_penalty")},
    **{name: name for name in ("frequency_penalty", "logit_bias", "parallel_tool_calls", "thinking", "service_tier")},
    "max_completion_tokens": "max_tokens",
    "max_output_tokens": "max_tokens",
    "stop": "stop_sequences",
    "stop_sequences": "stop_sequences",
    "reasoning_effort": "openai_reasoning_effort",
    "verbosity": "openai_text_verbosity",
    "store": "openai_store",
}
# What chat completions take and Responses do not, as parameters of models call it.
_CHAT_ONLY_OPTIONS: Final = frozenset(
    {"stop", "stop_sequences", "seed", "presence_penalty", "frequency_penalty", "logit_bias", "logprobs"}
    | {"top_logprobs", "response_format", "modalities", "audio", "prediction", "web_search_options"}
)
# The fewest tokens that Responses can be bounded to.
_MIN_OUTPUT_TOKENS: Final = 16
# Models of OpenAI that do not reason: there is nothing of theirs to look up later, so nothing has to be stored.
_NON_REASONING_MODELS: Final = ("gpt-3", "gpt-4", "chatgpt-4")
# Addresses that know chat completions alone, as they said themselves.
_chat_only_urls: set[str] = set()
_MAX_CHAT_ONLY_URLS: Final = 10_000
# The fewest tokens that Anthropic lets a model think.
_MIN_THINKING_TOKENS: Final = 1024

# They tell a provider about this host: which system, which Python.
_TELEMETRY_HEADERS: Final = tuple(
    f"X-Stainless-{word}"
    for word in ("Lang", "Package-Version", "OS", "Arch", "Runtime", "Runtime-Version", "Async", "Read-Timeout")
)


def choose_wire(ask: ModelCall) -> Wire:
    """Return which wire a call goes over. Errors: `ModelError` refused for what the model's `api` cannot do.

    OpenAI's newer models take tools over Responses alone. Unless the model says so itself, a call that asks for what
    only chat completions have goes there: the older models know both.
    """
    target = ask.target
    if target.provider == "anthropic":
        return "anthropic"
    if target.api == "chat" or (target.api is None and target.provider != "openai"):
        return "chat"
    only = _find_chat_only_option(ask)
    if target.api is None:
        return "chat" if only or target.base_url in _chat_only_urls else "responses"
    if only:
        raise ModelError(
            "refused", f"OpenAI's Responses take no {only!r}: leave it out, or give the model {target.name} `api` chat."
        )
    return "responses"


def _find_chat_only_option(ask: ModelCall) -> str | None:
    options = {
        "stop": ask.options.stop,
        "seed": ask.options.seed,
        "presence_penalty": ask.options.presence_penalty,
        "frequency_penalty": ask.options.frequency_penalty,
    }
    asked = {**ask.target.parameters, **{name: value for name, value in options.items() if value is not None}}
    if (
        found := next((name for name in _CHAT_ONLY_OPTIONS & asked.keys() if asked[name] not in (None, 0)), None)
    ) is not None:
        return found
    most = ask.options.max_tokens or llms.find_token_limit(ask.target.parameters)
    return "max_tokens" if most is not None and most < _MIN_OUTPUT_TOKENS else None


def is_chat_only_response(target: ModelTarget, wire: Wire, status: int, body: object) -> bool:
    """Tell whether a server at an address of its own refused Responses because it has never heard of them."""
    if wire != "responses" or target.api is not None or target.base_url is None:
        return False
    error = body.get("error") if isinstance(body, Mapping) else None
    told = error if isinstance(error, Mapping) else body if isinstance(body, Mapping) else {}
    # A model that is not known is refused with a word for that; a path, with a number or a page.
    is_named = isinstance(code := told.get("code"), str) and not code.isdigit()
    return status in (404, 405, 501) and not is_named and "model" not in str(told.get("message") or "").lower()


def record_chat_only(target: ModelTarget) -> None:
    """Remember that the server of a target knows chat completions alone."""
    if len(_chat_only_urls) >= _MAX_CHAT_ONLY_URLS:
        _chat_only_urls.clear()
    _chat_only_urls.add(target.base_url or "")


def get_writer(target: ModelTarget, wire: Wire) -> str:
    """Return who writes an answer, for `domain.llms.messages.ProviderParts`: the wire and where it leads."""
    return f"{wire} {target.provider} {target.base_url or _DEFAULT_URLS.get(target.provider, '')}"


def build_model(target: ModelTarget, wire: Wire, base_url: str | None, http: httpx2.AsyncClient) -> Model[Any]:
    """Return the model to ask. Errors: `ModelError` refused for an unknown provider, or one without a URL."""
    if wire == "anthropic":
        return _build_anthropic_model(target, base_url, http)
    return _build_openai_model(
        wire_models.ResponsesWireModel if wire == "responses" else wire_models.ChatWireModel, target, base_url, http
    )


def _build_openai_model(
    kind: type[wire_models.ChatWireModel | wire_models.ResponsesWireModel],
    target: ModelTarget,
    base_url: str | None,
    http: Any,
) -> Model[Any]:
    if (profile := _MODEL_PROFILES.get(target.provider)) is None:
        raise ModelError("refused", f"There is no provider {target.provider!r}.")
    if (url := base_url or _DEFAULT_URLS.get(target.provider)) is None:
        raise ModelError("refused", f"Models of {target.provider} need a base_url.")
    client = AsyncOpenAI(
        api_key=_reveal_key(target),
        admin_api_key="",
        organization="",
        project="",
        webhook_secret="",
        base_url=url,
        max_retries=0,
        http_client=http,
        _enforce_credentials=False,
    )
    client.organization = client.project = client.admin_api_key = client.webhook_secret = None
    # OPENAI_CUSTOM_HEADERS ended up in there. A test holds all this to what is on the wire.
    headers: dict[str, Any] = dict.fromkeys(_TELEMETRY_HEADERS, Omit())
    client._custom_headers = headers
    provider = OpenAICompatibleProvider(target.provider, openai_client=client, profile=_adjust_profile(target, profile))
    return kind(target.model, provider=provider)


def _build_anthropic_model(
    target: ModelTarget, base_url: str | None, http: httpx2.AsyncClient
) -> wire_models.AnthropicWireModel:
    url = (base_url or _DEFAULT_URLS["anthropic"]).rstrip("/").removesuffix("/v1")
    client = AsyncAnthropic(
        api_key=_reveal_key(target),
        webhook_key="",
        base_url=url,
        max_retries=0,
        http_client=http,
        open_telemetry=False,
    )
    headers: dict[str, Any] = dict.fromkeys(_TELEMETRY_HEADERS, AnthropicOmit())
    # The header that Anthropic documents and gateways know; the library by itself sends the key as a bearer token.
    headers |= {"Authorization": AnthropicOmit(), "X-Api-Key": _reveal_key(target) or AnthropicOmit()}
    client._custom_headers = headers
    return wire_models.AnthropicWireModel(target.model, provider=AnthropicProvider(anthropic_client=client))


def build_settings(ask: ModelCall, wire: Wire) -> ModelSettings:
    """Return how to answer: the target's parameters below the options of the call. Errors: `ModelError` refused."""
    target, native = ask.target, _list_native_settings(wire)
    told: dict[str, Any] = {}
    body: dict[str, Any] = {}
    given = dict(target.parameters)
    extra = given.pop("extra_body", None)
    given |= extra if isinstance(extra, dict) else {}
    bare = {name: name.removeprefix("openai_").removeprefix("anthropic_") for name in given}
    if reserved := [name for name in given if bare[name] in RESERVED_PARAMETERS]:
        raise ModelError("refused", f"The parameter {min(reserved)!r} of the model {target.name} cannot be set.")
    for name, value in given.items():
        if name == "thinking" and isinstance(value, dict):
            # As Anthropic documents it; DeepSeek's and others' is of the same form, and goes out as it stands.
            (told if wire == "anthropic" else body)["anthropic_thinking" if wire == "anthropic" else name] = value
        elif name in native:
            told[name] = value
        elif (known := _SETTING_NAMES.get(name)) is None or (known.startswith("openai_") and known not in native):
            body[name] = value
        else:
            told[known] = [value] if known == "stop_sequences" and isinstance(value, str) else value
    if (most := llms.find_token_limit(target.parameters)) is not None:
        told["max_tokens"] = most
    told |= _convert_options(ask.options)
    if told.get("tool_choice") == "required" and not ask.tools:
        del told["tool_choice"]
    if wire == "responses":
        told = _fit_responses(told, target)
    if wire == "anthropic" and "anthropic_thinking" in told:
        told["anthropic_thinking"] = _fit_thinking(told, ask, get_writer(target, wire))
    # Nothing of a call waits longer than `ask.timeout`, which is watched where the parts are read.
    told |= {"timeout": httpx2.Timeout(None, connect=10.0), "extra_headers": {"User-Agent": "paddock"}}
    if not _reveal_key(target) and wire != "anthropic":
        told["extra_headers"]["Authorization"] = Omit()  # or the library refuses to ask without a key
    if body:
        told["extra_body"] = body
    return cast(ModelSettings, told)


def _fit_responses(told: dict[str, Any], target: ModelTarget) -> dict[str, Any]:
    """Leave out what says nothing, and have nothing stored that need not be."""
    told = {name: value for name, value in told.items() if name not in _CHAT_ONLY_OPTIONS}
    reasons = OpenAIProvider.model_profile(target.model) or {}
    if reasons.get("openai_supports_encrypted_reasoning_content") or target.model.startswith(_NON_REASONING_MODELS):
        # Reasoning comes sealed, or not at all. A model that nobody knows may need its answers to be looked up by id.
        told.setdefault("openai_store", False)
    return told


def _fit_thinking(told: Mapping[str, Any], ask: ModelCall, writer: str) -> Any:
    """Return how Anthropic's model is to think, as far as it can within this call.

    It has to answer within `max_tokens`, and cannot begin to think in the middle of a turn: where another provider
    made the calls whose results are told now, it goes on without.
    """
    thinking = told["anthropic_thinking"]
    if not isinstance(thinking, Mapping) or thinking.get("type") == "disabled":
        return thinking
    turn = next((message for message in reversed(ask.messages) if message.role != "tool"), None)
    if turn is not None and turn.tool_calls and ask.messages[-1].role == "tool":
        kept = turn.provider_parts
        if kept is None or kept.writer != writer:
            return {"type": "disabled"}
    budget, most = thinking.get("budget_tokens"), told.get("max_tokens")
    if isinstance(budget, int) and isinstance(most, int) and budget >= most:
        return {**thinking, "budget_tokens": most // 2} if most >= 2 * _MIN_THINKING_TOKENS else {"type": "disabled"}
    return thinking


def _convert_options(options: ModelOptions) -> dict[str, Any]:
    told: dict[str, Any] = {
        "temperature": options.temperature,
        "max_tokens": options.max_tokens,
        "top_p": options.top_p,
        "seed": options.seed,
        "stop_sequences": None if options.stop is None else list(options.stop),
        "presence_penalty": options.presence_penalty,
        "frequency_penalty": options.frequency_penalty,
        "parallel_tool_calls": options.parallel_tool_calls,
        "tool_choice": None if options.tool_choice == "auto" else options.tool_choice,
    }
    return {name: value for name, value in told.items() if value is not None}


def _list_native_settings(wire: Wire) -> frozenset[str]:
    """Return the settings that pydantic-ai has for this wire alone, all of them with the wire's name in front."""
    kinds: dict[Wire, Any] = {
        "anthropic": AnthropicModelSettings,
        "responses": OpenAIResponsesModelSettings,
        "chat": OpenAIChatModelSettings,
    }
    prefix = "anthropic_" if wire == "anthropic" else "openai_"
    return frozenset(name for name in kinds[wire].__optional_keys__ if name.startswith(prefix))


def _adjust_profile(target: ModelTarget, profile: Profile) -> Profile:
    """The profile, but texts are not rewritten, and servers other than OpenAI's are told of `max_tokens`."""

    def build_profile(name: str) -> ModelProfile:
        changes = OpenAIModelProfile(may_tokenize_special_tokens_in_content=False)
        if target.provider != "openai":
            changes["openai_chat_supports_max_completion_tokens"] = False
        return merge_profile(profile(name), changes)

    return build_profile


def _reveal_key(target: ModelTarget) -> str:
    return target.api_key.reveal() if target.api_key is not None else ""
