"""Store agent versions and their builds in Postgres."""

from datetime import datetime
from typing import Any

from sqlalchemy import ARRAY, BigInteger, ForeignKey, Index, Text, case, func, select, text, update
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.orm import Mapped, mapped_column

from domain.builds import AgentVersion, BuildResult, BundleSize
from domain.shared import ids
from domain.shared.leases import Lease
from domain.shared.pages import Listing, Page
from infra.postgres.agents import AgentRow
from infra.postgres.connection import TxConnection
from infra.postgres.db import Base, Id, RowMapper, create_json_column, create_timestamp, struct_from_row
from infra.postgres.pages import fetch_page


class VersionRow(Base):
    """Map a row of `agent_versions`: a version of an agent, with the lease of the worker that builds it."""

    __tablename__ = "agent_versions"
    __table_args__ = (
        Index("agent_versions_agent_id_number_key", "agent_id", "number", unique=True),
        Index("agent_versions_open", "id", postgresql_where=text("status IN ('queued', 'building')")),
    )
    id: Mapped[str] = mapped_column(Id("ver"), primary_key=True)
    tenant_id: Mapped[str] = mapped_column(Text, ForeignKey("tenants.id"))
    agent_id: Mapped[str] = mapped_column(Id("agent"), ForeignKey("agents.id"))
    number: Mapped[int]
    version: Mapped[str] = mapped_column(Text)
    status: Mapped[str] = mapped_column(Text)
    build_log: Mapped[str | None] = mapped_column(Text)
    error_message: Mapped[str | None] = mapped_column(Text)
    tarball_path: Mapped[str] = mapped_column(Text, unique=True)
    bundle_path: Mapped[str | None] = mapped_column(Text, index=True)
    entrypoint: Mapped[str | None] = mapped_column(Text)
    config: Mapped[str | None] = mapped_column(Text)
    framework: Mapped[str | None] = mapped_column(Text)
    python: Mapped[str | None] = mapped_column(Text)
    timeout: Mapped[int | None]
    memory: Mapped[int | None]
    environment: Mapped[str | None] = mapped_column(Text)
    models: Mapped[list[str] | None] = mapped_column(ARRAY(Text))
    env: Mapped[Any | None] = mapped_column(create_json_column())
    secrets: Mapped[list[str] | None] = mapped_column(ARRAY(Text))
    egress: Mapped[list[str] | None] = mapped_column(ARRAY(Text))
    input_schema: Mapped[Any | None] = mapped_column(create_json_column())
    output_schema: Mapped[Any | None] = mapped_column(create_json_column())
    sha256: Mapped[str] = mapped_column(Text)
    size_bytes: Mapped[int] = mapped_column(BigInteger)
    unpacked_bytes: Mapped[int] = mapped_column(BigInteger, server_default=text("0"))
    environment_bytes: Mapped[int] = mapped_column(BigInteger, server_default=text("0"))
    attempt: Mapped[int]
    handovers: Mapped[int]
    worker: Mapped[str | None] = mapped_column(Text)
    lease_expires_at: Mapped[datetime | None] = mapped_column(create_timestamp())
    created_at: Mapped[datetime] = mapped_column(create_timestamp())
    updated_at: Mapped[datetime] = mapped_column(create_timestamp())


def _match_attempt(version_id: str, attempt: int) -> tuple[Any, ...]:
    return VersionRow.id == version_id, VersionRow.attempt == attempt, VersionRow.status == "building"


_ROW_MAPPER = RowMapper(VersionRow, AgentVersion)
# Of agents that were not deleted: archives of every status, the rest of what is or may become ready.
_STORED_BYTES_SQL = """
    WITH mine AS (
        SELECT v.*, v.status IN ('building', 'ready') AS unpacked
        FROM agent_versions v JOIN agents a ON a.id = v.agent_id WHERE a.deleted_at IS NULL
    )
    SELECT coalesce(sum(size_bytes), 0) + coalesce(sum(unpacked_bytes) FILTER (WHERE unpacked), 0)
         + (SELECT coalesce(sum(largest), 0) FROM (
               SELECT max(environment_bytes) AS largest FROM mine
               WHERE unpacked AND environment IS NOT NULL GROUP BY environment) AS environments)
         + (SELECT coalesce(sum(f.size_bytes), 0) FROM files f)
         + (SELECT coalesce(sum(w.size_bytes), 0) FROM (
               SELECT DISTINCT key, size_bytes FROM workspace_files) AS w
            WHERE NOT EXISTS (SELECT FROM files f WHERE f.key = w.key))
    FROM mine
"""
_FIND_SQL = f"SELECT {_ROW_MAPPER.columns} FROM agent_versions WHERE "


