"""Recover lost jobs and expired leases, start the schedules that are due, and remove what is too old."""

from workers.upkeep.gates import GateKeeper
from workers.upkeep.recovery import MAX_UPKEEP_BATCH, MIN_RING_AGE, RUNG_LANES, SWEEP_INTERVAL, Upkeep
from workers.upkeep.retention import RetentionSweeper
from workers.upkeep.schedules import ScheduleStarter

__all__ = [
    "MAX_UPKEEP_BATCH",
    "MIN_RING_AGE",
    "RUNG_LANES",
    "SWEEP_INTERVAL",
    "GateKeeper",
    "RetentionSweeper",
    "ScheduleStarter",
    "Upkeep",
]
