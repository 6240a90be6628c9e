"""Choose the wire, the address and the settings of a call, and build pydantic-ai's model for it.

The libraries of OpenAI and Anthropic fill every gap from the process environment: keys, organisations, base URLs,
headers. None of that may reach a tenant's model, so all of these arguments are passed, and the rest is overwritten.
"""

from collections.abc import Mapping
from typing import Any, Final, Literal, cast

import httpx2
from anthropic import AsyncAnthropic
from anthropic import Omit as AnthropicOmit
from openai import AsyncOpenAI, Omit
from pydantic_ai.models import Model
from pydantic_ai.models.anthropic import AnthropicModelSettings
from pydantic_ai.models.openai import OpenAIChatModelSettings, OpenAIResponsesModelSettings
from pydantic_ai.providers.anthropic import AnthropicProvider
from pydantic_ai.providers.openai import OpenAIProvider
from pydantic_ai.providers.openai_compatible import OpenAICompatibleProvider
from pydantic_ai.settings import ModelSettings

from domain import llms
from domain.llms import RESERVED_PARAMETERS, ModelCall, ModelError, ModelTarget
from domain.shared.aws_keys import AWS_KEY_FORMS, InvalidAwsKey, parse_aws_key
from infra.llm import endpoints, wire_models
from infra.llm.options import convert_options
from infra.llm.thinking import convert_thinking

Wire = Literal["anthropic", "responses", "chat", "gemini", "bedrock"]

# Providers with a wire of their own, which all their models speak.
_OWN_WIRES: Final[Mapping[str, Wire]] = {"anthropic": "anthropic", "gemini": "gemini", "bedrock": "bedrock"}
MODEL_PROVIDERS: Final = frozenset({*endpoints.MODEL_PROFILES, *_OWN_WIRES})

# Setting names by the parameter names that users know. Other parameters go to the provider unchanged.
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
# Wires on which Anthropic's own form of thinking is sent: Claude is one of Bedrock's models too.
_ANTHROPIC_THINKING_WIRES: Final = frozenset({"anthropic", "bedrock"})
# Settings of Bedrock that a model's parameters may hold. Others would change the model or its prompt.
_BEDROCK_SETTINGS: Final = frozenset(
    {"bedrock_guardrail_config", "bedrock_performance_configuration", "bedrock_request_metadata"}
    | {"bedrock_service_tier"}
)
# Parameters of models that chat completions accept and Responses do not.
_CHAT_ONLY_OPTIONS: Final = frozenset(
    {"stop", "stop_sequences", "seed", "presence_penalty", "frequency_penalty", "logit_bias", "logprobs"}
    | {"top_logprobs", "response_format", "modalities", "audio", "prediction", "web_search_options"}
)
# The smallest token limit that Responses accept.
_MIN_OUTPUT_TOKENS: Final = 16
# OpenAI's models that do not reason: nothing of theirs is looked up later, so nothing has to be stored.
_NON_REASONING_MODELS: Final = ("gpt-3", "gpt-4", "chatgpt-4")
# Base URLs whose servers have refused Responses as unknown.
_chat_only_urls: set[str] = set()
_MAX_CHAT_ONLY_URLS: Final = 10_000
# The smallest thinking budget that Anthropic accepts.
_MIN_THINKING_TOKENS: Final = 1024

# Headers that tell a provider about this host: its system and its Python.
_TELEMETRY_HEADERS: Final = tuple(
    f"X-Stainless-{word}"
    for word in ("Lang", "Package-Version", "OS", "Arch", "Runtime", "Runtime-Version", "Async", "Read-Timeout")
)


def choose_wire(ask: ModelCall) -> Wire:
    """Return the wire for a call. Errors: `ModelError` of kind refused for options that the model's `api` lacks.

    OpenAI's newer models accept tools over Responses only. Unless the model's `api` decides, a call with options that
    only chat completions have goes over chat completions: the older models know both.
    """
    target = ask.target
    if (own := _OWN_WIRES.get(target.provider)) is not None:
        return own
    if target.api == "chat" or (target.api is None and target.provider != "openai"):
        return "chat"
    only = _find_chat_only_option(ask)
    if target.api is None:
        return "chat" if only or target.base_url in _chat_only_urls else "responses"
    if only:
        raise ModelError(
            "refused",
            f"OpenAI's Responses do not accept {only!r}: leave it out, or set `api` of {target.name} to chat.",
        )
    return "responses"


def _find_chat_only_option(ask: ModelCall) -> str | None:
    options = {
        "stop": ask.options.stop,
        "seed": ask.options.seed,
        "presence_penalty": ask.options.presence_penalty,
        "frequency_penalty": ask.options.frequency_penalty,
        "logit_bias": ask.options.logit_bias,
    }
    asked = {**ask.target.parameters, **{name: value for name, value in options.items() if value is not None}}
    if (
        option := next((name for name in _CHAT_ONLY_OPTIONS & asked.keys() if asked[name] not in (None, 0)), None)
    ) is not None:
        return option
    most = ask.options.max_tokens or llms.find_token_limit(ask.target.parameters)
    return "max_tokens" if most is not None and most < _MIN_OUTPUT_TOKENS else None


