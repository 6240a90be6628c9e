"""Test the YAML reader: the values it returns, the line of each value, and what it refuses."""

import json
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from domain.shared.errors import DomainError
from domain.shared.yaml_reader import MAX_YAML_BYTES, MAX_YAML_DEPTH, MAX_YAML_NODES, dump_yaml, parse_yaml

TEXTS = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\x00"))
JSON_VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**63 - 1)
    | st.floats(allow_nan=False, allow_infinity=False)
    | TEXTS
    | st.sampled_from(["yes", "no", "on", "1e5", "1.0", "~", "null", "True", ".nan", "<<", "=", "2020-01-01", "0x1f"])
    | st.sampled_from(["a\nb\n", "a\n", "\na", "a \nb", "a\r\nb", " a\nb", "12:30:45", "1_000", "- a", "# a", "a: b"]),
    lambda inner: st.lists(inner, max_size=5) | st.dictionaries(TEXTS, inner, max_size=5),
    max_leaves=20,
)


def refuse_yaml(text: str) -> str:
    with pytest.raises(DomainError) as caught:
        parse_yaml(text, "yaml")
    assert caught.value.code == "invalid_field"
    assert [error.field for error in caught.value.errors] == ["yaml"]
    return caught.value.errors[0].message


def test_document_is_read_with_the_line_of_each_value() -> None:
    text = "name: review\n\nsteps:\n  - id: a\n    agent: x\n    with: {deep: [1, 2]}\n  - id: b\n    prompt: |\n      one\n      two\n"
    document = parse_yaml(text, "yaml")
    assert document.value == {
        "name": "review",
        "steps": [{"id": "a", "agent": "x", "with": {"deep": [1, 2]}}, {"id": "b", "prompt": "one\ntwo\n"}],
    }
    assert document.lines[""] == 1
    assert document.lines["steps"] == 3
    assert document.lines["steps[0]"] == 4
    assert document.lines["steps[0].agent"] == 5
    assert document.lines["steps[0].with.deep[1]"] == 6
    assert document.lines["steps[1]"] == 7
    assert document.lines["steps[1].prompt"] == 8


def test_only_true_and_false_are_booleans_and_dates_stay_text() -> None:
    text = "on: push\na: [yes, no, off, y, 2020-01-01, 12:30:45, 007, 0x1f, 1_000, 1.2.3]\nb: [true, False, ~, null, 1, -2.5, 1e3]"
    value = parse_yaml(text, "yaml").value
    assert value["on"] == "push"
    assert value["a"] == ["yes", "no", "off", "y", "2020-01-01", "12:30:45", "007", "0x1f", "1_000", "1.2.3"]
    assert value["b"] == [True, False, None, None, 1, -2.5, 1000.0]


ALIAS_BOMB = "a: &a [x, x, x, x]\n" + "".join(
    f"{chr(98 + n)}: &{chr(98 + n)} [{', '.join(['*' + chr(97 + n)] * 9)}]\n" for n in range(9)
)


