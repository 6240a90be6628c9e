"""Decide about each field of a request for a response: `docs/gateway.md` has the same table for readers.

A field that is in neither of these tables and not in `ResponseBody` is refused as unknown.
"""

from typing import Final

from infra.wires.common import FieldRules, PartRules, is_never

# Results of tools that run at the provider, which are not offered, and reasoning, which is always included.
_NEUTRAL_INCLUDES: Final = frozenset(
    {"file_search_call.results", "web_search_call.results", "web_search_call.action.sources"}
    | {"message.input_image.image_url", "computer_call_output.output.image_url", "code_interpreter_call.outputs"}
    | {"reasoning.encrypted_content"}
)
# Ignored are fields about identity and caching, and a limit for tools that run at the provider.
FIELD_RULES: Final = FieldRules(
    ignored=frozenset(
        {"user", "metadata", "safety_identifier", "max_tool_calls"}
        | {"prompt_cache_key", "prompt_cache_retention", "prompt_cache_options"}
    ),
    neutral_values={
        "access_programs": is_never,
        "background": lambda value: value is False,
        "background_options": is_never,
        "image": is_never,
        "conversation": is_never,
        "prompt": is_never,
        "context_management": lambda value: value == [],
        "truncation": lambda value: value == "disabled",
        "top_logprobs": lambda value: value == 0,
        "include": lambda value: (
            isinstance(value, list) and all(isinstance(name, str) and name in _NEUTRAL_INCLUDES for name in value)
        ),
        "moderation": is_never,
        "n": lambda value: value == 1 and not isinstance(value, bool),
    },
    alternatives={
        "background": "wait for the response, or stream it",
        "conversation": "send the conversation as `input`, or `previous_response_id`",
        "prompt": "send the text itself as `instructions` and `input`",
        "truncation": "shorten `input`",
        "include": 'it may hold "reasoning.encrypted_content"',
        "n": "answers come one at a time: send several requests",
    },
)
# Notes that a response has, and that clients send back, and the names of writers.
MESSAGE_NOTES: Final = frozenset({"id", "type", "status", "phase", "name"})
CALL_NOTES: Final = frozenset({"id", "type", "status", "parsed_arguments"})
OUTPUT_NOTES: Final = frozenset({"id", "type", "status", "name"})
REASONING_NOTES: Final = frozenset({"id", "type", "status", "summary", "content"})
TOOL_NOTES: Final = frozenset({"allowed_callers", "output_schema"})
PART_RULES: Final = PartRules(
    text_fields={
        "input_text": "text",
        "output_text": "text",
        "text": "text",
        "summary_text": "text",
        "refusal": "refusal",
    },
    notes=frozenset({"annotations", "logprobs", "parsed"}),
    shape="an object with a `type`",
    text_kind="input_text",
    image_kind="input_image",
)
