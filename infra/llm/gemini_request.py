"""Write requests of Gemini's own API, `streamGenerateContent`, from pydantic-ai's messages and settings.

Google's package is not used: it takes its key, project and proxies from the process environment, and seconds to import.
Source: https://ai.google.dev/api/generate-content.
"""

import base64
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final

from pydantic_ai.exceptions import UserError
from pydantic_ai.messages import (
    BinaryContent,
    FileUrl,
    ModelMessage,
    ModelRequest,
    ModelResponse,
    SystemPromptPart,
    TextPart,
    ToolCallPart,
    ToolReturnPart,
    UserPromptPart,
)
from pydantic_ai.models import ModelRequestParameters
from pydantic_ai.models._tool_choice import ResolvedToolChoice
from pydantic_ai.profiles.google import GoogleModelProfile

from infra.llm.thinking import take_effort

# Gemini refuses the first call of a turn without the signature of its thinking. A call that another model made has
# none, and Google documents this value for it.
_FOREIGN_SIGNATURE: Final = base64.b64encode(b"skip_thought_signature_validator").decode()
# Settings by Gemini's names for them.
_CONFIG_NAMES: Final[Mapping[str, str]] = {
    "temperature": "temperature",
    "top_p": "topP",
    "top_k": "topK",
    "max_tokens": "maxOutputTokens",
    "stop_sequences": "stopSequences",
    "seed": "seed",
    "presence_penalty": "presencePenalty",
    "frequency_penalty": "frequencyPenalty",
}
# Parameters that stand beside `generationConfig`. Gemini knows all others within it.
_TOP_FIELDS: Final = frozenset({"safetySettings", "safety_settings", "serviceTier", "labels"})
_EFFORT_BUDGETS: Final = {"minimal": 128, "low": 2048, "medium": 8192, "high": 24_576, "xhigh": 24_576, "max": 24_576}
_THINKING_LEVELS: Final = ("MINIMAL", "LOW", "MEDIUM", "HIGH")
_MIN_THINKING_BUDGET: Final = 128


def build_contents(messages: Sequence[ModelMessage]) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Return the parts of the system's instruction, and the conversation."""
    system: list[dict[str, Any]] = []
    contents: list[dict[str, Any]] = []
    for message in messages:
        if isinstance(message, ModelResponse):
            if parts := list(_map_response(message)):
                contents.append({"role": "model", "parts": parts})
            continue
        results, others = _map_request(message, system)
        # Results of calls stand alone: Gemini takes what is beside them for its own words.
        contents += [{"role": "user", "parts": parts} for parts in (results, others) if parts]
    if not contents or contents[0]["role"] == "model":
        contents.insert(0, {"role": "user", "parts": [{"text": ""}]})
    return system, contents


