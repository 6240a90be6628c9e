"""Lists of record tables: pages that cost the same at any size, and reading on from a place, for exports."""

from datetime import datetime
from typing import Any, TypeVar

from domain.shared import ids
from domain.shared.pages import MAX_COUNTED_ROWS, Listing, Page, build_listing
from domain.stats import StatsQuery
from infra.postgres.connection import TxConnection
from infra.postgres.db import RowMapper
from infra.postgres.record_measures import RecordMeasures
from infra.postgres.stats import PostgresStats

T = TypeVar("T")


MAX_PAGE_BYTES = 4 * 1024 * 1024


class RecordPages:
    """List the records of one kind, newest first by `created_at`."""

    def __init__(self, connection: TxConnection, measures: RecordMeasures, prefix: str) -> None:
        self._connection, self._measures, self._prefix = connection, measures, prefix

    async def list_page(self, shape: RowMapper[T], question: StatsQuery, page: Page) -> Listing[T]:
        """Return a page. `total` is exact where statistics can tell it, else it stops at `MAX_COUNTED_ROWS`."""
        where, values = self._build_filter(question)
        # What is skipped is skipped in the index alone; only the rows of the page are fetched.
        query = (
            f"SELECT {self._build_listed_columns(shape)} FROM (SELECT id FROM {self._measures.kind} WHERE {where} "
            f"ORDER BY created_at DESC, id DESC LIMIT {page.limit + 1} OFFSET {page.offset}) AS p "
            f"JOIN {self._measures.kind} AS r ON r.id = p.id ORDER BY r.created_at DESC, r.id DESC"
        )
        rows = [shape.to_struct(record) for record in await self._connection.fetch(query, *values)]
        if page.offset == 0 and len(rows) <= page.limit:
            total = len(rows)
        elif self._measures.needs_records(question.filters):
            counted = (
                f"SELECT count(*) FROM (SELECT FROM {self._measures.kind} WHERE {where} LIMIT {MAX_COUNTED_ROWS}) AS c"
            )
            total = int(await self._connection.fetch_value(counted, *values))
        else:
            total = await PostgresStats(self._connection).sum_measure(question, "count")
        return build_listing(rows, total, page)

    async def list_after(
        self, shape: RowMapper[T], question: StatsQuery, place: tuple[datetime, str] | None, limit: int
    ) -> list[T]:
        """Return the next records after the one at `place`, which need not exist any more.

        At least one if there is any, up to `limit` of them, and of `MAX_PAGE_BYTES` but for the last.
        """
        where, values = self._build_filter(question)
        if place is not None:
            where += f" AND (created_at, id) < (${len(values) + 1}, ${len(values) + 2})"
            values += [place[0], ids.decode_id(self._prefix, place[1])]
        rows = (
            f"SELECT {shape.columns}, {self._measures.weight} AS weight FROM {self._measures.kind} WHERE {where} "
            f"ORDER BY created_at DESC, id DESC LIMIT {limit}"
        )
        query = (
            "SELECT * FROM (SELECT *, sum(weight) OVER (ORDER BY created_at DESC, id DESC) AS total "
            f"FROM ({rows}) AS r) AS w WHERE total - weight < {MAX_PAGE_BYTES} ORDER BY created_at DESC, id DESC"
        )
        return [shape.to_struct(record) for record in await self._connection.fetch(query, *values)]

    async def list_ids_before(self, before: datetime, limit: int) -> list[str]:
        """Return the ids of the oldest records from before a time."""
        query = (
            f"SELECT id FROM {self._measures.kind} WHERE tenant_id = current_setting('paddock.tenant_id') "
            "AND created_at < $1 ORDER BY created_at, id LIMIT $2"
        )
        return [
            ids.encode_id(self._prefix, record["id"]) for record in await self._connection.fetch(query, before, limit)
        ]

    def _build_listed_columns(self, shape: RowMapper[T]) -> str:
        columns = ((name, self._measures.listed_columns.get(name, f"r.{name}")) for name in shape.columns.split(", "))
        return ", ".join(f"{sql} AS {name}" for name, sql in columns)

    def _build_filter(self, question: StatsQuery) -> tuple[str, list[Any]]:
        where, values = "tenant_id = current_setting('paddock.tenant_id')", list[Any]()
        for bound, sign in ((question.since, ">="), (question.until, "<")):
            if bound is not None:
                values.append(bound)
                where += f" AND created_at {sign} ${len(values)}"
        narrowed, filter_values = self._measures.build_record_filter(question.filters, len(values) + 1)
        return where + narrowed, [*values, *filter_values]
