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
from domain.shared.errors import Conflict, DomainError, NotFound
from domain.shared.jobs import Job
from domain.shared.leases import Lease, LostLease
from domain.shared.pages import Listing, Page

VersionStatus = Literal["queued", "building", "ready", "failed"]

FINAL_VERSION_STATUSES: Final[frozenset[str]] = frozenset({"ready", "failed"})
MAX_BUILD_ATTEMPTS: Final = 3
MAX_BUILD_LOG_CHARACTERS: Final = 64 * 1024


class AgentVersion(msgspec.Struct, kw_only=True):
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


class BuildResult(msgspec.Struct, frozen=True, kw_only=True):
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


class ArchiveUpload(msgspec.Struct, frozen=True, kw_only=True):
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

    async def add(self, version: AgentVersion) -> None: ...
    async def get_next_number(self, agent_id: str) -> int: ...
    async def get(self, version_id: str) -> AgentVersion | None: ...
    async def find(self, agent_id: str, reference: str) -> AgentVersion | None: ...
    async def list_page(self, agent_id: str, page: Page) -> Listing[AgentVersion]: ...
    async def find_by_path(self, path: str) -> AgentVersion | None: ...
    async def claim_version(self, version_id: str, lease: Lease) -> AgentVersion | None: ...
    async def append_log(self, version_id: str, attempt: int, text: str) -> bool: ...
    async def settle_version(
        self, version_id: str, attempt: int, built: BuildResult | None, error: str | None
    ) -> bool: ...
    async def release_version(self, version_id: str, attempt: int, counts: bool) -> bool:
        """Queue a held version again. Without `counts` the attempt is not one of `MAX_ATTEMPTS`."""
        ...

    async def sum_stored_bytes(self) -> int:
        """Return what the tenant's archives, unpacked versions and environments take together; locks that sum."""
        ...

    async def reserve_space(self, version_id: str, attempt: int, size: BundleSize) -> bool:
        """Write down what a held version takes. False if it is not held any more."""
        ...

    async def requeue_expired(self, version_id: str, max_attempts: int, reason: str) -> AgentVersion | None: ...
    async def find_newest(self, agent_id: str) -> AgentVersion | None: ...


def get_archive_path(tenant_id: str, version_id: str) -> str:
    """Where an upload lies in object storage."""
    return f"uploads/{tenant_id}/{version_id}.tar.gz"


def get_bundle_path(tenant_id: str, version_id: str) -> str:
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


async def reserve_space(tx: Tx, version: AgentVersion, size: BundleSize, quota: int) -> None:
    """Write down what a version that is being built takes, if its tenant may have that. A `quota` of 0 does not bound.

    Errors: `quota_exceeded`, `LostLease`.
    """
    if not await tx.builds.reserve_space(version.id, version.attempt, size):
        raise LostLease(version.id)
    if quota:
        check_quota(await tx.builds.sum_stored_bytes(), quota)


def job_from_version(version: AgentVersion) -> Job:
    """The build job of a version in its present state."""
    return Job(lane="build", row_id=version.id, tenant_id=version.tenant_id, attempt=version.attempt)


