"""Build versions: download, unpack in the fence, install, compile, import, store, settle."""

import asyncio
import contextlib
import platform
from pathlib import Path
from typing import Any, Final

import msgspec
import structlog

from domain import builds, egress, executions, secrets
from domain.builds import AgentVersion, BadArchive, BuildResult, Manifest
from domain.ports import (
    Blobs,
    OutputStream,
    Sandbox,
    SandboxOutcome,
    SandboxProgram,
    Store,
    Tx,
    UnpackedArchive,
)
from domain.queues import QueuedBuild
from domain.schemas import MAX_SCHEMA_BYTES
from domain.shared.errors import DATABASE_OUTAGE_CODES, DomainError
from infra.build_cache import BUNDLE_LIMITS, BundleCache, EnvironmentCache, count_disk_bytes, count_file_bytes
from infra.polling import retry_through_outage
from infra.sandbox import CHECK_TIMEOUT_SECONDS
from workers.leases import LeasedWork, LeaseKeeper, claim_or_release
from workers.lifecycle import Drain
from workers.output import OutputText

_log = structlog.get_logger("paddock.builds")

MAX_IMPORT_OUTPUT_BYTES: Final = 16 * 1024 * 1024
MAX_SHOWN_OUTPUT_BYTES: Final = 8 * 1024
# Stands for each secret while a version is built: code that reads it at import is imported, and learns nothing.
BUILD_PLACEHOLDER: Final = "not-available-while-building"
_PYTHON_VERSION: Final = platform.python_version()


class _TooMuchOutput(Exception):
    """Signal that an import printed too much."""


class BuildDependencies(msgspec.Struct, frozen=True, kw_only=True):
    """Hold what builds work with in one worker process."""

    store: Store
    sandbox: Sandbox
    blobs: Blobs
    bundles: BundleCache
    environments: EnvironmentCache
    leases: LeaseKeeper
    drain: Drain


