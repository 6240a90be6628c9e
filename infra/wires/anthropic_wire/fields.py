"""Decide about each field of a request for a message: `docs/gateway.md` has the same table for readers.

A field that is in neither of these tables and not in `MessageBody` is refused as unknown.
"""

from typing import Final

from infra.wires.common import FieldRules, is_never

# Ignored are fields about identity.
FIELD_RULES: Final = FieldRules(
    ignored=frozenset({"metadata", "user_profile_id", "workspace_id"}),
    neutral_values={
        "billing_policy": is_never,
        "compaction": is_never,
        "container": is_never,
        "context_management": lambda value: value == {},
        "diagnostics": lambda value: value == {},
        "fallback_credit_token": is_never,
        "fallbacks": lambda value: value == [],
        "inference_geo": is_never,
        "mcp_servers": lambda value: value == [],
        "speed": lambda value: value == "standard",
        "thread": is_never,
    },
    alternatives={"mcp_servers": "call their tools in the agent, and offer them as `tools`"},
)
MESSAGE_NOTES: Final = frozenset(
    {"id", "type", "model", "stop_reason", "stop_sequence", "stop_details", "usage", "container", "diagnostics"}
)
TOOL_NOTES: Final = frozenset({"type", "eager_input_streaming", "input_examples"})
# Notes that an answer has and that clients send back.
BLOCK_NOTES: Final = frozenset({"type", "parsed_output"})
TEXT_NOTES: Final = BLOCK_NOTES | {"citations"}
THINKING_NOTES: Final = BLOCK_NOTES | {"thinking", "cache_control"}
