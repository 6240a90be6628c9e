"""Read and write the work folder of a sandbox from outside, past links and devices that its agent has put there.

The folder is a tmpfs of the sandbox. A descriptor of it keeps its files after the sandbox has ended, when no
process changes them any more. Paths are walked one part at a time and never through a link.
"""

import contextlib
import os
import stat
from collections.abc import Iterator
from typing import Final

from domain.work_folder import MAX_FOLDER_LEVELS, WORK_FOLDER, UnkeptFile, WorkFile
from infra.sandbox.linux import use_filesystem_user

# Where a listing stops. A run may make no more files than that.
MAX_LISTED_ENTRIES: Final = 20_000
_READ_CHUNK_BYTES: Final = 256 * 1024
_FOLDER_FLAGS: Final = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
# Without O_NONBLOCK, opening a named pipe would wait for its other end.
_FILE_FLAGS: Final = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC


class TmpfsWorkFolder:
    """Provide `domain.work_folder.WorkFolder` on a descriptor of the folder, which `close` closes."""

    def __init__(self, fd: int) -> None:
        self._fd = fd
        # The agent's own user, who owns what is written for it.
        self._uid, self._gid = (status := os.fstat(fd)).st_uid, status.st_gid
        self.written_bytes = 0

    @classmethod
    def open_in_sandbox(cls, pid: int) -> "TmpfsWorkFolder":
        """Open the folder of the sandbox whose first process has this number. Errors: `OSError`."""
        return cls(os.open(f"/proc/{pid}/root{WORK_FOLDER}", _FOLDER_FLAGS))

    def write_file(self, path: str, data: bytes) -> None:
        """Append to a file, which is created with its folders. Errors: `OSError`, also where a link lies in the way."""
        *folders, name = path.split("/")
        with use_filesystem_user(self._uid, self._gid), contextlib.ExitStack() as stack:
            folder = self._fd
            for part in folders:
                folder = self._open_folder(folder, part)
                stack.callback(os.close, folder)
            flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
            fd = os.open(name, flags, 0o644, dir_fd=folder)
            stack.callback(os.close, fd)
            if not stat.S_ISREG(os.fstat(fd).st_mode):
                raise OSError(f"{path} is no regular file")
            view = memoryview(data)
            while view:
                count = os.write(fd, view)
                self.written_bytes += count
                view = view[count:]

    def is_empty(self) -> bool:
        """Return whether nothing lies in the folder. Errors: `OSError`."""
        with os.scandir(self._fd) as entries:
            return next(entries, None) is None

    def list_files(self) -> tuple[list[WorkFile], list[UnkeptFile]]:
        """Return the regular files, and what is left out: links, devices, names that are no text, what is unreadable.

        No error of a single file or folder ends it.
        """
        files: list[WorkFile] = []
        left_out: list[UnkeptFile] = []
        pending = [""]
        count = 0
        while pending:
            prefix = pending.pop()
            if prefix.count("/") > MAX_FOLDER_LEVELS:
                left_out.append(UnkeptFile(prefix, f"folders may lie {MAX_FOLDER_LEVELS} deep"))
                continue
            try:
                with self._walk(prefix) as folder, os.scandir(folder) as entries:
                    for entry in entries:
                        count += 1
                        if count > MAX_LISTED_ENTRIES:
                            left_out.append(UnkeptFile(prefix, f"only {MAX_LISTED_ENTRIES} entries are looked at"))
                            return files, left_out
                        _add_entry(entry, prefix, files=files, pending=pending, left_out=left_out)
            except OSError as error:
                left_out.append(UnkeptFile(prefix, _explain_unreadable(error)))
        return files, left_out

    def read_file(self, file: WorkFile) -> Iterator[bytes]:
        """Yield the bytes of a listed file in pieces. Errors: `OSError`, also if it has another size by now."""
        prefix, slash, name = file.path.rpartition("/")
        with self._walk(prefix + slash) as folder:
            fd = os.open(name, _FILE_FLAGS, dir_fd=folder)
        try:
            if not stat.S_ISREG(os.fstat(fd).st_mode):
                raise OSError("it is no regular file any more")
            # One byte more than it had: it must not have grown.
            rest = file.size_bytes + 1
            while part := os.read(fd, min(rest, _READ_CHUNK_BYTES)):
                rest -= len(part)
                if rest > 0:
                    yield part
            if rest != 1:
                raise OSError("its size has changed")
        finally:
            os.close(fd)

    def close(self) -> None:
        """Close the descriptor; the files of an ended sandbox are gone then."""
        os.close(self._fd)

    def _open_folder(self, parent: int, name: str) -> int:
        with contextlib.suppress(FileExistsError):
            os.mkdir(name, 0o755, dir_fd=parent)
        return os.open(name, _FOLDER_FLAGS, dir_fd=parent)

    @contextlib.contextmanager
    def _walk(self, prefix: str) -> Iterator[int]:
        """Open the folder of a prefix, which is empty or ends with a slash."""
        fd = os.open(".", _FOLDER_FLAGS, dir_fd=self._fd)
        try:
            for part in prefix.split("/")[:-1]:
                inner = os.open(part, _FOLDER_FLAGS, dir_fd=fd)
                os.close(fd)
                fd = inner
            yield fd
        finally:
            os.close(fd)


def _add_entry(
    entry: "os.DirEntry[str]",
    prefix: str,
    *,
    files: list[WorkFile],
    pending: list[str],
    left_out: list[UnkeptFile],
) -> None:
    """Add an entry of a folder to the files, to the folders that are looked at later, or to what is left out."""
    path = f"{prefix}{entry.name}"
    name = os.fsencode(path).decode(errors="backslashreplace")
    try:
        status = entry.stat(follow_symlinks=False)
    except OSError as error:
        left_out.append(UnkeptFile(name, _explain_unreadable(error)))
        return
    if not _is_text(entry.name):
        left_out.append(UnkeptFile(name, "the name is not UTF-8"))
    elif stat.S_ISDIR(status.st_mode):
        pending.append(f"{path}/")
    elif stat.S_ISREG(status.st_mode):
        files.append(WorkFile(path, status.st_size))
    else:
        left_out.append(UnkeptFile(name, "no regular file"))


def _explain_unreadable(error: OSError) -> str:
    return f"it cannot be read: {error.strerror or error}"


def _is_text(name: str) -> bool:
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True
