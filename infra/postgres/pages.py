"""Fetch one page of a query, and count all its rows: at most two statements for any page."""

from typing import Any, TypeVar

from sqlalchemy import ColumnElement, Select, func, literal, select

from domain.shared.pages import Listing, Page, build_listing
from infra.postgres.connection import TxConnection
from infra.postgres.db import struct_from_row

T = TypeVar("T")


async def fetch_page(
    connection: TxConnection,
    query: Select[Any],
    order: ColumnElement[Any],
    page: Page,
    kind: type[T],
    bound: int | Select[Any] | None = None,
) -> Listing[T]:
    """Run `query` for a page, as Structs of `kind`.

    `bound` caps the count, for tables too long to count; `has_more` is exact all the same. It may also be a query with
    as many rows, which is counted instead.
    """
    result = await connection.execute(query.order_by(order).limit(page.limit + 1).offset(page.offset))
    rows = result.all()
    if page.offset == 0 and len(rows) <= page.limit:
        total = len(rows)
    else:
        counted = bound if isinstance(bound, Select) else query
        counted = counted.with_only_columns(literal(1), maintain_column_froms=True)
        if isinstance(bound, int):
            counted = counted.limit(bound)
        total = (await connection.execute(select(func.count()).select_from(counted.subquery()))).scalar_one()
    return build_listing([struct_from_row(row, kind) for row in rows], total, page)
