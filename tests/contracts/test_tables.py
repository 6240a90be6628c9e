"""Exports in every format: what goes in comes out, in bounded memory."""

import csv
import io
import json
import tracemalloc
from collections.abc import AsyncIterator, Sequence
from datetime import UTC, datetime, timedelta, timezone
from typing import Any, Literal

import msgspec
import pyarrow as pa
import pytest
from pyarrow import parquet

from domain.shared.errors import DomainError
from infra import tables
from infra.tables import MEDIA_TYPES, TABLE_FORMATS, encode_table, list_columns


class Inner(msgspec.Struct):
    a: int


class Row(msgspec.Struct, kw_only=True):
    id: str
    note: str | None = None
    mode: Literal["fast", "slow"] | None = None
    count: int | None = None
    score: float | None = None
    flag: bool | None = None
    at: datetime | None = None
    tags: list[str] | None = None
    metadata: dict[str, Any] | None = None
    anything: Any = None
    inner: Inner | None = None
    mixed: int | str | None = None
    gaps: list[str | None] | None = None


NASTY = [
    'He said "hi", twice',
    "two\nlines",
    "three\r\nlines\r",
    "😀 é 巴黎 \u2028",
    "a,b;c\td",
    "=SUM(A1:A9)",
    "@cmd",
    "+1",
    "-1",
    "'",
    '"',
    '""',
    " lead and trail ",
    "\x00nul",
    "\ufeffbom",
    "null",
    "true",
    "\\N",
]
AT = datetime(2026, 3, 4, 5, 6, 7, 890123, tzinfo=UTC)
ROWS = [
    Row(
        id="full",
        note="n",
        mode="fast",
        count=-(2**63),
        score=0.1,
        flag=True,
        at=AT,
        tags=["a", 'b"', ""],
        metadata={"k": [1, None, {"é": "😀"}]},
        anything="text",
        inner=Inner(a=1),
        mixed=7,
        gaps=["x", None],
    ),
    Row(id="none"),
    Row(id="empty", note="", count=0, score=0.0, flag=False, tags=[], metadata={}, anything=[], mixed="", gaps=[]),
    Row(id="offset", at=datetime(2026, 1, 1, 1, tzinfo=timezone(timedelta(hours=2))), score=1e300, count=2**63 - 1),
    *[Row(id=str(number), note=text, tags=[text], metadata={text: text}) for number, text in enumerate(NASTY)],
]


async def paged(rows: Sequence[msgspec.Struct], size: int = 4) -> AsyncIterator[Sequence[msgspec.Struct]]:
    for start in range(0, len(rows), size):
        yield rows[start : start + size]
        yield []


async def whole(rows: Sequence[msgspec.Struct], form: str, kind: type[msgspec.Struct] = Row, size: int = 4) -> bytes:
    return b"".join([chunk async for chunk in encode_table(kind, paged(rows, size), form)])


def test_every_format_has_a_media_type() -> None:
    assert tuple(MEDIA_TYPES) == TABLE_FORMATS == ("csv", "jsonl", "parquet")


async def test_an_unknown_format_is_refused_before_anything_is_read() -> None:
    with pytest.raises(DomainError, match="must be one of csv, jsonl, parquet"):
        encode_table(Row, paged(ROWS), "xlsx")


def test_columns_are_the_fields() -> None:
    shapes = {column.name: column.type for column in list_columns(Row)}
    assert list(shapes) == list(Row.__struct_fields__)
    assert shapes == {
        "id": "text",
        "note": "text",
        "mode": "text",
        "count": "int",
        "score": "float",
        "flag": "bool",
        "at": "time",
        "tags": "texts",
        "metadata": "json",
        "anything": "json",
        "inner": "json",
        "mixed": "json",
        "gaps": "json",
    }


async def test_csv() -> None:
    text = (await whole(ROWS, "csv")).decode()
    assert text.startswith(",".join(Row.__struct_fields__) + "\r\n")
    assert text.endswith("\r\n")
    read = list(csv.DictReader(io.StringIO(text, newline="")))
    assert len(read) == len(ROWS)
    assert read[0] == {
        "id": "full",
        "note": "n",
        "mode": "fast",
        "count": str(-(2**63)),
        "score": "0.1",
        "flag": "true",
        "at": "2026-03-04T05:06:07.890123Z",
        "tags": '["a","b\\"",""]',
        "metadata": '{"k":[1,null,{"é":"😀"}]}',
        "anything": '"text"',
        "inner": '{"a":1}',
        "mixed": "7",
        "gaps": '["x",null]',
    }
    assert set(read[1].values()) == {"none", ""}
    assert (read[2]["flag"], read[2]["tags"], read[2]["metadata"], read[2]["count"]) == ("false", "[]", "{}", "0")
    assert read[3]["at"] == "2025-12-31T23:00:00Z"
    for row, source in zip(read[4:], NASTY, strict=True):
        assert row["note"] == source
        assert json.loads(row["tags"]) == [source]
        assert json.loads(row["metadata"]) == {source: source}


async def test_jsonl() -> None:
    body = await whole(ROWS, "jsonl")
    assert body.endswith(b"\n")
    lines = body.split(b"\n")[:-1]
    assert lines == [msgspec.json.encode(row) for row in ROWS]
    for line, row in zip(lines, ROWS, strict=True):
        assert json.loads(line) == msgspec.to_builtins(row)