def _map_request(
    message: ModelRequest, system: list[dict[str, Any]]
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    results: list[dict[str, Any]] = []
    others: list[dict[str, Any]] = []
    for part in message.parts:
        if isinstance(part, SystemPromptPart):
            system.append({"text": part.content})
        elif isinstance(part, ToolReturnPart):
            text = part.model_response_str(wrap_if_error=False)
            outcome = {"output": text} if part.outcome == "success" else {"error": text}
            response = {"name": part.tool_name, "id": part.tool_call_id, "response": outcome}
            results.append({"functionResponse": response})
            others += _map_contents(part.files)
        elif isinstance(part, UserPromptPart):
            others += _map_contents([part.content] if isinstance(part.content, str) else part.content)
    return results, others


def _map_contents(contents: Iterable[Any]) -> Iterable[dict[str, Any]]:
    for content in contents:
        if isinstance(content, BinaryContent):
            data = base64.b64encode(content.data).decode()
            yield {"inlineData": {"mimeType": content.media_type, "data": data}}
        elif isinstance(content, FileUrl):
            # Google fetches it: nothing is fetched from here.
            yield {"fileData": {"fileUri": content.url, **_find_media_type(content)}}
        elif isinstance(text := getattr(content, "content", content), str):
            yield {"text": text}


def _find_media_type(file: FileUrl) -> dict[str, str]:
    try:
        return {"mimeType": file.media_type}
    except ValueError:
        return {}  # the address does not tell


def _map_response(message: ModelResponse) -> Iterable[dict[str, Any]]:
    has_call = False
    for part in message.parts:
        signature = (part.provider_details or {}).get("thought_signature")
        if isinstance(part, ToolCallPart):
            call = {"name": part.tool_name, "args": part.args_as_dict(), "id": part.tool_call_id}
            if signature is None and not has_call:
                signature = _FOREIGN_SIGNATURE
            has_call = True
            mapped: dict[str, Any] = {"functionCall": call}
        elif isinstance(part, TextPart):
            mapped = {"text": part.content}
        else:
            continue
        yield mapped if signature is None else {**mapped, "thoughtSignature": signature}


def build_tools(parameters: ModelRequestParameters, choice: ResolvedToolChoice) -> dict[str, Any]:
    """Return the fields of a request that hold its tools and which of them may be called."""
    tools = parameters.function_tools
    names: list[str] = []
    mode: Any = choice
    if isinstance(choice, tuple):
        mode, chosen = choice
        names = [tool.name for tool in tools if tool.name in chosen]
        if mode == "auto":
            # Gemini cannot limit what it may call if it may also answer.
            tools, names = [tool for tool in tools if tool.name in chosen], []
    if not tools:
        return {}
    declarations = [
        {"name": tool.name, "description": tool.description or "", "parametersJsonSchema": tool.parameters_json_schema}
        for tool in tools
    ]
    calling: dict[str, Any] = {"mode": {"auto": "AUTO", "none": "NONE", "required": "ANY"}[mode]}
    if names:
        calling["allowedFunctionNames"] = names
    return {"tools": [{"functionDeclarations": declarations}], "toolConfig": {"functionCallingConfig": calling}}


def build_config(
    settings: Mapping[str, Any], parameters: ModelRequestParameters, profile: GoogleModelProfile
) -> dict[str, Any]:
    """Return `generationConfig` and the fields beside it. Errors: `UserError` for an unknown effort."""
    config = {wire: settings[name] for name, wire in _CONFIG_NAMES.items() if settings.get(name) is not None}
    extra = dict(settings.get("extra_body") or {})
    effort = take_effort(settings, extra)
    thinking = parameters.thinking if effort is None else effort
    if thinking is not None:
        config["thinkingConfig"] = _build_thinking(thinking, profile)
    if parameters.output_mode == "native" and parameters.output_object is not None:
        config |= {"responseMimeType": "application/json", "responseJsonSchema": parameters.output_object.json_schema}
    elif parameters.output_mode == "prompted" and not parameters.function_tools:
        config["responseMimeType"] = "application/json"
    fields = {name: value for name, value in extra.items() if name in _TOP_FIELDS}
    if (tier := settings.get("service_tier")) in ("flex", "priority"):
        fields["serviceTier"] = tier
    config |= {name: value for name, value in extra.items() if name not in _TOP_FIELDS}
    return {**fields, "generationConfig": config} if config else fields


def _build_thinking(thinking: Any, profile: GoogleModelProfile) -> dict[str, Any]:
    """Return how much to think: a level from Gemini 3 on, a budget of tokens before."""
    has_levels = profile.get("google_supports_thinking_level", True)
    if thinking is True:
        return {"includeThoughts": True}
    if thinking is False:
        if has_levels and not profile.get("google_disables_thinking_with_zero_budget", False):
            return {"thinkingLevel": _choose_level("minimal", profile)}
        is_always_on = not has_levels and profile.get("thinking_always_enabled", False)
        return {"thinkingBudget": _MIN_THINKING_BUDGET if is_always_on else 0}
    if thinking not in _EFFORT_BUDGETS:
        raise UserError(f"Gemini does not know the effort {thinking!r}.")
    if has_levels:
        return {"includeThoughts": True, "thinkingLevel": _choose_level(thinking, profile)}
    return {"includeThoughts": True, "thinkingBudget": _EFFORT_BUDGETS[thinking]}


def _choose_level(effort: str, profile: GoogleModelProfile) -> str:
    """Return the nearest level that the model accepts, the cheaper one of two."""
    level = effort.upper() if effort.upper() in _THINKING_LEVELS else "HIGH"
    accepted = profile.get("google_thinking_levels") or frozenset(_THINKING_LEVELS)
    place = _THINKING_LEVELS.index(level)
    nearest = sorted(
        (abs(_THINKING_LEVELS.index(name) - place), _THINKING_LEVELS.index(name), name) for name in accepted
    )
    return nearest[0][2]
