"""Jobs: how a committed row asks for a worker. A job carries no state; the row does."""

from typing import Final, Literal

import msgspec

Lane = Literal["build", "run", "llm", "plan", "record"]

ALL_LANES: Final[tuple[Lane, ...]] = ("build", "run", "llm", "plan", "record")
# The prefix of the ids of a lane's rows; what the record lane works on has several kinds.
ROW_PREFIX_BY_LANE: Final[dict[Lane, str]] = {
    "build": "ver",
    "run": "exec",
    "llm": "exec",
    "plan": "exec",
    "record": "record",
}


class Job(msgspec.Struct, frozen=True, kw_only=True):
    """One ring of the doorbell.

    `row_id` is the TypeID of the row to work on and `attempt` the number of claims it had when
    rung. Together they make the job's id: ringing twice for one state of a row is one job.
    """

    lane: Lane
    row_id: str
    tenant_id: str
    attempt: int

    @property
    def id(self) -> str:
        """`exec_01k…:0`, derived from the row alone."""
        return f"{self.row_id}:{self.attempt}"


class RowChange(msgspec.Struct, frozen=True, kw_only=True):
    """A row that has changed, and the status it has now."""

    row_id: str
    status: str
