"""Costs: one row for every call of a model, and what of its budgets is held before the call and spent after it."""

from domain.costs.service import (
    Call,
    CallStatus,
    Cost,
    CostListing,
    Costs,
    CostSummary,
    Filter,
    Hold,
    Settled,
    Spender,
    SummaryPeriod,
    Warning,  # noqa: A004
    hold,
    list_costs,
    question,
    settle,
    summary,
)

__all__ = [
    "Call",
    "CallStatus",
    "Cost",
    "CostListing",
    "CostSummary",
    "Costs",
    "Filter",
    "Hold",
    "Settled",
    "Spender",
    "SummaryPeriod",
    "Warning",
    "hold",
    "list_costs",
    "question",
    "settle",
    "summary",
]
