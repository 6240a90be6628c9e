"""Store costs in Postgres. Every change writes its deltas in the same statement."""

from datetime import datetime
from typing import Final

import msgspec
from sqlalchemy import BigInteger, Text
from sqlalchemy.orm import Mapped, mapped_column

from domain.costs import BilledCall, Cost, CostAttribution, CostListing, nanos_from_usd
from domain.llms import ModelUsage
from domain.shared import ids
from domain.shared.pages import Page
from domain.stats import NANOS_PER_UNIT, StatsQuery
from infra.postgres.db import Base, Id, RowMapper, create_timestamp
from infra.postgres.record_measures import COST_MEASURES
from infra.postgres.records import RecordRepository
from infra.postgres.stats import PostgresStats


class CostRow(Base):
    """Map a row of `costs`: a call of a model. Partitioned by `id`, that is by the month of the call."""

    __tablename__ = "costs"
    id: Mapped[str] = mapped_column(Id("cost"), primary_key=True)
    tenant_id: Mapped[str] = mapped_column(Text)
    user_id: Mapped[str | None] = mapped_column(Id("user"))
    created_at: Mapped[datetime] = mapped_column(create_timestamp())
    agent_id: Mapped[str | None] = mapped_column(Id("agent"))
    agent_name: Mapped[str | None] = mapped_column(Text)
    execution_id: Mapped[str | None] = mapped_column(Id("exec"))
    key_id: Mapped[str | None] = mapped_column(Id("key"))
    workflow_id: Mapped[str | None] = mapped_column(Id("wf"))
    provider: Mapped[str] = mapped_column(Text)
    model: Mapped[str] = mapped_column(Text)
    model_name: Mapped[str] = mapped_column(Text)
    prompt_tokens: Mapped[int] = mapped_column(BigInteger)
    completion_tokens: Mapped[int] = mapped_column(BigInteger)
    total_tokens: Mapped[int] = mapped_column(BigInteger)
    cached_tokens: Mapped[int] = mapped_column(BigInteger)
    reasoning_tokens: Mapped[int] = mapped_column(BigInteger)
    cost_usd: Mapped[float]
    estimated: Mapped[bool]
    status: Mapped[str] = mapped_column(Text)
    error_type: Mapped[str | None] = mapped_column(Text)
    duration_ms: Mapped[float]
    first_token_ms: Mapped[float | None]


_ROW_MAPPER: Final = RowMapper(CostRow, Cost)
_MEASURED_COLUMNS: Final = ", ".join(COST_MEASURES.measured_columns)
_INPUT_COLUMNS: Final = (
    *("id", "created_at", "user_id", "agent_id", "agent_name", "execution_id", "key_id", "workflow_id"),
    *("provider", "model", "model_name"),
    *("prompt_tokens", "completion_tokens", "total_tokens", "cached_tokens", "reasoning_tokens"),
    *("cost_usd", "estimated", "status", "error_type", "duration_ms", "first_token_ms"),
)
_ADD_SQL: Final = (
    f"WITH added AS (INSERT INTO costs (tenant_id, {', '.join(_INPUT_COLUMNS)}) VALUES "
    "(current_setting('paddock.tenant_id'), "
    f"{', '.join(f'${number}' for number in range(1, len(_INPUT_COLUMNS) + 1))}) "
    f"ON CONFLICT DO NOTHING RETURNING {_MEASURED_COLUMNS}, 1 AS sign) {COST_MEASURES.build_delta_insert('added')}"
)
_USAGE_COLUMNS: Final = ModelUsage.__struct_fields__
# A cost is younger than its execution, and so is its id: partitions of earlier months are not read.
_USAGE_SQL: Final = (
    f"SELECT {', '.join(f'coalesce(sum({name}), 0)::bigint AS {name}' for name in _USAGE_COLUMNS)} FROM costs "
    "WHERE id >= $1 AND execution_id IN (SELECT id FROM executions WHERE id = $1 OR root_id = $1)"
)


class PostgresCosts(RecordRepository[Cost]):
    """Provide `domain.costs.Costs` on Postgres."""

    measures = COST_MEASURES
    prefix = "cost"
    row_mapper = _ROW_MAPPER

    async def add(self, cost_id: str, attribution: CostAttribution, call: BilledCall, now: datetime) -> bool:
        def get_row_id(prefix: str, value: str | None) -> object:
            return None if value is None else ids.decode_id(prefix, value)

        usage = call.usage
        # One delta for one cost, and none for one that is there.
        status = await self._connection.execute_sql(
            _ADD_SQL,
            *(get_row_id("cost", cost_id), now, get_row_id("user", attribution.user_id)),
            *(
                get_row_id("agent", attribution.agent_id),
                attribution.agent_name,
                get_row_id("exec", attribution.execution_id),
            ),
            *(get_row_id("key", attribution.key_id), get_row_id("wf", attribution.workflow_id)),
            *(call.provider, call.model, call.model_name),
            *(usage.prompt_tokens, usage.completion_tokens, usage.total_tokens),
            *(usage.cached_tokens, usage.reasoning_tokens),
            *(call.cost_usd, call.estimated, call.status, call.error_type, call.duration_ms, call.first_token_ms),
        )
        return status == "INSERT 0 1"

    async def sum_usage(self, execution_id: str) -> ModelUsage:
        record = await self._connection.fetch_row(_USAGE_SQL, ids.decode_id("exec", execution_id))
        assert record is not None, "a sum has one row"
        return ModelUsage(**{name: record[name] for name in _USAGE_COLUMNS})

    async def list_page(self, question: StatsQuery, page: Page) -> CostListing:
        result = await self._select_page(question, page)
        if page.offset == 0 and not result.has_more:
            total = sum(nanos_from_usd(cost.cost_usd) for cost in result.items)
        else:
            total = await PostgresStats(self._connection).sum_measure(question, "cost_usd")
        return CostListing(**msgspec.structs.asdict(result), total_cost=total / NANOS_PER_UNIT)

    async def delete_many(self, cost_ids: list[str]) -> int:
        return await self._delete_rows(cost_ids)
