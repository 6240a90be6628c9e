"""`paddock backup` and `paddock restore`: the embedded database, object storage and secrets, as one folder and back."""

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
    """A folder cannot be made a backup, or is none. The message says why."""


class BackupObject(msgspec.Struct, kw_only=True):
    """An object in a backup: a line of `objects.jsonl`. Its file is named by the hash of its key."""

    key: str
    size: int
    sha256: str


class BackupManifest(msgspec.Struct, kw_only=True):
    """What a backup is: `backup.json`, written last."""

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
            raise BackupError(f"{folder} is there already; a backup wants a folder of its own.")
        if not (data / "secrets.json").exists():
            raise BackupError(f"there is no installation on {data}.")
        shutil.rmtree(fresh, ignore_errors=True)
        (fresh / "objects").mkdir(parents=True, mode=0o700)
        os.chmod(fresh, 0o700)
        began = datetime.now(UTC)
        async with _open_installation(data) as (settings, owner_url), S3Blobs(settings) as blobs:
            # Objects that are deleted while the database is read are there, and those that come meanwhile as well.
            kept = await _copy_objects(blobs, fresh, {})
            await dump_database(owner_url, fresh / "database.dump")
            kept = await _copy_objects(blobs, fresh, kept)
        shutil.copyfile(data / "secrets.json", fresh / "secrets.json")
        os.chmod(fresh / "secrets.json", 0o600)
        with (fresh / "objects.jsonl").open("wb") as file:
            file.writelines(msgspec.json.encode(one) + b"\n" for one in kept.values())
        size = sum(one.size for one in kept.values())
        about = BackupManifest(
            format=_BACKUP_FORMAT, version=PADDOCK_VERSION, began_at=began, objects=len(kept), bytes=size
        )
        (fresh / "backup.json").write_bytes(msgspec.json.format(msgspec.json.encode(about)))
        fresh.rename(folder)
    except (BackupError, EmbeddedServiceError, SettingsError, DomainError, OSError) as error:
        shutil.rmtree(fresh, ignore_errors=True)
        print(f"paddock: {getattr(error, 'detail', error)}", file=sys.stderr)
        return 1
    print(f"backed up to {folder}: the database, {len(kept)} objects of {size} bytes, and the secrets; keep it private")
    return 0


async def restore_backup(folder: Path, data: Path) -> int:
    """Make an installation on an empty `data` from a backup, and say what points into the void.

    Returns an exit code: 1 when nothing was restored, 2 when all was but objects that the rows point to.
    """
    try:
        about, kept = _read_backup(folder)
        if data.exists() and any(data.iterdir()):
            raise BackupError(f"{data} is not empty; a backup is restored to a new folder.")
        data.mkdir(parents=True, exist_ok=True, mode=0o700)
        (data / RESTORING_FILE).touch()
        shutil.copyfile(folder / "secrets.json", data / "secrets.json")
        os.chmod(data / "secrets.json", 0o600)
        known = load_secrets(data)
        with lock_data(data):
            async with _start_services(data, known) as (settings, owner_url), S3Blobs(settings) as blobs:
                await load_database(owner_url, folder / "database.dump")
                await blobs.ensure_bucket()
                broken = await _restore_objects(blobs, folder, kept)
                there = kept.keys() - broken
                missing = [key async for key in iterate_referenced_keys(owner_url) if key not in there]
        (data / RESTORING_FILE).unlink()
    except (BackupError, EmbeddedServiceError, SettingsError, DomainError, OSError, msgspec.MsgspecError) as error:
        print(f"paddock: {getattr(error, 'detail', error)}", file=sys.stderr)
        return 1
    began_at = f"{about.began_at:%Y-%m-%d %H:%M:%S} UTC"
    print(f"restored what there was at {began_at} to {data}; start it with `paddock up --data {data}`")
    for told, keys in (("damaged in the backup", sorted(broken)), ("needed by rows, and not in the backup", missing)):
        if keys:
            print(f"paddock: {len(keys)} objects are {told}:", file=sys.stderr)
            print("\n".join([f"  {key}" for key in keys[:_MAX_LISTED_KEYS]]), file=sys.stderr)
    return 2 if broken or missing else 0