async def enqueue_build(tx: Tx, caller: Caller, reference: str, upload: ArchiveUpload, quota: int = 0) -> AgentVersion:
    """Make a version of an upload and ring for its build. A tenant stores at most `quota` bytes; 0 is no quota.

    Errors: `not_found`, `agent_archived`, `quota_exceeded`.
    """
    agent = await agents.get_agent(tx, reference, lock=True)
    if agent.status == "archived":
        raise Conflict(f"The agent {agent.name!r} is archived.", "agent_archived")
    if agent.kind != "code":
        raise Conflict(f"{agent.name!r} is a model agent; it runs no archives.")
    if quota:
        check_quota(await tx.builds.sum_stored_bytes() + upload.size_bytes, quota)
    number = await tx.builds.get_next_number(agent.id)
    version = AgentVersion(
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
    tx.ring_job(job_from_version(version))
    return version


async def get_version(tx: Tx, agent_reference: str, reference: str) -> AgentVersion:
    """A version by its id, its name (`v3`) or its number. Errors: `not_found`."""
    agent = await agents.get_agent(tx, agent_reference)
    version = await tx.builds.find(agent.id, reference)
    if version is None:
        raise NotFound("version", reference)
    return version


async def list_versions(tx: Tx, agent_reference: str, page: Page) -> Listing[AgentVersion]:
    """An agent's versions, newest first."""
    agent = await agents.get_agent(tx, agent_reference)
    return await tx.builds.list_page(agent.id, page)


async def get_version_by_path(tx: Tx, path: str) -> AgentVersion:
    """The version whose archive lies at `path`. Errors: `not_found`, also for another tenant's path."""
    version = await tx.builds.find_by_path(path)
    if version is None:
        raise NotFound("upload", path)
    return version


async def activate_version(tx: Tx, agent_reference: str, reference: str) -> AgentVersion:
    """Make a ready version the one that executions run. Errors: `version_not_ready`, `agent_archived`."""
    agent = await agents.get_agent(tx, agent_reference, lock=True)
    version = await get_version(tx, agent_reference, reference)
    if version.status != "ready":
        raise Conflict(f"Version {version.version} is {version.status}, not ready.", "version_not_ready")
    if agent.status == "archived":
        raise Conflict(f"The agent {agent.name!r} is archived.", "agent_archived")
    agent.current_version_id, agent.updated_at = version.id, tx.now
    if agent.status == "failed":
        agent.status = "ready"
    await tx.agents.save(agent)
    return version


async def claim_build(tx: Tx, version_id: str, worker: str, lease: timedelta) -> AgentVersion | None:
    """Take a queued version for building, or None if it is not queued any more."""
    version = await tx.builds.claim_version(
        version_id, Lease(worker_id=worker, claimed_at=tx.now, expires_at=tx.now + lease)
    )
    if version is not None:
        tx.announce_status(version_id, version.status)
    return version


async def append_build_log(tx: Tx, version: AgentVersion, text: str) -> None:
    """Append to the build log of a version held by this attempt. Errors: `LostLease`."""
    if not await tx.builds.append_log(version.id, version.attempt, text[:MAX_BUILD_LOG_CHARACTERS]):
        raise LostLease(version.id)


async def finish_build(tx: Tx, version: AgentVersion, built: BuildResult | None, error: str | None) -> None:
    """Settle a build as ready (`built`) or failed (`error`), and let the agent follow.

    A newer version that is active already stays active. Errors: `LostLease`.
    """
    if not await tx.builds.settle_version(version.id, version.attempt, built, error):
        raise LostLease(version.id)
    await _follow(tx, version.agent_id, version if built is not None else None)
    tx.announce_status(version.id, "failed" if built is None else "ready")


async def hand_over_build(tx: Tx, version: AgentVersion) -> None:
    """Hand a held version back to the queue, as a worker does that is told to stop. The attempt does not count."""
    await _queue_again(tx, version, counts=False)


async def release_build(tx: Tx, version: AgentVersion) -> None:
    """Hand a held version back to the queue after what it was built in was lost. The attempt counts."""
    await _queue_again(tx, version, counts=True)


async def _queue_again(tx: Tx, version: AgentVersion, counts: bool) -> None:
    if await tx.builds.release_version(version.id, version.attempt, counts):
        tx.ring_job(job_from_version(version))
        tx.announce_status(version.id, "queued")


async def requeue_expired_build(tx: Tx, version_id: str) -> None:
    """Give an expired lease's version back to the queue, or fail it when its attempts are used up."""
    reason = (
        f"The worker stopped answering in each of {MAX_BUILD_ATTEMPTS} attempts; the build may exhaust the machine."
    )
    after = await tx.builds.requeue_expired(version_id, MAX_BUILD_ATTEMPTS, reason)
    if after is None:
        return
    if after.status == "queued":
        tx.ring_job(job_from_version(after))
    else:
        await _follow(tx, after.agent_id, None)
    tx.announce_status(version_id, after.status)


async def _follow(tx: Tx, agent_id: str, ready: AgentVersion | None) -> None:
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
    newest = await tx.builds.find_newest(agent.id)
    if newest is not None and newest.status in ("queued", "building"):
        return "building"
    return "ready" if agent.current_version_id else "failed"


def generate_version_id() -> str:
    """The id of a version that is about to be uploaded."""
    return ids.generate_id("ver")