async def test_parquet() -> None:
    table = parquet.read_table(io.BytesIO(await whole(ROWS, "parquet")))
    types = dict(zip(table.schema.names, table.schema.types, strict=True))
    assert types["count"] == pa.int64()
    assert types["score"] == pa.float64()
    assert types["flag"] == pa.bool_()
    assert types["at"] == pa.timestamp("us", tz="UTC")
    assert pa.types.is_list(types["tags"])
    assert types["tags"].value_type == pa.string()
    assert {types[name] for name in ("id", "note", "mode", "metadata", "anything", "inner", "mixed")} == {pa.string()}
    assert all(field.nullable for field in table.schema)
    read = table.to_pylist()
    assert len(read) == len(ROWS)
    for row, source in zip(read, ROWS, strict=True):
        for name in ("id", "note", "mode", "count", "score", "flag", "at", "tags"):
            assert row[name] == getattr(source, name)
        for name in ("metadata", "anything", "inner", "mixed", "gaps"):
            value = getattr(source, name)
            assert (None if row[name] is None else json.loads(row[name])) == msgspec.to_builtins(value)


async def test_parquet_tells_none_from_empty() -> None:
    none, empty = parquet.read_table(io.BytesIO(await whole(ROWS[1:3], "parquet"))).to_pylist()
    assert (none["note"], empty["note"]) == (None, "")
    assert (none["tags"], empty["tags"]) == (None, [])
    assert (none["metadata"], empty["metadata"]) == (None, "{}")
    assert (none["mixed"], empty["mixed"]) == (None, '""')


async def test_parquet_is_compressed_in_row_groups(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tables, "ROW_GROUP_ROWS", 10)
    rows = [Row(id=str(number)) for number in range(95)]
    body = await whole(rows, "parquet", size=5)
    described = parquet.ParquetFile(io.BytesIO(body)).metadata
    assert described.num_rows == 95
    assert described.num_row_groups == 10
    assert described.row_group(0).column(0).compression == "ZSTD"
    assert [row["id"] for row in parquet.read_table(io.BytesIO(body)).to_pylist()] == [row.id for row in rows]


async def test_exports_without_rows() -> None:
    assert await whole([], "csv") == (",".join(Row.__struct_fields__) + "\r\n").encode()
    assert await whole([], "jsonl") == b""
    table = parquet.read_table(io.BytesIO(await whole([], "parquet")))
    assert table.num_rows == 0
    assert table.schema.names == list(Row.__struct_fields__)
    assert table.schema.field("at").type == pa.timestamp("us", tz="UTC")


class Renamed(msgspec.Struct, rename="camel"):
    a_name: str | None
    left_out: msgspec.UnsetType | int = msgspec.UNSET


async def test_names_are_those_of_the_api_and_what_is_unset_is_null() -> None:
    rows = [Renamed(a_name=None), Renamed(a_name="x", left_out=3)]
    assert await whole(rows, "csv", Renamed) == b"aName,leftOut\r\n,\r\nx,3\r\n"
    read = parquet.read_table(io.BytesIO(await whole(rows, "parquet", Renamed)))
    assert read.to_pylist() == [{"aName": None, "leftOut": None}, {"aName": "x", "leftOut": 3}]
    assert read.schema.field("leftOut").type == pa.int64()


@pytest.mark.parametrize("form", TABLE_FORMATS)
async def test_a_source_that_breaks_breaks_the_file(form: str) -> None:
    async def broken() -> AsyncIterator[Sequence[msgspec.Struct]]:
        yield ROWS
        raise DomainError("unavailable", "The database went away.")

    with pytest.raises(DomainError, match="went away"):
        async for _ in encode_table(Row, broken(), form):
            pass


@pytest.mark.parametrize("form", TABLE_FORMATS)
async def test_a_reader_who_leaves_closes_the_source(form: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tables, "ROW_GROUP_ROWS", 1)
    closed = []

    async def endless() -> AsyncIterator[Sequence[msgspec.Struct]]:
        try:
            while True:
                yield ROWS
        finally:
            closed.append(True)

    export: Any = encode_table(Row, endless(), form)
    for _ in range(3):
        assert await anext(export)
    await export.aclose()
    assert closed == [True]


class Fact(msgspec.Struct):
    id: str
    prompt: str
    number: int
    score: float
    at: datetime
    tags: list[str]
    metadata: dict[str, Any]


COUNT = 200_000


@pytest.mark.parametrize("form", TABLE_FORMATS)
async def test_two_hundred_thousand_rows_take_no_more_memory_than_a_few_pages(form: str) -> None:
    arrow = 0

    async def many() -> AsyncIterator[Sequence[msgspec.Struct]]:
        nonlocal arrow
        for start in range(0, COUNT, 1000):
            arrow = max(arrow, pa.total_allocated_bytes())
            yield [
                Fact(f"id-{n}", f"prompt {n * 7919 % 1_000_003} " * 8, n, n / 7, AT, ["a", str(n)], {"n": n})
                for n in range(start, start + 1000)
            ]

    size = rows = 0
    tracemalloc.start()
    try:
        async for chunk in encode_table(Fact, many(), form):
            size += len(chunk)
            rows += chunk.count(b"\n")
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 5_000_000
    assert arrow < 16_000_000
    if form == "parquet":
        assert size > 2_000_000
    else:
        assert size > 40_000_000
        assert rows == COUNT + (form == "csv")


async def test_long_texts_end_a_row_group_early() -> None:
    rows = [Row(id=str(number), note="x" * 1_000_000) for number in range(30)]
    described = parquet.ParquetFile(io.BytesIO(await whole(rows, "parquet", size=2))).metadata
    assert described.num_rows == 30
    # Pages of two million bytes: the fifth passes the 8 MiB of a group.
    assert described.num_row_groups == 3
