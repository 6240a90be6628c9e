"""Convert the options of a call to settings, and refuse those that its model cannot apply.

pydantic-ai leaves out what a model does not take, without a word. That suits parameters of a model, which are set once
for many calls, and not a program that relies on what it asked for.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any, Final

from pydantic_ai.models import Model, ModelRequestParameters
from pydantic_ai.models.openai import OpenAIChatModel, OpenAIResponsesModel
from pydantic_ai.profiles.openai import SAMPLING_PARAMS
from pydantic_ai.settings import ModelSettings, ToolOrOutput

from domain.llms import MessageImage, ModelCall, ModelError, ModelOptions, ModelTarget

# Options that are fields of the body, by the providers whose servers know them.
_BODY_OPTIONS: Final[dict[str, tuple[str, ...]]] = {
    "openai_compatible": ("top_k", "min_p", "repetition_penalty"),
    "openrouter": ("top_k", "min_p", "repetition_penalty"),
    "local": ("top_k", "min_p"),
}
_BODY_OPTION_NAMES: Final = ("top_k", "min_p", "repetition_penalty")
# Options that servers take and silently ignore.
_IGNORED_OPTIONS: Final[dict[str, tuple[str, ...]]] = {
    "ollama": ("logit_bias", "tool_choice"),
    "local": ("verbosity", "thinking"),
    # Mistral refuses fields that it does not know, so these are not sent.
    "mistral": ("logit_bias", "verbosity"),
}
_NO_IMAGES: Final = frozenset({"deepseek", "local"})
# Providers that get no addresses of images, and why. The servers of some would load any address there.
_PRIVATE_SERVER: Final = "because its server may stand in a private network"
_NO_IMAGE_URLS: Final[Mapping[str, str]] = {
    "openai_compatible": _PRIVATE_SERVER,
    "ollama": _PRIVATE_SERVER,
    "bedrock": "because it takes images as data only",
}
# Settings by the options of the same meaning, and the values that ask for nothing.
_SETTING_NAMES: Final[dict[str, str]] = {
    **{name: name for name in ("temperature", "top_p", "top_k", "seed", "presence_penalty", "frequency_penalty")},
    **{name: name for name in ("logit_bias", "min_p", "repetition_penalty", "verbosity")},
    "stop": "stop_sequences",
}
_NEUTRAL_VALUES: Final[dict[str, float]] = {
    "temperature": 1,
    "top_p": 1,
    "presence_penalty": 0,
    "frequency_penalty": 0,
}
# How clients call an option that has several names.
_OPTION_WORDS: Final = {
    "stop": "`stop` (`stop_sequences`)",
    "verbosity": "`verbosity` (`text.verbosity`)",
    "thinking": "`reasoning_effort` (`reasoning`, `thinking`)",
    "tool_choice": "a `tool_choice` that requires a call",
}
_ANTHROPIC_TIERS: Final = {"default": "standard_only", "standard_only": "standard_only", "auto": "auto"}


def convert_options(ask: ModelCall, wire: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the settings that stand for a call's options, and fields of the body."""
    options, provider = ask.options, ask.target.provider
    values: dict[str, Any] = {
        "temperature": options.temperature,
        "max_tokens": options.max_tokens,
        "top_p": options.top_p,
        "seed": options.seed,
        "stop_sequences": None if options.stop is None else list(options.stop),
        "presence_penalty": options.presence_penalty,
        "frequency_penalty": options.frequency_penalty,
        "logit_bias": options.logit_bias,
        "parallel_tool_calls": options.parallel_tool_calls,
        "tool_choice": _convert_tool_choice(ask),
    }
    body: dict[str, Any] = {}
    body_names = _BODY_OPTIONS.get(provider, ())
    for name in _BODY_OPTION_NAMES:
        (body if name in body_names else values)[name] = getattr(options, name)
    if wire in ("chat", "responses"):
        values["openai_text_verbosity"] = options.verbosity
        if provider != "local":
            values["openai_service_tier"] = (
                "default" if options.service_tier == "standard_only" else options.service_tier
            )
    elif wire == "anthropic":
        values["anthropic_service_tier"] = _ANTHROPIC_TIERS.get(options.service_tier or "")
        values["anthropic_cache"] = options.cache
    elif options.service_tier in ("default", "flex", "priority"):
        values["service_tier"] = options.service_tier
    values = {name: value for name, value in values.items() if value is not None}
    return values, {name: value for name, value in body.items() if value is not None}


