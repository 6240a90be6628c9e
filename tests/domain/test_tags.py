"""Check tags and metadata: what is taken is what comes back, and what is refused is named."""

from typing import Any

import pytest

from domain.shared.errors import DomainError
from domain.shared.tags import MAX_METADATA_BYTES, check_metadata, check_tags


@pytest.mark.parametrize(
    ("tags", "stored"),
    [
        ([], []),
        (["a"], ["a"]),
        (["b", "a", "b"], ["b", "a"]),
        (["größe", "客户 7", "a:b,c"], ["größe", "客户 7", "a:b,c"]),
        (["x" * 64], ["x" * 64]),
        (["same"] * 100, ["same"]),
        ([f"t{number}" for number in range(32)], [f"t{number}" for number in range(32)]),
    ],
)
def test_tags_are_kept_in_their_order_and_once(tags: list[str], stored: list[str]) -> None:
    assert check_tags(tags) == stored


@pytest.mark.parametrize(
    ("tags", "field"),
    [
        ([f"t{number}" for number in range(100)], "tags[32]"),
        (["fine", "x" * 65], "tags[1]"),
        (["fine"] * 40 + [""], "tags[40]"),
        (["a\0b"], "tags[0]"),
        (["a\nb"], "tags[0]"),
        (["a\n"], "tags[0]"),
        ([" a"], "tags[0]"),
        (["a "], "tags[0]"),
        (["\x85"], "tags[0]"),
    ],
)
def test_bad_tags_are_named_by_their_place(tags: list[str], field: str) -> None:
    with pytest.raises(DomainError) as caught:
        check_tags(tags)
    assert [error.field for error in caught.value.errors] == [field]


@pytest.mark.parametrize("metadata", [None, {}])
def test_empty_metadata_is_none(metadata: dict[str, Any] | None) -> None:
    assert check_metadata(metadata) is None


def test_metadata_keeps_any_json() -> None:
    metadata = {"customer": 7, "x" * 128: {"deep": [1, None, "a b"]}, "é": True}
    assert check_metadata(metadata) == metadata


@pytest.mark.parametrize(
    ("metadata", "field"),
    [
        ({"fine": 1, "k" * 300: 2}, f"metadata.{'k' * 40}"),
        ({"a\0": 1}, "metadata.a\0"),
        ({"": 1}, "metadata."),
        ({f"k{number}": number for number in range(65)}, "metadata.k64"),
        ({"a": "x" * MAX_METADATA_BYTES}, "metadata"),
        ({"a": {"b": ["c\0"]}}, "metadata.a"),
    ],
)
def test_bad_metadata_is_named(metadata: dict[str, Any], field: str) -> None:
    with pytest.raises(DomainError) as caught:
        check_metadata(metadata)
    assert [error.field for error in caught.value.errors] == [field]


def test_deep_metadata_is_refused() -> None:
    nested: Any = 1
    for _ in range(200):
        nested = [nested]
    with pytest.raises(DomainError, match="nests deeper"):
        check_metadata({"a": nested})
