"""Decide about each field of a request for a completion: `docs/gateway.md` has the same table for readers.

A field that is in neither of these tables and not in `ChatRequest` is refused as unknown.
"""

from typing import Final

from infra.wires.common import FieldRules, PartRules, is_never

# Ignored are fields about identity, storage and caching, and what only makes an answer faster.
FIELD_RULES: Final = FieldRules(
    ignored=frozenset(
        {"safety_identifier", "user", "metadata", "store", "prediction"}
        | {"prompt_cache_key", "prompt_cache_retention", "prompt_cache_options"}
    ),
    neutral_values={
        "modalities": lambda value: value in (["text"], []),
        "audio": is_never,
        "logprobs": lambda value: value is False,
        "top_logprobs": lambda value: value == 0,
        "functions": lambda value: value == [],
        "function_call": lambda value: value in ("none", "auto"),
        "web_search_options": lambda value: value is False,
        "moderation": is_never,
        "echo": lambda value: value is False,
        "best_of": lambda value: value == 1,
        "n": lambda value: value == 1 and not isinstance(value, bool),
    },
    alternatives={
        "functions": "send `tools`",
        "function_call": "send `tool_choice` and `tools`",
        "modalities": 'answers are text: send ["text"] or nothing',
        "n": "answers come one at a time: send several requests",
        "web_search_options": "search in the agent, and offer the search as one of `tools`",
    },
)
# Notes that libraries add to an answer and send back with it, and the names of writers.
MESSAGE_NOTES: Final = frozenset(
    {"name", "id", "annotations", "parsed", "index", "reasoning_content", "reasoning", "reasoning_details", "thinking"}
    | {"thinking_blocks", "provider_specific_fields"}
)
TOOL_NOTES: Final = frozenset(
    {"index", "extra_content", "thought_signature", "provider_specific_fields", "parsed_arguments"}
)
CALL_NOTES: Final = TOOL_NOTES | {"cache_control"}
PART_RULES: Final = PartRules(
    text_fields={"text": "text", "input_text": "text", "output_text": "text", "refusal": "refusal"},
    notes=frozenset({"annotations", "citations", "id", "index", "logprobs", "parsed"}),
    shape="text or {type, text}",
    text_kind="text",
    image_kind="image_url",
    default_kind="text",
)
