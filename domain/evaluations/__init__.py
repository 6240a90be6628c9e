"""Evaluations: what somebody, or a worker, thinks of one answer of a model.

Metrics that the caller sends are stored as sent. Those left out are computed by a worker from prompt, response
and `retrieved_docs` (`domain.evaluations.scoring`). `metrics` tells so: `sent`, or `pending` until `computed`.
"""

from domain.evaluations.parser import build_evaluations, parse_evaluation, parse_evaluation_batch
from domain.evaluations.schema import (
    MAX_EVALUATION_BATCH,
    MAX_SCORING_ATTEMPTS,
    ClaimedEvaluation,
    Evaluation,
    EvaluationBatch,
    EvaluationFilter,
    NewEvaluation,
)
from domain.evaluations.service import (
    Evaluations,
    add_evaluations,
    claim_evaluations,
    create_batches,
    create_evaluations,
    delete_evaluation,
    get_evaluation,
    list_evaluations,
    list_evaluations_after,
    list_missing_scores,
    settle_evaluations,
)
from domain.evaluations.statistics import (
    EvaluationPoint,
    EvaluationStats,
    compute_evaluation_stats,
    compute_evaluation_timeseries,
    normalize_filter,
    query_from_filter,
)

__all__ = [
    "MAX_EVALUATION_BATCH",
    "MAX_SCORING_ATTEMPTS",
    "ClaimedEvaluation",
    "Evaluation",
    "EvaluationBatch",
    "EvaluationFilter",
    "EvaluationPoint",
    "EvaluationStats",
    "Evaluations",
    "NewEvaluation",
    "add_evaluations",
    "build_evaluations",
    "claim_evaluations",
    "compute_evaluation_stats",
    "compute_evaluation_timeseries",
    "create_batches",
    "create_evaluations",
    "delete_evaluation",
    "get_evaluation",
    "list_evaluations",
    "list_evaluations_after",
    "list_missing_scores",
    "normalize_filter",
    "parse_evaluation",
    "parse_evaluation_batch",
    "query_from_filter",
    "settle_evaluations",
]
