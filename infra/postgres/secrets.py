"""Store secrets of agents in Postgres: sealed texts, which no row class of another file reads."""

from datetime import datetime
from typing import Any
from uuid import UUID

from sqlalchemy import ARRAY, LargeBinary, Text, UniqueConstraint, Uuid, delete, update
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.orm import Mapped, mapped_column

from domain.secrets import AgentSecret, SealedSecret, SecretNeed
from domain.shared import ids
from domain.shared.pages import Listing, Page, build_listing
from infra.postgres.connection import TxConnection
from infra.postgres.db import Base, Id, create_timestamp


class SecretRow(Base):
    """Map a row of `secrets`: a secret of agents, sealed. `agent_ids` is null for all agents of the tenant."""

    __tablename__ = "secrets"
    __table_args__ = (UniqueConstraint("tenant_id", "name"),)
    id: Mapped[str] = mapped_column(Id("secret"), primary_key=True)
    tenant_id: Mapped[str] = mapped_column(Text)
    name: Mapped[str] = mapped_column(Text)
    sealed: Mapped[bytes] = mapped_column(LargeBinary)
    agent_ids: Mapped[list[UUID] | None] = mapped_column(ARRAY(Uuid))
    created_at: Mapped[datetime] = mapped_column(create_timestamp())
    updated_at: Mapped[datetime] = mapped_column(create_timestamp())


_SHOWN_COLUMNS = "id, tenant_id, name, agent_ids, created_at, updated_at"
_FIND_SQL = f"SELECT {_SHOWN_COLUMNS} FROM secrets WHERE "
_LOCK_CLAUSES = {False: "", True: " FOR UPDATE"}
_LIST_SQL = f"SELECT {_SHOWN_COLUMNS}, count(*) OVER () AS total FROM secrets ORDER BY id DESC LIMIT $1 OFFSET $2"
_COUNT_SQL = "SELECT count(*) FROM secrets"
_NEEDS_SQL = """
    SELECT needed.name AS secret, a.id, a.name, v.version
    FROM agents a JOIN agent_versions v ON v.id = a.current_version_id
    CROSS JOIN unnest(v.secrets) AS needed(name)
    WHERE a.deleted_at IS NULL AND needed.name = ANY ($1::text[]) ORDER BY a.name
"""
_SEALED_SQL = "SELECT id, name, agent_ids, sealed FROM secrets WHERE name = ANY ($1::text[])"
_REMOVE_AGENT_SQL = "UPDATE secrets SET agent_ids = array_remove(agent_ids, $1) WHERE $1 = ANY (agent_ids)"


class PostgresSecrets:
    """Provide `domain.secrets.Secrets` on Postgres."""

    def __init__(self, connection: TxConnection) -> None:
        self._connection = connection

    async def add(self, secret: AgentSecret, sealed: bytes) -> bool:
        values = {name: getattr(secret, name) for name in ("id", "tenant_id", "name", "created_at", "updated_at")}
        inserted = await self._connection.execute(
            insert(SecretRow)
            .values(**values, sealed=sealed, agent_ids=_decode_agents(secret.agents))
            .on_conflict_do_nothing()
            .returning(SecretRow.id)
        )
        return inserted.first() is not None

    async def find(self, reference: str, lock: bool = False) -> AgentSecret | None:
        row_id = ids.decode_id("secret", reference)
        column, value = ("name", reference.replace("\0", "\ufffd")) if row_id is None else ("id", row_id)
        record = await self._connection.fetch_row(f"{_FIND_SQL} {column} = $1{_LOCK_CLAUSES[lock]}", value)
        return None if record is None else (await self._read_secrets([record]))[0]

    async def list_page(self, page: Page) -> Listing[AgentSecret]:
        records = await self._connection.fetch(_LIST_SQL, page.limit, page.offset)
        # A page past the end has no row that would hold the count.
        counted = records[0]["total"] if records else await self._connection.fetch_value(_COUNT_SQL)
        return build_listing(await self._read_secrets(records), counted, page)

    async def save(self, secret: AgentSecret, sealed: bytes | None) -> None:
        values: dict[str, Any] = {"agent_ids": _decode_agents(secret.agents), "updated_at": secret.updated_at}
        if sealed is not None:
            values["sealed"] = sealed
        await self._connection.execute(update(SecretRow).where(SecretRow.id == secret.id).values(**values))

    async def delete(self, secret_id: str) -> None:
        await self._connection.execute(delete(SecretRow).where(SecretRow.id == secret_id))

    async def remove_agent(self, agent_id: str) -> None:
        await self._connection.execute_sql(_REMOVE_AGENT_SQL, ids.decode_id("agent", agent_id))

    async def list_by_names(self, names: list[str]) -> list[AgentSecret]:
        records = await self._connection.fetch(f"{_FIND_SQL} name = ANY ($1::text[])", names)
        return [_read_secret(record, []) for record in records]

    async def list_sealed_by_names(self, names: list[str]) -> list[SealedSecret]:
        return [
            SealedSecret(
                id=ids.encode_id("secret", record["id"]),
                name=record["name"],
                agents=_encode_agents(record["agent_ids"]),
                sealed=record["sealed"],
            )
            for record in await self._connection.fetch(_SEALED_SQL, names)
        ]

    async def list_sealed(self, after: str | None, most: int) -> list[tuple[str, bytes]]:
        last = None if after is None else ids.decode_id("secret", after)
        result = await self._connection.fetch("SELECT id, sealed FROM sealed_secrets($1, $2)", last, most)
        return [(ids.encode_id("secret", record["id"]), record["sealed"]) for record in result]

    async def replace_sealed(self, secret_id: str, old: bytes, new: bytes) -> bool:
        replaced: int = await self._connection.fetch_value(
            "SELECT reseal_secret($1, $2, $3)", ids.decode_id("secret", secret_id), old, new
        )
        return replaced == 1

    async def _read_secrets(self, records: list[Any]) -> list[AgentSecret]:
        """Return records as secrets, each with the agents that need it."""
        if not records:
            return []
        needs: dict[str, list[SecretNeed]] = {record["name"]: [] for record in records}
        for record in await self._connection.fetch(_NEEDS_SQL, list(needs)):
            agent_id = ids.encode_id("agent", record["id"])
            need = SecretNeed(agent_id=agent_id, agent_name=record["name"], version=record["version"])
            needs[record["secret"]].append(need)
        return [_read_secret(record, needs[record["name"]]) for record in records]


def _read_secret(record: Any, needs: list[SecretNeed]) -> AgentSecret:
    fields = {name: record[name] for name in ("tenant_id", "name", "created_at", "updated_at")}
    secret_id = ids.encode_id("secret", record["id"])
    return AgentSecret(id=secret_id, agents=_encode_agents(record["agent_ids"]), needed_by=needs, **fields)


def _encode_agents(agent_ids: list[UUID] | None) -> list[str] | None:
    return None if agent_ids is None else [ids.encode_id("agent", agent_id) for agent_id in agent_ids]


def _decode_agents(agent_ids: list[str] | None) -> list[UUID] | None:
    if agent_ids is None:
        return None
    return [row_id for agent_id in agent_ids if (row_id := ids.decode_id("agent", agent_id)) is not None]
