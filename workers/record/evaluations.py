"""Computing the metrics of evaluations that came without them."""

import asyncio
from collections import defaultdict
from datetime import timedelta
from typing import Final

import structlog

from domain import evaluations
from domain.evaluations import ClaimedEvaluation, ClientScores, EvaluationScores, TextSimilarity, score_evaluation
from domain.ports import Store
from infra.polling import retry_through_outage

# Long enough for megabytes of text; a killed worker's evaluations wait it out.
SCORING_LEASE: Final = timedelta(minutes=2)
MAX_SCORING_BATCH: Final = 64

_log = structlog.get_logger("paddock.evaluations")


class EvaluationScorer:
    """Claims evaluations, computes what they lack with no transaction open, and writes it down."""

    def __init__(self, store: Store, similarity: TextSimilarity) -> None:
        self._store, self._similarity = store, similarity

    async def __call__(self) -> bool:
        """One round. Returns whether there may be more."""
        async with self._store.system_transaction() as tx:
            claimed = await evaluations.claim_evaluations(tx, MAX_SCORING_BATCH, SCORING_LEASE)
        if not claimed:
            return False
        try:
            scored = await asyncio.to_thread(self._score_claimed, claimed)
        except asyncio.CancelledError:
            await asyncio.shield(self._release_claimed(claimed))
            raise
        of_tenant = defaultdict[str, list[tuple[ClaimedEvaluation, EvaluationScores | None]]](list)
        for one, found in zip(claimed, scored, strict=True):
            of_tenant[one.evaluation.tenant_id].append((one, found))
        for tenant_id, rows in of_tenant.items():
            await retry_through_outage(lambda tenant_id=tenant_id, rows=rows: self._settle_scores(tenant_id, rows))  # type: ignore[misc]
        return True

    def _score_claimed(self, claimed: list[ClaimedEvaluation]) -> list[EvaluationScores | None]:
        found: list[EvaluationScores | None] = []
        for one in claimed:
            row = one.evaluation
            sent = ClientScores(**{name: getattr(row, name) for name in ClientScores.__struct_fields__})
            try:
                found.append(
                    score_evaluation(row.prompt, row.response, row.retrieved_docs or [], sent, self._similarity)
                )
            except Exception:
                # One that cannot be judged must not keep the others from being.
                _log.exception("metrics cannot be computed", evaluation_id=row.id, attempt=one.attempt)
                found.append(None)
        return found

    async def _release_claimed(self, claimed: list[ClaimedEvaluation]) -> None:
        for tenant_id in {one.evaluation.tenant_id for one in claimed}:
            async with self._store.tenant_transaction(tenant_id) as tx:
                await tx.evaluations.release_claims([one for one in claimed if one.evaluation.tenant_id == tenant_id])

    async def _settle_scores(
        self, tenant_id: str, rows: list[tuple[ClaimedEvaluation, EvaluationScores | None]]
    ) -> None:
        async with self._store.tenant_transaction(tenant_id) as tx:
            await evaluations.settle_evaluations(tx, rows)
