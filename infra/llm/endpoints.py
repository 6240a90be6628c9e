"""Find the address and the profile of each provider, and how it wants to get its key."""

from collections.abc import Callable, Mapping
from typing import Any, Final
from urllib.parse import quote, urlsplit

from pydantic_ai.profiles import ModelProfile, merge_profile
from pydantic_ai.profiles.groq import groq_model_profile
from pydantic_ai.profiles.openai import OpenAIModelProfile
from pydantic_ai.providers.azure import AzureProvider
from pydantic_ai.providers.deepseek import DeepSeekProvider
from pydantic_ai.providers.ollama import OllamaProvider
from pydantic_ai.providers.openai import OpenAIProvider
from pydantic_ai.providers.openai_compatible import OpenAICompatibleProvider
from pydantic_ai.providers.openrouter import OpenRouterProvider

from domain.llms import AZURE_V1_VERSIONS, CONNECTION_PARAMETERS, ModelTarget, find_aws_region

Profile = Callable[[str], ModelProfile | None]

# Default base URLs. `local` brings its own, Bedrock has one for each region, and the rest one for each customer.
_DEFAULT_URLS: Final = {
    "openai": "https://api.openai.com/v1",
    "deepseek": "https://api.deepseek.com",
    "ollama": "http://127.0.0.1:11434/v1",
    "anthropic": "https://api.anthropic.com",
    "mistral": "https://api.mistral.ai/v1",
    "groq": "https://api.groq.com/openai/v1",
    "openrouter": "https://openrouter.ai/api/v1",
    "gemini": "https://generativelanguage.googleapis.com/v1beta",
}
# Models of Groq that accept the schema of an answer. Others get it in words.
_GROQ_SCHEMA_MODELS: Final = ("openai/gpt-oss", "moonshotai/", "meta-llama/llama-4")


def _find_groq_profile(name: str) -> ModelProfile:
    has_schema = name.lower().startswith(_GROQ_SCHEMA_MODELS)
    return merge_profile(
        OpenAICompatibleProvider.model_profile(name),
        groq_model_profile(name.lower()),
        ModelProfile(supports_json_schema_output=has_schema, supports_json_object_output=True),
    )


def _find_mistral_profile(name: str) -> ModelProfile:
    return merge_profile(
        OpenAICompatibleProvider.model_profile(f"mistralai/{name}"),
        ModelProfile(supports_json_schema_output=True, supports_json_object_output=True),
    )


MODEL_PROFILES: Final[Mapping[str, Profile]] = {
    "openai": OpenAIProvider.model_profile,
    "azure": AzureProvider.model_profile,
    "deepseek": DeepSeekProvider.model_profile,
    "ollama": OllamaProvider.model_profile,
    "mistral": _find_mistral_profile,
    "groq": _find_groq_profile,
    "openrouter": OpenRouterProvider.model_profile,
    "databricks": OpenAICompatibleProvider.model_profile,
    "openai_compatible": OpenAICompatibleProvider.model_profile,
    "local": OpenAICompatibleProvider.model_profile,
}
# Providers that take `max_completion_tokens`, which OpenAI's reasoning models require. The others know `max_tokens`.
_COMPLETION_TOKEN_PROVIDERS: Final = frozenset({"openai", "azure"})


def adjust_profile(target: ModelTarget, profile: Profile) -> Profile:
    """Adjust a profile: texts are not rewritten, and only OpenAI and Azure get `max_completion_tokens`."""

    def build_profile(name: str) -> ModelProfile:
        changes = OpenAIModelProfile(may_tokenize_special_tokens_in_content=False)
        if target.provider not in _COMPLETION_TOKEN_PROVIDERS:
            changes["openai_chat_supports_max_completion_tokens"] = False
        return merge_profile(profile(name), changes)

    return build_profile


def find_base_url(target: ModelTarget, base_url: str | None, wire: str) -> str | None:
    """Return the address of the API of a wire, or None if the provider has no default. `base_url` is the target's."""
    if target.provider == "azure" and base_url is not None:
        return _build_azure_url(target, base_url.rstrip("/"), wire)
    if target.provider == "gemini":
        return _build_gemini_url((base_url or _DEFAULT_URLS["gemini"]).rstrip("/"), wire)
    if base_url is not None:
        return base_url
    if target.provider == "bedrock" and (region := find_aws_region(None, target.parameters)) is not None:
        return f"https://bedrock-runtime.{region}.amazonaws.com"
    return _DEFAULT_URLS.get(target.provider)


def _build_azure_url(target: ModelTarget, url: str, wire: str) -> str:
    """Return the address of Azure's v1 API, or of one deployment if the model has a dated `api_version`."""
    version = target.parameters.get("api_version")
    if url.endswith("/v1"):
        return url
    if (urlsplit(url).hostname or "").endswith(".models.ai.azure.com"):
        return f"{url}/v1"
    root = f"{url.removesuffix('/openai')}/openai"
    if version is None or version in AZURE_V1_VERSIONS:
        return f"{root}/v1"
    return root if wire == "responses" else f"{root}/deployments/{quote(target.model, safe='')}"


def _build_gemini_url(url: str, wire: str) -> str:
    if not urlsplit(url).path:
        url += "/v1beta"
    # Google serves embeddings like OpenAI's beside its own API.
    return f"{url}/openai" if wire == "chat" else url


def find_query(target: ModelTarget) -> dict[str, object]:
    """Return what the address of each request of a target ends in."""
    version = target.parameters.get("api_version") if target.provider == "azure" else None
    return {} if version is None else {"api-version": version}


def has_key_header(target: ModelTarget) -> bool:
    """Tell whether the key goes into Azure's own header, and not into `Authorization`."""
    host = urlsplit(target.base_url or "").hostname or ""
    return target.provider == "azure" and not host.endswith(".models.ai.azure.com")


def drop_connection_parameters(target: ModelTarget) -> dict[str, Any]:
    """Return the parameters of a target that are options of its calls."""
    dropped = CONNECTION_PARAMETERS.get(target.provider, ())
    return {name: value for name, value in target.parameters.items() if name not in dropped}
