"""Store agents in Postgres."""

from datetime import datetime, timedelta
from typing import Any, Final, Literal

from sqlalchemy import ARRAY, ForeignKey, Index, Text, bindparam, case, cast, func, literal_column, select, text, update
from sqlalchemy.orm import Mapped, mapped_column

from domain.agents import MAX_SLUG_MATCHES, Agent, AgentFilter
from domain.builds import get_bundle_path
from domain.shared import ids
from domain.shared.pages import Listing, Page
from infra.postgres.catalog import fetch_by_reference, insert_row, update_row
from infra.postgres.connection import TxConnection
from infra.postgres.db import Base, Id, RowMapper, create_json_column, create_timestamp
from infra.postgres.pages import fetch_page

# A list leaves out schemas larger than this many bytes; the agent itself shows them.
MAX_LISTED_SCHEMA_BYTES: Final = 16 * 1024
SECOND_REMOVAL_DELAY: Final = timedelta(hours=1)
_VERSION_OBJECTS_SQL: Final = "SELECT id, tenant_id, tarball_path FROM agent_versions WHERE agent_id = $1"
_DELETE_OBJECTS_SQL: Final = """
    INSERT INTO doomed_objects (key, tenant_id, due, again_at)
    SELECT key, current_setting('paddock.tenant_id'), $2, $3 FROM unnest($1::text[]) AS key
    ON CONFLICT DO NOTHING
"""


class AgentRow(Base):
    """Map a row of `agents`: an agent. A deleted one stays for the executions that name it, and frees its name."""

    __tablename__ = "agents"
    __table_args__ = (
        Index(
            "agents_tenant_id_name_key",
            "tenant_id",
            "name",
            unique=True,
            postgresql_where=text("deleted_at IS NULL"),
        ),
    )
    id: Mapped[str] = mapped_column(Id("agent"), primary_key=True)
    tenant_id: Mapped[str] = mapped_column(Text, ForeignKey("tenants.id"))
    user_id: Mapped[str] = mapped_column(Id("user"), ForeignKey("users.id"))
    name: Mapped[str] = mapped_column(Text)
    description: Mapped[str | None] = mapped_column(Text)
    kind: Mapped[str] = mapped_column(Text)
    status: Mapped[str] = mapped_column(Text)
    current_version_id: Mapped[str | None] = mapped_column(Id("ver"))
    max_concurrency: Mapped[int | None]
    concurrency_policy: Mapped[str] = mapped_column(Text)
    role: Mapped[str | None] = mapped_column(Text)
    goal: Mapped[str | None] = mapped_column(Text)
    backstory: Mapped[str | None] = mapped_column(Text)
    instructions: Mapped[str | None] = mapped_column(Text)
    provider: Mapped[str | None] = mapped_column(Text)
    model: Mapped[str | None] = mapped_column(Text)
    fallback_model: Mapped[str | None] = mapped_column(Text)
    temperature: Mapped[float | None]
    max_tokens: Mapped[int | None]
    max_steps: Mapped[int | None]
    timeout: Mapped[int | None]
    tools: Mapped[list[str]] = mapped_column(ARRAY(Text))
    allow_delegation: Mapped[bool | None]
    verbose: Mapped[bool | None]
    context_tokens: Mapped[int | None]
    summary: Mapped[bool | None]
    template_id: Mapped[str | None] = mapped_column(Id("tpl"), ForeignKey("templates.id", ondelete="SET NULL"))
    parent_id: Mapped[str | None] = mapped_column(Id("agent"), ForeignKey("agents.id"))
    env: Mapped[Any | None] = mapped_column(create_json_column())
    tags: Mapped[list[str]] = mapped_column(ARRAY(Text))
    # The attribute `metadata` is SQLAlchemy's own.
    agent_metadata: Mapped[Any | None] = mapped_column("metadata", create_json_column())
    input_schema: Mapped[Any | None] = mapped_column(create_json_column())
    output_schema: Mapped[Any | None] = mapped_column(create_json_column())
    expose: Mapped[list[str]] = mapped_column(ARRAY(Text))
    created_at: Mapped[datetime] = mapped_column(create_timestamp())
    updated_at: Mapped[datetime] = mapped_column(create_timestamp())
    deleted_at: Mapped[datetime | None] = mapped_column(create_timestamp())


