"""Builds: how an uploaded archive becomes a version that can run.

A version is `queued` by an upload, `building` while a worker holds its lease, and ends `ready` or
`failed` with a build log that says why.
"""

from datetime import datetime, timedelta
from typing import Final, Literal, Protocol

import msgspec

from domain import agents
from domain.agents import Agent
from domain.ports import Tx
from domain.shared import ids
from domain.shared.access import Caller
from domain.shared.errors import DomainError, conflict, not_found
from domain.shared.jobs import Job
from domain.shared.leases import Lease, LostLease
from domain.shared.pages import Listing, Page

VersionStatus = Literal["queued", "building", "ready", "failed"]

FINAL: Final[frozenset[str]] = frozenset({"ready", "failed"})
MAX_ATTEMPTS: Final = 3
MAX_LOG: Final = 64 * 1024


class Version(msgspec.Struct, kw_only=True):
    """One version of an agent. `timeout` in seconds, `memory` in MiB, `size_bytes` of the archive as uploaded.

    `config` is the manifest's YAML text; `sha256` is that of the archive, in hex. `models` are those that its code
    may call through the gateway, None if it has none.
    """

    id: str
    agent_id: str
    tenant_id: str
    number: int
    version: str
    status: VersionStatus
    build_log: str | None
    error_message: str | None
    tarball_path: str
    bundle_path: str | None
    entrypoint: str | None
    config: str | None
    framework: str | None
    python: str | None
    timeout: int | None
    memory: int | None
    environment: str | None
    models: list[str] | None
    sha256: str
    size_bytes: int
    attempt: int
    created_at: datetime
    updated_at: datetime


class Built(msgspec.Struct, frozen=True, kw_only=True):
    """What a successful build found and made. `environment` is the hash of the installed requirements."""

    entrypoint: str
    config: str
    framework: str | None
    python: str
    timeout: int | None
    memory: int | None
    environment: str | None
    models: list[str] | None
    bundle_path: str


class Upload(msgspec.Struct, frozen=True, kw_only=True):
    """An archive that lies in object storage and belongs to no version yet."""

    version_id: str
    path: str
    sha256: str
    size_bytes: int


class BundleSize(msgspec.Struct, frozen=True, kw_only=True):
    """What a version takes on a worker's disk, in bytes. Versions with the same `environment` share it."""

    unpacked_bytes: int
    environment: str | None
    environment_bytes: int


class Builds(Protocol):
    """The versions of the bound tenant's agents."""

    async def add(self, version: Version) -> None: ...
    async def next_number(self, agent_id: str) -> int: ...
    async def get(self, version_id: str) -> Version | None: ...
    async def find(self, agent_id: str, reference: str) -> Version | None: ...
    async def page(self, agent_id: str, page: Page) -> Listing[Version]: ...
    async def by_path(self, path: str) -> Version | None: ...
    async def claim(self, version_id: str, lease: Lease) -> Version | None: ...
    async def log(self, version_id: str, attempt: int, text: str) -> bool: ...
    async def settle(self, version_id: str, attempt: int, built: Built | None, error: str | None) -> bool: ...
    async def release(self, version_id: str, attempt: int, counts: bool) -> bool:
        """Queue a held version again. Without `counts` the attempt is not one of `MAX_ATTEMPTS`."""
        ...

    async def stored_bytes(self) -> int:
        """Return what the tenant's archives, unpacked versions and environments take together; locks that sum."""
        ...

    async def reserve(self, version_id: str, attempt: int, size: BundleSize) -> bool:
        """Write down what a held version takes. False if it is not held any more."""
        ...

    async def take_back(self, version_id: str, max_attempts: int, reason: str) -> Version | None: ...
    async def newest(self, agent_id: str) -> Version | None: ...


def archive_path(tenant_id: str, version_id: str) -> str:
    """Where an upload lies in object storage."""
    return f"uploads/{tenant_id}/{version_id}.tar.gz"


def bundle_path(tenant_id: str, version_id: str) -> str:
    """Where the built bundle of a version lies in object storage."""
    return f"bundles/{tenant_id}/{version_id}.tar.gz"


def check_quota(stored_bytes: int, quota: int) -> None:
    """Refuse what would take a tenant over its quota of bytes. Errors: `quota_exceeded`."""
    if stored_bytes > quota:
        raise DomainError(
            "quota_exceeded",
            f"With this archive, what the tenant has uploaded would take {_mebibytes(stored_bytes)} MiB, packed, "
            f"unpacked and with its requirements installed; the quota is {_mebibytes(quota)} MiB. Delete agents that "
            "are not needed any more, or ask the operator for a larger PADDOCK_TENANT_MAX_STORED_BYTES.",
        )


def _mebibytes(size: int) -> str:
    return f"{size / (1 << 20):.1f}".removesuffix(".0")


async def reserve_space(tx: Tx, version: Version, size: BundleSize, quota: int) -> None:
    """Write down what a version that is being built takes, if its tenant may have that. A `quota` of 0 does not bound.

    Errors: `quota_exceeded`, `LostLease`.
    """
    if not await tx.builds.reserve(version.id, version.attempt, size):
        raise LostLease(version.id)
    if quota:
        check_quota(await tx.builds.stored_bytes(), quota)


def job_of(version: Version) -> Job:
    """The build job of a version in its present state."""
    return Job(lane="build", row_id=version.id, tenant_id=version.tenant_id, attempt=version.attempt)


