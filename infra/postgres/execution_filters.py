"""Select executions by what is in their own rows."""

from typing import Any

from sqlalchemy import Select, literal

from domain.executions import ExecutionFilter
from domain.shared import ids
from infra.postgres.execution_rows import ExecutionRow

_REFERENCE_PREFIXES = (
    *(("agent_id", "agent"), ("agent_version_id", "ver"), ("crew_id", "crew"), ("workflow_id", "wf")),
    *(("schedule_id", "sched"), ("parent_id", "exec"), ("thread_id", "thread")),
)


def apply_filter(query: Select[Any], narrowed: ExecutionFilter) -> Select[Any]:
    """Return a query of executions with the conditions of a filter, but without its terms."""
    for name, prefix in _REFERENCE_PREFIXES:
        criterion = getattr(narrowed, name)
        if criterion is not None:
            row_id = ids.decode_id(prefix, criterion) is not None
            query = query.where(getattr(ExecutionRow, name) == criterion) if row_id else query.where(literal(False))
    if narrowed.status is not None:
        query = query.where(ExecutionRow.status == narrowed.status)
    if narrowed.kind is not None:
        query = query.where(ExecutionRow.kind == narrowed.kind)
    if narrowed.agent_id is None and narrowed.agent_version_id is None and narrowed.parent_id is None:
        query = query.where(ExecutionRow.parent_id.is_(None))
    if narrowed.since is not None:
        query = query.where(ExecutionRow.created_at >= narrowed.since)
    if narrowed.until is not None:
        query = query.where(ExecutionRow.created_at < narrowed.until)
    return query