class VersionBuilder:
    """Build versions in one worker process. `quota` is the most that a tenant may store, in bytes."""

    def __init__(self, dependencies: BuildDependencies, worker_id: str, *, quota: int, slots: int) -> None:
        self._worker_id, self._quota, self._slots = worker_id, quota, slots
        self._store, self._sandbox, self._blobs = dependencies.store, dependencies.sandbox, dependencies.blobs
        self._bundles, self._environments = dependencies.bundles, dependencies.environments
        self._leases, self._drain = dependencies.leases, dependencies.drain
        self._busy_count = 0

    async def build_pending(self) -> None:
        """Build queued versions, one after the other, until no queued version may take a slot of this worker.

        No ring comes for a version that found no slot, so each finished build looks for the next one.
        """
        self._busy_count += 1
        try:
            while not self._drain.has_begun() and (version := await self._claim_next()) is not None:
                await self._build_claimed(version)
        finally:
            self._busy_count -= 1

    async def _build_claimed(self, version: AgentVersion) -> None:
        log = _log.bind(version_id=version.id, attempt=version.attempt)
        log.info("build started")
        work = LeasedWork(
            row_id=version.id,
            attempt=version.attempt,
            log=log,
            run=self._build_and_settle(version),
            hand_over=lambda: self._hand_over_version(version),
            release=lambda: self._release_version(version),
            fail=lambda message: self._settle_version(version, None, f"internal_error: {message}"),
        )
        await self._leases.run_leased(work)

    async def _claim_next(self) -> AgentVersion | None:
        while True:
            async with self._store.autocommit() as tx:
                has_only_spare_slots = self._slots - self._busy_count < executions.count_reserved_slots(self._slots)
                turn = await tx.queues.find_next_build(has_only_spare_slots)
            if turn is None:
                return None
            # Another worker may have claimed it first; then look for the next one.
            for version in await claim_or_release(self._claim_version(turn), self._hand_over_version):
                return version

    async def _claim_version(self, turn: QueuedBuild) -> list[AgentVersion]:
        lease = self._leases.lease_duration
        version = await self._store.run(
            turn.tenant_id, lambda tx: builds.claim_build(tx, turn.row_id, self._worker_id, lease)
        )
        return [] if version is None else [version]

    async def _build_and_settle(self, version: AgentVersion) -> str | None:
        built, error = None, None
        try:
            built = await self._build_version(version)
        except BadArchive as bad_archive:
            error = str(bad_archive)
        except DomainError as failure:
            if failure.code in DATABASE_OUTAGE_CODES:
                raise
            error = f"{failure.code}: {failure.detail}"
        await retry_through_outage(lambda: self._settle_version(version, built, error))
        return error

    async def _build_version(self, version: AgentVersion) -> BuildResult:
        async with self._bundles.open_scratch() as scratch, contextlib.AsyncExitStack() as stack:
            archive, out = scratch / "archive.tar.gz", scratch / "out"
            out.mkdir(mode=0o755)
            await retry_through_outage(lambda: self._download_archive(version, archive))
            unpacked = await self._unpack_archive(version, archive, out)
            manifest_text = unpacked.manifest or ""
            manifest = builds.parse_manifest(unpacked.manifest_name or "", manifest_text, _PYTHON_VERSION)
            root = out / unpacked.root
            schemas = await asyncio.to_thread(_load_schemas, root, manifest)
            environment = await self._install_requirements(version, unpacked.requirements, stack)
            uncompiled = await self._sandbox.compile_bytecode(root, "/agent")
            for problem in uncompiled:
                await self._log_text(version, f"Does not compile: {problem}\n")
            hints = [f"Does not compile: {uncompiled[0]}"] if uncompiled else []
            hints += [builds.explain_backslashes(unpacked.backslashes)] if unpacked.backslashes else []
            hints += [_explain_placeholders(manifest.secrets)] if manifest.secrets else []
            variables = await self._load_variables(version, manifest)
            program = self._create_program(manifest, variables, root, environment)
            checked = await self._check_import(version, program, hints)
            await self._add_signature_schemas(version, schemas, checked)
            size = await asyncio.to_thread(count_file_bytes, root)
            if size > BUNDLE_LIMITS.total:
                raise BadArchive(f"Compiled, the files take {size >> 20} MiB; {BUNDLE_LIMITS.total >> 20} are allowed.")
            await self._reserve_space(version, root, environment)
            key = builds.get_bundle_path(version.tenant_id, version.id)
            await retry_through_outage(lambda: self._bundles.store_bundle(version, root, key, scratch))
            return BuildResult(
                entrypoint=manifest.entrypoint,
                config=manifest_text,
                framework=manifest.framework,
                python=_PYTHON_VERSION,
                timeout=manifest.timeout,
                memory=manifest.memory,
                environment=environment,
                models=manifest.models,
                env=manifest.env,
                secrets=manifest.secrets,
                egress=manifest.egress,
                input_schema=schemas["input_schema"],
                output_schema=schemas["output_schema"],
                bundle_path=key,
            )

    async def _unpack_archive(self, version: AgentVersion, archive: Path, out: Path) -> UnpackedArchive:
        """Unpack the archive in the fence, and return what it holds. Errors: `BadArchive`."""
        unpacked = await self._sandbox.unpack_archive(archive, out)
        if unpacked.error is not None:
            raise BadArchive(unpacked.error)
        await self._log_text(version, f"Unpacked {unpacked.files} entries, {unpacked.size} bytes.\n")
        if unpacked.manifest is None or unpacked.manifest_name is None:
            raise BadArchive(builds.explain_missing_manifest(unpacked.top, unpacked.nested))
        if unpacked.left_out:
            names = ", ".join(unpacked.left_out)
            await self._log_text(version, f"Left out, as it lies beside the folder of the manifest: {names}.\n")
        return unpacked

    async def _download_archive(self, version: AgentVersion, archive: Path) -> None:
        archive.unlink(missing_ok=True)
        try:
            await self._blobs.download_file(version.tarball_path, archive)
        except DomainError as error:
            if error.code == "not_found":
                raise BadArchive("The uploaded archive is gone from object storage.") from error
            raise

    async def _reserve_space(self, version: AgentVersion, root: Path, environment: str | None) -> None:
        size = builds.BundleSize(
            unpacked_bytes=await asyncio.to_thread(count_disk_bytes, root),
            environment=environment,
            environment_bytes=await self._environments.measure_environment(environment) if environment else 0,
        )
        await self._store.run(
            version.tenant_id, lambda tx: builds.reserve_space(tx, version, size, self._quota), retry=True
        )

    async def _install_requirements(
        self, version: AgentVersion, text: str | None, stack: contextlib.AsyncExitStack
    ) -> str | None:
        """Install the requirements. The environment stays on this machine until `stack` is closed."""
        requirements = builds.parse_requirements(text, _PYTHON_VERSION) if text is not None else None
        if requirements is None:
            return None
        stack.enter_context(self._environments.lock_environment(requirements.environment))
        await self._log_text(version, "Installing requirements.\n")
        await retry_through_outage(
            lambda: self._environments.install_requirements(requirements, lambda line: self._log_text(version, line))
        )
        return requirements.environment

    async def _load_variables(self, version: AgentVersion, manifest: Manifest) -> dict[str, str]:
        """Return the variables of a run that starts now, without secrets; log which secrets are missing for one."""
        names = manifest.secrets or []

        async def read_settings(tx: Tx) -> tuple[dict[str, str], str | None]:
            agent = await tx.agents.find(version.agent_id)
            existing = await tx.secrets.list_by_names(names) if names else []
            problem = secrets.explain_missing_secrets(names, existing, version.agent_id)
            return (agent.env if agent is not None else None) or {}, problem

        env, problem = await self._store.run(version.tenant_id, read_settings, retry=True)
        if problem is not None:
            await self._log_text(version, f"Executions will not start yet: {problem}\n")
        return {**(manifest.env or {}), **env, **dict.fromkeys(names, BUILD_PLACEHOLDER)}

    def _create_program(
        self, manifest: Manifest, variables: dict[str, str], code: Path, environment: str | None
    ) -> SandboxProgram:
        entries = egress.parse_entries(manifest.egress or [])
        return SandboxProgram(
            code=code,
            environment=self._environments.get_path(environment) if environment else None,
            entrypoint=manifest.entrypoint,
            timeout=manifest.timeout or CHECK_TIMEOUT_SECONDS,
            memory_mb=builds.get_memory_limit(manifest.memory),
            variables=variables,
            network=egress.build_network(entries, has_gateway=manifest.models is not None),
        )

    async def _add_signature_schemas(
        self, version: AgentVersion, schemas: dict[str, dict[str, Any] | None], checked: bytes | None
    ) -> None:
        """Add the schemas of the entrypoint's type hints where the manifest has none, and log those that have none."""
        signature = builds.parse_signature(checked)
        for key in builds.SCHEMA_FIELDS:
            if schemas[key] is None and (schema := getattr(signature, key)) is not None:
                schemas[key] = schema
                await self._log_text(version, f"Read from the type hints: {key}.\n")
        for problem in signature.problems:
            await self._log_text(version, f"No schema from the type hints: {problem}.\n")

    async def _check_import(self, version: AgentVersion, program: SandboxProgram, hints: list[str]) -> bytes | None:
        """Import the entrypoint, and return what it answers about its signature.

        `hints` are added to the error of a failed import. Errors: `BadArchive`.
        """
        printed = OutputText(MAX_SHOWN_OUTPUT_BYTES)
        size = 0

        def add_output(stream: OutputStream, data: bytes) -> None:
            nonlocal size
            size += len(data)
            printed.add_output(stream, data)
            if size > MAX_IMPORT_OUTPUT_BYTES:
                raise _TooMuchOutput

        try:
            outcome = await self._sandbox.check_entrypoint(program, add_output)
        except _TooMuchOutput:
            outcome = SandboxOutcome(
                error_type="output_too_large",
                error_message=f"Importing the entrypoint printed more than {MAX_IMPORT_OUTPUT_BYTES} bytes.",
            )
        if text := printed.get_text():
            await self._log_text(version, f"Printed while importing:\n{text}\n")
        if outcome.stack:
            await self._log_text(version, outcome.stack)
        if outcome.error_type is not None:
            problem = f"{program.entrypoint}: {outcome.error_type}: {outcome.error_message}"
            raise BadArchive("\n".join([problem, *hints]))
        return outcome.output

    async def _log_text(self, version: AgentVersion, text: str) -> None:
        for line in text.splitlines():
            _log.info("build log", version_id=version.id, line=line)
        await self._store.run(version.tenant_id, lambda tx: builds.append_build_log(tx, version, text), retry=True)

    async def _settle_version(self, version: AgentVersion, built: BuildResult | None, error: str | None) -> None:
        line = "Ready.\n" if error is None else f"Failed: {error}\n"
        async with self._store.tenant_transaction(version.tenant_id) as tx:
            if built is not None and (refusals := await egress.find_refusals(tx, version.tenant_id, built.egress)):
                refused = egress.describe_refusals(refusals)
                line = f"It cannot be started yet: it declares hosts that it may not reach: {refused}\n{line}"
            await builds.append_build_log(tx, version, line)
            await builds.finish_build(tx, version, built, error)

    async def _hand_over_version(self, version: AgentVersion) -> None:
        await self._store.run(version.tenant_id, lambda tx: builds.hand_over_build(tx, version))

    async def _release_version(self, version: AgentVersion) -> None:
        await self._store.run(version.tenant_id, lambda tx: builds.release_build(tx, version))


