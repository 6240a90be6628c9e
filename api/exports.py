"""Whole lists as files, read page by page: no transaction is open while a client reads."""

from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Final, Literal, TypeVar

import msgspec
from litestar.di import Provide
from litestar.response import Stream

from api.front import Front
from domain.ports import Tx
from domain.shared.access import Caller
from infra.tables import MEDIA, CsvOptions, encoded

T = TypeVar("T", bound=msgspec.Struct)
Format = Literal["csv", "jsonl", "parquet"]

PAGE = 500


def provide_csv_options(bom: bool = False, escape_formulas: bool = False) -> CsvOptions:
    """Return how a CSV is to be written; either option is for spreadsheets, and for CSV alone."""
    return CsvOptions(bom=bom, escape_formulas=escape_formulas)


CSV_OPTIONS: Final = {"csv_options": Provide(provide_csv_options, sync_to_thread=False)}


def exported(
    front: Front,
    caller: Caller,
    kind: type[T],
    after: Callable[[Tx, T | None, int], Awaitable[list[T]]],
    wanted: Format,
    name: str,
    options: CsvOptions,
) -> Stream:
    """A file of all that `after` gives, which is asked for the records that follow the last one it gave."""

    async def pages() -> AsyncIterator[list[T]]:
        last: T | None = None
        while True:
            async with front.store.begin(caller) as tx:
                rows = await after(tx, last, PAGE)
            if not rows:
                return
            yield rows
            last = rows[-1]

    headers = {"Content-Disposition": f'attachment; filename="{name}.{wanted}"'}
    return Stream(encoded(kind, pages(), wanted, options), media_type=MEDIA[wanted], headers=headers)
