"""Define the row class of executions."""

from datetime import datetime
from typing import Any
from uuid import UUID

from sqlalchemy import ARRAY, Computed, ForeignKey, Index, Text, Uuid, text
from sqlalchemy.orm import Mapped, mapped_column

from infra.postgres.db import Base, Id, create_json_column, create_timestamp


class ExecutionRow(Base):
    """Map a row of `executions`: an execution, its lease and the number of its last event."""

    __tablename__ = "executions"
    __table_args__ = (
        Index("executions_tenant_id_id", "tenant_id", text("id DESC"), postgresql_where=text("parent_id IS NULL")),
        Index("executions_agent_id_id", "agent_id", text("id DESC")),
        Index("executions_agent_version_id_id", "agent_version_id", text("id DESC")),
        Index(
            "executions_open",
            "id",
            postgresql_where=text("status IN ('pending', 'preparing', 'running', 'waiting')"),
        ),
        Index(
            "executions_pending",
            "lane",
            "tenant_id",
            "queue_id",
            text("coalesce(turn_at, created_at)"),
            "id",
            postgresql_where=text("status = 'pending' AND blocked IS NULL"),
        ),
        Index(
            "executions_held",
            "tenant_id",
            "queue_id",
            postgresql_where=text("status IN ('preparing', 'running') AND lane <> 'plan'"),
        ),
        Index("executions_parent_id", "parent_id", "id", postgresql_where=text("parent_id IS NOT NULL")),
        Index("executions_root_id", "root_id", "id", postgresql_where=text("root_id IS NOT NULL")),
        *(
            Index(f"executions_{name}", name, text("id DESC"), postgresql_where=text(f"{name} IS NOT NULL"))
            for name in ("crew_id", "workflow_id", "schedule_id")
        ),
        Index("executions_completed_at", "completed_at", postgresql_where=text("completed_at IS NOT NULL")),
    )
    id: Mapped[str] = mapped_column(Id("exec"), primary_key=True)
    tenant_id: Mapped[str] = mapped_column(Text, ForeignKey("tenants.id"))
    user_id: Mapped[str] = mapped_column(Id("user"), ForeignKey("users.id"))
    run_name: Mapped[str] = mapped_column(Text)
    kind: Mapped[str] = mapped_column(Text)
    agent_id: Mapped[str | None] = mapped_column(Id("agent"), ForeignKey("agents.id"))
    agent_name: Mapped[str | None] = mapped_column(Text)
    agent_version_id: Mapped[str | None] = mapped_column(Id("ver"), ForeignKey("agent_versions.id"))
    lane: Mapped[str] = mapped_column(Text)
    queue_id: Mapped[UUID] = mapped_column(Uuid, Computed("coalesce(agent_id, uuid_nil())"))
    mode: Mapped[str | None] = mapped_column(Text)
    model: Mapped[str | None] = mapped_column(Text)
    spec: Mapped[Any | None] = mapped_column(create_json_column())
    cost_limit: Mapped[float | None]
    key_id: Mapped[str | None] = mapped_column(Id("key"))
    crew_id: Mapped[str | None] = mapped_column(Id("crew"))
    schedule_id: Mapped[str | None] = mapped_column(Id("sched"))
    parent_id: Mapped[str | None] = mapped_column(Id("exec"), ForeignKey("executions.id"))
    root_id: Mapped[str | None] = mapped_column(Id("exec"))
    step: Mapped[str | None] = mapped_column(Text)
    workflow_id: Mapped[str | None] = mapped_column(Id("wf"))
    env: Mapped[Any | None] = mapped_column(create_json_column())
    files: Mapped[Any | None] = mapped_column(create_json_column())
    state: Mapped[str | None] = mapped_column(Text)
    thread_id: Mapped[str | None] = mapped_column(Id("thread"))
    messages: Mapped[Any | None] = mapped_column(create_json_column())
    tags: Mapped[list[str]] = mapped_column(ARRAY(Text))
    # The attribute `metadata` is SQLAlchemy's own.
    run_metadata: Mapped[Any | None] = mapped_column("metadata", create_json_column())
    run_at: Mapped[datetime | None] = mapped_column(create_timestamp())
    expires_at: Mapped[datetime | None] = mapped_column(create_timestamp())
    priority: Mapped[int]
    concurrency_key: Mapped[str | None] = mapped_column(Text)
    concurrency_limit: Mapped[int | None]
    blocked: Mapped[str | None] = mapped_column(Text)
    gate: Mapped[str | None] = mapped_column(Text)
    turn_at: Mapped[datetime | None] = mapped_column(create_timestamp())
    output_schema: Mapped[Any | None] = mapped_column(create_json_column())
    resumes: Mapped[int]
    handovers: Mapped[int]
    waiting_for: Mapped[Any | None] = mapped_column(create_json_column())
    status: Mapped[str] = mapped_column(Text)
    input_data: Mapped[Any] = mapped_column(create_json_column())
    output_data: Mapped[Any | None] = mapped_column(create_json_column())
    error_message: Mapped[str | None] = mapped_column(Text)
    error_type: Mapped[str | None] = mapped_column(Text)
    attempt: Mapped[int]
    max_attempts: Mapped[int]
    timeout: Mapped[int]
    retry_of: Mapped[str | None] = mapped_column(Id("exec"))
    steps_total: Mapped[int]
    steps_completed: Mapped[int]
    recorded: Mapped[bool]
    total_cost: Mapped[float]
    last_seq: Mapped[int]
    worker: Mapped[str | None] = mapped_column(Text)
    lease_expires_at: Mapped[datetime | None] = mapped_column(create_timestamp())
    created_at: Mapped[datetime] = mapped_column(create_timestamp())
    started_at: Mapped[datetime | None] = mapped_column(create_timestamp())
    completed_at: Mapped[datetime | None] = mapped_column(create_timestamp())
    updated_at: Mapped[datetime] = mapped_column(create_timestamp())
