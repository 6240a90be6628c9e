"""What is said of fields that break a rule: in words, with what may be sent instead."""

from typing import Any

import msgspec
import pytest

from domain import llms, provider_keys, tools
from domain.agents import Description
from domain.executions import RunName
from domain.shared.errors import DomainError
from domain.shared.field_errors import collect_field_errors
from domain.tools import check_custom_configuration


@pytest.mark.parametrize(
    ("kind", "value", "told"),
    [
        (Description, "a\0b", "must not contain the character U+0000."),
        (RunName, "a\nb", "must not contain line breaks or other control characters."),
        (llms.ModelName, "a b", "must not contain spaces or control characters."),
        (provider_keys.ServiceName, "open ai", "must be letters, digits, _, . and -, a letter or digit first."),
        (tools.Category, "My Tools", "must be lower-case letters, digits, _ and -, a letter or digit first."),
    ],
)
def test_rules_of_characters_are_told_in_words(kind: Any, value: str, told: str) -> None:
    named = msgspec.defstruct("Named", [("field", kind)])
    [error] = collect_field_errors({"field": value}, named)
    assert (error.field, error.message) == ("field", told)


def test_all_that_is_wrong_with_a_tool_is_told_with_what_may_be_sent() -> None:
    with pytest.raises(DomainError) as caught:
        check_custom_configuration({"api_endpoint": "https://example.com", "method": "get", "timeout": "x"})
    told = {error.field: error.message for error in caught.value.errors}
    assert told.keys() == {"configuration.method", "configuration.timeout"}
    assert "'GET'" in told["configuration.method"]
