"""Read a work folder from outside: any entry that an agent leaves there, and nothing beside it."""

import hashlib
import os
import socket
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import msgspec
import pytest

from domain.executions import Execution
from domain.work_folder import MAX_FOLDER_LEVELS, UnkeptFile, WorkFile
from domain.workspaces import WorkspaceFile
from infra.sandbox.linux import use_filesystem_user
from infra.sandbox.work_folder import TmpfsWorkFolder
from workers.run import WorkFiles, WorkLimits
from workers.run.work_room import WorkRoom, describe_unkept

SECRET = b"not of this folder"


@pytest.fixture
def outside(tmp_path: Path) -> Path:
    folder = tmp_path / "outside"
    folder.mkdir()
    (folder / "secret.txt").write_bytes(SECRET)
    return folder


@pytest.fixture
def work(tmp_path: Path) -> Path:
    folder = tmp_path / "work"
    folder.mkdir()
    return folder


@pytest.fixture
def folder(work: Path) -> Iterator[TmpfsWorkFolder]:
    folder = TmpfsWorkFolder(os.open(work, os.O_RDONLY | os.O_DIRECTORY))
    yield folder
    folder.close()


def collect_reasons(unkept: list[UnkeptFile]) -> dict[str, str]:
    return {file.path: file.reason for file in unkept}


def read_bytes(folder: TmpfsWorkFolder, file: WorkFile) -> bytes:
    return b"".join(folder.read_file(file))


