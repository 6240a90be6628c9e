"""Build versions of agents from uploaded archives.

A version is `queued` by an upload, `building` while a worker holds its lease, and ends as `ready` or `failed`, with a
build log that says why.
"""

from datetime import datetime, timedelta
from typing import Any, Final, Literal, Protocol

import msgspec

from domain import agents, egress
from domain.agents import Agent
from domain.ports import Tx
from domain.shared import ids
from domain.shared.access import Caller
from domain.shared.errors import Conflict, DomainError, require_found
from domain.shared.jobs import Job
from domain.shared.leases import Lease, LostLease
from domain.shared.pages import Listing, Page

VersionStatus = Literal["queued", "building", "ready", "failed"]

FINAL_VERSION_STATUSES: Final[frozenset[str]] = frozenset({"ready", "failed"})
MAX_BUILD_ATTEMPTS: Final = 3
MAX_BUILD_LOG_CHARACTERS: Final = 64 * 1024


class AgentVersion(msgspec.Struct, kw_only=True):
    """Show a version of an agent.

    `timeout` is in seconds, `memory` in MiB. `size_bytes` is the size of the uploaded archive, `sha256` its hash.
    `config` is the YAML text of the manifest. `models` are the models that its code may call through the gateway, null
    if it may call none. `input_schema` and `output_schema` are those of the manifest, or of the entrypoint's type
    hints.
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
    env: dict[str, str] | None
    secrets: list[str] | None
    egress: list[str] | None
    input_schema: dict[str, Any] | None = None
    output_schema: dict[str, Any] | None = None
    sha256: str
    size_bytes: int
    attempt: int
    created_at: datetime
    updated_at: datetime


class BuildResult(msgspec.Struct, frozen=True, kw_only=True):
    """Hold the result of a successful build. `environment` is the hash of the installed requirements."""

    entrypoint: str
    config: str
    framework: str | None
    python: str
    timeout: int | None
    memory: int | None
    environment: str | None
    models: list[str] | None
    env: dict[str, str] | None
    secrets: list[str] | None
    egress: list[str] | None
    input_schema: dict[str, Any] | None
    output_schema: dict[str, Any] | None
    bundle_path: str


class ArchiveUpload(msgspec.Struct, frozen=True, kw_only=True):
    """Describe an archive in object storage that belongs to no version yet."""

    version_id: str
    path: str
    sha256: str
    size_bytes: int


class BundleSize(msgspec.Struct, frozen=True, kw_only=True):
    """Hold the disk space of a version on a worker, in bytes. Versions with the same `environment` share it."""

    unpacked_bytes: int
    environment: str | None
    environment_bytes: int


class Builds(Protocol):
    """Store the versions of the bound tenant's agents."""

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
        """Requeue a leased version. Without `counts` the attempt does not count toward `MAX_BUILD_ATTEMPTS`."""
        ...

    async def sum_stored_bytes(self) -> int:
        """Return the total size of the tenant's archives, unpacked versions, environments and files, and lock it."""
        ...

    async def reserve_space(self, version_id: str, attempt: int, size: BundleSize) -> bool:
        """Store the size of a leased version. Return False if the lease is lost."""
        ...

    async def requeue_expired(self, version_id: str, max_attempts: int, reason: str) -> AgentVersion | None: ...
    async def find_newest(self, agent_id: str) -> AgentVersion | None: ...


def get_archive_path(tenant_id: str, version_id: str) -> str:
    """Return the key of an upload in object storage."""
    return f"uploads/{tenant_id}/{version_id}.tar.gz"


def get_bundle_path(tenant_id: str, version_id: str) -> str:
    """Return the key of a version's bundle in object storage."""
    return f"bundles/{tenant_id}/{version_id}.tar.gz"


def check_quota(stored_bytes: int, quota: int) -> None:
    """Check that a tenant stays within its storage quota. Errors: `quota_exceeded`."""
    if stored_bytes > quota:
        raise DomainError(
            "quota_exceeded",
            "With this upload, the tenant's archives, files and files of runs would take "
            f"{_format_mebibytes(stored_bytes)} MiB, unpacked and with installed requirements; the quota is "
            f"{_format_mebibytes(quota)} MiB. Delete unused agents and files, or ask the operator for a larger "
            "PADDOCK_TENANT_MAX_STORED_BYTES.",
        )


def _format_mebibytes(size: int) -> str:
    return f"{size / (1 << 20):.1f}".removesuffix(".0")


async def reserve_space(tx: Tx, version: AgentVersion, size: BundleSize, quota: int) -> None:
    """Store the size of a version that is being built, within the tenant's quota. A `quota` of 0 means no limit.

    Errors: `quota_exceeded`, `LostLease`.
    """
    if not await tx.builds.reserve_space(version.id, version.attempt, size):
        raise LostLease(version.id)
    if quota:
        check_quota(await tx.builds.sum_stored_bytes(), quota)


def job_from_version(version: AgentVersion) -> Job:
    """Return the build job of a version in its present state."""
    return Job(lane="build", row_id=version.id, tenant_id=version.tenant_id, attempt=version.attempt)


