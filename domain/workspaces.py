"""Manage the workspace of a run: files by path, which outlive it. Their bytes are in object storage.

A workspace has no folder on any host: a path here leads only to the row of that path.
"""

import re
from collections.abc import Mapping
from datetime import datetime
from typing import Any, Final, Protocol

import msgspec

from domain.executions import get_execution
from domain.llms import ToolFailed
from domain.ports import Tx
from domain.shared.errors import NotFound
from domain.shared.pages import Listing, Page, build_listing
from domain.shared.placeholders import create_filler
from domain.work_folder import MAX_FOLDER_LEVELS

MAX_WORKSPACE_FILES: Final = 500
MAX_FILE_BYTES: Final = 8 * 1024 * 1024
MAX_WORKSPACE_BYTES: Final = 32 * 1024 * 1024
_PATH_PART: Final = re.compile(r"[^\x00-\x1f\x7f/\\]{1,255}")

_PATH_RULE: Final = (
    "it must be relative, without `..`, backslashes or line breaks, and its parts have at most 255 characters."
)


class WorkspaceLimits(msgspec.Struct, frozen=True, kw_only=True):
    """Limit what a workspace may hold: files, bytes per file, and bytes in all."""

    files: int = MAX_WORKSPACE_FILES
    file_bytes: int = MAX_FILE_BYTES
    total_bytes: int = MAX_WORKSPACE_BYTES


# Of what tools of model agents write.
TOOL_LIMITS: Final = WorkspaceLimits()
# Of what a run of uploaded code is given, and of what a crew or a workflow is.
RUN_LIMITS: Final = WorkspaceLimits(file_bytes=100 << 20, total_bytes=200 << 20)


class WorkspaceFile(msgspec.Struct, frozen=True, kw_only=True):
    """Show a file of a workspace. `path` is relative, with `/` between its parts; `sha256` is in hex."""

    path: str
    size_bytes: int
    sha256: str
    updated_at: datetime


class Workspaces(Protocol):
    """Store the files of the bound tenant's executions."""

    async def list_files(self, execution_id: str) -> list[WorkspaceFile]: ...
    async def find(self, execution_id: str, path: str) -> WorkspaceFile | None: ...
    async def find_blob_key(self, execution_id: str, path: str) -> str | None:
        """Return the key of a file's bytes in object storage."""
        ...

    async def list_keys(self, execution_id: str, *, lock: bool = False) -> dict[str, str]:
        """Return the keys of the files' bytes in object storage, by path. `lock` keeps them until the commit."""
        ...

    async def save_file(self, execution_id: str, file: WorkspaceFile, key: str) -> None: ...
    async def copy_files(self, execution_id: str, into: str) -> None:
        """Copy the files of an execution to another one. Their bytes stay where they are."""
        ...


def check_path(path: object) -> str:
    """Return a path in its stored form: relative, without empty parts. Errors: `ToolFailed`."""
    if not isinstance(path, str):
        raise ToolFailed("path must be a string.")
    parts = [part for part in path.split("/") if part not in ("", ".")]
    if not parts or path.startswith("/") or ".." in parts or any(_PATH_PART.fullmatch(part) is None for part in parts):
        raise ToolFailed(f"{path[:200]!r} is not a path in the workspace: {_PATH_RULE}")
    if len("/".join(parts)) > 500:
        raise ToolFailed("path must be at most 500 characters.")
    if len(parts) - 1 > MAX_FOLDER_LEVELS:
        raise ToolFailed(f"{path[:200]!r} lies {len(parts) - 1} folders deep; at most {MAX_FOLDER_LEVELS} are allowed.")
    if any(len(part.encode(errors="surrogatepass")) > 255 for part in parts):
        raise ToolFailed(f"{path[:200]!r} is not a path in the workspace: its parts have at most 255 bytes.")
    return "/".join(parts)


def fill_path(path: str, values: Mapping[str, Any]) -> str:
    """Return a path with its placeholders filled, in its stored form. Errors: `ToolFailed` for an invalid result."""
    filled = create_filler(values, "inputs")(path)
    try:
        return check_path(filled)
    except ToolFailed as error:
        raise ToolFailed(f"{path[:200]!r} becomes {filled[:200]!r}: {error}") from None


def format_blob_key(tenant_id: str, execution_id: str, sha256: str) -> str:
    """Return the key under which bytes of a workspace are stored in object storage."""
    return f"workspaces/{tenant_id}/{execution_id}/{sha256}"


def check_workspace_limits(
    files: list[WorkspaceFile], changed: dict[str, int], limits: WorkspaceLimits = TOOL_LIMITS
) -> None:
    """Check that files of these sizes may be written. Errors: `ToolFailed`."""
    for path, size in changed.items():
        if size > limits.file_bytes:
            raise ToolFailed(f"{path!r} would have {size} bytes; at most {limits.file_bytes} are allowed.")
    sizes = {file.path: file.size_bytes for file in files} | changed
    if len(sizes) > limits.files:
        raise ToolFailed(f"the workspace would have {len(sizes)} files; at most {limits.files} are allowed.")
    for path in changed:
        parts = path.split("/")
        parents = ("/".join(parts[:count]) for count in range(1, len(parts)))
        above = next((parent for parent in parents if parent in sizes), None)
        below = next((other for other in sizes if other.startswith(f"{path}/")), None)
        if above is not None or below is not None:
            # They could not be unpacked into a folder.
            raise ToolFailed(f"{(above or path)!r} cannot be both a file and a folder.")
    if sum(sizes.values()) > limits.total_bytes:
        raise ToolFailed(
            f"the workspace would have {sum(sizes.values())} bytes; at most {limits.total_bytes} are allowed."
        )


async def list_files(tx: Tx, execution_id: str, page: Page) -> Listing[WorkspaceFile]:
    """List the files of a run by path; all executions of one run share a workspace. Errors: `not_found`."""
    files = await tx.workspaces.list_files(await _get_workspace_owner(tx, execution_id))
    return build_listing(files[page.offset : page.offset + page.limit + 1], len(files), page)


async def get_file(tx: Tx, execution_id: str, path: str) -> tuple[WorkspaceFile, str]:
    """Return a file and the key of its bytes in object storage. Errors: `not_found`."""
    owner = await _get_workspace_owner(tx, execution_id)
    file, key = await tx.workspaces.find(owner, path), await tx.workspaces.find_blob_key(owner, path)
    if file is None or key is None:
        raise NotFound("file", path)
    return file, key


async def _get_workspace_owner(tx: Tx, execution_id: str) -> str:
    execution = await get_execution(tx, execution_id)
    return execution.root_id or execution.id