def is_chat_only_response(target: ModelTarget, wire: Wire, status: int, body: object) -> bool:
    """Tell whether a server at a tenant's address refused Responses because it does not know them."""
    if wire != "responses" or target.api is not None or target.base_url is None:
        return False
    error = body.get("error") if isinstance(body, Mapping) else None
    details = error if isinstance(error, Mapping) else body if isinstance(body, Mapping) else {}
    # An unknown model is refused with a code in words, an unknown path with a number or a page.
    is_named = isinstance(code := details.get("code"), str) and not code.isdigit()
    return status in (404, 405, 501) and not is_named and "model" not in str(details.get("message") or "").lower()


def record_chat_only(target: ModelTarget) -> None:
    """Record that the server of a target only knows chat completions."""
    if len(_chat_only_urls) >= _MAX_CHAT_ONLY_URLS:
        _chat_only_urls.clear()
    _chat_only_urls.add(target.base_url or "")


def get_writer(target: ModelTarget, wire: Wire) -> str:
    """Return the author of an answer for `domain.llms.ProviderParts`: the wire and its address."""
    return f"{wire} {target.provider} {target.base_url or endpoints.find_base_url(target, None, wire) or ''}"


def build_model(target: ModelTarget, wire: Wire, base_url: str | None, http: httpx2.AsyncClient) -> Model[Any]:
    """Build the model. Errors: `ModelError` of kind refused for an unknown provider or a missing base URL."""
    if wire == "anthropic":
        return _build_anthropic_model(target, base_url, http)
    if wire == "gemini":
        from infra.llm.gemini_model import GeminiWireModel

        url = endpoints.find_base_url(target, base_url, wire)
        return GeminiWireModel(target.model, url or "", _reveal_key(target), http)
    if wire == "bedrock":
        return _build_bedrock_model(target, base_url, http)
    return _build_openai_model(target, wire, base_url, http)


def _build_openai_model(target: ModelTarget, wire: Wire, base_url: str | None, http: Any) -> Model[Any]:
    if (profile := endpoints.MODEL_PROFILES.get(target.provider)) is None:
        raise ModelError("refused", f"The provider {target.provider!r} is unknown.")
    client = create_openai_client(target, base_url, http, wire)
    adjusted = endpoints.adjust_profile(target, profile)
    provider = OpenAICompatibleProvider(target.provider, openai_client=client, profile=adjusted)
    if wire == "responses":
        return wire_models.ResponsesWireModel(target.model, provider=provider)
    kind = wire_models.MistralWireModel if target.provider == "mistral" else wire_models.ChatWireModel
    return kind(target.model, provider=provider)


def create_openai_client(target: ModelTarget, base_url: str | None, http: Any, wire: Wire = "chat") -> AsyncOpenAI:
    """Create a client for one target. Errors: `ModelError` of kind refused for a missing base URL."""
    if (url := endpoints.find_base_url(target, base_url, wire)) is None:
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
    # The library has put OPENAI_CUSTOM_HEADERS here. A test compares all of this with the request on the wire.
    headers: dict[str, Any] = dict.fromkeys(_TELEMETRY_HEADERS, Omit())
    if endpoints.has_key_header(target) and (key := _reveal_key(target)):
        headers["api-key"] = key
    client._custom_headers = headers
    client._custom_query = endpoints.find_query(target)
    return client


def _build_anthropic_model(
    target: ModelTarget, base_url: str | None, http: httpx2.AsyncClient
) -> wire_models.AnthropicWireModel:
    url = (endpoints.find_base_url(target, base_url, "anthropic") or "").rstrip("/").removesuffix("/v1")
    client = AsyncAnthropic(
        api_key=_reveal_key(target),
        webhook_key="",
        base_url=url,
        max_retries=0,
        http_client=http,
        open_telemetry=False,
    )
    headers: dict[str, Any] = dict.fromkeys(_TELEMETRY_HEADERS, AnthropicOmit())
    # Anthropic documents this header and gateways know it. By default the library sends the key as a bearer token.
    headers |= {"Authorization": AnthropicOmit(), "X-Api-Key": _reveal_key(target) or AnthropicOmit()}
    client._custom_headers = headers
    return wire_models.AnthropicWireModel(target.model, provider=AnthropicProvider(anthropic_client=client))


def _build_bedrock_model(target: ModelTarget, base_url: str | None, http: httpx2.AsyncClient) -> Model[Any]:
    # boto3 is loaded with it, which only Bedrock needs.
    from infra.llm.bedrock_model import BedrockWireModel

    if (url := endpoints.find_base_url(target, base_url, "bedrock")) is None:
        raise ModelError("refused", f"Models of {target.provider} need a region.")
    try:
        key = parse_aws_key(text) if (text := _reveal_key(target)) else None
    except InvalidAwsKey as error:
        raise ModelError("unauthorized", f"The key of {target.name} {error} It must be {AWS_KEY_FORMS}.") from None
    region = llms.find_aws_region(target.base_url, target.parameters)
    return BedrockWireModel(target.model, url, region, key, http)


