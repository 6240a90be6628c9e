"""Test that JSON with comments and trailing commas is read as JSON is, and that nothing else is taken."""

import json
import random
import time
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from domain.shared.jsonc_reader import read_jsonc
from domain.shared.yaml_reader import YamlError

TEXTS = st.text(
    st.characters(codec="utf-8", exclude_categories=["Cc", "Cs", "Zl", "Zp"], exclude_characters="\ufffe\uffff"),
    max_size=12,
)
VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**53), 2**53)
    | TEXTS
    | st.sampled_from(["// no", "/* no */", ",]", ",}"]),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(TEXTS, inner, max_size=4),
    max_leaves=12,
)
EXTRAS = ("", " ", "\n", "\t", '// a "comment", }\n', "/* one\n more ] */", "/**/", "//\r\n", "/* // */")


def write_jsonc(value: Any, source: random.Random) -> str:
    """Write a value with comments and trailing commas anywhere that they may stand."""

    def pad() -> str:
        return source.choice(EXTRAS)

    def write(item: Any) -> str:
        if isinstance(item, list):
            parts = [f"{pad()}{write(part)}{pad()}" for part in item]
            brackets = "[]"
        elif isinstance(item, dict):
            parts = [f"{pad()}{json.dumps(key)}{pad()}:{pad()}{write(part)}{pad()}" for key, part in item.items()]
            brackets = "{}"
        else:
            return json.dumps(item, ensure_ascii=source.random() < 0.5)
        trailing = f",{pad()}" if parts and source.random() < 0.5 else ""
        return f"{brackets[0]}{pad()}{','.join(parts)}{trailing}{brackets[1]}"

    return f"{pad()}{write(value)}{pad()}"


@given(VALUES, st.randoms(use_true_random=False))
def test_comments_and_trailing_commas_change_no_value(value: Any, source: random.Random) -> None:
    assert read_jsonc(write_jsonc(value, source)).value == value


@given(st.text(st.sampled_from('{}[],:"/*\\\n\r\t a1-.e\u00e9\u2028\ud800truefalsn'), max_size=40))
def test_what_is_read_is_json_after_its_extras_are_gone(text: str) -> None:
    try:
        document = read_jsonc(text)
    except YamlError as error:
        assert error.line >= 1
        assert error.message
        return
    # What is left without extras is JSON: written strictly it is the same.
    assert read_jsonc(json.dumps(document.value)).value == document.value
    if "/" not in text and "," not in text:
        assert json.loads(text) == document.value


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("", 1),
        ("// nothing", 1),
        ("[,]", 1),
        ("{,}", 1),
        ("[1,,]", 1),
        ("[\n1,\n,\n]", 3),
        ("{'a': 1}", 1),
        ("{a: 1}", 1),
        ('{"a": 1}}', 1),
        ("[1] [2]", 1),
        ('{"a": NaN}', 1),
        ('{"a":\n01}', 2),
        ('{"a": "one\ntwo"}', 1),
        ('\n{"a": "open}', 2),
        ("\n[1] /* open", 2),
        ("[1] /", 1),
        ("[1]#", 1),
        ('{"a": "\\ud800"}', 1),
        ('{"a": 99999999999999999999}', 1),
        ("key: value", 1),
        ("- 1", 1),
    ],
)
def test_anything_else_is_refused_with_its_line(text: str, line: int) -> None:
    with pytest.raises(YamlError) as refused:
        read_jsonc(text)
    assert refused.value.line == line


def test_each_value_has_its_line_and_duplicates_are_named() -> None:
    document = read_jsonc('{\n// one\n"a": {"b": [1,\n2,],},\n"c": 3, "a": 4}')
    assert (document.lines["a.b"], document.lines["a.b[1]"], document.lines["c"]) == (3, 4, 5)
    assert [(duplicate.key, duplicate.line) for duplicate in document.duplicates] == [("a", 5)]


@pytest.mark.parametrize(
    "text", ['"' + '\\"' * 120_000, "[" * 250_000, "/" * 250_000, "/*" * 120_000, ",]" * 120_000, '"a",' * 60_000]
)
def test_long_garbage_is_refused_at_once(text: str) -> None:
    started = time.process_time()
    with pytest.raises(YamlError):
        read_jsonc(text)
    # A scan that starts again at each character would take minutes.
    assert time.process_time() - started < 30
