"""Test names on the wire: unique, of allowed characters, and independent of other names."""

import re

from hypothesis import given
from hypothesis import strategies as st

from domain.shared.wire_names import PROPERTY_CHARACTERS, assign_wire_names, is_wire_name

SIX_TOOLS = ["read/file", "read file", "read.file", "read_file", "поиск", "найти"]


def _assign_names(names: list[str]) -> dict[str, str]:
    requested = [(f"fs_{name}", f"fs/{name}") for name in names]
    return dict(zip(names, assign_wire_names(requested), strict=True))


def test_similar_tools_get_different_names() -> None:
    wire_names = _assign_names(SIX_TOOLS)
    assert wire_names["read_file"] == "fs_read_file"
    assert len(set(wire_names.values())) == 6
    assert all(re.fullmatch(r"[A-Za-z0-9_-]{1,64}", name) for name in wire_names.values())
    assert _assign_names(SIX_TOOLS[::-1]) == wire_names
    assert _assign_names(["with.dots"]) == {"with.dots": "fs_with_dots"}


def test_reserved_and_long_names_are_changed() -> None:
    assert assign_wire_names([("delegate", "a")], {"delegate"})[0].startswith("delegate_")
    long = assign_wire_names([("a" * 80 + "1", "1"), ("a" * 80 + "2", "2"), ("a" * 64, "3")])
    assert (len(set(long)), long[2]) == (3, "a" * 64)
    assert assign_wire_names([("a_b", "a/b"), ("a_b", "a_/b")])[0] == "a_b"
    properties = ["$filter", "filter", "@filter", "sort[by]", "日期", "x" * 80, "a.b"]
    wire_names = assign_wire_names([(name, name) for name in properties], characters=PROPERTY_CHARACTERS)
    assert (wire_names[1], wire_names[3], wire_names[6], len(set(wire_names))) == ("filter", "sort_by", "a.b", 7)


@given(st.lists(st.tuples(st.text(max_size=70), st.uuids().map(str)), max_size=12, unique_by=lambda pair: pair[1]))
def test_wire_names_are_unique(requested: list[tuple[str, str]]) -> None:
    wire_names = assign_wire_names(requested, {"a"})
    assert len(set(wire_names)) == len(requested)
    assert all(is_wire_name(name, "A-Za-z0-9_-") and name != "a" for name in wire_names)
