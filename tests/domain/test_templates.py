"""Rules of templates: which variables a text has, what is missing, what filling it comes to."""

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
NAMES = st.from_regex(r"[A-Za-z_][A-Za-z0-9_]{0,5}", fullmatch=True)
# Texts that hold variables, and much that only looks like one.
TEXTS = st.lists(
    st.one_of(NAMES.map(lambda name: f"{{{name}}}"), st.text(alphabet="ab {}1.!-\n", max_size=6)), max_size=12
).map("".join)


def template(text: str) -> Template:
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


def agent(**more: Any) -> Agent:
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


def errors_of(make: Any) -> list[tuple[str, str]]:
    with pytest.raises(DomainError) as caught:
        make()
    assert caught.value.code == "invalid_field"
    return [(one.field, one.message) for one in caught.value.errors]


def test_variables_are_found_in_their_order_each_once() -> None:
    assert find_placeholders("{b} {a} {b} {{c}} {1} { d} {e.f} {} {_9} {é}") == ["b", "a", "_9", "é"]
    assert validate_variables("{b} {a}", None) == ["b", "a"]
    assert validate_variables("{b} {a}", ["a", "b"]) == ["a", "b"]


def test_variables_that_do_not_fit_are_all_named() -> None:
    found = errors_of(lambda: validate_variables("{a} {b}", ["b", "c", "b"]))
    assert [field for field, _ in found] == ["variables"] * 3
    assert [re.findall("'(.)'", message) for _, message in found] == [["c"], ["a"], ["b"]]


@given(TEXTS, st.dictionaries(NAMES, st.one_of(st.text(max_size=5), st.integers(), st.none())))
def test_filling_is_exact_and_no_value_is_filled_again(text: str, values: dict[str, Any]) -> None:
    one = template(text)
    full = {name: values.get(name, "{" + name + "}!") for name in one.variables}
    parts = re.split(r"(?<!\{)\{([A-Za-z_][A-Za-z0-9_]*)\}", text)
    words = ["null" if (value := full[name]) is None else str(value) for name in parts[1::2]]
    expected = "".join(a + b for a, b in zip(parts[::2], [*words, ""], strict=True))
    assert render_text(one, full) == expected
    others = {name: value for name, value in values.items() if name not in full}
    if others:
        assert {field for field, _ in errors_of(lambda: render_text(one, full | others))} == {
            f"variables.{name}" for name in list(others)[:20]
        }
    for name in full:
        left = {other: value for other, value in full.items() if other != name}
        assert [field for field, _ in errors_of(lambda left=left: render_text(one, left))] == [f"variables.{name}"]


def test_what_values_may_add_is_bounded() -> None:
    text = "{a}" * 5000
    assert len(render_text(template(text), {"a": "x" * 800})) == MAX_FILLED_LENGTH
    assert errors_of(lambda: render_text(template(text), {"a": "x" * 801}))[0][0] == "variables"
    # All texts of one filling share the bound.
    fill = create_filler({"a": "x" * (MAX_FILLED_LENGTH // 2 + 1)}, "inputs")
    fill("{a}")
    assert errors_of(lambda: fill("{a}"))[0][0] == "inputs"


def test_an_agent_is_told_its_template_before_its_instructions() -> None:
    told = build_messages(
        agent(goal="{goal}", template_text="About {topic}.", instructions="Be brief."), {"topic": "bees", "task": "Go"}
    )
    assert told[0].content == "Your goal: {goal}\n\nAbout bees.\n\nBe brief."
    assert told[1].content.startswith("Go")


def test_the_task_in_an_agents_texts_is_what_is_asked() -> None:
    told = build_messages(
        agent(instructions="You were asked: {task}"), {"topic": "b{x}", "x": 1, "task": "Count {topic}"}
    )
    assert told[0].content == "You were asked: Count b{x}"
    assert told[1].content.startswith("Count b{x}\n\nInputs:")
    alone = build_messages(agent(instructions="You were asked: {task}"), {"task": "Count {topic}"})
    assert [one.content for one in alone] == ["You were asked: Count {topic}", "Count {topic}"]


def test_a_template_is_inherited_whole() -> None:
    parent = agent(template="house style", template_id="tpl_1")
    child, own = agent(), agent(template="mine", template_id="tpl_2")
    assert (merge_ancestors([child, parent]).template, merge_ancestors([child, parent]).template_id) == (
        "house style",
        "tpl_1",
    )
    assert (merge_ancestors([own, parent]).template, merge_ancestors([own, parent]).template_id) == ("mine", "tpl_2")
