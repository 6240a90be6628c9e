"""Evaluations as they are kept: stored, listed, deleted, and completed by a worker."""

from datetime import datetime, timedelta
from typing import Final, Protocol

from domain.evaluations.parser import prefix_batch_row
from domain.evaluations.schema import ClaimedEvaluation, Evaluation, EvaluationBatch, EvaluationFilter
from domain.evaluations.scoring import EvaluationScores
from domain.evaluations.statistics import normalize_filter
from domain.ports import Tx
from domain.shared.errors import DomainError, InvalidField, NotFound
from domain.shared.jobs import Job
from domain.shared.pages import Listing, Page

_METRICS: Final = tuple(EvaluationScores.__struct_fields__)


class Evaluations(Protocol):
    """The evaluations of the bound tenant. Whatever changes them writes their deltas in the same statement."""

    async def add(self, evaluations: list[Evaluation]) -> None: ...
    async def get(self, evaluation_id: str) -> Evaluation | None: ...
    async def list_page(self, narrowed: EvaluationFilter, page: Page) -> Listing[Evaluation]: ...
    async def list_after(
        self, narrowed: EvaluationFilter, place: tuple[datetime, str] | None, limit: int
    ) -> list[Evaluation]:
        """The next `limit`, newest first, after the one at `place`."""
        ...

    async def delete_many(self, evaluation_ids: list[str]) -> int: ...
    async def list_older(self, before: datetime, limit: int) -> list[str]:
        """The oldest evaluations from before a time."""
        ...

    async def find_linked(self, executions: set[str], artifacts: set[str]) -> tuple[set[str], set[str]]:
        """Which of these executions and artifacts there are."""
        ...

    async def claim_pending(self, most: int, now: datetime, until: datetime) -> list[ClaimedEvaluation]: ...
    async def save_scores(self, scored: list[tuple[ClaimedEvaluation, EvaluationScores]]) -> int:
        """Write computed metrics to those still held by their attempt. Returns how many."""
        ...

    async def release_claims(self, claimed: list[ClaimedEvaluation]) -> None:
        """Give these back, as a worker does that is told to stop. The attempt does not count."""
        ...

    async def fail_claims(self, claimed: list[ClaimedEvaluation]) -> None:
        """Leave these without the metrics they lack, or to another attempt while there are any left."""
        ...


async def add_evaluations(tx: Tx, submissions: list[list[Evaluation]], batches: bool) -> list[DomainError | None]:
    """Store what several callers of one tenant sent, each all or nothing. Returns what is wrong with each, if anything.

    What is wrong can only be a link that leads nowhere; all else was checked before.
    """
    executions = {one.execution_id for sent in submissions for one in sent if one.execution_id is not None}
    artifacts = {one.artifact_id for sent in submissions for one in sent if one.artifact_id is not None}
    problems: list[DomainError | None] = [None] * len(submissions)
    if executions or artifacts:
        there = await tx.evaluations.find_linked(executions, artifacts)
        problems = [_dangling(sent, batches, *there) for sent in submissions]
    good = [one for sent, problem in zip(submissions, problems, strict=True) if problem is None for one in sent]
    if good:
        await tx.evaluations.add(good)
        tx.ring_job(Job(lane="record", row_id=good[0].id, tenant_id=good[0].tenant_id, attempt=0))
    return problems


def _dangling(sent: list[Evaluation], batch: bool, executions: set[str], artifacts: set[str]) -> DomainError | None:
    for number, one in enumerate(sent):
        for field, value, there in (
            ("execution_id", one.execution_id, executions),
            ("artifact_id", one.artifact_id, artifacts),
        ):
            if value is not None and value not in there:
                error = InvalidField(field, f"there is no {field.removesuffix('_id')} {value!r}.")
                return prefix_batch_row(error, number) if batch else error
    return None


async def get_evaluation(tx: Tx, evaluation_id: str) -> Evaluation:
    """An evaluation. Errors: `not_found`."""
    found = await tx.evaluations.get(evaluation_id)
    if found is None:
        raise NotFound("evaluation", evaluation_id)
    return found


async def list_evaluations(tx: Tx, wanted: EvaluationFilter, page: Page) -> Listing[Evaluation]:
    """Evaluations, newest first. Errors: `invalid_field`."""
    return await tx.evaluations.list_page(normalize_filter(wanted), page)


async def list_evaluations_after(
    tx: Tx, last: Evaluation | None, limit: int, *, filters: EvaluationFilter
) -> list[Evaluation]:
    """The next evaluations after `last`, newest first."""
    return await tx.evaluations.list_after(filters, None if last is None else (last.created_at, last.id), limit)


async def create_evaluations(tx: Tx, submissions: list[list[Evaluation]]) -> list[Evaluation | DomainError]:
    """Store one evaluation of each caller."""
    problems = await add_evaluations(tx, submissions, batches=False)
    return [problem or sent[0] for sent, problem in zip(submissions, problems, strict=True)]


async def create_batches(tx: Tx, submissions: list[list[Evaluation]]) -> list[EvaluationBatch | DomainError]:
    """Store a batch of each caller, all or nothing."""
    problems = await add_evaluations(tx, submissions, batches=True)
    return [
        problem or EvaluationBatch(created=len(sent), ids=[one.id for one in sent])
        for sent, problem in zip(submissions, problems, strict=True)
    ]


async def delete_evaluation(tx: Tx, evaluation_id: str) -> None:
    """Delete an evaluation and what it counts in statistics. Errors: `not_found`."""
    if not await tx.evaluations.delete_many([evaluation_id]):
        raise NotFound("evaluation", evaluation_id)
    tx.ring_job(Job(lane="record", row_id=evaluation_id, tenant_id="", attempt=0))


async def claim_evaluations(tx: Tx, most: int, lease: timedelta) -> list[ClaimedEvaluation]:
    """Take evaluations of any tenants whose metrics are to be computed."""
    return await tx.evaluations.claim_pending(most, tx.now, tx.now + lease)


async def settle_evaluations(tx: Tx, rows: list[tuple[ClaimedEvaluation, EvaluationScores | None]]) -> None:
    """Write down what was computed for evaluations of the bound tenant; None for what could not be."""
    scored = [(one, found) for one, found in rows if found is not None]
    if scored:
        await tx.evaluations.save_scores(scored)
        tx.ring_job(Job(lane="record", row_id=scored[0][0].evaluation.id, tenant_id="", attempt=0))
    if failed := [one for one, found in rows if found is None]:
        await tx.evaluations.fail_claims(failed)


def list_missing_scores(evaluation: Evaluation) -> list[str]:
    """The metrics that the caller left out."""
    return [name for name in _METRICS if getattr(evaluation, name) is None]
