"""Store the terms by which executions are found in Postgres, and select executions by them."""

from typing import Any, Final

from sqlalchemy import ARRAY, BigInteger, Identity, Select, Text, exists, literal, select, true
from sqlalchemy.orm import Mapped, aliased, mapped_column

from domain.executions import Execution, SearchedText, TermQuery
from domain.shared import ids
from domain.shared.pages import MAX_COUNTED_MATCHES, Listing, Page
from infra.postgres.connection import TxConnection
from infra.postgres.db import Base, Id
from infra.postgres.execution_rows import ExecutionRow
from infra.postgres.pages import fetch_page

# The rarest of several terms is looked for among so many executions with each; as many are read fast.
MAX_COMPARED_ROWS: Final = 1000


class ExecutionTermRow(Base):
    """Map a row of `execution_terms`: an execution with a term."""

    __tablename__ = "execution_terms"
    tenant_id: Mapped[str] = mapped_column(Text, primary_key=True)
    term: Mapped[str] = mapped_column(Text, primary_key=True)
    execution_id: Mapped[str] = mapped_column(Id("exec"), primary_key=True)


class ExecutionTermListRow(Base):
    """Map a row of `execution_term_lists`: all terms of an execution."""

    __tablename__ = "execution_term_lists"
    execution_id: Mapped[str] = mapped_column(Id("exec"), primary_key=True)
    tenant_id: Mapped[str] = mapped_column(Text)
    terms: Mapped[list[str]] = mapped_column(ARRAY(Text))


class ExecutionTermQueueRow(Base):
    """Map a row of `execution_term_queue`: an execution whose words are to be written."""

    __tablename__ = "execution_term_queue"
    id: Mapped[int] = mapped_column(BigInteger, Identity(always=True), primary_key=True)
    execution_id: Mapped[str] = mapped_column(Id("exec"))
    tenant_id: Mapped[str] = mapped_column(Text)


_ADD_SQL: Final = """
    WITH listed AS (
        INSERT INTO execution_term_lists AS l (execution_id, tenant_id, terms)
        VALUES ($1, current_setting('paddock.tenant_id'), $2)
        ON CONFLICT (execution_id) DO UPDATE SET terms = ARRAY(SELECT unnest(l.terms) UNION SELECT unnest($2::text[]))
    )
    INSERT INTO execution_terms (tenant_id, term, execution_id)
    SELECT current_setting('paddock.tenant_id'), term, $1 FROM unnest($2::text[]) AS term
    ON CONFLICT DO NOTHING
"""
_DELETE_SQL: Final = """
    WITH listed AS (DELETE FROM execution_term_lists WHERE execution_id = $1 RETURNING terms)
    DELETE FROM execution_terms t USING (SELECT unnest(terms) AS term FROM listed) AS l
    WHERE t.tenant_id = current_setting('paddock.tenant_id') AND t.term = l.term AND t.execution_id = $1
"""
_TEXTS_SQL: Final = """
    SELECT id, tags, metadata, run_name, error_type, error_message, input_data::text AS input_json,
           output_data::text AS output_json
    FROM executions WHERE id = ANY ($1) AND parent_id IS NULL ORDER BY id FOR KEY SHARE
"""
_COUNT_SQL: Final = f"""
    SELECT g.term, (
        SELECT count(*) FROM (
            SELECT FROM execution_terms t WHERE t.term = g.term ORDER BY t.execution_id LIMIT {MAX_COMPARED_ROWS}
        ) AS compared
    ) AS executions
    FROM unnest($1::text[]) WITH ORDINALITY AS g(term, place) ORDER BY executions, place
"""
_TAKE_SQL: Final = "DELETE FROM execution_term_queue WHERE id = ANY ($1) RETURNING execution_id"


class PostgresExecutionTerms:
    """Provide `domain.executions.ExecutionTerms` on Postgres."""

    def __init__(self, connection: TxConnection) -> None:
        self._connection = connection

    async def add(self, execution_id: str, terms: list[str]) -> None:
        await self._connection.execute_sql(_ADD_SQL, ids.decode_id("exec", execution_id), terms)

    async def replace_terms(self, execution_id: str, terms: list[str]) -> None:
        await self._connection.execute_sql(_DELETE_SQL, ids.decode_id("exec", execution_id))
        await self.add(execution_id, terms)

    async def load_texts(self, execution_ids: list[str]) -> list[SearchedText]:
        row_ids = [ids.decode_id("exec", execution_id) for execution_id in execution_ids]
        return [
            SearchedText(
                execution_id=ids.encode_id("exec", record["id"]),
                **{name: record[name] for name in SearchedText.__struct_fields__ if name != "execution_id"},
            )
            for record in await self._connection.fetch(_TEXTS_SQL, row_ids)
        ]

    async def list_queued(self, limit: int) -> list[tuple[str, int]]:
        records = await self._connection.fetch("SELECT tenant_id, id FROM queued_terms($1)", limit)
        return [(record["tenant_id"], record["id"]) for record in records]

    async def take_queued(self, numbers: list[int]) -> list[str]:
        records = await self._connection.fetch(_TAKE_SQL, numbers)
        return sorted({ids.encode_id("exec", record["execution_id"]) for record in records})


async def fetch_found_page(
    connection: TxConnection, query: Select[Any], terms: TermQuery, page: Page, has_filters: bool
) -> Listing[Execution]:
    """Fetch a page of `query` among the executions with these terms. `has_filters` tells whether it selects more.

    The key of the rarest term is read from its newest execution on, until the page is full. The other terms and the
    execution are looked up for each: a plan of the planner's own choice may read all executions with a term.
    """
    required = await _sort_terms(connection, terms.required)
    leading = aliased(ExecutionTermRow, name="leading")
    execution = query.where(ExecutionRow.id == leading.execution_id).offset(0).lateral("found")
    matches = select(leading.execution_id).where(leading.term == required[0])
    for term in required[1:]:
        matches = matches.where(_has_term(leading, term))
    for term in terms.excluded:
        matches = matches.where(~_has_term(leading, term))
    # Only what was started has terms, so without other filters nothing else needs to be counted.
    counted = matches.join(execution, true()) if has_filters else matches
    selected = matches.with_only_columns(*execution.columns, maintain_column_froms=True).join(execution, true())
    order = leading.execution_id.desc()
    # In the order of the key: without one, all tenants' terms may be read for a frequent term.
    counted = counted.order_by(order).limit(MAX_COUNTED_MATCHES)
    return await fetch_page(connection, selected, order, page, Execution, counted)


def _has_term(leading: Any, term: str) -> Any:
    other = aliased(ExecutionTermRow)
    probe = select(literal(1)).where(other.term == term, other.execution_id == leading.execution_id)
    return exists(probe.offset(0).correlate(leading))


async def _sort_terms(connection: TxConnection, terms: list[str]) -> list[str]:
    """Return terms with the rarest first."""
    if len(terms) == 1:
        return terms
    return [record["term"] for record in await connection.fetch(_COUNT_SQL, terms)]
