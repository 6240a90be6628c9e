"""Back up the embedded database, object storage and secrets to a folder, and restore them from it."""

import asyncio
import contextlib
import hashlib
import os
import shutil
import sys
from collections.abc import AsyncIterator, Callable, Coroutine
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final, TypeVar

import msgspec

from domain.ports import BlobInfo
from domain.shared.errors import DomainError
from infra.embedded import EmbeddedServiceError, dump_database, load_database
from infra.postgres.objects import iterate_referenced_keys
from infra.r2 import S3Blobs
from infra.settings import Settings, SettingsError, read_settings
from infra.version import PADDOCK_VERSION
from scripts.installation import (
    RESTORING_FILE,
    InstallationSecrets,
    find_running_installation,
    load_secrets,
    lock_data,
    refuse_half_restored,
)
from scripts.system import open_services

T = TypeVar("T")

_MAX_TRANSFERS: Final = 8
_MAX_LISTED_KEYS: Final = 20
_BACKUP_FORMAT: Final = 1


class BackupError(Exception):
    """Report that a backup cannot be written or read. The message gives the reason."""


class BackupObject(msgspec.Struct, kw_only=True):
    """Describe an object in a backup: one line of `objects.jsonl`. Its file is named after the hash of its key."""

    key: str
    size: int
    sha256: str


class BackupManifest(msgspec.Struct, kw_only=True):
    """Describe a backup in `backup.json`, which is written last."""

    format: int
    version: str
    began_at: datetime
    objects: int
    bytes: int


async def create_backup(folder: Path, data: Path) -> int:
    """Write a backup of the installation on `data`, running or not, into a new folder. Returns an exit code."""
    fresh = folder.with_name(f"{folder.name}.unfinished")
    try:
        if folder.exists():
            raise BackupError(f"{folder} already exists; name a new folder for the backup.")
        if not (data / "secrets.json").exists():
            raise BackupError(f"{data} holds no installation.")
        shutil.rmtree(fresh, ignore_errors=True)
        (fresh / "objects").mkdir(parents=True, mode=0o700)
        os.chmod(fresh, 0o700)
        began = datetime.now(UTC)
        async with _open_installation(data) as (settings, owner_url), S3Blobs(settings) as blobs:
            # Copying before and after the dump catches objects that are deleted or added while the database is read.
            objects = await _copy_objects(blobs, fresh, {})
            await dump_database(owner_url, fresh / "database.dump")
            objects = await _copy_objects(blobs, fresh, objects)
        shutil.copyfile(data / "secrets.json", fresh / "secrets.json")
        os.chmod(fresh / "secrets.json", 0o600)
        with (fresh / "objects.jsonl").open("wb") as file:
            file.writelines(msgspec.json.encode(item) + b"\n" for item in objects.values())
        size = sum(item.size for item in objects.values())
        about = BackupManifest(
            format=_BACKUP_FORMAT, version=PADDOCK_VERSION, began_at=began, objects=len(objects), bytes=size
        )
        (fresh / "backup.json").write_bytes(msgspec.json.format(msgspec.json.encode(about)))
        fresh.rename(folder)
    except (BackupError, EmbeddedServiceError, SettingsError, DomainError, OSError) as error:
        shutil.rmtree(fresh, ignore_errors=True)
        print(f"paddock: {getattr(error, 'detail', error)}", file=sys.stderr)
        return 1
    print(f"backed up to {folder}: the database, {len(objects)} objects of {size} bytes, and the secrets")
    print("keep the backup private: it holds the secrets of the installation")
    return 0


async def restore_backup(folder: Path, data: Path) -> int:
    """Create an installation in the empty folder `data` from a backup, and list the objects that it lacks.

    Returns an exit code: 1 if nothing was restored, 2 if only objects that rows refer to are missing.
    """
    try:
        about, objects = _read_backup(folder)
        if data.exists() and any(data.iterdir()):
            raise BackupError(f"{data} is not empty; restore the backup to a new folder.")
        data.mkdir(parents=True, exist_ok=True, mode=0o700)
        (data / RESTORING_FILE).touch()
        shutil.copyfile(folder / "secrets.json", data / "secrets.json")
        os.chmod(data / "secrets.json", 0o600)
        stored = load_secrets(data)
        with lock_data(data):
            async with _start_services(data, stored) as (settings, owner_url), S3Blobs(settings) as blobs:
                await load_database(owner_url, folder / "database.dump")
                await blobs.ensure_bucket()
                broken = await _restore_objects(blobs, folder, objects)
                there = objects.keys() - broken
                missing = [key async for key in iterate_referenced_keys(owner_url) if key not in there]
        (data / RESTORING_FILE).unlink()
    except (BackupError, EmbeddedServiceError, SettingsError, DomainError, OSError, msgspec.MsgspecError) as error:
        print(f"paddock: {getattr(error, 'detail', error)}", file=sys.stderr)
        return 1
    began_at = f"{about.began_at:%Y-%m-%d %H:%M:%S} UTC"
    print(f"restored the state of {began_at} to {data}; start it with `paddock up --data {data}`")
    for problem, keys in (("damaged in the backup", sorted(broken)), ("needed by rows and not in the backup", missing)):
        if keys:
            print(f"paddock: {len(keys)} objects are {problem}:", file=sys.stderr)
            print("\n".join([f"  {key}" for key in keys[:_MAX_LISTED_KEYS]]), file=sys.stderr)
    return 2 if broken or missing else 0


