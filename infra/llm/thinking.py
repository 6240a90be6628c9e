"""Convert a call's thinking options to the settings of its wire."""

from collections.abc import Mapping
from typing import Any, Final

from domain.llms import ReasoningEffort, ThinkingOptions

# Efforts by the most tokens of thinking for which they stand.
_EFFORT_TOKENS: Final = ((4096, "low"), (16_384, "medium"))
# Tokens of thinking for which an effort stands, with models that take nothing else.
_BUDGET_TOKENS: Final[dict[ReasoningEffort, int]] = {
    "minimal": 1024,
    "low": 2048,
    "medium": 10_000,
    "high": 16_384,
    "xhigh": 32_768,
    "max": 32_768,
}


def convert_thinking(
    thinking: ThinkingOptions | None, wire: str, profile: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """Return the settings for a wire. Anthropic's has most of these options; on others a budget becomes an effort.

    `profile` describes the model. A model that cannot think refuses an effort, and its caller learns of it.
    """
    if thinking is None:
        return {}
    if wire == "anthropic":
        return _convert_for_anthropic(thinking, profile or {})
    if wire == "bedrock" and thinking.mode == "enabled" and thinking.max_tokens is not None and not thinking.effort:
        # Claude is one of Bedrock's models, and takes a budget.
        return {"anthropic_thinking": {"type": "enabled", "budget_tokens": thinking.max_tokens}}
    summary = {} if wire != "responses" or thinking.summary is None else {"openai_reasoning_summary": thinking.summary}
    if (effort := thinking.effort or _find_effort(thinking)) is None:
        return summary if thinking.mode is None else {"thinking": False, **summary}
    if wire not in ("chat", "responses"):
        return {"thinking": _convert_effort(effort)}
    return {"openai_reasoning_effort": effort, **summary}


def take_effort(settings: Mapping[str, Any], body: dict[str, Any]) -> bool | str | None:
    """Return pydantic-ai's `thinking` for the effort in OpenAI's settings or fields of the body, which lose it."""
    return _convert_effort(body.pop("reasoning_effort", None) or settings.get("openai_reasoning_effort"))


def _convert_effort(effort: str | None) -> bool | str | None:
    return False if effort == "none" else effort


def _find_effort(thinking: ThinkingOptions) -> str | None:
    """Return the effort that a mode and a budget stand for, None where they stand for none."""
    if thinking.mode in (None, "disabled"):
        return None
    return choose_effort(thinking.max_tokens)


def choose_effort(tokens: int | None) -> str:
    """Return the effort for which a budget stands."""
    if tokens is None:
        return "medium"
    return next((name for most, name in _EFFORT_TOKENS if tokens <= most), "high")


def _convert_for_anthropic(thinking: ThinkingOptions, profile: Mapping[str, Any]) -> dict[str, Any]:
    effort = None if thinking.effort == "none" else thinking.effort
    fields: dict[str, Any] = {
        "type": thinking.mode,
        "budget_tokens": thinking.max_tokens,
        "display": thinking.display,
    }
    values: dict[str, Any] = {}
    if thinking.mode == "adaptive" and effort is not None and not profile.get("anthropic_supports_adaptive_thinking"):
        # Older models think within a budget, and know no effort.
        fields |= {"type": "enabled", "budget_tokens": _BUDGET_TOKENS[effort]}
    elif effort is not None:
        values["anthropic_effort"] = "low" if effort == "minimal" else effort
    if thinking.mode is not None:
        values["anthropic_thinking"] = {name: value for name, value in fields.items() if value is not None}
    return values
