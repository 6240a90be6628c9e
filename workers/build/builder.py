"""Builds versions: fetch, unpack in the fence, install, compile, try the import, store, settle."""

import asyncio
import contextlib
import platform
from pathlib import Path
from typing import Final

import structlog

from domain import builds, executions
from domain.builds import AgentVersion, BadArchive, BuildResult, Manifest
from domain.ports import Blobs, OutputStream, Sandbox, SandboxOutcome, SandboxProgram, Store
from domain.queues import QueuedBuild
from domain.shared.errors import DATABASE_OUTAGE_CODES, DomainError
from infra.build_cache import BUNDLE_LIMITS, BundleCache, EnvironmentCache, count_disk_bytes, count_file_bytes
from infra.polling import retry_through_outage
from infra.sandbox import CHECK_TIMEOUT_SECONDS
from workers.leases import LeaseKeeper, claim_or_release
from workers.lifecycle import Drain
from workers.run.output import OutputText

_log = structlog.get_logger("paddock.builds")

MAX_IMPORT_OUTPUT_BYTES: Final = 16 * 1024 * 1024
MAX_SHOWN_OUTPUT_BYTES: Final = 8 * 1024
_PYTHON_VERSION: Final = platform.python_version()


class _TooMuchOutput(Exception):
    pass


