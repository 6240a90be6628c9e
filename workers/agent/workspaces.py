"""A run's workspace as its tools see it: files by name, whose bytes are in object storage by content."""

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

# What goes into a sandbox together, in bytes.
MAX_SANDBOX_FILE_BYTES: Final = 8 * 1024 * 1024

# Called in the transaction that finishes the step which wrote the files.
CommitFiles = Callable[[Tx], Awaitable[None]]


class RunWorkspace:
    """The files of one execution. What is written counts when its step is finished."""

    def __init__(self, store: Store, blobs: Blobs, tenant_id: str, execution_id: str) -> None:
        self._store, self._blobs, self._tenant_id, self.execution_id = store, blobs, tenant_id, execution_id

    async def list_files(self) -> list[WorkspaceFile]:
        """All files, by name."""

        async def known() -> list[WorkspaceFile]:
            async with self._store.tenant_transaction(self._tenant_id) as tx:
                return await tx.workspaces.list_files(self.execution_id)

        return await retry_through_outage(known)

    async def read_file(self, path: str) -> bytes:
        """The bytes of a file. Errors: `ToolFailed` when there is none."""
        name = check_path(path)

        async def known() -> WorkspaceFile | None:
            async with self._store.tenant_transaction(self._tenant_id) as tx:
                return await tx.workspaces.find(self.execution_id, name)

        found = await retry_through_outage(known)
        if found is None:
            raise ToolFailed(f"there is no file {name!r} in the workspace.")
        return await self._download_bytes(found)

    async def read_all_files(self) -> dict[str, bytes]:
        """The bytes of all files. Errors: `ToolFailed` when they are too many for a sandbox."""
        found = await self.list_files()
        if sum(file.size_bytes for file in found) > MAX_SANDBOX_FILE_BYTES:
            raise ToolFailed(
                f"the files of this run are larger than the {MAX_SANDBOX_FILE_BYTES} bytes that go into a sandbox."
            )
        return {file.path: await self._download_bytes(file) for file in found}

    async def write_files(self, changed: dict[str, bytes]) -> CommitFiles:
        """Store bytes of files; they become the files' when what is returned is called. Errors: `ToolFailed`."""
        named = {check_path(path): data for path, data in changed.items()}
        workspaces.check_workspace_limits(await self.list_files(), {path: len(data) for path, data in named.items()})
        hashes = {path: hashlib.sha256(data).hexdigest() for path, data in named.items()}
        for path, data in named.items():
            await retry_through_outage(partial(self._upload_bytes, hashes[path], data))

        async def commit(tx: Tx) -> None:
            for path, data in named.items():
                file = WorkspaceFile(path=path, size_bytes=len(data), sha256=hashes[path], updated_at=tx.now)
                await tx.workspaces.save_file(self.execution_id, file, self._object_key(hashes[path]))

        return commit

    async def _upload_bytes(self, sha256: str, data: bytes) -> None:
        await self._blobs.write_object(self._object_key(sha256), _stream_once(data))

    async def _download_bytes(self, file: WorkspaceFile) -> bytes:
        async def whole() -> bytes:
            async with self._store.tenant_transaction(self._tenant_id) as tx:
                key = await tx.workspaces.find_blob_key(self.execution_id, file.path)
            if key is None:
                raise NotFound("file", file.path)
            return b"".join([chunk async for chunk in await self._blobs.read_object(key)])

        try:
            return await retry_through_outage(whole)
        except DomainError as error:
            if error.code != "not_found":
                raise
            raise ToolFailed(f"the bytes of {file.path!r} are gone from object storage.") from error

    def _object_key(self, sha256: str) -> str:
        return format_blob_key(self._tenant_id, self.execution_id, sha256)


async def _stream_once(data: bytes) -> AsyncIterator[bytes]:
    yield data
