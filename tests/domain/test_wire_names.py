"""Names for others: one to one, of their characters, and the same whatever else there is."""

import re

from hypothesis import given
from hypothesis import strategies as st

from domain.shared.wire_names import PROPERTY_CHARACTERS, assign_wire_names, is_wire_name

SIX = ["read/file", "read file", "read.file", "read_file", "поиск", "найти"]


def _assigned(names: list[str]) -> dict[str, str]:
    wanted = [(f"fs_{name}", f"fs/{name}") for name in names]
    return dict(zip(names, assign_wire_names(wanted), strict=True))


def test_six_tools_have_six_names() -> None:
    found = _assigned(SIX)
    assert found["read_file"] == "fs_read_file"
    assert len(set(found.values())) == 6
    assert all(re.fullmatch(r"[A-Za-z0-9_-]{1,64}", name) for name in found.values())
    assert _assigned(SIX[::-1]) == found
    assert _assigned(["with.dots"]) == {"with.dots": "fs_with_dots"}


def test_reserved_names_and_long_ones() -> None:
    assert assign_wire_names([("delegate", "a")], {"delegate"})[0].startswith("delegate_")
    long = assign_wire_names([("a" * 80 + "1", "1"), ("a" * 80 + "2", "2"), ("a" * 64, "3")])
    assert (len(set(long)), long[2]) == (3, "a" * 64)
    assert assign_wire_names([("a_b", "a/b"), ("a_b", "a_/b")])[0] == "a_b"
    properties = ["$filter", "filter", "@filter", "sort[by]", "日期", "x" * 80, "a.b"]
    found = assign_wire_names([(name, name) for name in properties], characters=PROPERTY_CHARACTERS)
    assert (found[1], found[3], found[6], len(set(found))) == ("filter", "sort_by", "a.b", 7)


@given(st.lists(st.tuples(st.text(max_size=70), st.uuids().map(str)), max_size=12, unique_by=lambda one: one[1]))
def test_names_are_one_to_one(wanted: list[tuple[str, str]]) -> None:
    found = assign_wire_names(wanted, {"a"})
    assert len(set(found)) == len(wanted)
    assert all(is_wire_name(name, "A-Za-z0-9_-") and name != "a" for name in found)
