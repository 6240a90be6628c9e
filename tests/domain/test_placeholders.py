r"""Test the grammar of placeholders in texts: which are filled, which are left or reported, and how to escape braces."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from domain.shared.errors import DomainError
from domain.shared.placeholders import create_filler, escape_placeholders, find_placeholders, find_unfilled
from domain.workspaces import fill_path

VALUES = {"name": "Ada", "age": 36, "target-audience": "kids", "имя": "Аня", "नाम": "राम", "größe": 1, "x": "{name}"}
# Pieces that a parser of braces may misread.
_PIECES = ("{name}", "{x}", "{", "}", "\\", "$", "{{", "}}", "name", "{age}", " ", "{task}")
_TEXTS = st.lists(st.sampled_from(_PIECES), max_size=10).map("".join)


@pytest.mark.parametrize(
    ("text", "placeholders", "filled"),
    [
        ("{name} {target-audience} {имя} {नाम} {größe}", ["name", "target-audience", "имя", "नाम", "größe"], None),
        ('{"a": {age}, "b": {"c": "{name}"}}', ["age", "name"], '{"a": 36, "b": {"c": "Ada"}}'),
        ("#{age} f({name})", ["age", "name"], "#36 f(Ada)"),
        (r"\{name} \\{name} \\\{name} \\\\{name}", ["name"], r"{name} \Ada \{name} \\Ada"),
        (r"\{nope} {nope} C:\dir \{ \{a b} \n", ["nope"], r"{nope} {nope} C:\dir \{ \{a b} \n"),
        ("{x}", ["x"], "{name}"),
    ],
)
def test_placeholders_are_filled(text: str, placeholders: list[str], filled: str | None) -> None:
    assert (find_placeholders(text), find_unfilled(text)) == (placeholders, ["{a b}"] if "a b" in text else [])
    assert create_filler(VALUES, "inputs")(text) == (filled or "Ada kids Аня राम 1")


@pytest.mark.parametrize(
    ("text", "unfilled"),
    [
        ("{{name}}", ["{{name}}"]),
        ("{{{name}}} {{{{name}}}}", ["{{{name}}}", "{{{{name}}}}"]),
        ("{{ name }} {{имя}}", ["{{ name }}", "{{имя}}"]),
        ("{{name}", ["{{name}"]),
        ("${name} $${name} ${{ name }}", ["${name}", "${{ name }}"]),
        ("{ name } {user.name} {first name}", ["{ name }", "{user.name}", "{first name}"]),
        ("{} {1} {-} {name!r} {age:>3} {'name'} {name\n}", []),
        ('{"title": "…", "n": 1} { a: 1, b: 2 }', []),
    ],
)
def test_other_braces_are_unchanged_and_lookalikes_reported(text: str, unfilled: list[str]) -> None:
    assert (find_placeholders(text), find_unfilled(text)) == ([], unfilled)
    assert create_filler(VALUES, "inputs")(text) == text


@given(_TEXTS)
def test_escaped_text_is_filled_to_itself(text: str) -> None:
    assert (
        create_filler({"name": "no", "x": "no", "age": "no", "task": "no"}, "inputs")(escape_placeholders(text)) == text
    )


@pytest.mark.parametrize("value", ["{task}", "\\{task}", "Ada", "{{task}}", "\\"])
@pytest.mark.parametrize("text", ["{name}", "a {name} b", r"\\{name}", r"\{name}", r"{other} \{other} {task}"])
def test_filling_in_two_steps_never_fills_inserted_values(text: str, value: str) -> None:
    first = create_filler({"name": value}, "inputs", keep_escapes=True)(text)
    expected = create_filler({"name": value, "task": "T"}, "inputs")(text)
    assert create_filler({"task": "T"}, "inputs")(first) == expected


def test_nested_values_may_hold_placeholders_of_the_next_step() -> None:
    first = create_filler({"who": "{audience}"}, "variables", keep_escapes=True, allow_nested=True)(
        r"For {who}, \{who} as it stands"
    )
    assert create_filler({"audience": "kids", "who": "no"}, "inputs")(first) == "For kids, {who} as it stands"


@pytest.mark.parametrize(
    ("path", "values", "filled"),
    [
        ("out/{name}.md", {"name": "a"}, "out/a.md"),
        ("out/{name}.md", {"name": "a/b"}, "out/a/b.md"),
        ("{name}", {"name": "报告.md"}, "报告.md"),
        ("{n}.md", {"n": 5}, "5.md"),
        ("out/{name}.md", {"name": "../x"}, None),
        ("{name}", {"name": "/etc/passwd"}, None),
        ("{name}", {"name": ""}, None),
        ("{name}", {"name": "."}, None),
        ("{name}", {"name": "a\0b"}, None),
        ("{name}", {"name": "a\\b"}, None),
        ("{name}", {"name": "x" * 600}, None),
        ("{a}{a}", {"a": "."}, None),
    ],
)
def test_filled_paths_are_validated(path: str, values: dict[str, Any], filled: str | None) -> None:
    if filled is not None:
        assert fill_path(path, values) == filled
        return
    with pytest.raises(Exception, match="becomes"):
        fill_path(path, values)


def test_invalid_path_error_says_what_is_forbidden() -> None:
    with pytest.raises(Exception, match="without `..`, backslashes or line breaks"):
        fill_path("out/{a}.md", {"a": "b\\c"})


def test_filled_path_has_a_maximum_length() -> None:
    with pytest.raises(DomainError):
        fill_path("{a}" * 5, {"a": "x" * 1_000_000})
