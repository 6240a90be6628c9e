"""Keep files that users upload for runs. A run that was given a file keeps its bytes, also after it is deleted."""

import re
from collections.abc import Mapping
from datetime import datetime, timedelta
from typing import Final, Protocol

import msgspec

from domain import builds, workspaces
from domain.executions import Execution
from domain.llms import ToolFailed
from domain.ports import Tx
from domain.shared import ids
from domain.shared.access import Caller, require_scope
from domain.shared.errors import InvalidField, NotFound
from domain.shared.pages import Listing, Page
from domain.workspaces import WorkspaceFile, WorkspaceLimits

MAX_NAME_BYTES: Final = 255
DEFAULT_FILE_NAME: Final = "file"
DEFAULT_CONTENT_TYPE: Final = "application/octet-stream"
_NAME_PATTERN: Final = re.compile(r"[^\x00-\x1f\x7f/\\]+")
_CONTENT_TYPE_PATTERN: Final = re.compile(r"[\w.+-]{1,100}/[\w.+-]{1,100}", re.ASCII)


class StoredFile(msgspec.Struct, kw_only=True):
    """Show an uploaded file. `sha256` is in hex; an expired file is deleted, null keeps it."""

    id: str
    name: str
    content_type: str
    size_bytes: int
    sha256: str
    user_id: str
    tenant_id: str
    created_at: datetime
    expires_at: datetime | None


class FileUpload(msgspec.Struct, frozen=True, kw_only=True):
    """Describe the bytes of an upload in object storage that belong to no file yet. `lifetime` is None for good."""

    file_id: str
    name: str
    content_type: str
    size_bytes: int
    sha256: str
    lifetime: timedelta | None


class Files(Protocol):
    """Store the bound tenant's uploaded files. One that has expired is found no more."""

    async def add(self, file: StoredFile, key: str) -> None: ...
    async def find(self, file_id: str, *, lock: bool = False) -> StoredFile | None: ...
    async def find_many(self, file_ids: list[str]) -> dict[str, StoredFile]:
        """Return the files with these ids, by id, and keep them from being deleted until the commit."""
        ...

    async def list_page(self, page: Page) -> Listing[StoredFile]: ...
    async def delete(self, file_id: str, key: str) -> None:
        """Delete a file, and its bytes unless a run has them."""
        ...


def generate_file_id() -> str:
    """Return the id of a file that is about to be uploaded."""
    return ids.generate_id("file")


def format_file_key(tenant_id: str, file_id: str) -> str:
    """Return the key of a file's bytes in object storage."""
    return f"files/{tenant_id}/{file_id}"


def check_file_name(name: str | None) -> str:
    """Return the name of an upload without folders that some browsers send. Errors: `invalid_field`."""
    plain = (name or "").replace("\\", "/").rpartition("/")[2].strip() or DEFAULT_FILE_NAME
    if plain in (".", "..") or _NAME_PATTERN.fullmatch(plain) is None:
        raise InvalidField("file", "its file name must not hold control characters, and not be `.` or `..`.")
    if len(plain.encode(errors="surrogatepass")) > MAX_NAME_BYTES:
        raise InvalidField("file", f"its file name must have at most {MAX_NAME_BYTES} bytes.")
    return plain


def clean_content_type(content_type: str | None) -> str:
    """Return the content type of an upload, without parameters; anything odd becomes the general type."""
    plain = (content_type or "").partition(";")[0].strip().lower()
    return plain if _CONTENT_TYPE_PATTERN.fullmatch(plain) else DEFAULT_CONTENT_TYPE


async def add_file(tx: Tx, caller: Caller, upload: FileUpload, quota: int) -> StoredFile:
    """Make a file of an upload. A `quota` in bytes of 0 means no limit. Errors: `quota_exceeded`."""
    if quota:
        builds.check_quota(await tx.builds.sum_stored_bytes() + upload.size_bytes, quota)
    file = StoredFile(
        id=upload.file_id,
        name=upload.name,
        content_type=upload.content_type,
        size_bytes=upload.size_bytes,
        sha256=upload.sha256,
        user_id=caller.user_id,
        tenant_id=caller.tenant_id,
        created_at=tx.now,
        expires_at=None if upload.lifetime is None else tx.now + upload.lifetime,
    )
    await tx.files.add(file, format_file_key(caller.tenant_id, file.id))
    return file


async def get_file(tx: Tx, file_id: str) -> StoredFile:
    """Return a file. Errors: `not_found`, also for one that has expired."""
    file = await tx.files.find(file_id)
    if file is None:
        raise NotFound("file", file_id)
    return file


async def list_files(tx: Tx, page: Page) -> Listing[StoredFile]:
    """List the tenant's files, newest first."""
    return await tx.files.list_page(page)


async def delete_file(tx: Tx, file_id: str) -> None:
    """Delete a file. Runs that were given it keep its bytes. Errors: `not_found`."""
    file = await tx.files.find(file_id, lock=True)
    if file is None:
        raise NotFound("file", file_id)
    await tx.files.delete(file.id, format_file_key(file.tenant_id, file.id))


def require_file_access(caller: Caller, files: Mapping[str, str] | None) -> None:
    """Check that a caller may read the files that a start names: the run can show them. Errors: `missing_scope`."""
    if files:
        require_scope(caller, "read:files")


async def give_files(tx: Tx, execution: Execution, limits: WorkspaceLimits, repeated: Execution | None = None) -> None:
    """Put the uploaded files that a new execution names into its workspace.

    Of `repeated`, the execution that it runs again, it gets the bytes of files that were deleted since.
    Errors: `invalid_field` naming the path that is malformed, or the file that is not there.
    """
    if not execution.files:
        return
    uploads = await tx.files.find_many(sorted(set(execution.files.values())))
    kept_files = {} if repeated is None else await _map_files_by_key(tx, repeated.id)
    chosen: dict[str, tuple[WorkspaceFile, str]] = {}
    for path, file_id in execution.files.items():
        try:
            name = workspaces.check_path(path)
        except ToolFailed as error:
            raise InvalidField("files", str(error)) from None
        key = format_file_key(execution.tenant_id, file_id)
        file = uploads.get(file_id) or kept_files.get(key)
        if file is None:
            changed = "" if repeated is None else " The run that is repeated has changed its copy."
            reason = f"there is no file {file_id[:200]!r}, or it has expired.{changed}"
            raise InvalidField("files", f"{path[:200]!r}: {reason}")
        if name in chosen:
            raise InvalidField("files", f"{path[:200]!r} is named twice.")
        entry = WorkspaceFile(path=name, size_bytes=file.size_bytes, sha256=file.sha256, updated_at=tx.now)
        chosen[name] = entry, key
    try:
        sizes = {name: entry.size_bytes for name, (entry, _) in chosen.items()}
        workspaces.check_workspace_limits([], sizes, limits)
    except ToolFailed as error:
        raise InvalidField("files", str(error)) from None
    for entry, key in chosen.values():
        await tx.workspaces.save_file(execution.id, entry, key)


async def _map_files_by_key(tx: Tx, execution_id: str) -> dict[str, WorkspaceFile]:
    """Return the files of a workspace by the key of their bytes in object storage, and keep them until the commit."""
    keys = await tx.workspaces.list_keys(execution_id, lock=True)
    return {keys[file.path]: file for file in await tx.workspaces.list_files(execution_id) if file.path in keys}
