"""Define schedules, and the outcomes of their due times."""

from datetime import datetime
from typing import Annotated, Any, Final, Literal, Protocol

import msgspec
from msgspec import UNSET, Meta, UnsetType

from domain.executions import (
    ConcurrencyKey,
    ConcurrencyLimit,
    CostLimitUsd,
    ExecutionMode,
    ExpirySeconds,
    Priority,
    RunFiles,
    StateName,
    TargetedExecutionStart,
)
from domain.schedules.cron import MAX_CRON_LENGTH
from domain.shared.names import Name
from domain.shared.pages import Listing, Page
from domain.shared.status import ExecutionStatus
from domain.shared.tags import Metadata, Tags

# While an execution of the schedule runs, `skip` drops a due time, and `queue` makes one wait for its end.
OverlapPolicy = Literal["skip", "queue", "allow"]
ScheduleOutcome = Literal["fired", "queued", "skipped", "missed", "failed"]
ScheduleTarget = Literal["agent", "crew", "workflow"]
TARGET_FIELDS: Final = ("agent_id", "crew_id", "workflow_id")
MAX_SCHEDULES: Final = 1000
MAX_CATCH_UP: Final = 100
# As JSON: lists hold the inputs of many schedules.
MAX_INPUT_BYTES: Final = 64 * 1024
# Future due times in a schedule's details.
UPCOMING_COUNT: Final = 5

CronExpression = Annotated[
    str,
    Meta(
        min_length=1,
        max_length=MAX_CRON_LENGTH,
        examples=["0 9 * * *"],
        description="Five fields, or an alias like @daily.",
    ),
]
Timezone = Annotated[
    str, Meta(min_length=1, max_length=64, examples=["Europe/Berlin"], description="An IANA time zone.")
]
Reference = Annotated[str, Meta(min_length=1, max_length=200, description="An id or a name.")]
Inputs = Annotated[dict[str, Any], Meta(examples=[{"report_date": "today"}], description="At most 64 KiB as JSON.")]
Model = Annotated[str, Meta(min_length=1, max_length=256)]
CatchUp = Annotated[int, Meta(ge=0, le=MAX_CATCH_UP, description="How many missed due times are started late.")]


class Schedule(msgspec.Struct, kw_only=True):
    """Describe a schedule of an agent, a crew or a workflow. It runs on behalf of `user_id`, the last to change it.

    Of several due times that have passed, the latest `catch_up` fire and the others are `missed`; one of the last
    minute is on time and always fires. `next_run_at` is null while the schedule is disabled. `last_run_at`,
    `last_execution_id` and `last_status` describe its last execution, `last_error` the failure of a later start.
    `run_count` counts its executions, manual ones included; the other counts are of due times. A due time whose `files`
    are not there any more is `failed`. Each execution gets the schedule's `tags`, `metadata`,
    `priority` and `concurrency_key`; `expires_in` counts from its start.
    """

    id: str
    name: str
    cron_expression: str
    timezone: str
    agent_id: str | None = None
    crew_id: str | None = None
    workflow_id: str | None = None
    inputs: dict[str, Any]
    model: str | None
    mode: ExecutionMode | None
    cost_limit: float | None
    files: dict[str, str] | None
    state: str | None
    tags: list[str] = []
    metadata: dict[str, Any] | None = None
    expires_in: float | None = None
    priority: int = 0
    concurrency_key: str | None = None
    concurrency_limit: int | None = None
    enabled: bool
    overlap: OverlapPolicy
    catch_up: int
    next_run_at: datetime | None = None
    last_run_at: datetime | None = None
    last_execution_id: str | None = None
    last_status: ExecutionStatus | None = None
    last_error: str | None = None
    run_count: int = 0
    missed_count: int = 0
    skipped_count: int = 0
    failed_count: int = 0
    user_id: str
    tenant_id: str
    created_at: datetime
    updated_at: datetime

    def record_start(self, execution_id: str, now: datetime) -> None:
        """Record an execution that it started."""
        self.last_run_at, self.last_execution_id, self.last_error = now, execution_id, None
        self.run_count += 1

    @property
    def start_request(self) -> TargetedExecutionStart:
        """The request that it sends."""
        return TargetedExecutionStart(
            agent_id=self.agent_id,
            crew_id=self.crew_id,
            workflow_id=self.workflow_id,
            inputs=self.inputs,
            model=self.model,
            mode=self.mode,
            cost_limit=self.cost_limit,
            files=self.files,
            state=self.state,
            tags=self.tags,
            metadata=self.metadata,
            expires_in=self.expires_in,
            priority=self.priority,
            concurrency_key=self.concurrency_key,
            concurrency_limit=self.concurrency_limit,
        )


