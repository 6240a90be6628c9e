"""Convert a call's thinking options to the settings of its wire."""

from typing import Any, Final

from domain.llms import ThinkingOptions

# Efforts by the most tokens of thinking for which they stand.
_EFFORT_TOKENS: Final = ((4096, "low"), (16_384, "medium"))


def convert_thinking(thinking: ThinkingOptions | None, wire: str) -> dict[str, Any]:
    """Return the settings for a wire. Anthropic's has these options; on others a budget becomes an effort.

    A model that cannot think refuses an effort, and its caller learns of it.
    """
    if thinking is None:
        return {}
    if wire == "anthropic":
        fields = {"type": thinking.mode, "budget_tokens": thinking.max_tokens, "display": thinking.display}
        return {"anthropic_thinking": {name: value for name, value in fields.items() if value is not None}}
    if thinking.mode == "disabled":
        return {"thinking": False}
    tokens = thinking.max_tokens
    effort = "medium" if tokens is None else next((name for most, name in _EFFORT_TOKENS if tokens <= most), "high")
    return {"openai_reasoning_effort" if wire in ("chat", "responses") else "thinking": effort}
