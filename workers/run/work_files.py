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
from domain.shared.errors import OUTAGE_CODES, DomainError
from domain.work_folder import UnkeptFile, WorkFile, WorkFolder
from domain.workspaces import WorkspaceFile, check_path, format_blob_key
from infra.polling import MAX_STORAGE_OUTAGE_SECONDS, retry_through_outage
from workers.run.work_room import WorkLimits, WorkRoom, describe_unkept

_QUOTA_REASON: Final = "the tenant's storage is full: PADDOCK_TENANT_MAX_STORED_BYTES"
_PLAN_REASON: Final = "other steps have left too much since"


class NoRoomForFiles(DomainError):
    """Report that the files of a run do not fit any more, as they did when they were collected."""

    def __init__(self, reason: str) -> None:
        super().__init__("quota_exceeded", f"The files of the run are not kept: {reason}.")
        self.reason = reason


class WorkFiles:
    """Hold the files of one run: those that it is given, and those that it leaves."""

    def __init__(self, store: Store, blobs: Blobs, execution: Execution, limits: WorkLimits) -> None:
        self._store, self._blobs, self._execution, self._limits = store, blobs, execution, limits
        # All executions of a run share the workspace of its root.
        self._owner = execution.root_id or execution.id
        self._given: dict[str, WorkspaceFile] = {}
        self._given_keys: dict[str, str] = {}
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

        async def look_up(tx: Tx) -> tuple[list[WorkspaceFile], dict[str, str]]:
            files = await tx.workspaces.list_files(self._owner)
            return files, await tx.workspaces.list_keys(self._owner) if files else {}

        files, self._given_keys = await self._store.run(self._execution.tenant_id, look_up, retry=True)
        self._given = {file.path: file for file in files}

    async def fill_folder(self, folder: WorkFolder) -> None:
        """Write the files of the run into its folder. Errors: `file_unavailable`."""
        for path in self.paths:
            try:
                # An empty file has no chunk that would create it.
                folder.write_file(path, b"")
                key = self._given_keys[path]
                async for chunk in await retry_through_outage(partial(self._blobs.read_object, key)):
                    folder.write_file(path, chunk)
            except (DomainError, KeyError, OSError) as error:
                raise DomainError(
                    "file_unavailable", f"The file {path!r} cannot be given to the run: {error}"
                ) from error

    async def collect_folder(self, folder: WorkFolder) -> None:
        """Store the files that the run left or changed, within the limits; `notice` names the others."""
        listed, unkept = await asyncio.to_thread(folder.list_files)
        room = WorkRoom({path: file.size_bytes for path, file in self._given.items()}, self._limits)
        quota = _QuotaReader(self._store, self._execution.tenant_id, self._limits.quota)
        for file in sorted(listed, key=lambda entry: entry.path):
            problem = self._find_name_problem(file.path) or room.find_problem(file.path, file.size_bytes)
            if problem is None:
                problem = await self._keep_file(folder, file, room, quota)
            if problem is not None:
                unkept.append(UnkeptFile(file.path, problem))
        self.notice = describe_unkept(UnkeptFile(self.mask_text(file.path), file.reason) for file in unkept)

    async def write_rows(self, tx: Tx) -> None:
        """Make the stored files those of the run's workspace. Errors: `NoRoomForFiles`, if others took the room."""
        if self._limits.quota and await tx.builds.sum_stored_bytes() + self._count_new_bytes() > self._limits.quota:
            raise NoRoomForFiles(_QUOTA_REASON)
        if self._execution.root_id is not None:
            # Steps of a plan share a workspace, and may run at the same time.
            present = await tx.workspaces.list_files(self._owner)
            room = WorkRoom({file.path: file.size_bytes for file in present}, self._limits)
            for file, _ in self._kept.values():
                if room.find_problem(file.path, file.size_bytes) is not None:
                    raise NoRoomForFiles(_PLAN_REASON)
                room.add(file.path, file.size_bytes)
        for file, key in self._kept.values():
            await tx.workspaces.save_file(self._owner, msgspec.structs.replace(file, updated_at=tx.now), key)

    def drop_results(self, reason: str) -> str | None:
        """Keep no file of the run; return a sentence that names them."""
        unkept = [UnkeptFile(path, reason) for path in self._kept]
        self._kept = {}
        return describe_unkept(unkept)

    def _count_new_bytes(self) -> int:
        return sum({key: file.size_bytes for file, key in self._kept.values()}.values())

    def _find_name_problem(self, path: str) -> str | None:
        try:
            if check_path(path) != path:
                return "its path is not in its plain form"
        except ToolFailed:
            return "its path is too long, or holds a backslash or a control character"
        return None if self.mask_text(path) == path else "its name holds a secret"

    async def _keep_file(self, folder: WorkFolder, file: WorkFile, room: WorkRoom, quota: "_QuotaReader") -> str | None:
        """Store a file, unless the run was given it as it is; return why it cannot be."""
        try:
            sha256 = await asyncio.to_thread(_hash_file, folder, file)
            original = self._given.get(file.path)
            if original is not None and original.sha256 == sha256:
                return None
            key = format_blob_key(self._execution.tenant_id, self._owner, sha256)
            if all(key != stored for _, stored in self._kept.values()):
                if not await quota.take_bytes(file.size_bytes):
                    return _QUOTA_REASON
                await retry_through_outage(
                    lambda: self._blobs.write_object(key, _read_chunks(folder, file, sha256)),
                    MAX_STORAGE_OUTAGE_SECONDS,
                )
        except OSError as error:
            return f"it cannot be read: {error.strerror or error}"
        except DomainError as error:
            if error.code not in OUTAGE_CODES:
                raise
            return "object storage did not take it"
        room.add(file.path, file.size_bytes)
        entry = WorkspaceFile(
            path=file.path, size_bytes=file.size_bytes, sha256=sha256, updated_at=self._execution.updated_at
        )
        self._kept[file.path] = entry, key
        return None


class _QuotaReader:
    """Count what one run stores against what its tenant may have stored, which is looked up once."""

    def __init__(self, store: Store, tenant_id: str, quota: int) -> None:
        self._store, self._tenant_id, self._quota = store, tenant_id, quota
        self._rest_bytes: int | None = None

    async def take_bytes(self, size: int) -> bool:
        """Return whether so many bytes more may be stored, and count them if so."""
        if not self._quota:
            return True
        if self._rest_bytes is None:
            stored = await self._store.run(self._tenant_id, lambda tx: tx.builds.sum_stored_bytes(), retry=True)
            self._rest_bytes = self._quota - stored
        if size > self._rest_bytes:
            return False
        self._rest_bytes -= size
        return True


def _hash_file(folder: WorkFolder, file: WorkFile) -> str:
    digest = hashlib.sha256()
    for chunk in folder.read_file(file):
        digest.update(chunk)
    return digest.hexdigest()


async def _read_chunks(folder: WorkFolder, file: WorkFile, sha256: str) -> AsyncIterator[bytes]:
    """Yield a file's bytes. Errors: `OSError` if they are not those that were hashed, so that nothing is stored."""
    digest = hashlib.sha256()
    for chunk in folder.read_file(file):
        digest.update(chunk)
        yield chunk
        await asyncio.sleep(0)
    if digest.hexdigest() != sha256:
        raise OSError("it has changed")
