"""Decide which of the files that a run leaves fit into its workspace, one by one, and say why others do not."""

from collections.abc import Iterable
from typing import Final, Self

import msgspec

from domain.work_folder import WORK_FOLDER, UnkeptFile
from infra.settings import Settings

# Names that a notice lists for each reason; the others are counted.
MAX_NAMED_FILES: Final = 10
_MAX_NAME_CHARACTERS: Final = 200


class WorkLimits(msgspec.Struct, frozen=True, kw_only=True):
    """Limit what a run may leave: files, bytes per file, and bytes in all. A workspace of a plan holds no more either.

    `quota` is what a tenant may have stored, in bytes; 0 means no limit.
    """

    files: int = 500
    file_bytes: int = 100 << 20
    total_bytes: int = 256 << 20
    quota: int = 0

    @classmethod
    def from_settings(cls, settings: Settings) -> Self:
        """Return the limits of an installation."""
        return cls(
            files=settings.work_max_files,
            file_bytes=settings.work_file_bytes,
            total_bytes=settings.work_total_bytes,
            quota=settings.tenant_max_stored_bytes,
        )


class WorkRoom:
    """Hold the sizes of the files in a workspace by path, and admit further ones within the limits."""

    def __init__(self, sizes: dict[str, int], limits: WorkLimits) -> None:
        self._sizes, self._limits = dict(sizes), limits
        self._total_bytes = sum(sizes.values())
        self._folders = {folder for path in sizes for folder in _list_parents(path)}

    def find_problem(self, path: str, size_bytes: int) -> str | None:
        """Return why a file does not fit, as the end of a sentence; None if it does."""
        limits, is_new = self._limits, path not in self._sizes
        if size_bytes > limits.file_bytes:
            return f"a file may have {limits.file_bytes} bytes"
        if is_new and len(self._sizes) >= limits.files:
            return f"at most {limits.files} files are kept"
        if self._total_bytes - self._sizes.get(path, 0) + size_bytes > limits.total_bytes:
            return f"all files together may have {limits.total_bytes} bytes"
        if is_new and (path in self._folders or any(parent in self._sizes for parent in _list_parents(path))):
            return "a name cannot be both a file's and a folder's"
        return None

    def add(self, path: str, size_bytes: int) -> None:
        """Count a file that is kept."""
        self._total_bytes += size_bytes - self._sizes.get(path, 0)
        self._sizes[path] = size_bytes
        self._folders.update(_list_parents(path))


def describe_unkept(unkept: Iterable[UnkeptFile]) -> str | None:
    """Return a sentence that names what is not kept, with the reasons; None if there is nothing."""
    paths_by_reason: dict[str, list[str]] = {}
    for file in unkept:
        paths_by_reason.setdefault(file.reason, []).append(file.path)
    parts = []
    for reason, paths in paths_by_reason.items():
        named = ", ".join(repr((path or WORK_FOLDER)[:_MAX_NAME_CHARACTERS]) for path in paths[:MAX_NAMED_FILES])
        more = f" and {len(paths) - MAX_NAMED_FILES} more" if len(paths) > MAX_NAMED_FILES else ""
        parts.append(f"{named}{more} ({reason})")
    return f"Not kept of the work folder: {'; '.join(parts)}." if parts else None


def _list_parents(path: str) -> list[str]:
    parts = path.split("/")
    return ["/".join(parts[:count]) for count in range(1, len(parts))]
