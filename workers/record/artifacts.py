"""Artifacts: bodies go to object storage, objects of deleted ones go away, and executions get theirs written."""

import asyncio
from collections import defaultdict
from collections.abc import Iterable
from datetime import timedelta
from typing import Final

import structlog

from domain.artifacts import PackedArtifact, PendingBody, UnrecordedExecution, capture
from domain.ports import Blobs, Store
from domain.shared.errors import DATABASE_OUTAGE_CODES, DomainError
from infra.compression import compress_body, stream_once
from infra.polling import retry_through_outage

# How long a round may take to write bodies. `infra.postgres.artifacts.SECOND_DELETION_DELAY` has to be longer.
MAX_UPLOAD_TIME: Final = timedelta(seconds=60)
BODY_LEASE: Final = timedelta(seconds=90)
MAX_CLAIMED_BODIES, MAX_CLAIMED_BYTES = 128, 16 * 1024 * 1024
MAX_CONCURRENT_UPLOADS: Final = 16
MAX_DELETED_OBJECTS: Final = 500
MAX_CAPTURED_EXECUTIONS: Final = 50

_log = structlog.get_logger("paddock.artifacts")


class BodyUploader:
    """Moves bodies from Postgres to object storage. Writing one twice is the same as writing it once."""

    def __init__(self, store: Store, blobs: Blobs) -> None:
        self._store, self._blobs = store, blobs
        self._slots = asyncio.Semaphore(MAX_CONCURRENT_UPLOADS)

    async def __call__(self) -> bool:
        """One round. Returns whether there may be more. Errors: `storage_unavailable`; what waits goes on waiting."""
        async with self._store.system_transaction() as tx:
            waiting = await tx.artifacts.claim_pending_bodies(
                MAX_CLAIMED_BODIES, MAX_CLAIMED_BYTES, tx.now, tx.now + BODY_LEASE
            )
        if not waiting:
            return False
        putting = {asyncio.create_task(self._upload_body(one)): one for one in waiting}
        try:
            # All of them within the lease, however many wait for a slot: what is put later would be nobody's.
            await asyncio.wait(putting, timeout=MAX_UPLOAD_TIME.total_seconds())
        except asyncio.CancelledError:
            # Told to stop: whoever comes next need not wait for the lease. Writing a body twice does no harm.
            await asyncio.shield(self._abandon_uploads(putting, waiting))
            raise
        done = [one for task, one in putting.items() if task.done() and task.exception() is None]
        failed = [one for one in waiting if one not in done]
        if done:
            await retry_through_outage(lambda: self._settle_uploads(done))
        await self._abandon_uploads(putting, failed)
        for task in putting:
            if not task.cancelled() and (error := task.exception()) is not None:
                raise error
        return True

    async def _abandon_uploads(self, putting: Iterable[asyncio.Task[None]], bodies: list[PendingBody]) -> None:
        for task in putting:
            task.cancel()
        await asyncio.gather(*putting, return_exceptions=True)
        if bodies:
            await self._release_bodies([one.id for one in bodies])

    async def _release_bodies(self, ids: list[str]) -> None:
        async with self._store.system_transaction() as tx:
            await tx.artifacts.release_bodies(ids)

    async def _upload_body(self, one: PendingBody) -> None:
        async with self._slots:
            await self._blobs.write_object(one.key, stream_once(one.packed_body))

    async def _settle_uploads(self, done: list[PendingBody]) -> None:
        async with self._store.system_transaction() as tx:
            gone = await tx.artifacts.mark_bodies_stored([one.id for one in done])
        # Deleted while it was written: what was written is deleted as well. May be done again, or by two at once.
        late = [one.key for one in done if one.id in gone]
        if late:
            await self._blobs.delete(late)


class ObjectRemover:
    """Deletes the objects of deleted artifacts."""

    def __init__(self, store: Store, blobs: Blobs) -> None:
        self._store, self._blobs = store, blobs

    async def __call__(self) -> bool:
        """One round. Returns whether there may be more. Errors: `storage_unavailable`."""
        async with self._store.system_transaction() as tx:
            now, keys = tx.now, await tx.artifacts.list_deletable_objects(tx.now, MAX_DELETED_OBJECTS)
        if keys:
            await self._blobs.delete(keys)
            async with self._store.system_transaction() as tx:
                await tx.artifacts.mark_objects_deleted(keys, now)
        return len(keys) == MAX_DELETED_OBJECTS


class ArtifactCapturer:
    """Writes the artifact of every execution that has ended."""

    def __init__(self, store: Store, environment: str) -> None:
        self._store, self._environment = store, environment

    async def __call__(self) -> bool:
        """One round. Returns whether there may be more."""
        async with self._store.system_transaction() as tx:
            ended = await tx.artifacts.list_unrecorded(MAX_CAPTURED_EXECUTIONS)
        of_tenant = defaultdict[str, list[str]](list)
        for tenant_id, execution_id in ended:
            of_tenant[tenant_id].append(execution_id)
        for tenant_id, executions in of_tenant.items():
            await self._capture_executions(tenant_id, executions)
        return len(ended) == MAX_CAPTURED_EXECUTIONS

    async def _capture_executions(self, tenant_id: str, executions: list[str]) -> None:
        try:
            async with self._store.tenant_transaction(tenant_id) as tx:
                ended = await tx.artifacts.load_unrecorded(executions)
            made = await asyncio.to_thread(_build_artifacts, ended, self._environment)
            async with self._store.tenant_transaction(tenant_id) as tx:
                await capture.store_captured(tx, made, executions)
        except Exception as error:
            if isinstance(error, DomainError) and error.code in DATABASE_OUTAGE_CODES:
                raise
            if len(executions) > 1:
                for one in executions:
                    await self._capture_executions(tenant_id, [one])
                return
            # It would come first in every round to come.
            _log.exception("an execution has no artifact", execution_id=executions[0])
            async with self._store.tenant_transaction(tenant_id) as tx:
                await tx.artifacts.mark_recorded(executions)


def _build_artifacts(ended: list[UnrecordedExecution], environment: str) -> list[PackedArtifact]:
    made = [capture.record_from_execution(one, environment) for one in ended]
    return [PackedArtifact(record=one, packed_body=compress_body(one.body)) for one in made]