def _convert_tool_choice(ask: ModelCall) -> Any:
    options = ask.options
    if not ask.tools or (options.tool_choice == "auto" and options.allowed_tools is None):
        return None
    if options.allowed_tools is None or options.tool_choice == "none":
        return options.tool_choice
    names = list(options.allowed_tools)
    return names if options.tool_choice == "required" else ToolOrOutput(function_tools=names)


def check_images(ask: ModelCall) -> None:
    """Refuse images that the provider does not take. Errors: `ModelError` of kind refused."""
    target = ask.target
    images = [part for message in ask.messages for part in message.parts if isinstance(part, MessageImage)]
    if images and target.provider in _NO_IMAGES:
        raise _refuse_option("image", f"The model {target.name!r} takes no images: its provider has none.")
    why = _NO_IMAGE_URLS.get(target.provider)
    if why is not None and any(image.url is not None for image in images):
        message = (
            f"The provider of {target.name!r} ({target.provider}) gets no image URLs, {why}: send the image itself as "
            "a data: URL."
        )
        raise _refuse_option("image", message)


def check_options(
    ask: ModelCall, model: Model[Any], settings: ModelSettings, parameters: ModelRequestParameters
) -> None:
    """Refuse an option that would be left out. Errors: `ModelError` of kind refused, with the option's name."""
    if not ask.options.must_apply:
        return
    lost = _find_ignored_option(ask.options, ask.target) or _find_lost_option(ask, model, settings, parameters)
    if lost is None:
        return
    target = ask.target
    words = _OPTION_WORDS.get(lost, f"`{lost}`")
    message = f"The model {target.name!r} ({target.provider}) cannot apply {words}: leave it out, or use another model."
    raise _refuse_option(lost, message)


def _find_ignored_option(options: ModelOptions, target: ModelTarget) -> str | None:
    for name in _IGNORED_OPTIONS.get(target.provider, ()):
        match name:
            case "tool_choice":
                is_asked = options.tool_choice == "required"
            case "thinking":
                thinking = options.thinking
                is_asked = thinking is not None and thinking.mode != "disabled" and thinking != type(thinking)()
            case _:
                is_asked = getattr(options, name) is not None
        if is_asked:
            return name
    return None


def _find_lost_option(
    ask: ModelCall, model: Model[Any], settings: ModelSettings, parameters: ModelRequestParameters
) -> str | None:
    lost = _list_lost_settings(ask.target, model, settings, parameters)
    for name, setting in _SETTING_NAMES.items():
        value = getattr(ask.options, name)
        if setting in lost and value is not None and _NEUTRAL_VALUES.get(name) != value:
            return name
    return None


def _list_lost_settings(
    target: ModelTarget, model: Model[Any], settings: ModelSettings, parameters: ModelRequestParameters
) -> set[str]:
    """Return the settings that do not reach the model: those that pydantic-ai leaves out, and those without a field."""
    profile: Mapping[str, Any] = model.profile
    lost: set[str] = {*model._unsupported_settings(), "min_p", "repetition_penalty"}
    if not isinstance(model, OpenAIChatModel | OpenAIResponsesModel):
        lost.add("verbosity")
    if profile.get("anthropic_disallows_sampling_settings"):
        lost |= {"temperature", "top_p", "top_k"}
    if profile.get("openai_supports_reasoning"):
        efforts = profile.get("openai_reasoning_efforts")
        can_rest = profile.get("openai_supports_reasoning_effort_none") if efforts is None else "none" in efforts
        whole = dataclasses.replace(parameters, thinking=settings.get("thinking"))
        if not can_rest or model._request_thinks(settings, whole):
            lost |= set(SAMPLING_PARAMS)
    return lost - set(_BODY_OPTIONS.get(target.provider, ()))


def _refuse_option(option: str, message: str) -> ModelError:
    error = ModelError("refused", message)
    error.option = option
    return error
