"""Read and write the files of a run's workspace. Their bytes are in object storage, by hash."""

import hashlib
from collections.abc import AsyncIterator, Awaitable, Callable
from functools import partial
from typing import Final

from domain import workspaces
from domain.llms import ToolFailed
from domain.ports import Blobs, Store, Tx
from domain.shared.errors import DomainError, NotFound
from domain.workspaces import WorkspaceFile, check_path, format_blob_key
from infra.polling import retry_through_outage

# Bytes of all files that go into a sandbox together.
MAX_SANDBOX_FILE_BYTES: Final = 8 * 1024 * 1024

# Called in the transaction that finishes the step which wrote the files.
CommitFiles = Callable[[Tx], Awaitable[None]]


class RunWorkspace:
    """Read and write the files of one execution. A written file counts once its step is finished.

    `quota` is what the tenant may have stored, in bytes; 0 means no limit.
    """

    def __init__(self, store: Store, blobs: Blobs, tenant_id: str, execution_id: str, *, quota: int = 0) -> None:
        self._store, self._blobs, self._tenant_id, self.execution_id = store, blobs, tenant_id, execution_id
        self._quota = quota

    async def list_files(self) -> list[WorkspaceFile]:
        """Return all files, by name."""
        return await self._store.run(
            self._tenant_id, lambda tx: tx.workspaces.list_files(self.execution_id), retry=True
        )

    async def read_file(self, path: str) -> bytes:
        """Return the bytes of a file. Errors: `ToolFailed` if the file does not exist."""
        name = check_path(path)
        file = await self._store.run(
            self._tenant_id, lambda tx: tx.workspaces.find(self.execution_id, name), retry=True
        )
        if file is None:
            raise ToolFailed(f"there is no file {name!r} in the workspace.")
        return await self._download_bytes(file)

    async def read_all_files(self) -> dict[str, bytes]:
        """Return the bytes of all files. Errors: `ToolFailed` if they are too many for a sandbox."""
        files = await self.list_files()
        if sum(file.size_bytes for file in files) > MAX_SANDBOX_FILE_BYTES:
            raise ToolFailed(
                f"the files of this run are larger than the {MAX_SANDBOX_FILE_BYTES} bytes that go into a sandbox."
            )
        return {file.path: await self._download_bytes(file) for file in files}

    async def write_files(self, changed: dict[str, bytes]) -> CommitFiles:
        """Upload the bytes of files, and return what makes them the workspace's. Errors: `ToolFailed`."""
        files = {check_path(path): data for path, data in changed.items()}
        workspaces.check_workspace_limits(await self.list_files(), {path: len(data) for path, data in files.items()})
        await self._check_quota(sum(map(len, files.values())))
        hashes = {path: hashlib.sha256(data).hexdigest() for path, data in files.items()}
        for path, data in files.items():
            await retry_through_outage(partial(self._upload_bytes, hashes[path], data))

        async def commit(tx: Tx) -> None:
            for path, data in files.items():
                file = WorkspaceFile(path=path, size_bytes=len(data), sha256=hashes[path], updated_at=tx.now)
                await tx.workspaces.save_file(self.execution_id, file, self._get_object_key(hashes[path]))

        return commit

    async def _check_quota(self, size: int) -> None:
        if not self._quota:
            return
        stored = await self._store.run(self._tenant_id, lambda tx: tx.builds.sum_stored_bytes(), retry=True)
        if stored + size > self._quota:
            raise ToolFailed("the tenant's storage is full (PADDOCK_TENANT_MAX_STORED_BYTES). Nothing was written.")

    async def _upload_bytes(self, sha256: str, data: bytes) -> None:
        await self._blobs.write_object(self._get_object_key(sha256), _stream_once(data))

    async def _download_bytes(self, file: WorkspaceFile) -> bytes:
        async def download() -> bytes:
            async with self._store.tenant_transaction(self._tenant_id) as tx:
                key = await tx.workspaces.find_blob_key(self.execution_id, file.path)
            if key is None:
                raise NotFound("file", file.path)
            return b"".join([chunk async for chunk in await self._blobs.read_object(key)])

        try:
            return await retry_through_outage(download)
        except DomainError as error:
            if error.code != "not_found":
                raise
            raise ToolFailed(f"the bytes of {file.path!r} are missing from object storage.") from error

    def _get_object_key(self, sha256: str) -> str:
        return format_blob_key(self._tenant_id, self.execution_id, sha256)


async def _stream_once(data: bytes) -> AsyncIterator[bytes]:
    yield data