async def enqueue_build(tx: Tx, caller: Caller, reference: str, upload: ArchiveUpload, quota: int = 0) -> AgentVersion:
    """Create a version for an upload and ring for its build. A `quota` in bytes of 0 means no limit.

    Errors: `not_found`, `agent_archived`, `quota_exceeded`.
    """
    agent = await agents.get_agent(tx, reference, lock=True)
    if agent.status == "archived":
        raise Conflict(f"The agent {agent.name!r} is archived. Restore it first.", "agent_archived")
    if agent.kind != "code":
        raise Conflict(f"{agent.name!r} is a model agent and cannot run archives.")
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
        env=None,
        secrets=None,
        egress=None,
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
    """Return a version by its id, its name (`v3`) or its number. Errors: `not_found`."""
    agent = await agents.get_agent(tx, agent_reference)
    return require_found("version", reference, await tx.builds.find(agent.id, reference))


async def list_versions(tx: Tx, agent_reference: str, page: Page) -> Listing[AgentVersion]:
    """List an agent's versions, newest first."""
    agent = await agents.get_agent(tx, agent_reference)
    return await tx.builds.list_page(agent.id, page)


async def get_version_by_path(tx: Tx, path: str) -> AgentVersion:
    """Return the version whose archive has this key. Errors: `not_found`, also for another tenant's key."""
    return require_found("upload", path, await tx.builds.find_by_path(path))


async def activate_version(tx: Tx, agent_reference: str, reference: str) -> AgentVersion:
    """Make executions run this ready version. Errors: `version_not_ready`, `agent_archived`,
    `egress_not_allowed`.
    """
    agent = await agents.get_agent(tx, agent_reference, lock=True)
    version = await get_version(tx, agent_reference, reference)
    if version.status != "ready":
        raise Conflict(f"Version {version.version} is {version.status}, not ready.", "version_not_ready")
    if agent.status == "archived":
        raise Conflict(f"The agent {agent.name!r} is archived. Restore it first.", "agent_archived")
    await egress.check_egress(tx, version)
    agent.current_version_id, agent.updated_at = version.id, tx.now
    if agent.status == "failed":
        agent.status = "ready"
    await tx.agents.save(agent)
    return version


async def claim_build(tx: Tx, version_id: str, worker: str, lease: timedelta) -> AgentVersion | None:
    """Claim a queued version for building. Return None if it is no longer queued."""
    version = await tx.builds.claim_version(
        version_id, Lease(worker_id=worker, claimed_at=tx.now, expires_at=tx.now + lease)
    )
    if version is not None:
        tx.announce_status(version_id, version.status)
    return version


async def append_build_log(tx: Tx, version: AgentVersion, text: str) -> None:
    """Append to the build log of a version leased by this attempt. Errors: `LostLease`."""
    if not await tx.builds.append_log(version.id, version.attempt, text[:MAX_BUILD_LOG_CHARACTERS]):
        raise LostLease(version.id)


async def finish_build(tx: Tx, version: AgentVersion, built: BuildResult | None, error: str | None) -> None:
    """Settle a build as ready (`built`) or failed (`error`), and update its agent.

    A newer active version stays active. Errors: `LostLease`.
    """
    if not await tx.builds.settle_version(version.id, version.attempt, built, error):
        raise LostLease(version.id)
    await _update_agent(tx, version.agent_id, version if built is not None else None)
    tx.announce_status(version.id, "failed" if built is None else "ready")


async def hand_over_build(tx: Tx, version: AgentVersion) -> None:
    """Requeue a leased version because its worker is stopping. The attempt does not count."""
    await _requeue_version(tx, version, counts=False)


async def release_build(tx: Tx, version: AgentVersion) -> None:
    """Requeue a leased version after its sandbox was lost. The attempt counts."""
    await _requeue_version(tx, version, counts=True)


async def _requeue_version(tx: Tx, version: AgentVersion, counts: bool) -> None:
    if await tx.builds.release_version(version.id, version.attempt, counts):
        tx.ring_job(job_from_version(version))
        tx.announce_status(version.id, "queued")


async def requeue_expired_build(tx: Tx, version_id: str) -> None:
    """Requeue the version of an expired lease, or fail it after its last attempt."""
    reason = f"The worker was lost in each of {MAX_BUILD_ATTEMPTS} attempts. The build may need more memory or disk."
    version = await tx.builds.requeue_expired(version_id, MAX_BUILD_ATTEMPTS, reason)
    if version is None:
        return
    if version.status == "queued":
        tx.ring_job(job_from_version(version))
    else:
        await _update_agent(tx, version.agent_id, None)
    tx.announce_status(version_id, version.status)


async def _update_agent(tx: Tx, agent_id: str, ready: AgentVersion | None) -> None:
    agent = await tx.agents.find(agent_id, lock=True)
    if agent is None:
        return
    if ready is not None:
        current = await tx.builds.get(agent.current_version_id) if agent.current_version_id else None
        if current is None or current.number < ready.number:
            agent.current_version_id = ready.id
    if agent.status != "archived":
        agent.status = await _get_agent_status(tx, agent)
    agent.updated_at = tx.now
    await tx.agents.save(agent)


async def _get_agent_status(tx: Tx, agent: Agent) -> agents.AgentStatus:
    newest = await tx.builds.find_newest(agent.id)
    if newest is not None and newest.status in ("queued", "building"):
        return "building"
    return "ready" if agent.current_version_id else "failed"


def generate_version_id() -> str:
    """Return the id of a version that is about to be uploaded."""
    return ids.generate_id("ver")
