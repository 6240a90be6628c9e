"""Store budgets in Postgres: what they have spent, and what calls under way hold of them. Amounts are nano-dollars.

A transaction that holds or spends locks the budgets that apply, in the order of their ids, then the execution; one
that locks executions alone does so in the order of their ids. So no transactions wait in a circle.
"""

from datetime import datetime
from typing import Any, Final, cast
from uuid import UUID

import asyncpg
from sqlalchemy import BigInteger, Text, Uuid
from sqlalchemy.dialects.postgresql import ARRAY
from sqlalchemy.orm import Mapped, mapped_column

from domain.costs import AppliedLimit, Budget, BudgetScope, CostAttribution, nanos_from_usd, status_from_spending
from domain.shared import ids
from domain.shared.pages import Listing, Page, build_listing
from domain.stats import NANOS_PER_UNIT
from infra.postgres.connection import TxConnection
from infra.postgres.db import Base, Id, create_timestamp


class BudgetRow(Base):
    """Map a row of `budgets`: a budget, and what the period that began at `period_start` has spent.

    `subject` has no prefix of its own.
    """

    __tablename__ = "budgets"
    id: Mapped[str] = mapped_column(Id("bud"), primary_key=True)
    tenant_id: Mapped[str] = mapped_column(Text)
    scope: Mapped[str] = mapped_column(Text)
    subject: Mapped[UUID | None] = mapped_column(Uuid)
    limit_nanos: Mapped[int] = mapped_column(BigInteger)
    period: Mapped[str] = mapped_column(Text)
    enabled: Mapped[bool]
    period_start: Mapped[datetime] = mapped_column(create_timestamp())
    spent: Mapped[int] = mapped_column(BigInteger)
    warned_at: Mapped[datetime | None] = mapped_column(create_timestamp())
    created_at: Mapped[datetime] = mapped_column(create_timestamp())
    updated_at: Mapped[datetime] = mapped_column(create_timestamp())


class CostHoldRow(Base):
    """Map a row of `cost_holds`: what a call under way may cost, held until it is settled or `until` is over."""

    __tablename__ = "cost_holds"
    id: Mapped[str] = mapped_column(Id("hold"), primary_key=True)
    tenant_id: Mapped[str] = mapped_column(Text)
    execution_id: Mapped[str | None] = mapped_column(Id("exec"))
    root_id: Mapped[str | None] = mapped_column(Id("exec"))
    subjects: Mapped[list[UUID]] = mapped_column(ARRAY(Uuid))
    amount: Mapped[int] = mapped_column(BigInteger)
    until: Mapped[datetime] = mapped_column(create_timestamp())


_SELECT_SQL: Final = (
    "SELECT b.id, b.tenant_id, b.scope, b.subject, b.limit_nanos, b.period, b.enabled, b.created_at, "
    "b.updated_at, p.began, CASE WHEN p.fresh THEN 0 ELSE b.spent END AS spent, "
    "CASE WHEN NOT p.fresh THEN b.warned_at END AS warned, "
    "(SELECT coalesce(sum(h.amount), 0)::bigint FROM cost_holds h WHERE h.until > $1 "
    "AND (b.subject IS NULL OR b.subject = ANY (h.subjects))) AS held "
    "FROM budgets b CROSS JOIN LATERAL (SELECT greatest(b.period_start, budget_began(b.period, $1)) AS began, "
    "b.period_start < budget_began(b.period, $1) AS fresh) AS p "
)
_ADD_SQL: Final = (
    "INSERT INTO budgets (id, tenant_id, scope, subject, limit_nanos, period, enabled, period_start, spent, "
    "created_at, updated_at) VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11)"
)
_HOLD_SQL: Final = "SELECT * FROM hold_cost($1, $2, $3, $4, $5, $6, $7, $8, $9)"
_SPEND_SQL: Final = "SELECT * FROM spend_cost($1, $2, $3, $4, $5, $6)"
_SUBJECT_PREFIXES: Final[dict[BudgetScope, str]] = {"key": "key", "agent": "agent", "workflow": "wf"}


