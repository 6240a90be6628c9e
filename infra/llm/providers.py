"""From a target to pydantic-ai's model of it: which provider speaks which wire, where it lives, how it is asked.

The libraries of OpenAI and Anthropic fill every gap from the process environment: keys, organisations, base URLs,
headers. None of that may reach a tenant's model, so every such argument is given, and what cannot be is put right.
"""

from collections.abc import Callable
from typing import Any, Final, cast

import httpx2
from anthropic import AsyncAnthropic
from anthropic import Omit as AnthropicOmit
from openai import AsyncOpenAI, Omit
from pydantic_ai.models.anthropic import AnthropicModel, AnthropicModelSettings
from pydantic_ai.models.openai import OpenAIChatModel, OpenAIChatModelSettings
from pydantic_ai.profiles import ModelProfile, merge_profile
from pydantic_ai.profiles.openai import OpenAIModelProfile
from pydantic_ai.providers.anthropic import AnthropicProvider
from pydantic_ai.providers.deepseek import DeepSeekProvider
from pydantic_ai.providers.ollama import OllamaProvider
from pydantic_ai.providers.openai import OpenAIProvider
from pydantic_ai.providers.openai_compatible import OpenAICompatibleProvider
from pydantic_ai.settings import ModelSettings

from domain.chat import Ask, ModelError, Options, Target

Profile = Callable[[str], ModelProfile | None]

# Where a provider lives unless told. Databricks and openai_compatible have no such place, `local` brings its own.
_HOMES: Final = {
    "openai": "https://api.openai.com/v1",
    "deepseek": "https://api.deepseek.com",
    "ollama": "http://127.0.0.1:11434/v1",
    "anthropic": "https://api.anthropic.com",
}
_PROFILES: Final[dict[str, Profile]] = {
    "openai": OpenAIProvider.model_profile,
    "deepseek": DeepSeekProvider.model_profile,
    "ollama": OllamaProvider.model_profile,
    "databricks": OpenAICompatibleProvider.model_profile,
    "openai_compatible": OpenAICompatibleProvider.model_profile,
    "local": OpenAICompatibleProvider.model_profile,
}
PROVIDERS: Final = frozenset({*_PROFILES, "anthropic"})

# A target's parameters under the names that users know them by. All else goes to the provider as it stands.
_SETTINGS: Final[dict[str, str]] = {
    **{name: name for name in ("temperature", "max_tokens", "top_p", "top_k", "seed", "presence_penalty")},
    **{name: name for name in ("frequency_penalty", "logit_bias", "parallel_tool_calls", "thinking", "service_tier")},
    "max_completion_tokens": "max_tokens",
    "stop": "stop_sequences",
    "stop_sequences": "stop_sequences",
    "reasoning_effort": "openai_reasoning_effort",
    "tool_choice": "tool_choice",
}
# What a call itself says. Were they taken from parameters, another model would answer than the one that is paid for.
RESERVED: Final = frozenset({"model", "messages", "stream", "stream_options", "tools", "n", "timeout", "extra_headers"})

# They tell a provider about this host: which system, which Python.
_CHATTER: Final = tuple(
    f"X-Stainless-{word}"
    for word in ("Lang", "Package-Version", "OS", "Arch", "Runtime", "Runtime-Version", "Async", "Read-Timeout")
)


def openai_model(kind: type[OpenAIChatModel], target: Target, base_url: str | None, http: Any) -> OpenAIChatModel:
    """A model that speaks OpenAI's wire. Errors: `ModelError` refused for a provider nobody knows, or without a URL."""
    if (profile := _PROFILES.get(target.provider)) is None:
        raise ModelError("refused", f"There is no provider {target.provider!r}.")
    if (url := base_url or _HOMES.get(target.provider)) is None:
        raise ModelError("refused", f"Models of {target.provider} need a base_url.")
    client = AsyncOpenAI(
        api_key=_key(target),
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
    headers: dict[str, Any] = dict.fromkeys(_CHATTER, Omit())
    client._custom_headers = headers
    provider = OpenAICompatibleProvider(target.provider, openai_client=client, profile=_tamed(target, profile))
    return kind(target.model, provider=provider)


def anthropic_model(target: Target, base_url: str | None, http: httpx2.AsyncClient) -> AnthropicModel:
    """A model that speaks Anthropic's wire."""
    url = (base_url or _HOMES["anthropic"]).rstrip("/").removesuffix("/v1")
    client = AsyncAnthropic(
        api_key=_key(target),
        webhook_key="",
        base_url=url,
        max_retries=0,
        http_client=http,
        open_telemetry=False,
    )
    headers: dict[str, Any] = dict.fromkeys(_CHATTER, AnthropicOmit())
    # The header that Anthropic documents and gateways know; the library by itself sends the key as a bearer token.
    headers |= {"Authorization": AnthropicOmit(), "X-Api-Key": _key(target) or AnthropicOmit()}
    client._custom_headers = headers
    return AnthropicModel(target.model, provider=AnthropicProvider(anthropic_client=client))


def settings(ask: Ask) -> ModelSettings:
    """How to answer: the target's parameters below the options of the call. Errors: `ModelError` refused."""
    target, native = ask.target, _native(ask.target)
    told: dict[str, Any] = {}
    body: dict[str, Any] = {}
    for name, value in target.parameters.items():
        if name == "extra_body" and isinstance(value, dict):
            body |= value
        elif name in native:
            told[name] = value
        elif (known := _SETTINGS.get(name)) is None or (known.startswith("openai_") and known not in native):
            body[name] = value
        else:
            told[known] = [value] if known == "stop_sequences" and isinstance(value, str) else value
    if reserved := RESERVED & body.keys():
        raise ModelError("refused", f"The parameter {min(reserved)!r} of the model {target.name} cannot be set.")
    told |= _options(ask.options)
    if told.get("tool_choice") == "required" and not ask.tools:
        del told["tool_choice"]
    # Nothing of a call waits longer than `ask.timeout`, which is watched where the parts are read.
    told |= {"timeout": httpx2.Timeout(None, connect=10.0), "extra_headers": {"User-Agent": "paddock"}}
    if not _key(target) and target.provider != "anthropic":
        told["extra_headers"]["Authorization"] = Omit()  # or the library refuses to ask without a key
    if body:
        told["extra_body"] = body
    return cast(ModelSettings, told)


def _options(options: Options) -> dict[str, Any]:
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


def _native(target: Target) -> frozenset[str]:
    """The settings that pydantic-ai has for this wire alone, all of them with the wire's name in front."""
    wire = "anthropic" if target.provider == "anthropic" else "openai"
    kind: Any = AnthropicModelSettings if wire == "anthropic" else OpenAIChatModelSettings
    return frozenset(name for name in kind.__annotations__ if name.startswith(f"{wire}_"))


def _tamed(target: Target, profile: Profile) -> Profile:
    """The profile, but texts are not rewritten, and servers other than OpenAI's are told of `max_tokens`."""

    def tamed(name: str) -> ModelProfile:
        changes = OpenAIModelProfile(may_tokenize_special_tokens_in_content=False)
        if target.provider != "openai":
            changes["openai_chat_supports_max_completion_tokens"] = False
        return merge_profile(profile(name), changes)

    return tamed


def _key(target: Target) -> str:
    return target.api_key.reveal() if target.api_key is not None else ""
