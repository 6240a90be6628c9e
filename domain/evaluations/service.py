"""Store, list and delete evaluations, and let workers claim and score them."""

from datetime import datetime, timedelta
from typing import Final, Protocol

from domain.evaluations.parser import prefix_batch_row
from domain.evaluations.schema import ClaimedEvaluation, Evaluation, EvaluationBatch, EvaluationFilter
from domain.evaluations.scoring import EvaluationScores
from domain.evaluations.statistics import normalize_filter
from domain.ports import Tx
from domain.shared.errors import DomainError, InvalidField, NotFound, require_found
from domain.shared.jobs import Job
from domain.shared.pages import Listing, Page

_SCORE_NAMES: Final = tuple(EvaluationScores.__struct_fields__)


class Evaluations(Protocol):
    """Store the evaluations of the bound tenant. Every change writes its statistics deltas in the same statement."""

    async def add(self, evaluations: list[Evaluation]) -> None: ...
    async def get(self, evaluation_id: str) -> Evaluation | None: ...
    async def list_page(self, filters: EvaluationFilter, page: Page) -> Listing[Evaluation]: ...
    async def list_after(
        self, filters: EvaluationFilter, place: tuple[datetime, str] | None, limit: int
    ) -> list[Evaluation]:
        """List the next `limit`, newest first, after the one at `place`."""
        ...

    async def delete_many(self, evaluation_ids: list[str]) -> int: ...
    async def list_older(self, before: datetime, limit: int) -> list[str]:
        """List the oldest evaluations from before a time."""
        ...

    async def find_linked(self, executions: set[str], artifacts: set[str]) -> tuple[set[str], set[str]]:
        """Return those of these executions and artifacts that exist."""
        ...

    async def claim_pending(self, most: int, now: datetime, until: datetime) -> list[ClaimedEvaluation]: ...
    async def save_scores(self, scored: list[tuple[ClaimedEvaluation, EvaluationScores]]) -> int:
        """Write computed metrics to evaluations whose attempt still holds the lease. Returns how many."""
        ...

    async def release_claims(self, claimed: list[ClaimedEvaluation]) -> None:
        """Release claimed evaluations because the worker stops. The attempt does not count."""
        ...

    async def fail_claims(self, claimed: list[ClaimedEvaluation]) -> None:
        """Leave evaluations without scores, or to another attempt while attempts are left."""
        ...


async def add_evaluations(tx: Tx, submissions: list[list[Evaluation]], batches: bool) -> list[DomainError | None]:
    """Store the submissions of several callers of one tenant, each all or nothing. Returns the error of each, or None.

    The only possible error is a link to an unknown record; the parser has checked everything else.
    """
    evaluations = [evaluation for sent in submissions for evaluation in sent]
    executions = {item.execution_id for item in evaluations if item.execution_id is not None}
    artifacts = {item.artifact_id for item in evaluations if item.artifact_id is not None}
    problems: list[DomainError | None] = [None] * len(submissions)
    if executions or artifacts:
        linked_executions, linked_artifacts = await tx.evaluations.find_linked(executions, artifacts)
        problems = [_check_links(sent, batches, linked_executions, linked_artifacts) for sent in submissions]
    accepted = [
        evaluation
        for sent, problem in zip(submissions, problems, strict=True)
        if problem is None
        for evaluation in sent
    ]
    if accepted:
        await tx.evaluations.add(accepted)
        tx.ring_job(Job(lane="record", row_id=accepted[0].id, tenant_id=accepted[0].tenant_id, attempt=0))
    return problems


def _check_links(sent: list[Evaluation], batch: bool, executions: set[str], artifacts: set[str]) -> DomainError | None:
    for number, evaluation in enumerate(sent):
        for field, value, existing in (
            ("execution_id", evaluation.execution_id, executions),
            ("artifact_id", evaluation.artifact_id, artifacts),
        ):
            if value is not None and value not in existing:
                error = InvalidField(field, f"there is no {field.removesuffix('_id')} {value!r}.")
                return prefix_batch_row(error, number) if batch else error
    return None


async def get_evaluation(tx: Tx, evaluation_id: str) -> Evaluation:
    """Return an evaluation. Errors: `not_found`."""
    return require_found("evaluation", evaluation_id, await tx.evaluations.get(evaluation_id))


async def list_evaluations(tx: Tx, filters: EvaluationFilter, page: Page) -> Listing[Evaluation]:
    """List evaluations, newest first. Errors: `invalid_field`."""
    return await tx.evaluations.list_page(normalize_filter(filters), page)


async def list_evaluations_after(
    tx: Tx, last: Evaluation | None, limit: int, *, filters: EvaluationFilter
) -> list[Evaluation]:
    """List the next evaluations after `last`, newest first."""
    return await tx.evaluations.list_after(filters, None if last is None else (last.created_at, last.id), limit)


async def create_evaluations(tx: Tx, submissions: list[list[Evaluation]]) -> list[Evaluation | DomainError]:
    """Store one evaluation of each caller."""
    problems = await add_evaluations(tx, submissions, batches=False)
    return [problem or sent[0] for sent, problem in zip(submissions, problems, strict=True)]


async def create_batches(tx: Tx, submissions: list[list[Evaluation]]) -> list[EvaluationBatch | DomainError]:
    """Store a batch of each caller, all or nothing."""
    problems = await add_evaluations(tx, submissions, batches=True)
    return [
        problem or EvaluationBatch(created=len(sent), ids=[evaluation.id for evaluation in sent])
        for sent, problem in zip(submissions, problems, strict=True)
    ]


async def delete_evaluation(tx: Tx, evaluation_id: str) -> None:
    """Delete an evaluation and its share of the statistics. Errors: `not_found`."""
    if not await tx.evaluations.delete_many([evaluation_id]):
        raise NotFound("evaluation", evaluation_id)
    tx.ring_job(Job(lane="record", row_id=evaluation_id, tenant_id="", attempt=0))


async def claim_evaluations(tx: Tx, most: int, lease: timedelta) -> list[ClaimedEvaluation]:
    """Claim evaluations of any tenants whose metrics are to be computed."""
    return await tx.evaluations.claim_pending(most, tx.now, tx.now + lease)


async def settle_evaluations(tx: Tx, rows: list[tuple[ClaimedEvaluation, EvaluationScores | None]]) -> None:
    """Write the computed scores of the bound tenant's evaluations; None marks one whose scoring failed."""
    scored = [(claimed, scores) for claimed, scores in rows if scores is not None]
    if scored:
        await tx.evaluations.save_scores(scored)
        tx.ring_job(Job(lane="record", row_id=scored[0][0].evaluation.id, tenant_id="", attempt=0))
    if failed := [claimed for claimed, scores in rows if scores is None]:
        await tx.evaluations.fail_claims(failed)


def list_missing_scores(evaluation: Evaluation) -> list[str]:
    """List the metrics that the caller left out."""
    return [name for name in _SCORE_NAMES if getattr(evaluation, name) is None]