class VersionBuilder:
    """The build lane of one worker process."""

    def __init__(
        self,
        name: str,
        store: Store,
        sandbox: Sandbox,
        blobs: Blobs,
        bundles: BundleCache,
        environments: EnvironmentCache,
        holder: LeaseKeeper,
        *,
        quota: int,
        slots: int,
        drain: Drain,
    ) -> None:
        self._name, self._store, self._sandbox, self._blobs = name, store, sandbox, blobs
        self._bundles, self._environments, self._leases = bundles, environments, holder
        self._quota, self._slots, self._drain = quota, slots, drain
        self._busy_count = 0

    async def __call__(self) -> None:
        """Build what waits, one version after the other, as long as this worker has a slot for it.

        A slot that was left to others has nobody who rings for it again: who comes free looks further.
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
        await self._leases.run_leased(
            log,
            version.id,
            version.attempt,
            self._build_and_settle(version),
            lambda: self._hand_over_version(version),
            lambda: self._release_version(version),
            lambda told: self._fail_version(version, f"internal_error: {told}"),
        )

    async def _claim_next(self) -> AgentVersion | None:
        while True:
            async with self._store.autocommit() as tx:
                turn = await tx.queues.find_next_build(
                    self._slots - self._busy_count < executions.count_reserved_slots(self._slots)
                )
            if turn is None:
                return None
            # Another worker may have been quicker; then it is another version's turn.
            for version in await claim_or_release(self._claim_version(turn), self._hand_over_version):
                return version

    async def _claim_version(self, turn: QueuedBuild) -> list[AgentVersion]:
        async with self._store.tenant_transaction(turn.tenant_id) as tx:
            version = await builds.claim_build(tx, turn.row_id, self._name, self._leases.lease_duration)
        return [] if version is None else [version]

    async def _build_and_settle(self, version: AgentVersion) -> str | None:
        built, error = None, None
        try:
            built = await self._build_version(version)
        except BadArchive as bad:
            error = str(bad)
        except DomainError as failed:
            if failed.code in DATABASE_OUTAGE_CODES:
                raise
            error = f"{failed.code}: {failed.detail}"
        line = "Ready.\n" if error is None else f"Failed: {error}\n"
        await retry_through_outage(lambda: self._settle_version(version, built, error, line))
        return error

    async def _build_version(self, version: AgentVersion) -> BuildResult:
        async with self._bundles.open_scratch() as scratch, contextlib.AsyncExitStack() as held:
            archive, out = scratch / "archive.tar.gz", scratch / "out"
            out.mkdir(mode=0o755)
            await retry_through_outage(lambda: self._download_archive(version, archive))
            unpacked = await self._sandbox.unpack_archive(archive, out)
            if unpacked.error is not None:
                raise BadArchive(unpacked.error)
            await self._log_line(version, f"Unpacked {unpacked.files} entries, {unpacked.size} bytes.\n")
            if unpacked.manifest is None or unpacked.manifest_name is None:
                raise BadArchive(builds.explain_missing_manifest(unpacked.top, unpacked.nested))
            if unpacked.left_out:
                told = f"Left out, as it lies beside the folder of the manifest: {', '.join(unpacked.left_out)}.\n"
                await self._log_line(version, told)
            manifest = builds.parse_manifest(unpacked.manifest_name, unpacked.manifest, _PYTHON_VERSION)
            root = out / unpacked.root
            environment = await self._install_requirements(version, unpacked.requirements, held)
            broken = await self._sandbox.compile_bytecode(root, "/agent")
            for told in broken:
                await self._log_line(version, f"Does not compile: {told}\n")
            hints = [f"Does not compile: {broken[0]}"] if broken else []
            hints += [builds.explain_backslashes(unpacked.backslashes)] if unpacked.backslashes else []
            await self._check_import(version, manifest, root, environment, hints)
            size = await asyncio.to_thread(count_file_bytes, root)
            if size > BUNDLE_LIMITS.total:
                raise BadArchive(f"Compiled, the files take {size >> 20} MiB; {BUNDLE_LIMITS.total >> 20} are allowed.")
            await self._reserve_space(version, root, environment)
            key = builds.get_bundle_path(version.tenant_id, version.id)
            await retry_through_outage(lambda: self._bundles.store_bundle(version, root, key, scratch))
            return BuildResult(
                entrypoint=manifest.entrypoint,
                config=unpacked.manifest,
                framework=manifest.framework,
                python=_PYTHON_VERSION,
                timeout=manifest.timeout,
                memory=manifest.memory,
                environment=environment,
                models=manifest.models,
                bundle_path=key,
            )

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

        async def write() -> None:
            async with self._store.tenant_transaction(version.tenant_id) as tx:
                await builds.reserve_space(tx, version, size, self._quota)

        await retry_through_outage(write)

    async def _install_requirements(
        self, version: AgentVersion, text: str | None, held: contextlib.AsyncExitStack
    ) -> str | None:
        """Install the requirements; the environment stays on this machine as long as it is held."""
        wanted = builds.parse_requirements(text, _PYTHON_VERSION) if text is not None else None
        if wanted is None:
            return None
        held.enter_context(self._environments.lock_environment(wanted.environment))
        await self._log_line(version, "Installing requirements.\n")
        await retry_through_outage(
            lambda: self._environments.install_requirements(wanted, lambda said: self._log_line(version, said))
        )
        return wanted.environment

    async def _check_import(
        self, version: AgentVersion, manifest: Manifest, code: Path, environment: str | None, hints: list[str]
    ) -> None:
        """Import the entrypoint. `hints` are said of an import that fails. Errors: `BadArchive`."""
        printed = OutputText(MAX_SHOWN_OUTPUT_BYTES)
        size = 0

        def hear(stream: OutputStream, data: bytes) -> None:
            nonlocal size
            size += len(data)
            printed.add_output(stream, data)
            if size > MAX_IMPORT_OUTPUT_BYTES:
                raise _TooMuchOutput

        program = SandboxProgram(
            code=code,
            environment=self._environments.get_path(environment) if environment else None,
            entrypoint=manifest.entrypoint,
            timeout=manifest.timeout or CHECK_TIMEOUT_SECONDS,
            memory_mb=builds.get_memory_limit(manifest.memory),
            gateway=manifest.models is not None,
        )
        try:
            outcome = await self._sandbox.check_entrypoint(program, hear)
        except _TooMuchOutput:
            outcome = SandboxOutcome(
                error_type="output_too_large",
                error_message=f"Importing the entrypoint printed more than {MAX_IMPORT_OUTPUT_BYTES} bytes.",
            )
        if said := printed.get_text():
            await self._log_line(version, f"Printed while importing:\n{said}\n")
        if outcome.stack:
            await self._log_line(version, outcome.stack)
        if outcome.error_type is not None:
            told = f"{manifest.entrypoint}: {outcome.error_type}: {outcome.error_message}"
            raise BadArchive("\n".join([told, *hints]))

    async def _log_line(self, version: AgentVersion, text: str) -> None:
        for line in text.splitlines():
            _log.info("build log", version_id=version.id, line=line)

        async def write() -> None:
            async with self._store.tenant_transaction(version.tenant_id) as tx:
                await builds.append_build_log(tx, version, text)

        await retry_through_outage(write)

    async def _settle_version(
        self, version: AgentVersion, built: BuildResult | None, error: str | None, line: str
    ) -> None:
        async with self._store.tenant_transaction(version.tenant_id) as tx:
            await builds.append_build_log(tx, version, line)
            await builds.finish_build(tx, version, built, error)

    async def _fail_version(self, version: AgentVersion, error: str) -> None:
        await self._settle_version(version, None, error, f"Failed: {error}\n")

    async def _hand_over_version(self, version: AgentVersion) -> None:
        async with self._store.tenant_transaction(version.tenant_id) as tx:
            await builds.hand_over_build(tx, version)

    async def _release_version(self, version: AgentVersion) -> None:
        async with self._store.tenant_transaction(version.tenant_id) as tx:
            await builds.release_build(tx, version)
