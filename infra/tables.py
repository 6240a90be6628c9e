"""Rows as files: CSV, JSON lines and Parquet, streamed page by page in bounded memory.

Columns are the fields of a struct, in order and by their JSON names. `str`, `int`, `float`, `bool`,
`datetime` and `list[str]` keep their type, each with or without None; everything else (free dicts, nested
structs, unions) is a column of JSON text. Integers in Parquet are 64 bits wide.
"""

import asyncio
import codecs
import csv
import io
import re
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from typing import Any, Final, Literal

import msgspec
from msgspec import inspect

from domain.shared.errors import InvalidField

TABLE_FORMATS: Final = ("csv", "jsonl", "parquet")
MEDIA_TYPES: Final[dict[str, str]] = {
    "csv": "text/csv",
    "jsonl": "application/x-ndjson",
    "parquet": "application/vnd.apache.parquet",
}

# What Excel, LibreOffice and Sheets begin a formula with, also full-width ones, and what they pass over before it.
_FORMULA: Final = re.compile(r"[\s\x00]*[=+\-@\uff1d\uff0b\uff0d\uff20]|[\t\r\n]")

# A row group is compressed in one go, so these bound what an export holds; readers like them no smaller.
ROW_GROUP_ROWS: Final = 20_000
ROW_GROUP_BYTES: Final = 8 * 1024 * 1024

ColumnType = Literal["text", "int", "float", "bool", "time", "texts", "json"]
Rows = Sequence[msgspec.Struct]
Pages = AsyncIterator[Sequence[msgspec.Struct]]


class TableColumn(msgspec.Struct, frozen=True, kw_only=True):
    """One column: the attribute it is read from, the name it has in the file, and how its values are written."""

    attribute: str
    name: str
    type: ColumnType


class CsvOptions(msgspec.Struct, frozen=True, kw_only=True):
    """For spreadsheets: a mark of UTF-8 before the first byte, an apostrophe before what they take for a formula."""

    bom: bool = False
    escape_formulas: bool = False


def list_columns(kind: type[msgspec.Struct]) -> list[TableColumn]:
    """The columns of a table of `kind`."""
    described: Any = inspect.type_info(kind)
    return [TableColumn(attribute=one.name, name=one.encode_name, type=_shape(one.type)) for one in described.fields]


def _shape(described: inspect.Type) -> ColumnType:
    while isinstance(described, inspect.Metadata):
        described = described.type
    if isinstance(described, inspect.UnionType):
        left = [one for one in described.types if not isinstance(one, inspect.NoneType)]
        return _shape(left[0]) if len(left) == 1 else "json"
    if isinstance(described, inspect.ListType):
        return "texts" if _shape(described.item_type) == "text" and not _nullable(described.item_type) else "json"
    if isinstance(described, inspect.LiteralType):
        return "text" if all(isinstance(value, str) for value in described.values) else "json"
    return _SHAPES.get(type(described), "json")


def _nullable(described: inspect.Type) -> bool:
    return isinstance(described, inspect.UnionType) and described.includes_none


_SHAPES: Final[dict[type[inspect.Type], ColumnType]] = {
    inspect.StrType: "text",
    inspect.IntType: "int",
    inspect.FloatType: "float",
    inspect.BoolType: "bool",
    inspect.DateTimeType: "time",
}


def encode_table(
    kind: type[msgspec.Struct], pages: Pages, format: str, options: CsvOptions | None = None
) -> AsyncIterator[bytes]:
    """A file of all rows of all pages, as chunks of bytes. `pages` is closed at the end, also at an early one.

    - `csv`: RFC 4180 with CRLF and always a header. None is empty, as is an empty text: CSV cannot tell
      them apart. Booleans are `true` and `false`, times RFC 3339 in UTC with `Z`, lists and the rest JSON.
    - `jsonl`: every row as the API shows it, on a line of its own.
    - `parquet`: zstd, times as microseconds in UTC, lists as lists of strings, every column nullable.

    Values are written as they are stored, unless `options` ask for what alters them.

    Errors: `invalid_field` at once for a format outside `FORMATS`, and for options of another than CSV. What
    `pages` raises passes through, and the file then has no proper end.
    """
    if format not in TABLE_FORMATS:
        raise InvalidField("format", f"must be one of {', '.join(TABLE_FORMATS)}.")
    wanted = options or CsvOptions()
    if format == "csv":
        return _csv(list_columns(kind), pages, wanted)
    for name in CsvOptions.__struct_fields__:
        if getattr(wanted, name):
            raise InvalidField(name, f"is for CSV alone, not for {format}.")
    return _ENCODERS[format](list_columns(kind), pages)


@asynccontextmanager
async def _closed(pages: Pages) -> AsyncIterator[Pages]:
    try:
        yield pages
    finally:
        # A generator over a database cursor holds a connection until it is closed.
        close = getattr(pages, "aclose", None)
        if close is not None:
            await close()


async def _csv(cast: list[TableColumn], pages: Pages, options: CsvOptions) -> AsyncIterator[bytes]:
    async with _closed(pages):
        yield (codecs.BOM_UTF8 if options.bom else b"") + _lines([[column.name for column in cast]])
        async for page in pages:
            if page:
                yield await asyncio.to_thread(_cells, cast, page, options)


