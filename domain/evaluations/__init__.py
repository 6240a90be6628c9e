"""Store and score evaluations: judgements of one answer of a model, by a client or by a worker.

Metrics that the client sends are stored as sent. A worker computes the others from prompt, response and
`retrieved_docs` (`domain.evaluations.scoring`). `metrics` shows it: `sent`, or `pending` until `computed`.
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
from domain.evaluations.scoring import (
    HALLUCINATION_THRESHOLD,
    ClientScores,
    EvaluationScores,
    TextSimilarity,
    score_evaluation,
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
    "HALLUCINATION_THRESHOLD",
    "MAX_EVALUATION_BATCH",
    "MAX_SCORING_ATTEMPTS",
    "ClaimedEvaluation",
    "ClientScores",
    "Evaluation",
    "EvaluationBatch",
    "EvaluationFilter",
    "EvaluationPoint",
    "EvaluationScores",
    "EvaluationStats",
    "Evaluations",
    "NewEvaluation",
    "TextSimilarity",
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
    "score_evaluation",
    "settle_evaluations",
]
