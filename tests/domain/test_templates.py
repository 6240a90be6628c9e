"""Test templates: the variables of a text, missing ones, filling, and inheritance by agents."""

import re
from datetime import UTC, datetime
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from domain.agents import Agent, build_messages, merge_ancestors
from domain.shared import ids
from domain.shared.errors import DomainError
from domain.shared.placeholders import MAX_FILLED_LENGTH, create_filler, find_placeholders
from domain.templates import Template, render_text, validate_variables

NOW = datetime(2030, 1, 1, tzinfo=UTC)
VARIABLE_NAMES = st.from_regex(r"[A-Za-z_][A-Za-z0-9_]{0,5}", fullmatch=True)
# Texts with variables and with pieces that look like variables.
TEMPLATE_TEXTS = st.lists(
    st.one_of(VARIABLE_NAMES.map(lambda name: f"{{{name}}}"), st.text(alphabet="ab {}1.!-\n", max_size=6)), max_size=12
).map("".join)


def build_template(text: str) -> Template:
    return Template(
        id=ids.generate_id("tpl"),
        name="t",
        description=None,
        template=text,
        variables=find_placeholders(text),
        tenant_id="acme",
        created_at=NOW,
        updated_at=NOW,
    )


def build_agent(**more: Any) -> Agent:
    return Agent(
        id=ids.generate_id("agent"),
        name="a",
        description=None,
        kind="llm",
        user_id="user_x",
        tenant_id="acme",
        status="ready",
        current_version_id=None,
        created_at=NOW,
        updated_at=NOW,
        **more,
    )


def collect_errors(call: Any) -> list[tuple[str, str]]:
    with pytest.raises(DomainError) as caught:
        call()
    assert caught.value.code == "invalid_field"
    return [(error.field, error.message) for error in caught.value.errors]


def test_variables_are_listed_once_in_order() -> None:
    assert find_placeholders("{b} {a} {b} {{c}} {1} { d} {e.f} {} {_9} {é}") == ["b", "a", "_9", "é"]
    assert validate_variables("{b} {a}", None) == ["b", "a"]
    assert validate_variables("{b} {a}", ["a", "b"]) == ["a", "b"]


def test_all_mismatched_variables_are_reported() -> None:
    errors = collect_errors(lambda: validate_variables("{a} {b}", ["b", "c", "b"]))
    assert [field for field, _ in errors] == ["variables"] * 3
    assert [re.findall("'(.)'", message) for _, message in errors] == [["c"], ["a"], ["b"]]


@pytest.mark.slow
@given(TEMPLATE_TEXTS, st.dictionaries(VARIABLE_NAMES, st.one_of(st.text(max_size=5), st.integers(), st.none())))
def test_filling_never_fills_inserted_values(text: str, values: dict[str, Any]) -> None:
    filled_template = build_template(text)
    full = {name: values.get(name, "{" + name + "}!") for name in filled_template.variables}
    parts = re.split(r"(?<!\{)\{([A-Za-z_][A-Za-z0-9_]*)\}", text)
    words = ["null" if (value := full[name]) is None else str(value) for name in parts[1::2]]
    expected = "".join(a + b for a, b in zip(parts[::2], [*words, ""], strict=True))
    assert render_text(filled_template, full) == expected
    others = {name: value for name, value in values.items() if name not in full}
    if others:
        assert {field for field, _ in collect_errors(lambda: render_text(filled_template, full | others))} == {
            f"variables.{name}" for name in list(others)[:20]
        }
    for name in full:
        incomplete = {other: value for other, value in full.items() if other != name}
        assert [
            field for field, _ in collect_errors(lambda incomplete=incomplete: render_text(filled_template, incomplete))
        ] == [f"variables.{name}"]


def test_filled_length_is_limited() -> None:
    text = "{a}" * 5000
    assert len(render_text(build_template(text), {"a": "x" * 800})) == MAX_FILLED_LENGTH
    assert collect_errors(lambda: render_text(build_template(text), {"a": "x" * 801}))[0][0] == "variables"
    # All texts of one filling share the limit.
    fill = create_filler({"a": "x" * (MAX_FILLED_LENGTH // 2 + 1)}, "inputs")
    fill("{a}")
    assert collect_errors(lambda: fill("{a}"))[0][0] == "inputs"


def test_template_text_precedes_instructions() -> None:
    messages = build_messages(
        build_agent(goal="{goal}", template_text="About {topic}.", instructions="Be brief."),
        {"topic": "bees", "task": "Go"},
    )
    assert messages[0].content == "Your goal: {goal}\n\nAbout bees.\n\nBe brief."
    assert messages[1].content.startswith("Go")


def test_task_placeholder_is_the_filled_task() -> None:
    messages = build_messages(
        build_agent(instructions="You were asked: {task}"), {"topic": "b{x}", "x": 1, "task": "Count {topic}"}
    )
    assert messages[0].content == "You were asked: Count b{x}"
    assert messages[1].content.startswith("Count b{x}\n\nInputs:")
    task_messages = build_messages(build_agent(instructions="You were asked: {task}"), {"task": "Count {topic}"})
    assert [message.content for message in task_messages] == ["You were asked: Count {topic}", "Count {topic}"]


def test_template_and_its_id_are_inherited_together() -> None:
    parent = build_agent(template="house style", template_id="tpl_1")
    child, own = build_agent(), build_agent(template="mine", template_id="tpl_2")
    assert (merge_ancestors([child, parent]).template, merge_ancestors([child, parent]).template_id) == (
        "house style",
        "tpl_1",
    )
    assert (merge_ancestors([own, parent]).template, merge_ancestors([own, parent]).template_id) == ("mine", "tpl_2")