class PostgresBudgets:
    """Provide `domain.costs.budgets.Budgets` on Postgres."""

    def __init__(self, connection: TxConnection) -> None:
        self._connection = connection

    async def add(self, budget: Budget, spent: int) -> None:
        subject = None if budget.subject is None else ids.decode_id(_SUBJECT_PREFIXES[budget.scope], budget.subject)
        await self._connection.execute_sql(
            _ADD_SQL,
            *(
                ids.decode_id("bud", budget.id),
                budget.tenant_id,
                budget.scope,
                subject,
                nanos_from_usd(budget.limit_usd),
            ),
            *(budget.period, budget.enabled, budget.period_start, spent, budget.created_at, budget.updated_at),
        )

    async def get(self, budget_id: str, now: datetime, lock: bool = False) -> Budget | None:
        row_id = ids.decode_id("bud", budget_id)
        if row_id is None:
            return None
        if lock:
            # By itself: a statement that waits for a lock reads the rest of its rows as they were before.
            await self._connection.execute_sql("SELECT FROM budgets WHERE id = $1 FOR NO KEY UPDATE", row_id)
        record = await self._connection.fetch_row(f"{_SELECT_SQL} WHERE b.id = $2", now, row_id)
        return None if record is None else _read_budget(record)

    async def list_page(self, now: datetime, page: Page) -> Listing[Budget]:
        query = f"{_SELECT_SQL} ORDER BY b.id DESC LIMIT $2 OFFSET $3"
        records = await self._connection.fetch(query, now, page.limit + 1, page.offset)
        if page.offset == 0 and len(records) <= page.limit:
            return build_listing([_read_budget(record) for record in records], len(records), page)
        total = int(await self._connection.fetch_value("SELECT count(*) FROM budgets"))
        return build_listing([_read_budget(record) for record in records], total, page)

    async def save(self, budget: Budget) -> None:
        await self._connection.execute_sql(
            "UPDATE budgets SET limit_nanos = $2, enabled = $3, warned_at = $4, updated_at = $5 WHERE id = $1",
            *(ids.decode_id("bud", budget.id), nanos_from_usd(budget.limit_usd), budget.enabled),
            *(budget.warned_at, budget.updated_at),
        )

    async def delete(self, budget_id: str) -> bool:
        row_id = ids.decode_id("bud", budget_id)
        query = "DELETE FROM budgets WHERE id = $1 RETURNING true"
        return row_id is not None and bool(await self._connection.fetch_value(query, row_id))

    async def find_keys_by_name(self, name: str) -> list[str]:
        query = "SELECT id FROM api_keys WHERE name = $1 ORDER BY id LIMIT 2"
        records = await self._connection.fetch(query, name.replace("\0", "\ufffd"))
        return [ids.encode_id("key", record["id"]) for record in records]

    async def lock_spending(self) -> None:
        await self._connection.execute_sql("SELECT pg_advisory_xact_lock(spending_lock())")

    async def reserve_amount(
        self, attribution: CostAttribution, wanted_nanos: int, least: int, now: datetime, until: datetime
    ) -> tuple[str | None, int] | AppliedLimit:
        reservation = ids.generate_uuid7()
        record = await self._connection.fetch_row(
            _HOLD_SQL,
            reservation,
            _decode_execution_id(attribution.execution_id),
            _decode_execution_id(attribution.root_id or attribution.execution_id),
            _decode_subjects(attribution.subjects),
            attribution.run_limit,
            wanted_nanos,
            least,
            now,
            until,
        )
        assert record is not None
        if record["granted"] is None:
            return _read_applied(record)
        return (ids.encode_id("hold", reservation) if record["held"] else None), int(record["granted"])

    async def record_spending(
        self, reservation_id: str | None, attribution: CostAttribution, cost: int, now: datetime
    ) -> list[AppliedLimit]:
        reservation = None if reservation_id is None else ids.decode_id("hold", reservation_id)
        run, subjects = _decode_execution_id(attribution.execution_id), _decode_subjects(attribution.subjects)
        records = await self._connection.fetch(_SPEND_SQL, reservation, run, subjects, attribution.run_limit, cost, now)
        return [_read_applied(record) for record in records]


def _decode_execution_id(execution_id: str | None) -> UUID | None:
    return None if execution_id is None else ids.decode_id("exec", execution_id)


def _decode_subjects(subjects: list[str]) -> list[UUID]:
    # One of each kind, told apart by their prefixes.
    result = (ids.decode_id(subject.partition("_")[0], subject) for subject in subjects)
    return [entry for entry in result if entry is not None]


def _read_applied(record: asyncpg.Record) -> AppliedLimit:
    budget_id = record["budget_id"]
    return AppliedLimit(
        budget_id=None if budget_id is None else ids.encode_id("bud", budget_id),
        scope=record["scope"],
        period=record["period"],
        limit=record["limit_nanos"],
        amount=record["amount"],
    )


def _read_budget(record: asyncpg.Record) -> Budget:
    scope, subject = cast(BudgetScope, record["scope"]), cast(Any, record["subject"])
    limit, spent, reserved = record["limit_nanos"], record["spent"], record["held"]
    return Budget(
        id=ids.encode_id("bud", record["id"]),
        tenant_id=record["tenant_id"],
        scope=scope,
        subject=None if subject is None else ids.encode_id(_SUBJECT_PREFIXES[scope], subject),
        limit_usd=limit / NANOS_PER_UNIT,
        period=record["period"],
        enabled=record["enabled"],
        period_start=None if record["period"] == "total" else record["began"],
        spent_usd=spent / NANOS_PER_UNIT,
        held_usd=reserved / NANOS_PER_UNIT,
        remaining_usd=max(limit - spent - reserved, 0) / NANOS_PER_UNIT,
        status=status_from_spending(spent, limit),
        warned_at=record["warned"],
        created_at=record["created_at"],
        updated_at=record["updated_at"],
    )
