"""Store records: pages that cost the same at any size, reading on from a place for exports, and deleting."""

from datetime import datetime
from typing import Any, Generic, TypeVar

from domain.shared import ids
from domain.shared.pages import MAX_COUNTED_ROWS, Listing, Page, build_listing
from domain.stats import StatsQuery
from infra.postgres.connection import TxConnection
from infra.postgres.db import RowMapper
from infra.postgres.record_measures import RecordMeasures
from infra.postgres.stats import PostgresStats

RecordT = TypeVar("RecordT")

MAX_PAGE_BYTES = 4 * 1024 * 1024


class RecordRepository(Generic[RecordT]):
    """Store the records of one kind, whose lists are newest first by `created_at`.

    A subclass sets what the records count as, the `prefix` of their ids, and the mapper of their rows.
    """

    measures: RecordMeasures
    prefix: str
    row_mapper: RowMapper[RecordT]

    def __init__(self, connection: TxConnection) -> None:
        self._connection = connection

    async def _get_by_id(self, record_id: str) -> RecordT | None:
        """Return a record by its id, None for text that is no id of this kind."""
        row_id = ids.decode_id(self.prefix, record_id)
        if row_id is None:
            return None
        query = f"SELECT {self.row_mapper.columns} FROM {self.measures.kind} WHERE id = $1"
        record = await self._connection.fetch_row(query, row_id)
        return None if record is None else self.row_mapper.to_struct(record)

    async def _delete_rows(self, record_ids: list[str]) -> int:
        """Delete the rows of records and what they count. Returns how many there were."""
        row_ids = [ids.decode_id(self.prefix, record_id) for record_id in record_ids]
        return int(await self._connection.fetch_value(self.measures.build_delete(), row_ids)) if row_ids else 0

    async def _select_page(self, question: StatsQuery, page: Page) -> Listing[RecordT]:
        """Return a page. `total` is exact where statistics can tell it, else it stops at `MAX_COUNTED_ROWS`."""
        where, values = self._build_filter(question)
        # What is skipped is skipped in the index alone; only the rows of the page are fetched.
        query = (
            f"SELECT {self._build_listed_columns()} FROM (SELECT id FROM {self.measures.kind} WHERE {where} "
            f"ORDER BY created_at DESC, id DESC LIMIT {page.limit + 1} OFFSET {page.offset}) AS p "
            f"JOIN {self.measures.kind} AS r ON r.id = p.id ORDER BY r.created_at DESC, r.id DESC"
        )
        rows = [self.row_mapper.to_struct(record) for record in await self._connection.fetch(query, *values)]
        if page.offset == 0 and len(rows) <= page.limit:
            total = len(rows)
        elif self.measures.needs_records(question.filters):
            counted = (
                f"SELECT count(*) FROM (SELECT FROM {self.measures.kind} WHERE {where} LIMIT {MAX_COUNTED_ROWS}) AS c"
            )
            total = int(await self._connection.fetch_value(counted, *values))
        else:
            total = await PostgresStats(self._connection).sum_measure(question, "count")
        return build_listing(rows, total, page)

    async def _select_after(
        self, question: StatsQuery, place: tuple[datetime, str] | None, limit: int
    ) -> list[RecordT]:
        """Return the next records after the one at `place`, which need not exist any more.

        At least one if there is any, up to `limit` of them, and of `MAX_PAGE_BYTES` but for the last.
        """
        where, values = self._build_filter(question)
        if place is not None:
            where += f" AND (created_at, id) < (${len(values) + 1}, ${len(values) + 2})"
            values += [place[0], ids.decode_id(self.prefix, place[1])]
        rows = (
            f"SELECT {self.row_mapper.columns}, {self.measures.weight} AS weight FROM {self.measures.kind} "
            f"WHERE {where} ORDER BY created_at DESC, id DESC LIMIT {limit}"
        )
        query = (
            "SELECT * FROM (SELECT *, sum(weight) OVER (ORDER BY created_at DESC, id DESC) AS total "
            f"FROM ({rows}) AS r) AS w WHERE total - weight < {MAX_PAGE_BYTES} ORDER BY created_at DESC, id DESC"
        )
        return [self.row_mapper.to_struct(record) for record in await self._connection.fetch(query, *values)]

    async def list_older(self, before: datetime, limit: int) -> list[str]:
        """Return the ids of the oldest records from before a time."""
        query = (
            f"SELECT id FROM {self.measures.kind} WHERE tenant_id = current_setting('paddock.tenant_id') "
            "AND created_at < $1 ORDER BY created_at, id LIMIT $2"
        )
        return [
            ids.encode_id(self.prefix, record["id"]) for record in await self._connection.fetch(query, before, limit)
        ]

    def _build_listed_columns(self) -> str:
        names = self.row_mapper.columns.split(", ")
        columns = ((name, self.measures.listed_columns.get(name, f"r.{name}")) for name in names)
        return ", ".join(f"{sql} AS {name}" for name, sql in columns)

    def _build_filter(self, question: StatsQuery) -> tuple[str, list[Any]]:
        where, values = "tenant_id = current_setting('paddock.tenant_id')", list[Any]()
        for bound, sign in ((question.since, ">="), (question.until, "<")):
            if bound is not None:
                values.append(bound)
                where += f" AND created_at {sign} ${len(values)}"
        narrowed, filter_values = self.measures.build_record_filter(question.filters, len(values) + 1)
        return where + narrowed, [*values, *filter_values]
