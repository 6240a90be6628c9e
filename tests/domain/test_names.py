"""Test names of any script, their slugs, and which names conflict."""

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from domain.expressions import check_expression, render_template
from domain.shared import names
from domain.shared.errors import DomainError

ANY_NAMES = st.text(st.characters(exclude_categories=("Cs", "Cc")), min_size=1, max_size=128)


def choose_slug(name: str, holders: dict[str, str] | None = None, current: str = "") -> str:
    return names.choose_slug("tool", name, current, holders or {})


@given(ANY_NAMES, st.dictionaries(st.from_regex(r"[a-z0-9_]{1,6}", fullmatch=True), ANY_NAMES, max_size=3))
def test_every_name_gets_a_valid_slug_or_conflicts(name: str, holders: dict[str, str]) -> None:
    try:
        slug = choose_slug(name, holders)
    except DomainError as error:
        assert error.code == "conflict"
        assert any(names.fold_name(other) == names.fold_name(name) for other in holders.values())
        return
    assert re.fullmatch(r"[a-z0-9_]{1,64}", slug)
    assert slug not in holders
    # The slug stays as long as the name does.
    assert choose_slug(name, {}, slug) == slug


@pytest.mark.parametrize("name", ["搜索工具", "поиск", "بحث", "🔎", "---", "…", "\u200f\u200d", "__", "ß" * 0 + "ツ"])
def test_name_without_ascii_letters_gets_a_random_slug(name: str) -> None:
    assert re.fullmatch(r"tool_[0-9a-f]{8}", choose_slug(name))


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ("C++", "C#"),
        ("C++", "C"),
        ("C", "C#"),
        ("Ünal", "Unal"),
        ("Report!", "Report?"),
        ("x 搜索", "x 查询"),
        ("🔎", "🔍"),
        ("---", "…"),
        ("a" * 70, "a" * 71),
        ("F#", "F*"),
        ("été", "ete"),
    ],
)
def test_different_names_get_different_slugs(first: str, second: str) -> None:
    first_slug = choose_slug(first)
    second_slug = choose_slug(second, {first_slug: first})
    assert first_slug != second_slug
    assert choose_slug(first, {second_slug: second}, first_slug) == first_slug


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ("Search Tool", "search_tool"),
        ("a.b", "A b"),
        ("ＡＢＣ", "abc"),
        ("C++", "c++"),
        ("研究", "研究"),
        ("é", "e\u0301"),
        ("---", "---"),
        ("x\u200f", "x"),
    ],
)
def test_equivalent_names_conflict(first: str, second: str) -> None:
    with pytest.raises(DomainError) as caught:
        choose_slug(second, {choose_slug(first): first})
    assert caught.value.code == "conflict"
    assert repr(first) in caught.value.detail


@pytest.mark.parametrize(
    ("reference", "name", "is_match"),
    [
        ("code-reviewer", "Code Reviewer", True),
        ("code_reviewer_v2", "Code Reviewer (v2)", True),
        ("研究 员", "研究_员", True),
        ("C#", "C", False),
        ("不存在", "写手", False),
        ("🔎", "🔍", False),
    ],
)
def test_reference_matches_equivalent_names(reference: str, name: str, is_match: bool) -> None:
    assert names.is_reference_to(reference, name) is is_match


@pytest.mark.parametrize(
    "key", ["研究员", "Ünal", "2nd", "a.b", "Senior Writer", "كاتب", "🔎", "C++", "x" * 64, "名\u200d前"]
)
def test_keys_accept_any_script(key: str) -> None:
    assert names.KEY_PATTERN.fullmatch(key)


@pytest.mark.parametrize("key", ["", " a", "a ", "a\nb", "a\x00", "x" * 65, "a[0]", "a\u2028"])
def test_invalid_keys_are_refused(key: str) -> None:
    assert names.KEY_PATTERN.fullmatch(key) is None


def test_expressions_accept_steps_and_inputs_of_any_script() -> None:
    scope = {"steps": {"研究": {"outputs": {"größe": [3]}}, "Write it up": {"outputs": 1}}, "inputs": {"имя": "Ada"}}
    for text, rendered in (
        ("{{ steps.研究.outputs.größe[0] }}", 3),
        ('{{ steps["研究"].outputs.größe[0] + 1 }}', 4),
        ("{{ steps.研究.outputs.größe.map(x, x + 1) }}", [4]),
        ('{{ steps["Write it up"].outputs }}', 1),
        ("Hi {{ inputs.имя }}, {{ inputs.имя == 'é.имя' }}", "Hi Ada, false"),
    ):
        assert render_template(text, scope) == rendered
    assert check_expression("steps.研究.outputs == inputs.имя").steps == {"研究"}
