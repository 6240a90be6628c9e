"""Describe jobs: a committed row asks for a worker. A job carries no state; the row does."""

from typing import Final, Literal

import msgspec

Lane = Literal["build", "run", "llm", "plan", "record"]

ALL_LANES: Final[tuple[Lane, ...]] = ("build", "run", "llm", "plan", "record")
# Prefixes of the ids of a lane's rows. The record lane works on rows of several kinds.
ROW_PREFIX_BY_LANE: Final[dict[Lane, str]] = {
    "build": "ver",
    "run": "exec",
    "llm": "exec",
    "plan": "exec",
    "record": "record",
}
# Prefixes of the ids of rows whose settings a lane's workers keep at hand, and have to forget when they change.
SETTINGS_PREFIXES_BY_LANE: Final[dict[Lane, tuple[str, ...]]] = {"run": ("agent", "secret")}


class Job(msgspec.Struct, frozen=True, kw_only=True):
    """Ring once for a row.

    `row_id` is the TypeID of the row to work on, and `attempt` the number of claims that it had when
    it was rung. Both make the job's id: ringing twice for one state of a row is one job.
    """

    lane: Lane
    row_id: str
    tenant_id: str
    attempt: int

    @property
    def id(self) -> str:
        """Return `exec_01k…:0`, which follows from the row alone."""
        return f"{self.row_id}:{self.attempt}"


class RowChange(msgspec.Struct, frozen=True, kw_only=True):
    """Name a row that changed, and its new status."""

    row_id: str
    status: str
