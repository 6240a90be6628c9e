"""Name the lanes in which executions wait, and bound what a worker of one may take."""

from typing import Final, Literal

import msgspec

RunLane = Literal["run", "llm", "plan"]


class LaneShare(msgspec.Struct, frozen=True, kw_only=True):
    """Bound what a worker of a lane may take: at most `max_running` running executions of one tenant.

    The last `reserved_slots` of the worker's slots are for tenants that have none running in the lane, where there is
    more than one tenant.
    """

    lane: RunLane = "run"
    max_running: int | None = None
    reserved_slots: int = 0


WHOLE_LANE: Final = LaneShare()


def count_reserved_slots(slots: int) -> int:
    """Return how many of a worker's slots are for tenants without a run: an eighth, at least one of several."""
    return max(1, slots // 8) if slots > 1 else 0
