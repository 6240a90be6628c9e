"""Upkeep: finds what was lost, and removes what nobody needs."""

from workers.upkeep.recovery import MAX_UPKEEP_BATCH, MIN_RING_AGE, RUNG_LANES, SWEEP_INTERVAL, Upkeep

__all__ = ["MAX_UPKEEP_BATCH", "MIN_RING_AGE", "RUNG_LANES", "SWEEP_INTERVAL", "Upkeep"]
