"""Compute the metrics of evaluations that were sent without them."""

import asyncio
from collections import defaultdict
from datetime import timedelta
from functools import partial
from typing import Final

import structlog

from domain import evaluations
from domain.evaluations import ClaimedEvaluation, ClientScores, EvaluationScores, TextSimilarity, score_evaluation
from domain.ports import Store, Tx

# Long enough to score megabytes of text; the evaluations of a killed worker wait until it expires.
SCORING_LEASE: Final = timedelta(minutes=2)
MAX_SCORING_BATCH: Final = 64

_log = structlog.get_logger("paddock.evaluations")


class EvaluationScorer:
    """Claim evaluations, compute their missing metrics with no transaction open, and write them."""

    def __init__(self, store: Store, similarity: TextSimilarity) -> None:
        self._store, self._similarity = store, similarity

    async def score_evaluations(self) -> bool:
        """Score a batch of evaluations. Return whether there may be more."""
        async with self._store.system_transaction() as tx:
            claimed = await evaluations.claim_evaluations(tx, MAX_SCORING_BATCH, SCORING_LEASE)
        if not claimed:
            return False
        try:
            scores_of_claimed = await asyncio.to_thread(self._score_claimed, claimed)
        except asyncio.CancelledError:
            await asyncio.shield(self._release_claimed(claimed))
            raise
        by_tenant = defaultdict[str, list[tuple[ClaimedEvaluation, EvaluationScores | None]]](list)
        for claim, claim_scores in zip(claimed, scores_of_claimed, strict=True):
            by_tenant[claim.evaluation.tenant_id].append((claim, claim_scores))
        for tenant_id, rows in by_tenant.items():
            await self._store.run(tenant_id, partial(_settle_scores, rows), retry=True)
        return True

    def _score_claimed(self, claimed: list[ClaimedEvaluation]) -> list[EvaluationScores | None]:
        return [self._score_evaluation(claim) for claim in claimed]

    def _score_evaluation(self, claim: ClaimedEvaluation) -> EvaluationScores | None:
        row = claim.evaluation
        sent = ClientScores(**{name: getattr(row, name) for name in ClientScores.__struct_fields__})
        try:
            return score_evaluation(row.prompt, row.response, row.retrieved_docs or [], sent, self._similarity)
        except Exception:
            # An evaluation that cannot be scored must not prevent the others from being scored.
            _log.exception("metrics cannot be computed", evaluation_id=row.id, attempt=claim.attempt)
            return None

    async def _release_claimed(self, claimed: list[ClaimedEvaluation]) -> None:
        for tenant_id in {claim.evaluation.tenant_id for claim in claimed}:
            async with self._store.tenant_transaction(tenant_id) as tx:
                await tx.evaluations.release_claims(
                    [claim for claim in claimed if claim.evaluation.tenant_id == tenant_id]
                )


async def _settle_scores(rows: list[tuple[ClaimedEvaluation, EvaluationScores | None]], tx: Tx) -> None:
    await evaluations.settle_evaluations(tx, rows)