def build_settings(ask: ModelCall, wire: Wire) -> ModelSettings:
    """Build the settings of a call: its options override the target's parameters. Errors: `ModelError` refused."""
    target, native = ask.target, _list_native_settings(wire)
    values: dict[str, Any] = {}
    body: dict[str, Any] = {}
    parameters = endpoints.drop_connection_parameters(target)
    extra = parameters.pop("extra_body", None)
    parameters |= extra if isinstance(extra, dict) else {}
    bare = {name: name.removeprefix("openai_").removeprefix("anthropic_") for name in parameters}
    if reserved := [name for name in parameters if bare[name] in RESERVED_PARAMETERS]:
        raise ModelError("refused", f"The parameter {min(reserved)!r} of the model {target.name} cannot be set.")
    for name, value in parameters.items():
        if name == "thinking" and isinstance(value, dict):
            # Anthropic's own form. DeepSeek and others use the same form, and get it unchanged.
            own = wire in _ANTHROPIC_THINKING_WIRES
            (values if own else body)["anthropic_thinking" if own else name] = value
        elif name in native:
            values[name] = value
        elif (setting := _SETTING_NAMES.get(name)) is None or (setting.startswith("openai_") and setting not in native):
            body[name] = value
        else:
            values[setting] = [value] if setting == "stop_sequences" and isinstance(value, str) else value
    if (most := llms.find_token_limit(target.parameters)) is not None:
        values["max_tokens"] = most
    options, fields = convert_options(ask, wire)
    values |= options | convert_thinking(ask.options.thinking, wire, _get_thinking_profile(target, wire))
    body |= fields
    if wire == "responses":
        values = _fit_responses(values, target)
    if wire in _ANTHROPIC_THINKING_WIRES and "anthropic_thinking" in values:
        values["anthropic_thinking"] = _fit_thinking(values, ask, get_writer(target, wire))
    # `ask.timeout` bounds all waiting, and is enforced where the parts are read.
    values |= {"timeout": httpx2.Timeout(None, connect=10.0), "extra_headers": {"User-Agent": "paddock"}}
    if wire in ("chat", "responses") and not has_bearer_key(target):
        values["extra_headers"]["Authorization"] = Omit()  # otherwise the library refuses a call without a key
    if body:
        values["extra_body"] = body
    return cast(ModelSettings, values)


def _fit_responses(values: dict[str, Any], target: ModelTarget) -> dict[str, Any]:
    """Drop settings that Responses ignore, and store answers only where that is necessary."""
    values = {name: value for name, value in values.items() if name not in _CHAT_ONLY_OPTIONS}
    reasons = OpenAIProvider.model_profile(target.model) or {}
    if reasons.get("openai_supports_encrypted_reasoning_content") or target.model.startswith(_NON_REASONING_MODELS):
        # Reasoning comes sealed or not at all. An unknown model may need its answers to be looked up by id.
        values.setdefault("openai_store", False)
    return values


def _fit_thinking(values: Mapping[str, Any], ask: ModelCall, writer: str) -> Any:
    """Return Anthropic's thinking setting, reduced to what this call allows.

    The answer has to fit into `max_tokens`. A model cannot begin to think in the middle of a turn: if another provider
    made the calls whose results follow, it goes on without thinking.
    """
    thinking = values["anthropic_thinking"]
    if not isinstance(thinking, Mapping) or thinking.get("type") == "disabled":
        return thinking
    turn = next((message for message in reversed(ask.messages) if message.role != "tool"), None)
    if turn is not None and turn.tool_calls and ask.messages[-1].role == "tool":
        parts = turn.provider_parts
        if parts is None or parts.writer != writer:
            return {"type": "disabled"}
    budget, most = thinking.get("budget_tokens"), values.get("max_tokens")
    if isinstance(budget, int) and isinstance(most, int) and budget >= most:
        return {**thinking, "budget_tokens": most // 2} if most >= 2 * _MIN_THINKING_TOKENS else {"type": "disabled"}
    return thinking


def _list_native_settings(wire: Wire) -> frozenset[str]:
    """Return the settings that pydantic-ai has for this wire only, which start with the wire's prefix."""
    kinds: dict[Wire, Any] = {
        "anthropic": AnthropicModelSettings,
        "responses": OpenAIResponsesModelSettings,
        "chat": OpenAIChatModelSettings,
    }
    if wire == "bedrock":
        return _BEDROCK_SETTINGS
    if wire not in kinds:
        return frozenset()
    prefix = "anthropic_" if wire == "anthropic" else "openai_"
    return frozenset(name for name in kinds[wire].__optional_keys__ if name.startswith(prefix))


def has_bearer_key(target: ModelTarget) -> bool:
    """Tell whether there is a key that goes into the header `Authorization`."""
    return bool(_reveal_key(target)) and not endpoints.has_key_header(target)


def _get_thinking_profile(target: ModelTarget, wire: Wire) -> Mapping[str, Any]:
    profile: Any = AnthropicProvider.model_profile(target.model) if wire == "anthropic" else None
    return profile or {}


def _reveal_key(target: ModelTarget) -> str:
    return target.api_key.reveal() if target.api_key is not None else ""
