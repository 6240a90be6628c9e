"""Store the states of agents in Postgres. Every change gives a state a revision that no state had before."""

from datetime import datetime
from typing import Any, Final

from sqlalchemy import BigInteger, Sequence, Text
from sqlalchemy.orm import Mapped, mapped_column

from domain.shared import ids
from domain.shared.pages import Listing, Page, build_listing
from domain.states import MAX_STATES, NO_REVISION, AgentState, AgentStateSummary
from infra.postgres.connection import TxConnection
from infra.postgres.db import Base, Id, create_json_column, create_timestamp


class AgentStateRow(Base):
    """Map a row of `agent_states`: a state. There is no foreign key, whose lock could deadlock with a deletion."""

    __tablename__ = "agent_states"
    agent_id: Mapped[str] = mapped_column(Id("agent"), primary_key=True)
    name: Mapped[str] = mapped_column(Text, primary_key=True)
    tenant_id: Mapped[str] = mapped_column(Text)
    value: Mapped[Any] = mapped_column(create_json_column())
    revision: Mapped[int] = mapped_column(BigInteger, Sequence("agent_state_revisions"))
    updated_at: Mapped[datetime] = mapped_column(create_timestamp())
    thread_id: Mapped[str | None] = mapped_column(Id("thread"))


_SUMMARY_COLUMNS: Final = "name, revision, octet_length(value::text) AS size_bytes, updated_at"
_LIST_SQL: Final = f"""
    SELECT {_SUMMARY_COLUMNS}, count(*) OVER () AS total FROM agent_states WHERE agent_id = $1
    ORDER BY name LIMIT $2 OFFSET $3
"""
_COUNT_SQL: Final = "SELECT count(*) FROM agent_states WHERE agent_id = $1"
_FIND_SQL: Final = f"SELECT {_SUMMARY_COLUMNS}, value FROM agent_states WHERE agent_id = $1 AND name = $2"
_FIND_JSON_SQL: Final = "SELECT value::text, revision FROM agent_states WHERE agent_id = $1 AND name = $2"
_COUNT_OTHER_SQL: Final = f"""
    SELECT count(*) FROM (
        SELECT FROM agent_states WHERE agent_id = $1 AND name <> $2 AND thread_id IS NULL LIMIT {MAX_STATES}
    ) AS others
"""
_INSERT_SQL: Final = """
    INSERT INTO agent_states (agent_id, name, tenant_id, value, revision, updated_at, thread_id)
    VALUES ($1, $2, current_setting('paddock.tenant_id'), $3::text::json, nextval('agent_state_revisions'), $4, $5)
    ON CONFLICT (agent_id, name)
"""
_CREATE_SQL: Final = f"{_INSERT_SQL} DO NOTHING RETURNING revision"
_PUT_SQL: Final = f"""{_INSERT_SQL} DO UPDATE SET
    value = excluded.value, revision = excluded.revision, updated_at = excluded.updated_at RETURNING revision
"""
_CHANGE_SQL: Final = """
    UPDATE agent_states SET value = $3::text::json, revision = nextval('agent_state_revisions'), updated_at = $4,
        thread_id = coalesce($5, thread_id)
    WHERE agent_id = $1 AND name = $2 AND revision = $6 RETURNING revision
"""


class PostgresStates:
    """Provide `domain.states.States` on Postgres."""

    def __init__(self, connection: TxConnection) -> None:
        self._connection = connection

    async def list_page(self, agent_id: str, page: Page) -> Listing[AgentStateSummary]:
        row_id = ids.decode_id("agent", agent_id)
        records = await self._connection.fetch(_LIST_SQL, row_id, page.limit + 1, page.offset)
        # A page past the end has no row that would hold the count.
        total = records[0]["total"] if records else await self._connection.fetch_value(_COUNT_SQL, row_id)
        summaries = [
            AgentStateSummary(
                name=record["name"],
                revision=record["revision"],
                size_bytes=record["size_bytes"],
                updated_at=record["updated_at"],
            )
            for record in records
        ]
        return build_listing(summaries, total, page)

    async def find(self, agent_id: str, name: str) -> AgentState | None:
        record = await self._connection.fetch_row(_FIND_SQL, *_encode_key(agent_id, name))
        return None if record is None else AgentState(**record)

    async def find_json(self, agent_id: str, name: str) -> tuple[bytes, int]:
        record = await self._connection.fetch_row(_FIND_JSON_SQL, *_encode_key(agent_id, name))
        return (b"", NO_REVISION) if record is None else (record["value"].encode(), record["revision"])

    async def count_other(self, agent_id: str, name: str) -> int:
        return int(await self._connection.fetch_value(_COUNT_OTHER_SQL, *_encode_key(agent_id, name)))

    async def save_json(
        self,
        agent_id: str,
        name: str,
        value: bytes,
        revision: int | None,
        now: datetime,
        thread_id: str | None = None,
    ) -> bool:
        row_id = None if thread_id is None else ids.decode_id("thread", thread_id)
        parameters = *_encode_key(agent_id, name), value.decode(), now, row_id
        if revision is None:
            written = await self._connection.fetch(_PUT_SQL, *parameters)
        elif revision == NO_REVISION:
            written = await self._connection.fetch(_CREATE_SQL, *parameters)
        else:
            written = await self._connection.fetch(_CHANGE_SQL, *parameters, revision)
        return bool(written)

    async def delete(self, agent_id: str, name: str) -> bool:
        query = "DELETE FROM agent_states WHERE agent_id = $1 AND name = $2 RETURNING name"
        return bool(await self._connection.fetch(query, *_encode_key(agent_id, name)))

    async def delete_all(self, agent_id: str) -> None:
        await self._connection.execute_sql(
            "DELETE FROM agent_states WHERE agent_id = $1", ids.decode_id("agent", agent_id)
        )


def _encode_key(agent_id: str, name: str) -> tuple[Any, str]:
    return ids.decode_id("agent", agent_id), name.replace("\0", "\ufffd")