@pytest.mark.parametrize(
    ("text", "line", "words"),
    [
        (ALIAS_BOMB, 1, "anchors"),
        ("a: 1\nb: &x 2\n", 2, "anchors"),
        ("a: 1\n\nb: *x\n", 3, "aliases"),
        ("a: 1\n<<: {b: 1}\n", 2, "merge"),
        ("a: 1\nb: !x 2\n", 2, "tags"),
        ("a: !!str 2\n", 1, "tags"),
        ("a: ! 2\n", 1, "tags"),
        ("\na: !!python/object/apply:os.system [id]\n", 2, "tags"),
        ("%TAG ! tag:x,2000:\n---\na: 1\n", 1, "tags"),
        ("a: 1\nb: 2\na: 3\n", 3, "duplicate key 'a', first on line 1"),
        ("a:\n  b: 1\n  'b': 2\n", 3, "duplicate key 'b'"),
        ("a: 1\n2: b\n", 2, "put 2 in quotes"),
        ("true: b\n", 1, "quotes"),
        ("? [a]\n: b\n", 1, "must be text"),
        ("a: 1\nb: {{ inputs.c }}\n", 2, "Put a value that begins with {{ in quotes."),
        ("a: 1\nb: .nan\n", 2, ".nan"),
        ("a: -.inf\n", 1, ".inf"),
        ("a: 1e999\n", 1, "too large"),
        ("a: 9223372036854775808\n", 1, "64 bits"),
        ("a: " + "9" * 5000, 1, "64 bits"),
        ("a: 1\n--- b\n", 2, "more than one"),
        ("a: 1\nb: [\n", 3, "not YAML"),
        ("a: 1\n\tb: 2\n", 2, "not YAML"),
        ("a: 'x\n", 2, "not YAML"),
        ("", 1, "empty"),
        ("# nothing\n", 1, "empty"),
        ("a: 1\nb: \x00\n", 2, "U+0000"),
        ('a: 1\nb: "\\0"\n', 2, "U+0000"),
        ("a: 1\nb: \ud800\n", 2, "U+D800"),
        ('a: "\\ud800"\n', 1, "not YAML"),
        ('{"a": "\\ud800"}', 1, "not YAML"),
        ("\n" + "[" * 100, 2, "deeper"),
        ("\n" + "- " * 100, 2, "deeper"),
        ("{a: " * 100, 1, "deeper"),
        ("a\n" * (MAX_YAML_BYTES // 2 + 1), MAX_YAML_BYTES // 2 + 2, "bytes"),
        ("é" * (MAX_YAML_BYTES // 2 + 1), 1, "bytes"),
        ("- a\n" * (MAX_YAML_NODES + 1), MAX_YAML_NODES, "values"),
    ],
)
def test_invalid_yaml_is_refused_with_its_line(text: str, line: int, words: str) -> None:
    message = refuse_yaml(text)
    assert message.startswith(f"line {line}: ")
    assert words in message
    assert len(message) < 500


def test_depth_limit_is_exact() -> None:
    parse_yaml("[" * MAX_YAML_DEPTH + "]" * MAX_YAML_DEPTH, "yaml")
    assert "deeper" in refuse_yaml("[" * (MAX_YAML_DEPTH + 1) + "]" * (MAX_YAML_DEPTH + 1))


def test_line_table_stays_small_for_long_names() -> None:
    text = "".join("  " * n + "k" * 400 + ":\n" for n in range(20)) + "  " * 20 + "[" + "a," * 15_000 + "]"
    document = parse_yaml(text, "yaml")
    assert sum(map(len, document.lines)) < 1_000_000


@given(JSON_VALUES)
@example({"a": "x\ny\n", "b": ["1e5", "<<", {}], "": []})
@settings(max_examples=150)
def test_dumped_yaml_reads_back_the_same_value(value: Any) -> None:
    text = dump_yaml(value)
    assert parse_yaml(text, "yaml").value == value
    assert [type(item) for item in flatten_value(parse_yaml(text, "yaml").value)] == [
        type(item) for item in flatten_value(value)
    ]


@given(JSON_VALUES, st.sampled_from([None, 1, "\t"]), st.booleans())
@settings(max_examples=150)
def test_json_is_read_as_yaml(value: Any, indent: Any, ascii_only: bool) -> None:
    if not isinstance(value, dict | list):
        value = [value]
    text = json.dumps(value, indent=indent, ensure_ascii=ascii_only)
    try:
        parsed = parse_yaml(text, "yaml").value
    except DomainError as error:
        # JSON allows characters that YAML wants escaped; YAML treats line breaks of other alphabets alike.
        assert not ascii_only, error
        return
    if ascii_only:
        assert parsed == value


@given(st.text(max_size=200) | st.text(alphabet="{}[]:,-?&*!|>'\"%@`#\n\t ab1.~<", max_size=60))
@settings(max_examples=300)
def test_any_text_is_read_or_refused(text: str) -> None:
    try:
        document = parse_yaml(text, "yaml")
    except DomainError as error:
        assert error.code == "invalid_field"
        assert error.errors[0].message.startswith("line ")
    else:
        assert parse_yaml(dump_yaml(document.value), "yaml").value == document.value


def test_dump_is_readable_without_aliases() -> None:
    value = {"name": "review", "steps": [{"id": "a", "prompt": "one\ntwo\n"}], "aside": "é", "empty": {}}
    assert dump_yaml(value) == ("name: review\nsteps:\n- id: a\n  prompt: |\n    one\n    two\naside: é\nempty: {}\n")
    shared_list = ["a", "b"]
    assert dump_yaml({"here": shared_list, "there": shared_list}) == "here:\n- a\n- b\nthere:\n- a\n- b\n"


def flatten_value(value: Any) -> list[Any]:
    if isinstance(value, dict):
        return [value, *(inner for item in value.values() for inner in flatten_value(item))]
    if isinstance(value, list):
        return [value, *(inner for item in value for inner in flatten_value(item))]
    return [value]
