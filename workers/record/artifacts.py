"""Move artifact bodies to object storage, delete those of deleted artifacts, and capture executions as artifacts."""

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

# Time that a round may take to upload bodies; `infra.postgres.artifacts.SECOND_DELETION_DELAY` must be longer.
MAX_UPLOAD_TIME: Final = timedelta(seconds=60)
BODY_LEASE: Final = timedelta(seconds=90)
MAX_CLAIMED_BODIES, MAX_CLAIMED_BYTES = 128, 16 * 1024 * 1024
MAX_CONCURRENT_UPLOADS: Final = 16
MAX_DELETED_OBJECTS: Final = 500
MAX_CAPTURED_EXECUTIONS: Final = 50

_log = structlog.get_logger("paddock.artifacts")


class BodyUploader:
    """Move bodies from Postgres to object storage. Uploading one twice does no harm."""

    def __init__(self, store: Store, blobs: Blobs) -> None:
        self._store, self._blobs = store, blobs
        self._slots = asyncio.Semaphore(MAX_CONCURRENT_UPLOADS)

    async def upload_bodies(self) -> bool:
        """Upload a batch of bodies. Return whether there may be more. Errors: `storage_unavailable`."""
        async with self._store.system_transaction() as tx:
            bodies = await tx.artifacts.claim_pending_bodies(
                MAX_CLAIMED_BODIES, MAX_CLAIMED_BYTES, tx.now, tx.now + BODY_LEASE
            )
        if not bodies:
            return False
        uploads = {asyncio.create_task(self._upload_body(body)): body for body in bodies}
        try:
            # All uploads end within the lease, including those that wait for a slot: a later upload could leave an
            # object that no row refers to.
            await asyncio.wait(uploads, timeout=MAX_UPLOAD_TIME.total_seconds())
        except asyncio.CancelledError:
            # This process is stopping. It releases the bodies: the next worker need not wait until the lease expires.
            await asyncio.shield(self._cancel_uploads(uploads, bodies))
            raise
        uploaded = [body for task, body in uploads.items() if task.done() and task.exception() is None]
        failed = [body for body in bodies if body not in uploaded]
        if uploaded:
            await retry_through_outage(lambda: self._settle_uploads(uploaded))
        await self._cancel_uploads(uploads, failed)
        for task in uploads:
            if not task.cancelled() and (error := task.exception()) is not None:
                raise error
        return True

    async def _cancel_uploads(self, uploads: Iterable[asyncio.Task[None]], bodies: list[PendingBody]) -> None:
        for task in uploads:
            task.cancel()
        await asyncio.gather(*uploads, return_exceptions=True)
        if bodies:
            await self._release_bodies([body.id for body in bodies])

    async def _release_bodies(self, ids: list[str]) -> None:
        async with self._store.system_transaction() as tx:
            await tx.artifacts.release_bodies(ids)

    async def _upload_body(self, body: PendingBody) -> None:
        async with self._slots:
            await self._blobs.write_object(body.key, stream_once(body.packed_body))

    async def _settle_uploads(self, bodies: list[PendingBody]) -> None:
        async with self._store.system_transaction() as tx:
            deleted_ids = await tx.artifacts.mark_bodies_stored([body.id for body in bodies])
        # The object of an artifact that was deleted during its upload is deleted as well. This may happen twice, even
        # at the same time.
        orphaned_keys = [body.key for body in bodies if body.id in deleted_ids]
        if orphaned_keys:
            await self._blobs.delete(orphaned_keys)


class ObjectRemover:
    """Delete the objects of deleted artifacts."""

    def __init__(self, store: Store, blobs: Blobs) -> None:
        self._store, self._blobs = store, blobs

    async def remove_objects(self) -> bool:
        """Delete a batch of objects. Return whether there may be more. Errors: `storage_unavailable`."""
        async with self._store.system_transaction() as tx:
            now, keys = tx.now, await tx.artifacts.list_deletable_objects(tx.now, MAX_DELETED_OBJECTS)
        if keys:
            await self._blobs.delete(keys)
            async with self._store.system_transaction() as tx:
                await tx.artifacts.mark_objects_deleted(keys, now)
        return len(keys) == MAX_DELETED_OBJECTS


class ArtifactCapturer:
    """Write the artifact of every execution that has ended."""

    def __init__(self, store: Store, environment: str) -> None:
        self._store, self._environment = store, environment

    async def capture_artifacts(self) -> bool:
        """Capture a batch of executions. Return whether there may be more."""
        async with self._store.system_transaction() as tx:
            ended = await tx.artifacts.list_unrecorded(MAX_CAPTURED_EXECUTIONS)
        by_tenant = defaultdict[str, list[str]](list)
        for tenant_id, execution_id in ended:
            by_tenant[tenant_id].append(execution_id)
        for tenant_id, executions in by_tenant.items():
            await self._capture_executions(tenant_id, executions)
        return len(ended) == MAX_CAPTURED_EXECUTIONS

    async def _capture_executions(self, tenant_id: str, executions: list[str]) -> None:
        try:
            async with self._store.tenant_transaction(tenant_id) as tx:
                ended = await tx.artifacts.load_unrecorded(executions)
            artifacts = await asyncio.to_thread(_build_artifacts, ended, self._environment)
            async with self._store.tenant_transaction(tenant_id) as tx:
                await capture.store_captured(tx, artifacts, executions)
        except Exception as error:
            if isinstance(error, DomainError) and error.code in DATABASE_OUTAGE_CODES:
                raise
            if len(executions) > 1:
                for execution_id in executions:
                    await self._capture_executions(tenant_id, [execution_id])
                return
            # Without the mark, the execution would be the first in every later round.
            _log.exception("an execution cannot be captured as an artifact", execution_id=executions[0])
            async with self._store.tenant_transaction(tenant_id) as tx:
                await tx.artifacts.mark_recorded(executions)


def _build_artifacts(ended: list[UnrecordedExecution], environment: str) -> list[PackedArtifact]:
    records = [capture.record_from_execution(execution, environment) for execution in ended]
    return [PackedArtifact(record=record, packed_body=compress_body(record.body)) for record in records]
