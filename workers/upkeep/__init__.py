"""Upkeep: finds what was lost, and removes what nobody needs."""

from workers.upkeep.recovery import BATCH, RING_AGE, RUNG, SWEEP, Upkeep

__all__ = ["BATCH", "RING_AGE", "RUNG", "SWEEP", "Upkeep"]
