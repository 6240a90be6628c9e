"""Names of any script, their slugs, and which of them are alike."""

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from domain.expressions import check_expression, render_template
from domain.shared import names
from domain.shared.errors import DomainError

ANY = st.text(st.characters(exclude_categories=("Cs", "Cc")), min_size=1, max_size=128)


def chosen(name: str, holders: dict[str, str] | None = None, current: str = "") -> str:
    return names.choose_slug("tool", name, current, holders or {})


@given(ANY, st.dictionaries(st.from_regex(r"[a-z0-9_]{1,6}", fullmatch=True), ANY, max_size=3))
def test_every_name_has_a_slug_that_models_can_call(name: str, holders: dict[str, str]) -> None:
    try:
        slug = chosen(name, holders)
    except DomainError as error:
        assert error.code == "conflict"
        assert any(names.fold_name(other) == names.fold_name(name) for other in holders.values())
        return
    assert re.fullmatch(r"[a-z0-9_]{1,64}", slug)
    assert slug not in holders
    # It stays what it is as long as the name does.
    assert chosen(name, {}, slug) == slug


@pytest.mark.parametrize("name", ["搜索工具", "поиск", "بحث", "🔎", "---", "…", "\u200f\u200d", "__", "ß" * 0 + "ツ"])
def test_a_slug_is_made_up_where_nothing_is_left(name: str) -> None:
    assert re.fullmatch(r"tool_[0-9a-f]{8}", chosen(name))


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
def test_names_that_are_not_alike_live_side_by_side(first: str, second: str) -> None:
    one = chosen(first)
    other = chosen(second, {one: first})
    assert one != other
    assert chosen(first, {other: second}, one) == one


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
def test_names_that_are_alike_are_told_apart_by_nobody(first: str, second: str) -> None:
    with pytest.raises(DomainError) as caught:
        chosen(second, {chosen(first): first})
    assert caught.value.code == "conflict"
    assert repr(first) in caught.value.detail


@pytest.mark.parametrize(
    ("reference", "name", "meant"),
    [
        ("code-reviewer", "Code Reviewer", True),
        ("code_reviewer_v2", "Code Reviewer (v2)", True),
        ("研究 员", "研究_员", True),
        ("C#", "C", False),
        ("不存在", "写手", False),
        ("🔎", "🔍", False),
    ],
)
def test_what_a_reference_means(reference: str, name: str, meant: bool) -> None:
    assert names.is_reference_to(reference, name) is meant


@pytest.mark.parametrize(
    "key", ["研究员", "Ünal", "2nd", "a.b", "Senior Writer", "كاتب", "🔎", "C++", "x" * 64, "名\u200d前"]
)
def test_keys_of_any_script(key: str) -> None:
    assert names.KEY_PATTERN.fullmatch(key)


@pytest.mark.parametrize("key", ["", " a", "a ", "a\nb", "a\x00", "x" * 65, "a[0]", "a\u2028"])
def test_what_is_no_key(key: str) -> None:
    assert names.KEY_PATTERN.fullmatch(key) is None


def test_expressions_name_steps_and_inputs_of_any_script() -> None:
    scope = {"steps": {"研究": {"outputs": {"größe": [3]}}, "Write it up": {"outputs": 1}}, "inputs": {"имя": "Ada"}}
    for text, said in (
        ("{{ steps.研究.outputs.größe[0] }}", 3),
        ('{{ steps["研究"].outputs.größe[0] + 1 }}', 4),
        ("{{ steps.研究.outputs.größe.map(x, x + 1) }}", [4]),
        ('{{ steps["Write it up"].outputs }}', 1),
        ("Hi {{ inputs.имя }}, {{ inputs.имя == 'é.имя' }}", "Hi Ada, false"),
    ):
        assert render_template(text, scope) == said
    assert check_expression("steps.研究.outputs == inputs.имя").steps == {"研究"}
