"""Test the messages for invalid fields: plain words, and what to send instead."""

from typing import Any

import msgspec
import pytest

from domain import llms, provider_keys, tools
from domain.agents import Description
from domain.executions import ExecutionStart, RunName
from domain.shared.errors import DomainError
from domain.shared.field_errors import collect_field_errors
from domain.tools import check_custom_configuration


@pytest.mark.parametrize(
    ("kind", "value", "message"),
    [
        (Description, "a\0b", "must not contain the character U+0000."),
        (RunName, "a\nb", "must not contain line breaks or other control characters."),
        (llms.ModelName, "a b", "must not contain spaces or control characters."),
        (provider_keys.ServiceName, "open ai", "must be letters, digits, _, . and -, a letter or digit first."),
        (tools.Category, "My Tools", "must be lower-case letters, digits, _ and -, a letter or digit first."),
    ],
)
def test_character_rules_are_explained_in_words(kind: Any, value: str, message: str) -> None:
    struct = msgspec.defstruct("Named", [("field", kind)])
    [error] = collect_field_errors({"field": value}, struct)
    assert (error.field, error.message) == ("field", message)


def test_all_problems_of_a_tool_are_reported_with_allowed_values() -> None:
    with pytest.raises(DomainError) as caught:
        check_custom_configuration({"api_endpoint": "https://example.com", "method": "get", "timeout": "x"})
    messages = {error.field: error.message for error in caught.value.errors}
    assert messages.keys() == {"configuration.method", "configuration.timeout"}
    assert "'GET'" in messages["configuration.method"]


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("conversation_id", "; did you mean `thread_id`?"),
        ("priorty", "; did you mean `priority`?"),
        ("topic", "; what the run receives goes into `payload`."),
    ],
)
def test_unknown_fields_of_a_start_say_where_they_belong(name: str, hint: str) -> None:
    [error] = collect_field_errors({name: "x"}, ExecutionStart)
    assert (error.field, error.message) == (name, f"is not a field here{hint}")
