"""Evaluations: what somebody, or a worker, thinks of one answer of a model.

Metrics that the caller sends are stored as sent. Those left out are computed by a worker from prompt, response
and `retrieved_docs` (`domain.evaluations.scoring`). `metrics` tells so: `sent`, or `pending` until `computed`.
"""

from domain.evaluations.parser import evaluated, read, read_batch
from domain.evaluations.schema import MAX_ATTEMPTS, MAX_BATCH, Batch, Claimed, Evaluation, Filter, NewEvaluation
from domain.evaluations.service import (
    Evaluations,
    add,
    after,
    claim,
    created,
    created_batches,
    delete,
    get,
    list_evaluations,
    missing,
    settle,
)
from domain.evaluations.statistics import EvaluationPoint, EvaluationStats, narrowed, question, stats, timeseries

__all__ = [
    "MAX_ATTEMPTS",
    "MAX_BATCH",
    "Batch",
    "Claimed",
    "Evaluation",
    "EvaluationPoint",
    "EvaluationStats",
    "Evaluations",
    "Filter",
    "NewEvaluation",
    "add",
    "after",
    "claim",
    "created",
    "created_batches",
    "delete",
    "evaluated",
    "get",
    "list_evaluations",
    "missing",
    "narrowed",
    "question",
    "read",
    "read_batch",
    "settle",
    "stats",
    "timeseries",
]
