"""Read token counts, which providers report under several names and as numbers of any kind, or wrongly."""

import math
from collections.abc import Mapping
from typing import Any, Final

from domain.llms import ReportedUsage

# No call uses more tokens than this: a larger count is wrong.
MAX_TOKEN_COUNT: Final = 10**9
_PROMPT_FIELDS: Final = ("prompt_tokens", "input_tokens", "prompt_eval_count")
_COMPLETION_FIELDS: Final = ("completion_tokens", "output_tokens", "eval_count")
_CACHED_FIELDS: Final = ("cached_tokens", "prompt_cache_hit_tokens")
_REASONING_FIELDS: Final = ("reasoning_tokens", "thinking_tokens")


def read_count(value: Any) -> int | None:
    """Return a count of tokens, or None if the value is not a count. Fractions are rounded up."""
    if isinstance(value, str) and len(value) <= 32:
        try:
            value = float(value)
        except ValueError:
            return None
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= MAX_TOKEN_COUNT:
        return None
    return math.ceil(value)


def read_counts(usage: Mapping[str, Any]) -> dict[str, int]:
    """Return the fields of a usage object that hold counts."""
    return {name: count for name, value in usage.items() if (count := read_count(value)) is not None}


def read_usage(usage: Any) -> ReportedUsage | None:
    """Return the counts of a usage object of OpenAI's wires, or None if it has none."""
    if not isinstance(usage, Mapping):
        return None
    prompt, completion = _get_first_count(usage, _PROMPT_FIELDS), _get_first_count(usage, _COMPLETION_FIELDS)
    prompt_details = _get_details(usage, "prompt_tokens_details", "input_tokens_details")
    completion_details = _get_details(usage, "completion_tokens_details", "output_tokens_details")
    cached = _get_first_count(prompt_details, _CACHED_FIELDS) or _get_first_count(usage, _CACHED_FIELDS)
    reasoning = _get_first_count(completion_details, _REASONING_FIELDS) or _get_first_count(usage, _REASONING_FIELDS)
    total = read_count(usage.get("total_tokens"))
    if total is not None:
        if prompt is not None and completion is not None and total == prompt + completion + (reasoning or 0):
            completion = total - prompt  # some count reasoning beside the completion, not within it
        elif prompt is None and completion is not None and total > completion:
            prompt = total - completion
        elif completion is None and prompt is not None and total > prompt:
            completion = total - prompt
    if prompt is None and completion is None:
        return None
    return ReportedUsage(
        prompt_tokens=prompt,
        completion_tokens=completion,
        cached_tokens=cached if prompt is None or cached is None else min(cached, prompt),
        reasoning_tokens=reasoning if completion is None or reasoning is None else min(reasoning, completion),
    )


def _get_first_count(source: Mapping[str, Any], names: tuple[str, ...]) -> int | None:
    return next((count for name in names if (count := read_count(source.get(name))) is not None), None)


def _get_details(usage: Mapping[str, Any], *names: str) -> Mapping[str, Any]:
    return next((usage[name] for name in names if isinstance(usage.get(name), Mapping)), {})