def _explain_placeholders(names: list[str]) -> str:
    return (
        f"No secrets are available while a version is built: {', '.join(names)} is {BUILD_PLACEHOLDER!r} here. "
        "Read secrets in the function, or let the import succeed with any value."
    )


def _load_schemas(root: Path, manifest: Manifest) -> dict[str, dict[str, Any] | None]:
    """Return the schemas of a manifest, read from the archive where it names files. Errors: `BadArchive`."""
    schemas: dict[str, dict[str, Any] | None] = {}
    for key in builds.SCHEMA_FIELDS:
        declared = getattr(manifest, key)
        if isinstance(declared, str):
            declared = builds.parse_schema_file(declared, key, _read_archive_file(root, declared))
        schemas[key] = declared
    return schemas


def _read_archive_file(root: Path, path: str) -> bytes:
    """Return a file of an unpacked archive, in which there are no links. Errors: `BadArchive`."""
    try:
        with open(root / path, "rb") as file:
            data = file.read(MAX_SCHEMA_BYTES + 1)
    except (OSError, ValueError):
        raise BadArchive(f"The archive has no file {path!r}, which the manifest names.") from None
    if len(data) > MAX_SCHEMA_BYTES:
        raise BadArchive(f"{path}: is larger than {MAX_SCHEMA_BYTES} bytes.")
    return data
