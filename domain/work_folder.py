"""Describe the work folder of a sandbox, which the worker fills before a run and collects after it."""

from collections.abc import Awaitable, Callable, Iterator
from typing import Final, Protocol

import msgspec

# Where the folder is in the sandbox.
WORK_FOLDER: Final = "/work"


class WorkFile(msgspec.Struct, frozen=True):
    """Name a regular file in the work folder of a sandbox: its path below the folder, and its size in bytes."""

    path: str
    size_bytes: int


class WorkFolder(Protocol):
    """Read and write `/work` of one sandbox from outside. What it finds was made by untrusted code."""

    written_bytes: int

    def write_file(self, path: str, data: bytes) -> None:
        """Append to a file, which is created with its folders. Errors: `OSError`, also where a link lies in the way."""
        ...

    def list_files(self) -> tuple[list[WorkFile], list[str]]:
        """Return the regular files, and the paths that are left out: links, devices, and names that are no text."""
        ...

    def read_file(self, path: str) -> Iterator[bytes]:
        """Yield the bytes of a regular file in pieces. Errors: `OSError`."""
        ...


# Called with the work folder: before the payload is sent, and after the program has ended.
WorkCallback = Callable[[WorkFolder], Awaitable[None]]