def _read_backup(folder: Path) -> tuple[BackupManifest, dict[str, BackupObject]]:
    try:
        about = msgspec.json.decode((folder / "backup.json").read_bytes(), type=BackupManifest)
        lines = (folder / "objects.jsonl").read_bytes().splitlines()
    except (OSError, msgspec.MsgspecError) as error:
        raise BackupError(f"{folder} is no backup of Paddock, or one that was not finished ({error}).") from error
    if about.format != _BACKUP_FORMAT:
        raise BackupError(f"{folder} was made by Paddock {about.version}, which writes backups in another way.")
    return about, {one.key: one for one in (msgspec.json.decode(line, type=BackupObject) for line in lines)}


@contextlib.asynccontextmanager
async def _open_installation(data: Path) -> AsyncIterator[tuple[Settings, str]]:
    """A running installation, else its parts, started for us alone. The settings and the owner's URL."""
    refuse_half_restored(data)
    known = load_secrets(data)
    async with contextlib.AsyncExitStack() as stack:
        try:
            stack.enter_context(lock_data(data))
        except EmbeddedServiceError:
            reached = _find_running_services(data, known)
        else:
            reached = await stack.enter_async_context(_start_services(data, known))
        yield reached


def _find_running_services(data: Path, known: InstallationSecrets) -> tuple[Settings, str]:
    running = find_running_installation(data)
    if running is None:
        raise BackupError(f"what works on {data} is not ready yet, or about to stop; try again.")
    if not running.embedded:
        raise BackupError(f"what runs on {data} has a database or a storage of your own: see docs/operations.md.")
    settings = read_settings({**os.environ, **running.environment, "PADDOCK_SECRET_KEY": known.secret_key})
    return settings, settings.database_owner_url.reveal()


@contextlib.asynccontextmanager
async def _start_services(data: Path, known: InstallationSecrets) -> AsyncIterator[tuple[Settings, str]]:
    async with open_services(data, known) as ((postgres, _, seaweed), env):
        if postgres is None or seaweed is None:
            raise BackupError("only the embedded database and storage are backed up: see docs/operations.md.")
        await asyncio.gather(postgres.start(), seaweed.start())
        given = {"PADDOCK_SECRET_KEY": known.secret_key, "PADDOCK_DATA_DIR": str(data)}
        yield read_settings({**os.environ, **env, **given}), postgres.owner_url


async def _copy_objects(blobs: S3Blobs, folder: Path, known: dict[str, BackupObject]) -> dict[str, BackupObject]:
    """Copy the objects that are not `known` yet. Returns all. One that is deleted meanwhile is none."""
    found = dict(known)

    async def copy_object(blob: BlobInfo) -> None:
        if blob.key in known:
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
        found[blob.key] = BackupObject(key=blob.key, size=size, sha256=digest.hexdigest())

    await _run_bounded(blobs.list_objects(""), copy_object)
    return found


async def _restore_objects(blobs: S3Blobs, folder: Path, kept: dict[str, BackupObject]) -> set[str]:
    """Store the objects of a backup. Returns the keys of those whose file is not what was copied."""
    broken = set[str]()

    async def restore_object(one: BackupObject) -> None:
        file = _get_object_path(folder, one.key)
        if not file.exists() or await asyncio.to_thread(_hash_file, file) != one.sha256:
            broken.add(one.key)
            return
        await blobs.upload_file(one.key, file)

    async def iterate_objects() -> AsyncIterator[BackupObject]:
        for one in kept.values():
            yield one

    await _run_bounded(iterate_objects(), restore_object)
    return broken


async def _run_bounded(items: AsyncIterator[T], work: Callable[[T], Coroutine[Any, Any, None]]) -> None:
    """Do work for all, some at once. Errors: the first, and what else was going on is stopped."""
    going = set[asyncio.Task[None]]()
    try:
        async for item in items:
            if len(going) == _MAX_TRANSFERS:
                done, going = await asyncio.wait(going, return_when=asyncio.FIRST_COMPLETED)
                for one in done:
                    one.result()
            going.add(asyncio.create_task(work(item)))
        await asyncio.gather(*going)
    finally:
        for one in going:
            one.cancel()
        await asyncio.gather(*going, return_exceptions=True)


def _get_object_path(folder: Path, key: str) -> Path:
    """Where an object lies in a backup: not under its key, which may be too long for a file, or lead elsewhere."""
    name = hashlib.sha256(key.encode()).hexdigest()
    return folder / "objects" / name[:2] / name


def _hash_file(file: Path) -> str:
    with file.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()
