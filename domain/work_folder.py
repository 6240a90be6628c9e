"""Describe the work folder of a sandbox, which the worker fills before a run and collects after it."""

from collections.abc import Awaitable, Callable, Iterator
from typing import Final, Protocol

import msgspec

# Where the folder is in the sandbox.
WORK_FOLDER: Final = "/work"
# As in archives. Each folder is opened from the top again, so deep ones would take long.
MAX_FOLDER_LEVELS: Final = 32


class WorkFile(msgspec.Struct, frozen=True):
    """Name a regular file in the work folder of a sandbox: its path below the folder, and its size in bytes."""

    path: str
    size_bytes: int


class UnkeptFile(msgspec.Struct, frozen=True):
    """Name something in the work folder that is not kept, and why, as the end of a sentence."""

    path: str
    reason: str


class WorkFolder(Protocol):
    """Read and write `/work` of one sandbox from outside. What it finds was made by untrusted code."""

    written_bytes: int

    def is_empty(self) -> bool:
        """Return whether nothing lies in the folder. Errors: `OSError`."""
        ...

    def write_file(self, path: str, data: bytes) -> None:
        """Append to a file, which is created with its folders. Errors: `OSError`, also where a link lies in the way."""
        ...

    def list_files(self) -> tuple[list[WorkFile], list[UnkeptFile]]:
        """Return the regular files, and what is left out: links, devices, names that are no text, what is unreadable.

        No error of a single file or folder ends it.
        """
        ...

    def read_file(self, file: WorkFile) -> Iterator[bytes]:
        """Yield the bytes of a listed file in pieces. Errors: `OSError`, also if it has another size by now."""
        ...


# Called with the work folder: before the payload is sent, and after the program has ended.
WorkCallback = Callable[[WorkFolder], Awaitable[None]]
