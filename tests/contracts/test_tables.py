"""Export rows in every format: the file holds what was written, with limited memory."""

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


SPECIAL_TEXTS = [
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
MOMENT = datetime(2026, 3, 4, 5, 6, 7, 890123, tzinfo=UTC)
ROWS = [
    Row(
        id="full",
        note="n",
        mode="fast",
        count=-(2**63),
        score=0.1,
        flag=True,
        at=MOMENT,
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
    *[Row(id=str(number), note=text, tags=[text], metadata={text: text}) for number, text in enumerate(SPECIAL_TEXTS)],
]


async def split_pages(rows: Sequence[msgspec.Struct], size: int = 4) -> AsyncIterator[Sequence[msgspec.Struct]]:
    for start in range(0, len(rows), size):
        yield rows[start : start + size]
        yield []


async def encode_rows(
    rows: Sequence[msgspec.Struct], file_format: str, row_type: type[msgspec.Struct] = Row, size: int = 4
) -> bytes:
    return b"".join([chunk async for chunk in encode_table(row_type, split_pages(rows, size), file_format)])


def test_every_format_has_a_media_type() -> None:
    assert tuple(MEDIA_TYPES) == TABLE_FORMATS == ("csv", "jsonl", "parquet")


async def test_unknown_format_is_refused_before_reading() -> None:
    with pytest.raises(DomainError, match="must be one of csv, jsonl, parquet"):
        encode_table(Row, split_pages(ROWS), "xlsx")


def test_columns_are_the_fields_of_the_struct() -> None:
    type_by_column = {column.name: column.type for column in list_columns(Row)}
    assert list(type_by_column) == list(Row.__struct_fields__)
    assert type_by_column == {
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


async def test_csv_round_trip() -> None:
    text = (await encode_rows(ROWS, "csv")).decode()
    assert text.startswith(",".join(Row.__struct_fields__) + "\r\n")
    assert text.endswith("\r\n")
    rows_read = list(csv.DictReader(io.StringIO(text, newline="")))
    assert len(rows_read) == len(ROWS)
    assert rows_read[0] == {
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
    assert set(rows_read[1].values()) == {"none", ""}
    assert (rows_read[2]["flag"], rows_read[2]["tags"], rows_read[2]["metadata"], rows_read[2]["count"]) == (
        "false",
        "[]",
        "{}",
        "0",
    )
    assert rows_read[3]["at"] == "2025-12-31T23:00:00Z"
    for row, source in zip(rows_read[4:], SPECIAL_TEXTS, strict=True):
        assert row["note"] == source
        assert json.loads(row["tags"]) == [source]
        assert json.loads(row["metadata"]) == {source: source}


async def test_jsonl_round_trip() -> None:
    body = await encode_rows(ROWS, "jsonl")
    assert body.endswith(b"\n")
    lines = body.split(b"\n")[:-1]
    assert lines == [msgspec.json.encode(row) for row in ROWS]
    for line, row in zip(lines, ROWS, strict=True):
        assert json.loads(line) == msgspec.to_builtins(row)


async def test_parquet_round_trip() -> None:
    table = parquet.read_table(io.BytesIO(await encode_rows(ROWS, "parquet")))
    types = dict(zip(table.schema.names, table.schema.types, strict=True))
    assert types["count"] == pa.int64()
    assert types["score"] == pa.float64()
    assert types["flag"] == pa.bool_()
    assert types["at"] == pa.timestamp("us", tz="UTC")
    assert pa.types.is_list(types["tags"])
    assert types["tags"].value_type == pa.string()
    assert {types[name] for name in ("id", "note", "mode", "metadata", "anything", "inner", "mixed")} == {pa.string()}
    assert all(field.nullable for field in table.schema)
    rows_read = table.to_pylist()
    assert len(rows_read) == len(ROWS)
    for row, source in zip(rows_read, ROWS, strict=True):
        for name in ("id", "note", "mode", "count", "score", "flag", "at", "tags"):
            assert row[name] == getattr(source, name)
        for name in ("metadata", "anything", "inner", "mixed", "gaps"):
            value = getattr(source, name)
            assert (None if row[name] is None else json.loads(row[name])) == msgspec.to_builtins(value)


async def test_parquet_distinguishes_null_from_empty() -> None:
    none, empty = parquet.read_table(io.BytesIO(await encode_rows(ROWS[1:3], "parquet"))).to_pylist()
    assert (none["note"], empty["note"]) == (None, "")
    assert (none["tags"], empty["tags"]) == (None, [])
    assert (none["metadata"], empty["metadata"]) == (None, "{}")
    assert (none["mixed"], empty["mixed"]) == (None, '""')


async def test_parquet_is_compressed_in_row_groups(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tables, "ROW_GROUP_ROWS", 10)
    rows = [Row(id=str(number)) for number in range(95)]
    body = await encode_rows(rows, "parquet", size=5)
    metadata = parquet.ParquetFile(io.BytesIO(body)).metadata
    assert metadata.num_rows == 95
    assert metadata.num_row_groups == 10
    assert metadata.row_group(0).column(0).compression == "ZSTD"
    assert [row["id"] for row in parquet.read_table(io.BytesIO(body)).to_pylist()] == [row.id for row in rows]


async def test_exports_without_rows_have_a_header() -> None:
    assert await encode_rows([], "csv") == (",".join(Row.__struct_fields__) + "\r\n").encode()
    assert await encode_rows([], "jsonl") == b""
    table = parquet.read_table(io.BytesIO(await encode_rows([], "parquet")))
    assert table.num_rows == 0
    assert table.schema.names == list(Row.__struct_fields__)
    assert table.schema.field("at").type == pa.timestamp("us", tz="UTC")


class Renamed(msgspec.Struct, rename="camel"):
    a_name: str | None
    left_out: msgspec.UnsetType | int = msgspec.UNSET


async def test_renamed_fields_and_unset_values() -> None:
    rows = [Renamed(a_name=None), Renamed(a_name="x", left_out=3)]
    assert await encode_rows(rows, "csv", Renamed) == b"aName,leftOut\r\n,\r\nx,3\r\n"
    table = parquet.read_table(io.BytesIO(await encode_rows(rows, "parquet", Renamed)))
    assert table.to_pylist() == [{"aName": None, "leftOut": None}, {"aName": "x", "leftOut": 3}]
    assert table.schema.field("leftOut").type == pa.int64()


@pytest.mark.parametrize("file_format", TABLE_FORMATS)
async def test_failing_source_fails_the_export(file_format: str) -> None:
    async def fail_after_one_page() -> AsyncIterator[Sequence[msgspec.Struct]]:
        yield ROWS
        raise DomainError("unavailable", "The database went away.")

    with pytest.raises(DomainError, match="went away"):
        async for _ in encode_table(Row, fail_after_one_page(), file_format):
            pass


@pytest.mark.parametrize("file_format", TABLE_FORMATS)
async def test_closed_export_closes_its_source(file_format: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tables, "ROW_GROUP_ROWS", 1)
    closed = []

    async def yield_without_end() -> AsyncIterator[Sequence[msgspec.Struct]]:
        try:
            while True:
                yield ROWS
        finally:
            closed.append(True)

    export: Any = encode_table(Row, yield_without_end(), file_format)
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


ROW_COUNT = 200_000


@pytest.mark.slow
@pytest.mark.parametrize("file_format", TABLE_FORMATS)
async def test_two_hundred_thousand_rows_need_little_memory(file_format: str) -> None:
    arrow_bytes = 0

    async def yield_pages() -> AsyncIterator[Sequence[msgspec.Struct]]:
        nonlocal arrow_bytes
        for start in range(0, ROW_COUNT, 1000):
            arrow_bytes = max(arrow_bytes, pa.total_allocated_bytes())
            yield [
                Fact(f"id-{n}", f"prompt {n * 7919 % 1_000_003} " * 8, n, n / 7, MOMENT, ["a", str(n)], {"n": n})
                for n in range(start, start + 1000)
            ]

    size = rows = 0
    tracemalloc.start()
    try:
        async for chunk in encode_table(Fact, yield_pages(), file_format):
            size += len(chunk)
            rows += chunk.count(b"\n")
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 5_000_000
    assert arrow_bytes < 16_000_000
    if file_format == "parquet":
        assert size > 2_000_000
    else:
        assert size > 40_000_000
        assert rows == ROW_COUNT + (file_format == "csv")


async def test_long_texts_end_a_row_group_early() -> None:
    rows = [Row(id=str(number), note="x" * 1_000_000) for number in range(30)]
    metadata = parquet.ParquetFile(io.BytesIO(await encode_rows(rows, "parquet", size=2))).metadata
    assert metadata.num_rows == 30
    # Pages of two million bytes: the fifth passes the 8 MiB of a group.
    assert metadata.num_row_groups == 3