def test_only_regular_files_are_listed(
    folder: TmpfsWorkFolder, work: Path, outside: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(work)
    assert folder.is_empty()
    (work / "a.txt").write_text("a")
    (work / "link").symlink_to(outside / "secret.txt")
    (work / "folder-link").symlink_to(outside)
    os.mkfifo(work / "pipe")
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind("socket")
    (work / "in").mkdir()
    os.link(work / "a.txt", work / "in" / "hard")
    (work / ("n" * 255)).write_text("long")
    with open(os.fsencode(work) + b"/\xff\xfe", "wb") as file:
        file.write(b"x")
    if os.geteuid() == 0:
        os.mknod(work / "device", 0o20666, os.makedev(1, 5))
    files, unkept = folder.list_files()
    assert not folder.is_empty()
    assert {file.path for file in files} == {"a.txt", "in/hard", "n" * 255}
    reasons = collect_reasons(unkept)
    devices = ["device"] if os.geteuid() == 0 else []
    for name in ("link", "folder-link", "pipe", "socket", *devices):
        assert reasons.pop(name) == "no regular file"
    assert reasons == {"\\xff\\xfe": "the name is not UTF-8"}


def test_deep_folders_are_named_and_not_walked(
    folder: TmpfsWorkFolder, work: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(work)
    for level in range(100):
        Path("f").write_text(str(level))
        os.mkdir("d" * 200)
        os.chdir("d" * 200)
    files, unkept = folder.list_files()
    assert len(files) == MAX_FOLDER_LEVELS + 1
    assert [file.reason for file in unkept] == [f"folders may lie {MAX_FOLDER_LEVELS} deep"]


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root to read as another user")
def test_what_a_worker_may_not_read_is_named(folder: TmpfsWorkFolder, work: Path) -> None:
    """An ordinary user's worker owns what its agents leave, and may not read what they closed."""
    for parent in (work, *work.parents):
        if str(parent).startswith("/tmp/"):
            parent.chmod(0o755)
    (work / "open.txt").write_text("x")
    (work / "closed.txt").write_text("x")
    (work / "closed.txt").chmod(0)
    (work / "closed").mkdir()
    (work / "closed" / "a").write_text("x")
    (work / "closed").chmod(0)
    with use_filesystem_user(65534, 65534):
        files, unkept = folder.list_files()
        assert {file.path for file in files} == {"open.txt", "closed.txt"}
        assert collect_reasons(unkept) == {"closed/": "it cannot be read: Permission denied"}
        with pytest.raises(PermissionError):
            read_bytes(folder, WorkFile("closed.txt", 1))


def replace_by_link(work: Path, outside: Path) -> None:
    (work / "in" / "secret.txt").unlink()
    (work / "in" / "secret.txt").symlink_to(outside / "secret.txt")


def replace_folder_by_link(work: Path, outside: Path) -> None:
    (work / "in").rename(work / "moved")
    (work / "in").symlink_to(outside)


def replace_by_pipe(work: Path, outside: Path) -> None:
    (work / "in" / "secret.txt").unlink()
    os.mkfifo(work / "in" / "secret.txt")


def remove_file(work: Path, outside: Path) -> None:
    (work / "in" / "secret.txt").unlink()


def grow_file(work: Path, outside: Path) -> None:
    (work / "in" / "secret.txt").write_bytes(b"x" * 5_000_000)


def shrink_file(work: Path, outside: Path) -> None:
    (work / "in" / "secret.txt").write_bytes(b"")


CHANGES = [replace_by_link, replace_folder_by_link, replace_by_pipe, remove_file, grow_file, shrink_file]


@pytest.mark.parametrize("change", CHANGES)
def test_what_changes_after_it_was_listed_is_not_read(
    folder: TmpfsWorkFolder, work: Path, outside: Path, change: Callable[[Path, Path], None]
) -> None:
    (work / "in").mkdir()
    (work / "in" / "secret.txt").write_bytes(b"x" * len(SECRET))
    ((listed,), _) = folder.list_files()
    change(work, outside)
    seen = b""
    with pytest.raises(OSError):
        for part in folder.read_file(listed):
            seen += part
    assert SECRET not in seen
    assert len(seen) <= listed.size_bytes


@pytest.mark.parametrize("path", ["link", "link/new.txt", "in/link", "pipe"])
def test_files_are_not_written_through_links(folder: TmpfsWorkFolder, work: Path, outside: Path, path: str) -> None:
    (work / "in").mkdir()
    (work / "in" / "link").symlink_to(outside / "secret.txt")
    (work / "link").symlink_to(outside)
    os.mkfifo(work / "pipe")
    with pytest.raises(OSError):
        folder.write_file(path, b"overwritten")
    assert [entry.name for entry in outside.iterdir()] == ["secret.txt"]
    assert (outside / "secret.txt").read_bytes() == SECRET


class StoredObjects:
    """Keep objects in memory, and do something in the middle of writing one."""

    def __init__(self, on_write: Callable[[], None] = lambda: None) -> None:
        self.objects: dict[str, bytes] = {}
        self.writes = 0
        self._on_write = on_write

    async def write_object(self, key: str, chunks: AsyncIterator[bytes]) -> int:
        data = b""
        self.writes += 1
        self._on_write()
        async for chunk in chunks:
            data += chunk
        self.objects[key] = data
        return len(data)


class EmptyObjects(StoredObjects):
    """Hold nothing but empty objects."""

    async def read_object(self, key: str, bounds: tuple[int, int] | None = None) -> AsyncIterator[bytes]:
        async def stream() -> AsyncIterator[bytes]:
            for chunk in list[bytes]():
                yield chunk

        return stream()


class OneWorkspaceStore:
    """Answer every transaction with the same workspace."""

    def __init__(self, *paths: str) -> None:
        self._paths = paths
        self.workspaces = self

    async def run(self, tenant_id: str, work: Callable[[Any], Awaitable[Any]], retry: bool) -> Any:
        return await work(self)

    async def list_files(self, execution_id: str) -> list[WorkspaceFile]:
        now = datetime(2026, 1, 1, tzinfo=UTC)
        return [WorkspaceFile(path=path, size_bytes=0, sha256="", updated_at=now) for path in self._paths]

    async def list_keys(self, execution_id: str) -> dict[str, str]:
        return {path: f"keys/{path}" for path in self._paths}


def open_files(blobs: StoredObjects, store: OneWorkspaceStore | None = None, **limits: Any) -> WorkFiles:
    now = datetime(2026, 1, 1, tzinfo=UTC)
    values = {field.name: None for field in msgspec.structs.fields(Execution)}
    execution = Execution(
        **{**values, "id": "exec_1", "status": "running", "tenant_id": "acme", "files": {}, "updated_at": now}
    )
    return WorkFiles(store, blobs, execution, WorkLimits(**limits))  # type: ignore[arg-type]


async def test_file_that_changes_while_it_is_collected_is_named(folder: TmpfsWorkFolder, work: Path) -> None:
    (work / "a.txt").write_bytes(b"first")
    (work / "b.txt").write_bytes(b"other")
    blobs = StoredObjects(lambda: (work / "a.txt").write_bytes(b"later"))  # type: ignore[arg-type, return-value]
    files = open_files(blobs)
    await files.collect_folder(folder)
    assert files.notice == "Not kept of the work folder: 'a.txt' (it cannot be read: it has changed)."
    assert list(blobs.objects.values()) == [b"other"]


async def test_empty_files_are_given_at_every_attempt(tmp_path: Path) -> None:
    """Each attempt, also the one after a lost worker, begins with a folder of its own."""
    for attempt in ("first", "second"):
        (work := tmp_path / attempt).mkdir()
        folder = TmpfsWorkFolder(os.open(work, os.O_RDONLY | os.O_DIRECTORY))
        files = open_files(EmptyObjects(), OneWorkspaceStore("empty", "pkg/__init__.py"))
        await files.load()
        await files.fill_folder(folder)
        assert {file.path: file.size_bytes for file in folder.list_files()[0]} == {"empty": 0, "pkg/__init__.py": 0}
        folder.close()


async def test_hard_links_are_stored_once(folder: TmpfsWorkFolder, work: Path) -> None:
    (work / "a").write_bytes(b"x" * 1000)
    for number in range(20):
        os.link(work / "a", work / f"a{number}")
    blobs = StoredObjects()
    files = open_files(blobs)
    await files.collect_folder(folder)
    assert (blobs.writes, files.notice) == (1, None)
    (key,) = blobs.objects
    assert key.endswith(hashlib.sha256(b"x" * 1000).hexdigest())


async def test_sparse_files_count_with_their_size(folder: TmpfsWorkFolder, work: Path) -> None:
    """They take nothing of the folder, whose size does not bound them."""
    for number in range(8):
        with open(work / f"sparse-{number}", "wb") as file:
            file.truncate(1_000_000 + number)
    with open(work / "vast", "wb") as file:
        file.truncate(1 << 40)
    blobs = StoredObjects()
    files = open_files(blobs, file_bytes=2_000_000, total_bytes=4_500_000)
    await files.collect_folder(folder)
    assert sorted(map(len, blobs.objects.values())) == [1_000_000 + number for number in range(4)]
    assert files.notice is not None
    assert "'sparse-4', 'sparse-5', 'sparse-6', 'sparse-7' (all files together may have 4500000 bytes)" in files.notice
    assert "'vast' (a file may have 2000000 bytes)" in files.notice


def test_room_of_a_workspace() -> None:
    room = WorkRoom({"given.txt": 10, "in/a": 10}, WorkLimits(files=4, file_bytes=50, total_bytes=100))
    assert room.find_problem("given.txt", 50) is None, "a changed file replaces the old one"
    assert "a file may have 50 bytes" in str(room.find_problem("given.txt", 51))
    for path in ("in", "given.txt/x", "in/a/b"):
        assert "both a file's and a folder's" in str(room.find_problem(path, 1))
    room.add("b", 50)
    assert "100 bytes" in str(room.find_problem("c", 31))
    room.add("c", 30)
    assert "at most 4 files" in str(room.find_problem("d", 0))
    assert room.find_problem("c", 30) is None


def test_notice_names_the_first_of_each_reason() -> None:
    assert describe_unkept([]) is None
    unkept = [UnkeptFile(f"f{number}", "too many") for number in range(10_000)] + [UnkeptFile("", "closed")]
    notice = describe_unkept(unkept)
    assert notice is not None
    assert notice.endswith("'f9' and 9990 more (too many); '/work' (closed).")
    assert len(notice) < 300
