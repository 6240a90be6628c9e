"""Put a run's files into its work folder, and keep what it leaves there. Bytes are in object storage, by hash."""

import asyncio
import hashlib
from collections.abc import AsyncIterator, Callable
from functools import partial
from typing import Final

import msgspec

from domain.executions import Execution
from domain.llms import ToolFailed
from domain.ports import Blobs, Store, Tx
from domain.shared.errors import DomainError
from domain.work_folder import WorkFile, WorkFolder
from domain.workspaces import WorkspaceFile, check_path, format_blob_key
from infra.polling import retry_through_outage

# Names that a notice lists; the others are counted.
MAX_NAMED_FILES: Final = 10


class WorkLimits(msgspec.Struct, frozen=True, kw_only=True):
    """Limit what a run may leave: files, and bytes per file. The folder itself bounds the bytes in all."""

    files: int = 500
    file_bytes: int = 100 << 20


class WorkFiles:
    """Hold the files of one run: those that it is given, and those that it leaves."""

    def __init__(self, store: Store, blobs: Blobs, execution: Execution, limits: WorkLimits) -> None:
        self._store, self._blobs, self._execution, self._limits = store, blobs, execution, limits
        # All executions of a run share the workspace of its root.
        self._owner = execution.root_id or execution.id
        self._given: dict[str, WorkspaceFile] = {}
        self._kept: dict[str, tuple[WorkspaceFile, str]] = {}
        # A sentence about what was not kept, for the run's log.
        self.notice: str | None = None
        # Hides secrets: a path that holds one is not kept.
        self.mask_text: Callable[[str], str] = lambda text: text

    @property
    def paths(self) -> list[str]:
        """Return the paths of the files that the run is given, below the work folder."""
        return sorted(self._given)

    @property
    def has_results(self) -> bool:
        """Return whether the run left files that it was not given as they are."""
        return bool(self._kept)

    async def load(self) -> None:
        """Look up the files of the run. A run that was started without any, and is no step, has none."""
        if self._execution.files is None and self._execution.root_id is None:
            return
        files = await self._store.run(
            self._execution.tenant_id, lambda tx: tx.workspaces.list_files(self._owner), retry=True
        )
        self._given = {file.path: file for file in files}

    async def fill_folder(self, folder: WorkFolder) -> None:
        """Write the files of the run into its folder. Errors: `file_unavailable`."""
        if not self._given:
            return
        keys = await self._store.run(
            self._execution.tenant_id, lambda tx: tx.workspaces.list_keys(self._owner), retry=True
        )
        for path in self.paths:
            try:
                async for chunk in await retry_through_outage(partial(self._blobs.read_object, keys[path])):
                    folder.write_file(path, chunk)
            except (DomainError, KeyError, OSError) as error:
                raise DomainError(
                    "file_unavailable", f"The file {path!r} cannot be given to the run: {error}"
                ) from error

    async def collect_folder(self, folder: WorkFolder) -> None:
        """Store the files that the run left or changed, within the limits; `notice` names the others."""
        listed, left_out = await asyncio.to_thread(folder.list_files)
        chosen: list[WorkFile] = []
        for file in sorted(listed, key=lambda entry: entry.path):
            if self._may_keep(file, len(chosen)):
                chosen.append(file)
            else:
                left_out.append(file.path)
        for file in chosen:
            await self._keep_file(folder, file)
        if left_out:
            named = ", ".join(repr(self.mask_text(path)[:200]) for path in left_out[:MAX_NAMED_FILES])
            more = f" and {len(left_out) - MAX_NAMED_FILES} more" if len(left_out) > MAX_NAMED_FILES else ""
            self.notice = (
                f"Not kept of the work folder: {named}{more}. At most {self._limits.files} regular files of at most "
                f"{self._limits.file_bytes} bytes are kept; links and devices are not."
            )

    async def write_rows(self, tx: Tx) -> None:
        """Make the stored files those of the run's workspace."""
        for file, key in self._kept.values():
            await tx.workspaces.save_file(self._owner, msgspec.structs.replace(file, updated_at=tx.now), key)

    def _may_keep(self, file: WorkFile, count: int) -> bool:
        try:
            is_plain = check_path(file.path) == file.path == self.mask_text(file.path)
        except ToolFailed:
            is_plain = False
        return is_plain and count < self._limits.files and file.size_bytes <= self._limits.file_bytes

    async def _keep_file(self, folder: WorkFolder, file: WorkFile) -> None:
        sha256 = await asyncio.to_thread(_hash_file, folder, file.path)
        original = self._given.get(file.path)
        if original is not None and original.sha256 == sha256:
            return
        key = format_blob_key(self._execution.tenant_id, self._owner, sha256)
        await retry_through_outage(lambda: self._blobs.write_object(key, _read_chunks(folder, file.path)))
        entry = WorkspaceFile(
            path=file.path, size_bytes=file.size_bytes, sha256=sha256, updated_at=self._execution.updated_at
        )
        self._kept[file.path] = entry, key


def _hash_file(folder: WorkFolder, path: str) -> str:
    digest = hashlib.sha256()
    for chunk in folder.read_file(path):
        digest.update(chunk)
    return digest.hexdigest()


async def _read_chunks(folder: WorkFolder, path: str) -> AsyncIterator[bytes]:
    for chunk in folder.read_file(path):
        yield chunk
        await asyncio.sleep(0)