class PostgresBuilds:
    """Provide `domain.builds.Builds` on Postgres. Writes of a worker name the attempt they belong to."""

    def __init__(self, connection: TxConnection, now: datetime) -> None:
        self._connection = connection
        self._now = now

    async def add(self, version: AgentVersion) -> None:
        values = {name: getattr(version, name) for name in AgentVersion.__struct_fields__}
        await self._connection.execute(insert(VersionRow).values(**values))

    async def get_next_number(self, agent_id: str) -> int:
        # The caller holds the agent's row lock, so two uploads cannot get one number.
        result = await self._connection.execute(
            select(func.coalesce(func.max(VersionRow.number), 0)).where(VersionRow.agent_id == agent_id)
        )
        return result.scalar_one() + 1

    async def get(self, version_id: str) -> AgentVersion | None:
        row_id = ids.decode_id("ver", version_id)
        if row_id is None:
            return None
        record = await self._connection.fetch_row(f"{_FIND_SQL} id = $1", row_id)
        return None if record is None else _ROW_MAPPER.to_struct(record)

    async def find(self, agent_id: str, reference: str) -> AgentVersion | None:
        row_id = ids.decode_id("ver", reference)
        if row_id is not None:
            record = await self._connection.fetch_row(
                f"{_FIND_SQL} id = $1 AND agent_id = $2", row_id, ids.decode_id("agent", agent_id)
            )
            return None if record is None else _ROW_MAPPER.to_struct(record)
        digits = reference.removeprefix("v")
        if not (digits.isascii() and digits.isdigit() and len(digits) < 10):
            return None
        return await self._find_one(VersionRow.agent_id == agent_id, VersionRow.number == int(digits))

    async def list_page(self, agent_id: str, page: Page) -> Listing[AgentVersion]:
        query = select(VersionRow).where(VersionRow.agent_id == agent_id)
        return await fetch_page(self._connection, query, VersionRow.number.desc(), page, AgentVersion)

    async def find_by_path(self, path: str) -> AgentVersion | None:
        alive = select(AgentRow.id).where(AgentRow.deleted_at.is_(None))
        return await self._find_one(
            VersionRow.tarball_path == path.replace("\0", "\ufffd"), VersionRow.agent_id.in_(alive)
        )

    async def find_newest(self, agent_id: str) -> AgentVersion | None:
        query = select(VersionRow).where(VersionRow.agent_id == agent_id).order_by(VersionRow.number.desc()).limit(1)
        row = (await self._connection.execute(query)).first()
        return None if row is None else struct_from_row(row, AgentVersion)

    async def claim_version(self, version_id: str, lease: Lease) -> AgentVersion | None:
        return await self._update_one(
            update(VersionRow)
            .where(VersionRow.id == version_id, VersionRow.status == "queued")
            .values(
                status="building",
                attempt=VersionRow.attempt + 1,
                worker=lease.worker_id,
                lease_expires_at=lease.expires_at,
                build_log=None,
                updated_at=self._now,
            )
        )

    async def append_log(self, version_id: str, attempt: int, text: str) -> bool:
        grown = func.right(func.coalesce(VersionRow.build_log, "") + text.replace("\0", "\ufffd"), 256 * 1024)
        return (
            await self._update_one(
                update(VersionRow)
                .where(*_match_attempt(version_id, attempt))
                .values(build_log=grown, updated_at=self._now)
            )
            is not None
        )

    async def settle_version(self, version_id: str, attempt: int, built: BuildResult | None, error: str | None) -> bool:
        values: dict[str, Any] = {"status": "failed", "error_message": error}
        if built is not None:
            values = {name: getattr(built, name) for name in BuildResult.__struct_fields__} | {"status": "ready"}
        statement = update(VersionRow).where(*_match_attempt(version_id, attempt))
        return (
            await self._update_one(statement.values(**values, lease_expires_at=None, updated_at=self._now)) is not None
        )

    async def sum_stored_bytes(self) -> int:
        # Two uploads that are counted at once would both find room for the same last bytes.
        await self._connection.execute_sql(
            "SELECT pg_advisory_xact_lock(hashtextextended('stored:' || current_setting('paddock.tenant_id'), 0))"
        )
        return int(await self._connection.fetch_value(_STORED_BYTES_SQL))

    async def reserve_space(self, version_id: str, attempt: int, size: BundleSize) -> bool:
        values = {name: getattr(size, name) for name in BundleSize.__struct_fields__}
        statement = update(VersionRow).where(*_match_attempt(version_id, attempt))
        return await self._update_one(statement.values(**values, updated_at=self._now)) is not None

    async def release_version(self, version_id: str, attempt: int, counts: bool) -> bool:
        handovers = VersionRow.handovers + (0 if counts else 1)
        freed = update(VersionRow).where(*_match_attempt(version_id, attempt))
        freed = freed.values(status="queued", handovers=handovers, **self._build_release_values())
        return await self._update_one(freed) is not None

    async def requeue_expired(self, version_id: str, max_attempts: int, reason: str) -> AgentVersion | None:
        used_up = VersionRow.attempt - VersionRow.handovers >= max_attempts
        return await self._update_one(
            update(VersionRow)
            .where(
                VersionRow.id == version_id,
                VersionRow.status == "building",
                VersionRow.lease_expires_at < self._now,
            )
            .values(
                status=case((used_up, "failed"), else_="queued"),
                error_message=case((used_up, reason), else_=None),
                **self._build_release_values(),
            )
        )

    def _build_release_values(self) -> dict[str, Any]:
        return {"worker": None, "lease_expires_at": None, "updated_at": self._now}

    async def _find_one(self, *where: Any) -> AgentVersion | None:
        row = (await self._connection.execute(select(VersionRow).where(*where))).first()
        return None if row is None else struct_from_row(row, AgentVersion)

    async def _update_one(self, statement: Any) -> AgentVersion | None:
        row = (await self._connection.execute(statement.returning(*VersionRow.__table__.columns))).first()
        return None if row is None else struct_from_row(row, AgentVersion)
