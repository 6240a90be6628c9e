"""What a schedule is, and what becomes of its due times."""

from datetime import datetime
from typing import Annotated, Any, Final, Literal, Protocol

import msgspec
from msgspec import UNSET, Meta, UnsetType

from domain.executions import CostLimitUsd, ExecutionMode, TargetedExecutionStart
from domain.schedules.cron import MAX_CRON_LENGTH
from domain.shared.names import Name
from domain.shared.pages import Listing, Page
from domain.shared.status import ExecutionStatus

# `skip`: a due time passes while an execution of the schedule has not ended. `queue`: one waits for that end.
OverlapPolicy = Literal["skip", "queue", "allow"]
ScheduleOutcome = Literal["fired", "queued", "skipped", "missed", "failed"]
ScheduleTarget = Literal["agent", "crew", "workflow"]
TARGET_FIELDS: Final = ("agent_id", "crew_id", "workflow_id")
MAX_SCHEDULES: Final = 1000
MAX_CATCH_UP: Final = 100
# Bytes of what a schedule sends, as JSON: a list shows that of many.
MAX_INPUT_BYTES: Final = 64 * 1024
# How many due times that are to come are shown.
UPCOMING_COUNT: Final = 5

CronExpression = Annotated[
    str,
    Meta(
        min_length=1,
        max_length=MAX_CRON_LENGTH,
        examples=["0 9 * * *"],
        description="Five fields, or @daily and the like.",
    ),
]
Timezone = Annotated[str, Meta(min_length=1, max_length=64, examples=["Europe/Berlin"], description="Of the IANA's.")]
Reference = Annotated[str, Meta(min_length=1, max_length=200, description="An id or a name.")]
Inputs = Annotated[dict[str, Any], Meta(examples=[{"report_date": "today"}], description="At most 64 KiB as JSON.")]
Model = Annotated[str, Meta(min_length=1, max_length=256)]
CatchUp = Annotated[
    int, Meta(ge=0, le=MAX_CATCH_UP, description="How many due times that nobody looked at are made up for.")
]


class Schedule(msgspec.Struct, kw_only=True):
    """A schedule of an agent, a crew or a workflow. It runs on behalf of `user_id`: who said last what it does.

    Of due times that have come together, the latest `catch_up` fire and the others are `missed`; one of the last
    minute is on time and fires in any case. `next_run_at` is null while it is disabled. `last_run_at` and
    `last_execution_id` are of what it started last, `last_status` what that has come to, `last_error` why it could not
    start anything since. `run_count` counts what it started, with `run` too; the other counts are of due times.
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
        """It has started an execution."""
        self.last_run_at, self.last_execution_id, self.last_error = now, execution_id, None
        self.run_count += 1

    @property
    def start_request(self) -> TargetedExecutionStart:
        """What it starts."""
        return TargetedExecutionStart(
            agent_id=self.agent_id,
            crew_id=self.crew_id,
            workflow_id=self.workflow_id,
            inputs=self.inputs,
            model=self.model,
            mode=self.mode,
            cost_limit=self.cost_limit,
        )


class ScheduleDetail(Schedule, kw_only=True):
    """A schedule, and when it is due next; of one that is disabled, when it would be."""

    upcoming: list[datetime] = []


class NewSchedule(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """What to start, and when: one of `agent_id`, `crew_id` and `workflow_id`, by id or name."""

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
    enabled: bool = True
    overlap: OverlapPolicy = "skip"
    catch_up: CatchUp = 1


class PatchSchedule(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """What to change; `inputs` are replaced as a whole. An agent, a crew or a workflow takes the place of any other."""

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
    enabled: bool | UnsetType = UNSET
    overlap: OverlapPolicy | UnsetType = UNSET
    catch_up: CatchUp | UnsetType = UNSET


class ScheduleRun(msgspec.Struct, kw_only=True):
    """What became of one due time, at `settled_at`: it `fired` as an execution, or why it did not.

    Of the missed ones of a long outage only the latest are here; `missed_count` counts them all.
    """

    schedule_id: str
    due_at: datetime
    outcome: ScheduleOutcome
    execution_id: str | None = None
    reason: str | None = None
    settled_at: datetime


class DueSchedule(msgspec.Struct, frozen=True, kw_only=True):
    """A schedule of any tenant that something is to be done for."""

    schedule_id: str
    tenant_id: str


class Schedules(Protocol):
    """The schedules of the bound tenant; `due` and `forget` are of all tenants, before one is bound."""

    async def add(self, schedule: Schedule) -> bool: ...
    async def find(self, reference: str, lock: bool = False) -> Schedule | None: ...
    async def try_lock(self, schedule_id: str) -> Schedule | None:
        """Lock one, or None if it is gone or another has it."""
        ...

    async def list_page(self, page: Page, enabled: bool | None) -> Listing[Schedule]: ...
    async def save(self, schedule: Schedule) -> bool: ...
    async def delete(self, schedule_id: str) -> None: ...
    async def count(self) -> int:
        """How many there are. Holds off other additions until the commit."""
        ...

    async def list_names_by_target(self, kind: ScheduleTarget, row_id: str) -> list[str]:
        """Names of the schedules that start this."""
        ...

    async def is_running(self, schedule_id: str) -> bool:
        """Whether an execution of it has not ended."""
        ...

    async def record_runs(self, runs: list[ScheduleRun]) -> int:
        """Write down what becomes of due times, once each. Returns how many were not known before."""
        ...

    async def get_queued_time(self, schedule_id: str) -> datetime | None:
        """The due time that waits."""
        ...

    async def settle_run(self, run: ScheduleRun) -> None:
        """Say anew what became of a due time."""
        ...

    async def list_runs(
        self, schedule_id: str, page: Page, outcome: ScheduleOutcome | None
    ) -> Listing[ScheduleRun]: ...
    async def list_due(self, now: datetime, limit: int) -> tuple[list[DueSchedule], datetime | None]:
        """Schedules that something is to be done for now, and when the next one is due."""
        ...