def _cells(cast: list[TableColumn], page: Rows, options: CsvOptions) -> bytes:
    table = [list(map(_CELLS[column.type], _values(column, page))) for column in cast]
    if options.escape_formulas:
        # Numbers and times of ours begin with none of these but a minus, which is theirs.
        texts = [column.type in ("text", "texts", "json") for column in cast]
        table = [list(map(_escape_formula, cells)) if text else cells for text, cells in zip(texts, table, strict=True)]
    return _lines(zip(*table, strict=True))


def _escape_formula(cell: Any) -> Any:
    """The cell as a spreadsheet shows it: an apostrophe before what it would calculate."""
    return f"'{cell}" if isinstance(cell, str) and _FORMULA.match(cell) else cell


def _lines(rows: Any) -> bytes:
    written = io.StringIO(newline="")
    csv.writer(written, lineterminator="\r\n").writerows(rows)
    return written.getvalue().encode()


def _values(column: TableColumn, page: Rows) -> list[Any]:
    values = [getattr(row, column.attribute) for row in page]
    return [None if value is msgspec.UNSET else value for value in values]


def _as_is(value: Any) -> Any:
    return value


def _json(value: Any) -> str | None:
    return None if value is None else msgspec.json.encode(value).decode()


def _time(value: datetime | None) -> str | None:
    return None if value is None else _utc(value).isoformat().removesuffix("+00:00") + "Z"


def _utc(value: datetime) -> datetime:
    return value.replace(tzinfo=UTC) if value.tzinfo is None else value.astimezone(UTC)


_CELLS: Final[dict[ColumnType, Callable[[Any], Any]]] = {
    "text": _as_is,
    "int": _as_is,
    "float": _as_is,
    "bool": _json,
    "time": _time,
    "texts": _json,
    "json": _json,
}


async def _jsonl(_: list[TableColumn], pages: Pages) -> AsyncIterator[bytes]:
    async with _closed(pages):
        async for page in pages:
            if page:
                yield await asyncio.to_thread(msgspec.json.Encoder().encode_lines, page)


async def _parquet(cast: list[TableColumn], pages: Pages) -> AsyncIterator[bytes]:
    async with _closed(pages):
        # Left unfinished, it is dropped with its last reference: a cancelled `add` runs on in its thread for
        # a moment, and nothing may be closed under it.
        file = await asyncio.to_thread(_Parquet, cast)
        async for page in pages:
            if page and (chunk := await asyncio.to_thread(file.add, page)):
                yield chunk
        yield await asyncio.to_thread(file.end)


class _Sink(io.RawIOBase):
    """A file that only remembers what has been written since it was last asked."""

    def __init__(self) -> None:
        self._written: list[bytes] = []

    def writable(self) -> bool:
        return True

    def write(self, data: Any) -> int:
        self._written.append(bytes(data))
        return len(self._written[-1])

    def taken(self) -> bytes:
        taken = b"".join(self._written)
        self._written.clear()
        return taken


class _Parquet:
    """A Parquet file in the making: pages go in, the bytes of finished row groups come out. All of it blocks."""

    def __init__(self, cast: list[TableColumn]) -> None:
        # Takes tens of megabytes and a tenth of a second, which only those who export pay.
        import pyarrow as pa  # type: ignore[import-untyped, unused-ignore]
        from pyarrow import parquet  # type: ignore[import-untyped, unused-ignore]

        self._types: dict[ColumnType, Any] = {
            "text": pa.string(),
            "int": pa.int64(),
            "float": pa.float64(),
            "bool": pa.bool_(),
            "time": pa.timestamp("us", tz="UTC"),
            "texts": pa.list_(pa.string()),
            "json": pa.string(),
        }
        self._pa = pa
        self._cast = cast
        self._schema = pa.schema([pa.field(column.name, self._types[column.type]) for column in cast])
        self._sink = _Sink()
        self._writer = parquet.ParquetWriter(self._sink, self._schema, compression="zstd")
        self._batches: list[Any] = []

    def add(self, page: Rows) -> bytes:
        """Take a page. Returns the bytes that are ready, often none."""
        arrays = [self._array(column, page) for column in self._cast]
        self._batches.append(self._pa.RecordBatch.from_arrays(arrays, schema=self._schema))
        if (
            sum(batch.num_rows for batch in self._batches) >= ROW_GROUP_ROWS
            or sum(batch.nbytes for batch in self._batches) >= ROW_GROUP_BYTES
        ):
            self._group()
        return self._sink.taken()

    def end(self) -> bytes:
        """Finish the file. Returns the last of its bytes."""
        if self._batches:
            self._group()
        self._writer.close()
        return self._sink.taken()

    def _array(self, column: TableColumn, page: Rows) -> Any:
        values = _values(column, page)
        if column.type == "json":
            values = list(map(_json, values))
        return self._pa.array(values, type=self._types[column.type])

    def _group(self) -> None:
        table = self._pa.Table.from_batches(self._batches, schema=self._schema)
        self._batches.clear()
        self._writer.write_table(table, row_group_size=max(1, table.num_rows))


_ENCODERS: Final[dict[str, Callable[[list[TableColumn], Pages], AsyncIterator[bytes]]]] = {
    "jsonl": _jsonl,
    "parquet": _parquet,
}
