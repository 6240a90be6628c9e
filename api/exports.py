"""Export whole lists as files, read page by page: no transaction is open while a client reads."""

from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Final, Generic, Literal, TypeVar

import msgspec
from litestar.di import Provide
from litestar.response import Stream

from domain.ports import Store, Tx
from domain.shared.access import Caller
from infra.tables import MEDIA_TYPES, CsvOptions, encode_table

RowT = TypeVar("RowT", bound=msgspec.Struct)
ExportFormat = Literal["csv", "jsonl", "parquet"]

EXPORT_PAGE_ROWS: Final = 500


class RecordExport(msgspec.Struct, Generic[RowT], frozen=True, kw_only=True):
    """Describe an export: the file's name without its ending, the rows' type, and how to read the next rows.

    `list_after` returns the rows that follow the last one it returned, None at first.
    """

    name: str
    row_type: type[RowT]
    list_after: Callable[[Tx, RowT | None, int], Awaitable[list[RowT]]]


def provide_csv_options(bom: bool = False, escape_formulas: bool = False) -> CsvOptions:
    """Return how to write a CSV file; both options are for spreadsheets and apply to CSV alone."""
    return CsvOptions(bom=bom, escape_formulas=escape_formulas)


CSV_OPTIONS: Final = {"csv_options": Provide(provide_csv_options, sync_to_thread=False)}


def stream_export(
    store: Store, caller: Caller, export: RecordExport[RowT], file_format: ExportFormat, options: CsvOptions
) -> Stream:
    """Return an export as a file that is written while it is read."""

    async def read_pages() -> AsyncIterator[list[RowT]]:
        last: RowT | None = None
        while True:
            async with store.transaction(caller) as tx:
                rows = await export.list_after(tx, last, EXPORT_PAGE_ROWS)
            if not rows:
                return
            yield rows
            last = rows[-1]

    headers = {"Content-Disposition": f'attachment; filename="{export.name}.{file_format}"'}
    content = encode_table(export.row_type, read_pages(), file_format, options)
    return Stream(content, media_type=MEDIA_TYPES[file_format], headers=headers)