async def enqueue(tx: Tx, caller: Caller, reference: str, upload: Upload, quota: int = 0) -> Version:
    """Make a version of an upload and ring for its build. A tenant stores at most `quota` bytes; 0 is no quota.

    Errors: `not_found`, `agent_archived`, `quota_exceeded`.
    """
    agent = await agents.get(tx, reference, lock=True)
    if agent.status == "archived":
        raise conflict(f"The agent {agent.name!r} is archived.", "agent_archived")
    if agent.kind != "code":
        raise conflict(f"{agent.name!r} is a model agent; it runs no archives.")
    if quota:
        check_quota(await tx.builds.stored_bytes() + upload.size_bytes, quota)
    number = await tx.builds.next_number(agent.id)
    version = Version(
        id=upload.version_id,
        agent_id=agent.id,
        tenant_id=caller.tenant_id,
        number=number,
        version=f"v{number}",
        status="queued",
        build_log=None,
        error_message=None,
        tarball_path=upload.path,
        bundle_path=None,
        entrypoint=None,
        config=None,
        framework=None,
        python=None,
        timeout=None,
        memory=None,
        environment=None,
        models=None,
        sha256=upload.sha256,
        size_bytes=upload.size_bytes,
        attempt=0,
        created_at=tx.now,
        updated_at=tx.now,
    )
    await tx.builds.add(version)
    agent.status, agent.updated_at = "building", tx.now
    await tx.agents.save(agent)
    tx.ring(job_of(version))
    return version


async def get(tx: Tx, agent_reference: str, reference: str) -> Version:
    """A version by its id, its name (`v3`) or its number. Errors: `not_found`."""
    agent = await agents.get(tx, agent_reference)
    version = await tx.builds.find(agent.id, reference)
    if version is None:
        raise not_found("version", reference)
    return version


async def list_versions(tx: Tx, agent_reference: str, page: Page) -> Listing[Version]:
    """An agent's versions, newest first."""
    agent = await agents.get(tx, agent_reference)
    return await tx.builds.page(agent.id, page)


async def stored_at(tx: Tx, path: str) -> Version:
    """The version whose archive lies at `path`. Errors: `not_found`, also for another tenant's path."""
    version = await tx.builds.by_path(path)
    if version is None:
        raise not_found("upload", path)
    return version


async def activate(tx: Tx, agent_reference: str, reference: str) -> Version:
    """Make a ready version the one that executions run. Errors: `version_not_ready`, `agent_archived`."""
    agent = await agents.get(tx, agent_reference, lock=True)
    version = await get(tx, agent_reference, reference)
    if version.status != "ready":
        raise conflict(f"Version {version.version} is {version.status}, not ready.", "version_not_ready")
    if agent.status == "archived":
        raise conflict(f"The agent {agent.name!r} is archived.", "agent_archived")
    agent.current_version_id, agent.updated_at = version.id, tx.now
    if agent.status == "failed":
        agent.status = "ready"
    await tx.agents.save(agent)
    return version


async def claim(tx: Tx, version_id: str, worker: str, lease: timedelta) -> Version | None:
    """Take a queued version for building, or None if it is not queued any more."""
    version = await tx.builds.claim(version_id, Lease(worker=worker, taken_at=tx.now, until=tx.now + lease))
    if version is not None:
        tx.changed(version_id, version.status)
    return version


async def log(tx: Tx, version: Version, text: str) -> None:
    """Append to the build log of a version held by this attempt. Errors: `LostLease`."""
    if not await tx.builds.log(version.id, version.attempt, text[:MAX_LOG]):
        raise LostLease(version.id)


async def finish(tx: Tx, version: Version, built: Built | None, error: str | None) -> None:
    """Settle a build as ready (`built`) or failed (`error`), and let the agent follow.

    A newer version that is active already stays active. Errors: `LostLease`.
    """
    if not await tx.builds.settle(version.id, version.attempt, built, error):
        raise LostLease(version.id)
    await _follow(tx, version.agent_id, version if built is not None else None)
    tx.changed(version.id, "failed" if built is None else "ready")


async def hand_over(tx: Tx, version: Version) -> None:
    """Hand a held version back to the queue, as a worker does that is told to stop. The attempt does not count."""
    await _queue_again(tx, version, counts=False)


async def give_back(tx: Tx, version: Version) -> None:
    """Hand a held version back to the queue after what it was built in was lost. The attempt counts."""
    await _queue_again(tx, version, counts=True)


async def _queue_again(tx: Tx, version: Version, counts: bool) -> None:
    if await tx.builds.release(version.id, version.attempt, counts):
        tx.ring(job_of(version))
        tx.changed(version.id, "queued")


async def take_back(tx: Tx, version_id: str) -> None:
    """Give an expired lease's version back to the queue, or fail it when its attempts are used up."""
    reason = f"The worker stopped answering in each of {MAX_ATTEMPTS} attempts; the build may exhaust the machine."
    after = await tx.builds.take_back(version_id, MAX_ATTEMPTS, reason)
    if after is None:
        return
    if after.status == "queued":
        tx.ring(job_of(after))
    else:
        await _follow(tx, after.agent_id, None)
    tx.changed(version_id, after.status)


async def _follow(tx: Tx, agent_id: str, ready: Version | None) -> None:
    agent = await tx.agents.find(agent_id, lock=True)
    if agent is None:
        return
    if ready is not None:
        current = await tx.builds.get(agent.current_version_id) if agent.current_version_id else None
        if current is None or current.number < ready.number:
            agent.current_version_id = ready.id
    if agent.status != "archived":
        agent.status = await _status(tx, agent)
    agent.updated_at = tx.now
    await tx.agents.save(agent)


async def _status(tx: Tx, agent: Agent) -> agents.AgentStatus:
    newest = await tx.builds.newest(agent.id)
    if newest is not None and newest.status in ("queued", "building"):
        return "building"
    return "ready" if agent.current_version_id else "failed"


def new_id() -> str:
    """The id of a version that is about to be uploaded."""
    return ids.new("ver")