_HAS_METADATA_SQL: Final = (
    "EXISTS (SELECT FROM json_each_text(agents.metadata) AS m WHERE m.key || ':' || m.value = :entry)"
)
_ROW_MAPPER = RowMapper(AgentRow, Agent)
_PARENT_NAME_SQL = "(SELECT p.name FROM agents p WHERE p.id = agents.parent_id)"
_TEMPLATE_NAME_SQL = "(SELECT t.name FROM templates t WHERE t.id = agents.template_id)"
_FIND_SQL = (
    f"SELECT {_ROW_MAPPER.columns}, {_PARENT_NAME_SQL} AS parent, {_TEMPLATE_NAME_SQL} AS template "
    "FROM agents WHERE deleted_at IS NULL AND "
)
# Names of the parent and the template are read beside the row, never written.
_STORED_COLUMNS = [name for name in Agent.__struct_fields__ if name not in ("parent", "template", "template_text")]
_MUTABLE_COLUMNS = [
    name for name in _STORED_COLUMNS if name not in ("id", "tenant_id", "user_id", "kind", "created_at")
]


class PostgresAgents:
    """Provide `domain.agents.Agents` on Postgres."""

    def __init__(self, connection: TxConnection) -> None:
        self._connection = connection

    async def add(self, agent: Agent) -> bool:
        values = {name: getattr(agent, name) for name in _STORED_COLUMNS}
        return await insert_row(self._connection, AgentRow, values)

    async def find(self, reference: str, lock: bool | Literal["share"] = False) -> Agent | None:
        record = await fetch_by_reference(self._connection, _FIND_SQL, "agent", reference, lock)
        return None if record is None else _read_agent(record)

    async def list_by_slug(self, slug: str) -> list[Agent]:
        slug_expression = "left(btrim(regexp_replace(lower(name), '[^a-z0-9]+', '_', 'g'), '_'), 64)"
        records = await self._connection.fetch(
            f"{_FIND_SQL} {slug_expression} = $1 ORDER BY id LIMIT {MAX_SLUG_MATCHES}", slug
        )
        return [_read_agent(record) for record in records]

    async def list_children(self, agent_id: str) -> list[Agent]:
        records = await self._connection.fetch(
            f"{_FIND_SQL} parent_id = $1 ORDER BY id", ids.decode_id("agent", agent_id)
        )
        return [_read_agent(record) for record in records]

    async def list_page(self, page: Page, filters: AgentFilter) -> Listing[Agent]:
        query = select(
            *(_trim_schema(column) for column in AgentRow.__table__.columns),
            literal_column(_PARENT_NAME_SQL).label("parent"),
            literal_column(_TEMPLATE_NAME_SQL).label("template"),
        )
        query = query.where(AgentRow.deleted_at.is_(None))
        if filters.parent is not None:
            query = query.where(AgentRow.parent_id == filters.parent)
        if filters.status is not None:
            query = query.where(AgentRow.status == filters.status)
        if filters.tags:
            query = query.where(AgentRow.tags.op("@>")(cast(filters.tags, ARRAY(Text))))
        for entry in filters.metadata:
            query = query.where(text(_HAS_METADATA_SQL).bindparams(bindparam("entry", entry, unique=True)))
        return await fetch_page(self._connection, query, AgentRow.id.desc(), page, Agent)

    async def save(self, agent: Agent) -> bool:
        values = {name: getattr(agent, name) for name in _MUTABLE_COLUMNS}
        return await update_row(self._connection, AgentRow, agent.id, values)

    async def delete(self, agent_id: str, now: datetime) -> None:
        await self._connection.execute(update(AgentRow).where(AgentRow.id == agent_id).values(deleted_at=now))
        versions = await self._connection.fetch(_VERSION_OBJECTS_SQL, ids.decode_id("agent", agent_id))
        keys = [version["tarball_path"] for version in versions]
        keys += [get_bundle_path(version["tenant_id"], ids.encode_id("ver", version["id"])) for version in versions]
        # Once more later: a build that was under way may write its bundle meanwhile.
        await self._connection.execute_sql(_DELETE_OBJECTS_SQL, keys, now, now + SECOND_REMOVAL_DELAY)


def _trim_schema(column: Any) -> Any:
    if column.name not in ("input_schema", "output_schema"):
        return column
    size = func.octet_length(column.cast(Text))
    return case((size <= MAX_LISTED_SCHEMA_BYTES, column), else_=None).label(column.name)


def _read_agent(record: Any) -> Agent:
    agent = _ROW_MAPPER.to_struct(record)
    agent.parent, agent.template = record["parent"], record["template"]
    return agent
