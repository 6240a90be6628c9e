"""The workspace of a run: files by name, which outlive it. Their bytes lie in object storage, by content.

There is no folder behind it on any host: a name here leads to nothing but the row of that name.
"""

import re
from collections.abc import Mapping
from datetime import datetime
from typing import Any, Final, Protocol

import msgspec

from domain.executions.queries import get_execution
from domain.llms.messages import ToolFailed
from domain.ports import Tx
from domain.shared.errors import NotFound
from domain.shared.pages import Listing, Page, build_listing
from domain.shared.placeholders import create_filler

MAX_WORKSPACE_FILES: Final = 500
MAX_FILE_BYTES: Final = 8 * 1024 * 1024
MAX_WORKSPACE_BYTES: Final = 32 * 1024 * 1024
_PART: Final = re.compile(r"[^\x00-\x1f\x7f/\\]{1,255}")

_PATH_RULE: Final = (
    "it must be relative, its parts without `..`, backslashes, line breaks and more than 255 characters."
)


class WorkspaceFile(msgspec.Struct, frozen=True, kw_only=True):
    """A file of a workspace. `path` is relative, with `/` between its parts; `sha256` in hex."""

    path: str
    size_bytes: int
    sha256: str
    updated_at: datetime


class Workspaces(Protocol):
    """The files of the bound tenant's executions."""

    async def list_files(self, execution_id: str) -> list[WorkspaceFile]: ...
    async def find(self, execution_id: str, path: str) -> WorkspaceFile | None: ...
    async def find_blob_key(self, execution_id: str, path: str) -> str | None:
        """Where the bytes of a file lie in object storage."""
        ...

    async def save_file(self, execution_id: str, file: WorkspaceFile, key: str) -> None: ...
    async def copy_files(self, execution_id: str, into: str) -> None:
        """Give an execution the files of another, whose bytes stay where they are."""
        ...


def check_path(path: object) -> str:
    """A path as it is kept: relative, without empty parts. Errors: `ToolFailed`."""
    if not isinstance(path, str):
        raise ToolFailed("path must be a text.")
    parts = [part for part in path.split("/") if part not in ("", ".")]
    if not parts or path.startswith("/") or ".." in parts or any(_PART.fullmatch(part) is None for part in parts):
        raise ToolFailed(f"{path[:200]!r} is no path in the workspace: {_PATH_RULE}")
    if len("/".join(parts)) > 500:
        raise ToolFailed("path is longer than 500 characters.")
    return "/".join(parts)


def fill_path(path: str, values: Mapping[str, Any]) -> str:
    """Return a path whose places are filled, as it is kept. Errors: `ToolFailed` when that leads out, or nowhere."""
    filled = create_filler(values, "inputs")(path)
    try:
        return check_path(filled)
    except ToolFailed as error:
        raise ToolFailed(f"{path[:200]!r} comes to {filled[:200]!r}; {error}") from None


def format_blob_key(tenant_id: str, execution_id: str, sha256: str) -> str:
    """Where bytes that a workspace is given are put into object storage."""
    return f"workspaces/{tenant_id}/{execution_id}/{sha256}"


def check_workspace_limits(files: list[WorkspaceFile], changed: dict[str, int]) -> None:
    """Whether files of these sizes may be written. Errors: `ToolFailed`."""
    for path, size in changed.items():
        if size > MAX_FILE_BYTES:
            raise ToolFailed(f"{path!r} would be {size} bytes; a file may have {MAX_FILE_BYTES}.")
    sizes = {file.path: file.size_bytes for file in files} | changed
    if len(sizes) > MAX_WORKSPACE_FILES:
        raise ToolFailed(f"the workspace would hold {len(sizes)} files; {MAX_WORKSPACE_FILES} are allowed.")
    for path in changed:
        parts = path.split("/")
        above = next((one for n in range(1, len(parts)) if (one := "/".join(parts[:n])) in sizes), None)
        below = next((one for one in sizes if one.startswith(f"{path}/")), None)
        if above is not None or below is not None:
            # Nothing could lay them out in a folder again.
            raise ToolFailed(f"{(above or path)!r} cannot be a file and a folder at once.")
    if sum(sizes.values()) > MAX_WORKSPACE_BYTES:
        raise ToolFailed(f"the workspace would hold {sum(sizes.values())} bytes; {MAX_WORKSPACE_BYTES} are allowed.")


async def list_files(tx: Tx, execution_id: str, page: Page) -> Listing[WorkspaceFile]:
    """What a run has left behind, by name; all that belongs to one run shares one workspace. Errors: `not_found`."""
    found = await tx.workspaces.list_files(await _shared(tx, execution_id))
    return build_listing(found[page.offset : page.offset + page.limit + 1], len(found), page)


async def get_file(tx: Tx, execution_id: str, path: str) -> tuple[WorkspaceFile, str]:
    """One file, and where its bytes lie in object storage. Errors: `not_found`."""
    owner = await _shared(tx, execution_id)
    found, key = await tx.workspaces.find(owner, path), await tx.workspaces.find_blob_key(owner, path)
    if found is None or key is None:
        raise NotFound("file", path)
    return found, key


async def _shared(tx: Tx, execution_id: str) -> str:
    execution = await get_execution(tx, execution_id)
    return execution.root_id or execution.id