def _read_backup(folder: Path) -> tuple[BackupManifest, dict[str, BackupObject]]:
    try:
        about = msgspec.json.decode((folder / "backup.json").read_bytes(), type=BackupManifest)
        lines = (folder / "objects.jsonl").read_bytes().splitlines()
    except (OSError, msgspec.MsgspecError) as error:
        raise BackupError(f"{folder} is no backup of Paddock, or an unfinished one ({error}).") from error
    if about.format != _BACKUP_FORMAT:
        raise BackupError(f"{folder} was made by Paddock {about.version}, which uses another format.")
    return about, {item.key: item for item in (msgspec.json.decode(line, type=BackupObject) for line in lines)}


@contextlib.asynccontextmanager
async def _open_installation(data: Path) -> AsyncIterator[tuple[Settings, str]]:
    """Use the running installation, else start its services. Yields the settings and the database owner's URL."""
    refuse_half_restored(data)
    stored = load_secrets(data)
    async with contextlib.AsyncExitStack() as stack:
        try:
            stack.enter_context(lock_data(data))
        except EmbeddedServiceError:
            reached = _find_running_services(data, stored)
        else:
            reached = await stack.enter_async_context(_start_services(data, stored))
        yield reached


def _find_running_services(data: Path, stored: InstallationSecrets) -> tuple[Settings, str]:
    running = find_running_installation(data)
    if running is None:
        raise BackupError(f"the installation on {data} is starting or stopping; try again.")
    if not running.embedded:
        raise BackupError(f"the installation on {data} uses a database or storage of your own: see docs/operations.md.")
    settings = read_settings({**os.environ, **running.environment, "PADDOCK_SECRET_KEY": stored.secret_key})
    return settings, settings.database_owner_url.reveal()


@contextlib.asynccontextmanager
async def _start_services(data: Path, stored: InstallationSecrets) -> AsyncIterator[tuple[Settings, str]]:
    async with open_services(data, stored) as ((postgres, _, seaweed), env):
        if postgres is None or seaweed is None:
            raise BackupError("a backup covers the embedded database and storage only: see docs/operations.md.")
        await asyncio.gather(postgres.start(), seaweed.start())
        settings = {"PADDOCK_SECRET_KEY": stored.secret_key, "PADDOCK_DATA_DIR": str(data)}
        yield read_settings({**os.environ, **env, **settings}), postgres.owner_url


async def _copy_objects(blobs: S3Blobs, folder: Path, copied: dict[str, BackupObject]) -> dict[str, BackupObject]:
    """Copy the objects that are not in `copied` yet. Returns all. An object that is deleted meanwhile is left out."""
    all_objects = dict(copied)

    async def copy_object(blob: BlobInfo) -> None:
        if blob.key in copied:
            return
        file = _get_object_path(folder, blob.key)
        file.parent.mkdir(exist_ok=True)
        digest, size = hashlib.sha256(), 0
        try:
            with file.open("wb") as out:
                async for chunk in await blobs.read_object(blob.key):
                    digest.update(chunk)
                    size += len(chunk)
                    await asyncio.to_thread(out.write, chunk)
        except DomainError as error:
            file.unlink(missing_ok=True)
            if error.code != "not_found":
                raise
            return
        all_objects[blob.key] = BackupObject(key=blob.key, size=size, sha256=digest.hexdigest())

    await _run_bounded(blobs.list_objects(""), copy_object)
    return all_objects


async def _restore_objects(blobs: S3Blobs, folder: Path, objects: dict[str, BackupObject]) -> set[str]:
    """Store the objects of a backup. Returns the keys of objects whose file is missing or damaged."""
    broken = set[str]()

    async def restore_object(item: BackupObject) -> None:
        file = _get_object_path(folder, item.key)
        if not file.exists() or await asyncio.to_thread(_hash_file, file) != item.sha256:
            broken.add(item.key)
            return
        await blobs.upload_file(item.key, file)

    async def iterate_objects() -> AsyncIterator[BackupObject]:
        for item in objects.values():
            yield item

    await _run_bounded(iterate_objects(), restore_object)
    return broken


async def _run_bounded(items: AsyncIterator[T], work: Callable[[T], Coroutine[Any, Any, None]]) -> None:
    """Work on all items, at most `_MAX_TRANSFERS` at a time. Errors: the first one, which cancels the rest."""
    going = set[asyncio.Task[None]]()
    try:
        async for item in items:
            if len(going) == _MAX_TRANSFERS:
                done, going = await asyncio.wait(going, return_when=asyncio.FIRST_COMPLETED)
                for task in done:
                    task.result()
            going.add(asyncio.create_task(work(item)))
        await asyncio.gather(*going)
    finally:
        for task in going:
            task.cancel()
        await asyncio.gather(*going, return_exceptions=True)


def _get_object_path(folder: Path, key: str) -> Path:
    """Return the path of an object in a backup. Its key may be too long for a file name, or lead elsewhere."""
    name = hashlib.sha256(key.encode()).hexdigest()
    return folder / "objects" / name[:2] / name


def _hash_file(file: Path) -> str:
    with file.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()
