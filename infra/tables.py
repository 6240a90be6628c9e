"""Write rows as files: CSV, JSON lines and Parquet, streamed page by page in bounded memory.

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

# What Excel, LibreOffice and Sheets begin a formula with, also full-width ones, and what they skip before it.
_FORMULA_PATTERN: Final = re.compile(r"[\s\x00]*[=+\-@\uff1d\uff0b\uff0d\uff20]|[\t\r\n]")

# A row group is compressed in one go, so these bound the memory of an export; readers prefer large groups.
ROW_GROUP_ROWS: Final = 20_000
ROW_GROUP_BYTES: Final = 8 * 1024 * 1024

ColumnType = Literal["text", "int", "float", "bool", "time", "texts", "json"]
Rows = Sequence[msgspec.Struct]
Pages = AsyncIterator[Sequence[msgspec.Struct]]


class TableColumn(msgspec.Struct, frozen=True, kw_only=True):
    """Describe a column: the attribute it is read from, its name in the file, and how its values are written."""

    attribute: str
    name: str
    type: ColumnType


class CsvOptions(msgspec.Struct, frozen=True, kw_only=True):
    """Format CSV for spreadsheets: a byte order mark at the start, an apostrophe before formulas."""

    bom: bool = False
    escape_formulas: bool = False


def encode_table(
    kind: type[msgspec.Struct], pages: Pages, format: str, options: CsvOptions | None = None
) -> AsyncIterator[bytes]:
    """Encode all rows of all pages as one file, in chunks of bytes. Closes `pages` at the end, also at an early one.

    - `csv`: RFC 4180 with CRLF and always a header. None is empty, as is an empty text: CSV cannot tell
      them apart. Booleans are `true` and `false`, times RFC 3339 in UTC with `Z`, lists and the rest JSON.
    - `jsonl`: every row as the API shows it, on a line of its own.
    - `parquet`: zstd, times as microseconds in UTC, lists as lists of strings, every column nullable.

    Values are written as they are stored, unless `options` ask for a change.

    Errors: `invalid_field` at once for a format outside `TABLE_FORMATS`, and for options of another than CSV. Errors
    of
    `pages` pass through, and the file then has no proper end.
    """
    if format not in TABLE_FORMATS:
        raise InvalidField("format", f"must be one of {', '.join(TABLE_FORMATS)}.")
    csv_options = options or CsvOptions()
    if format == "csv":
        return _encode_csv(list_columns(kind), pages, csv_options)
    for name in CsvOptions.__struct_fields__:
        if getattr(csv_options, name):
            raise InvalidField(name, f"applies to csv only, not to {format}.")
    return _TABLE_ENCODERS[format](list_columns(kind), pages)


def list_columns(kind: type[msgspec.Struct]) -> list[TableColumn]:
    """Return the columns of a table of `kind`."""
    description: Any = inspect.type_info(kind)
    return [
        TableColumn(attribute=field.name, name=field.encode_name, type=_choose_column_type(field.type))
        for field in description.fields
    ]


_COLUMN_TYPES: Final[dict[type[inspect.Type], ColumnType]] = {
    inspect.StrType: "text",
    inspect.IntType: "int",
    inspect.FloatType: "float",
    inspect.BoolType: "bool",
    inspect.DateTimeType: "time",
}


def _choose_column_type(annotation: inspect.Type) -> ColumnType:
    while isinstance(annotation, inspect.Metadata):
        annotation = annotation.type
    if isinstance(annotation, inspect.UnionType):
        alternatives = [other for other in annotation.types if not isinstance(other, inspect.NoneType)]
        return _choose_column_type(alternatives[0]) if len(alternatives) == 1 else "json"
    if isinstance(annotation, inspect.ListType):
        item = annotation.item_type
        return "texts" if _choose_column_type(item) == "text" and not _is_nullable(item) else "json"
    if isinstance(annotation, inspect.LiteralType):
        return "text" if all(isinstance(value, str) for value in annotation.values) else "json"
    return _COLUMN_TYPES.get(type(annotation), "json")


def _is_nullable(annotation: inspect.Type) -> bool:
    return isinstance(annotation, inspect.UnionType) and annotation.includes_none


@asynccontextmanager
async def _close_after(pages: Pages) -> AsyncIterator[Pages]:
    try:
        yield pages
    finally:
        # A generator over a database cursor holds a connection until it is closed.
        close = getattr(pages, "aclose", None)
        if close is not None:
            await close()


async def _encode_csv(columns: list[TableColumn], pages: Pages, options: CsvOptions) -> AsyncIterator[bytes]:
    async with _close_after(pages):
        yield (codecs.BOM_UTF8 if options.bom else b"") + _encode_lines([[column.name for column in columns]])
        async for page in pages:
            if page:
                yield await asyncio.to_thread(_encode_csv_page, columns, page, options)


def _encode_csv_page(columns: list[TableColumn], page: Rows, options: CsvOptions) -> bytes:
    table = [list(map(_CELL_WRITERS[column.type], _read_values(column, page))) for column in columns]
    if options.escape_formulas:
        # Numbers and times of ours begin with none of these but a minus, which belongs to the number.
        texts = [column.type in ("text", "texts", "json") for column in columns]
        table = [
            list(map(_escape_formula, cells)) if is_text else cells for is_text, cells in zip(texts, table, strict=True)
        ]
    return _encode_lines(zip(*table, strict=True))


def _escape_formula(cell: Any) -> Any:
    """Return the cell so that a spreadsheet shows it: an apostrophe before text that it would calculate."""
    return f"'{cell}" if isinstance(cell, str) and _FORMULA_PATTERN.match(cell) else cell


def _encode_lines(rows: Any) -> bytes:
    buffer = io.StringIO(newline="")
    csv.writer(buffer, lineterminator="\r\n").writerows(rows)
    return buffer.getvalue().encode()


def _read_values(column: TableColumn, page: Rows) -> list[Any]:
    values = [getattr(row, column.attribute) for row in page]
    return [None if value is msgspec.UNSET else value for value in values]


def _keep_value(value: Any) -> Any:
    return value


def _write_json(value: Any) -> str | None:
    return None if value is None else msgspec.json.encode(value).decode()


def _write_time(value: datetime | None) -> str | None:
    return None if value is None else _to_utc(value).isoformat().removesuffix("+00:00") + "Z"


def _to_utc(value: datetime) -> datetime:
    return value.replace(tzinfo=UTC) if value.tzinfo is None else value.astimezone(UTC)


_CELL_WRITERS: Final[dict[ColumnType, Callable[[Any], Any]]] = {
    "text": _keep_value,
    "int": _keep_value,
    "float": _keep_value,
    "bool": _write_json,
    "time": _write_time,
    "texts": _write_json,
    "json": _write_json,
}


async def _encode_jsonl(_: list[TableColumn], pages: Pages) -> AsyncIterator[bytes]:
    async with _close_after(pages):
        async for page in pages:
            if page:
                yield await asyncio.to_thread(msgspec.json.Encoder().encode_lines, page)


async def _encode_parquet(columns: list[TableColumn], pages: Pages) -> AsyncIterator[bytes]:
    async with _close_after(pages):
        # An unfinishedfile is dropped with its last reference: a cancelled `add_page` runs on in its thread for
        # a moment, and nothing may be closed under it.
        file = await asyncio.to_thread(_ParquetWriter, columns)
        async for page in pages:
            if page and (chunk := await asyncio.to_thread(file.add_page, page)):
                yield chunk
        yield await asyncio.to_thread(file.finish)


class _ByteSink(io.RawIOBase):
    """Collect the bytes that were written since the last call of `take_bytes`."""

    def __init__(self) -> None:
        self._chunks: list[bytes] = []

    def writable(self) -> bool:
        return True

    def write(self, data: Any) -> int:
        self._chunks.append(bytes(data))
        return len(self._chunks[-1])

    def take_bytes(self) -> bytes:
        data = b"".join(self._chunks)
        self._chunks.clear()
        return data


class _ParquetWriter:
    """Write a Parquet file: pages go in, the bytes of finished row groups come out. All of it blocks."""

    def __init__(self, columns: list[TableColumn]) -> None:
        # The import takes tens of megabytes and a tenth of a second, which only those who export pay.
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
        self._columns = columns
        self._schema = pa.schema([pa.field(column.name, self._types[column.type]) for column in columns])
        self._sink = _ByteSink()
        self._writer = parquet.ParquetWriter(self._sink, self._schema, compression="zstd")
        self._batches: list[Any] = []

    def add_page(self, page: Rows) -> bytes:
        """Add a page. Returns the bytes that are ready, often none."""
        arrays = [self._build_array(column, page) for column in self._columns]
        self._batches.append(self._pa.RecordBatch.from_arrays(arrays, schema=self._schema))
        if (
            sum(batch.num_rows for batch in self._batches) >= ROW_GROUP_ROWS
            or sum(batch.nbytes for batch in self._batches) >= ROW_GROUP_BYTES
        ):
            self._write_row_group()
        return self._sink.take_bytes()

    def finish(self) -> bytes:
        """Finish the file. Returns the last of its bytes."""
        if self._batches:
            self._write_row_group()
        self._writer.close()
        return self._sink.take_bytes()

    def _build_array(self, column: TableColumn, page: Rows) -> Any:
        values = _read_values(column, page)
        if column.type == "json":
            values = list(map(_write_json, values))
        return self._pa.array(values, type=self._types[column.type])

    def _write_row_group(self) -> None:
        table = self._pa.Table.from_batches(self._batches, schema=self._schema)
        self._batches.clear()
        self._writer.write_table(table, row_group_size=max(1, table.num_rows))


_TABLE_ENCODERS: Final[dict[str, Callable[[list[TableColumn], Pages], AsyncIterator[bytes]]]] = {
    "jsonl": _encode_jsonl,
    "parquet": _encode_parquet,
}