class ScheduleDetail(Schedule, kw_only=True):
    """Describe a schedule with its next due times; for a disabled one, those it would have."""

    upcoming: list[datetime] = []


class NewSchedule(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """Create a schedule that starts one of `agent_id`, `crew_id` and `workflow_id`, by id or name."""

    name: Annotated[Name, Meta(examples=["Daily Reports"])]
    cron_expression: CronExpression
    timezone: Timezone = "UTC"
    agent_id: Reference | None = None
    crew_id: Reference | None = None
    workflow_id: Reference | None = None
    inputs: Inputs = {}
    model: Model | None = None
    mode: ExecutionMode | None = None
    cost_limit: CostLimitUsd | None = None
    files: RunFiles | None = None
    state: StateName | None = None
    tags: Tags = []
    metadata: Metadata | None = None
    expires_in: ExpirySeconds | None = None
    priority: Priority = 0
    concurrency_key: ConcurrencyKey | None = None
    concurrency_limit: ConcurrencyLimit | None = None
    enabled: bool = True
    overlap: OverlapPolicy = "skip"
    catch_up: CatchUp = 1


class PatchSchedule(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """Change a schedule; `inputs` and `files` are replaced as a whole.

    A new agent, crew or workflow replaces the old target.
    """

    name: Name | UnsetType = UNSET
    cron_expression: CronExpression | UnsetType = UNSET
    timezone: Timezone | UnsetType = UNSET
    agent_id: Reference | UnsetType = UNSET
    crew_id: Reference | UnsetType = UNSET
    workflow_id: Reference | UnsetType = UNSET
    inputs: Inputs | UnsetType = UNSET
    model: Model | None | UnsetType = UNSET
    mode: ExecutionMode | None | UnsetType = UNSET
    cost_limit: CostLimitUsd | None | UnsetType = UNSET
    files: RunFiles | None | UnsetType = UNSET
    state: StateName | None | UnsetType = UNSET
    tags: Tags | UnsetType = UNSET
    metadata: Metadata | None | UnsetType = UNSET
    expires_in: ExpirySeconds | None | UnsetType = UNSET
    priority: Priority | UnsetType = UNSET
    concurrency_key: ConcurrencyKey | None | UnsetType = UNSET
    concurrency_limit: ConcurrencyLimit | None | UnsetType = UNSET
    enabled: bool | UnsetType = UNSET
    overlap: OverlapPolicy | UnsetType = UNSET
    catch_up: CatchUp | UnsetType = UNSET


class ScheduleRun(msgspec.Struct, kw_only=True):
    """Describe the outcome of one due time at `settled_at`: it `fired` as an execution, or the reason it did not.

    Only the latest missed due times of a long outage are listed; `missed_count` counts them all.
    """

    schedule_id: str
    due_at: datetime
    outcome: ScheduleOutcome
    execution_id: str | None = None
    reason: str | None = None
    settled_at: datetime


class DueSchedule(msgspec.Struct, frozen=True, kw_only=True):
    """Name a schedule of any tenant that is due."""

    schedule_id: str
    tenant_id: str


class Schedules(Protocol):
    """Store the schedules of the bound tenant; `list_due` covers all tenants."""

    async def add(self, schedule: Schedule) -> bool: ...
    async def find(self, reference: str, lock: bool = False) -> Schedule | None: ...
    async def try_lock(self, schedule_id: str) -> Schedule | None:
        """Lock a schedule; None if it was deleted or another transaction holds the lock."""
        ...

    async def list_page(self, page: Page, enabled: bool | None) -> Listing[Schedule]: ...
    async def save(self, schedule: Schedule) -> bool: ...
    async def delete(self, schedule_id: str) -> None: ...
    async def count(self) -> int:
        """Return their number. Other transactions that add schedules wait until the commit."""
        ...

    async def list_names_by_target(self, kind: ScheduleTarget, row_id: str) -> list[str]:
        """Return the names of schedules that start a target."""
        ...

    async def is_running(self, schedule_id: str) -> bool:
        """Tell whether an execution of the schedule has not ended."""
        ...

    async def record_runs(self, runs: list[ScheduleRun]) -> int:
        """Add the outcomes of due times, once each. Return how many are new."""
        ...

    async def get_queued_time(self, schedule_id: str) -> datetime | None:
        """Return the due time that waits."""
        ...

    async def settle_run(self, run: ScheduleRun) -> None:
        """Update the outcome of a due time."""
        ...

    async def list_runs(
        self, schedule_id: str, page: Page, outcome: ScheduleOutcome | None
    ) -> Listing[ScheduleRun]: ...
    async def list_due(self, now: datetime, limit: int) -> tuple[list[DueSchedule], datetime | None]:
        """Return schedules that are due now, and the time when the next one is due."""
        ...
