"""Advance plans, one short transaction at a time."""

from workers.plan.advancer import PlanAdvancer

__all__ = ["PlanAdvancer"]
