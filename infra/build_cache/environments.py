"""Environments: the installed requirements of agents, kept by the hash of what was asked for.

Installing is done by uv outside the fence, and therefore from wheels alone: building a source
distribution would run a stranger's code. Nothing of what is installed is ever imported out here.
"""

import asyncio
import contextlib
import os
import re
import shutil
import sys
import sysconfig
import tarfile
from collections.abc import Awaitable, Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Final

import structlog

from domain.builds import BadArchive, Requirements
from domain.ports import ArchiveLimits, Blobs, Sandbox
from domain.shared.errors import DomainError
from infra.build_cache.folders import DOWNLOADS_FOLDER, FolderCache

INSTALL_TIMEOUT_SECONDS: Final = 600
# As much of what the installer says as a build log takes at a time, in characters.
MAX_LOG_CHARS: Final = 4000
# Adds lines to a build log.
AppendLog = Callable[[str], Awaitable[None]]
MAX_ENVIRONMENT_BYTES: Final = 4 << 30
ENVIRONMENT_LIMITS: Final = ArchiveLimits(entries=200_000, depth=64, file=2 << 30, total=MAX_ENVIRONMENT_BYTES)
_INHERITED_VARIABLES: Final = re.compile(
    r"UV_.*|PIP_.*|SSL_CERT_(FILE|DIR)|(HTTPS?|ALL|NO)_PROXY|HOME|XDG_CONFIG_.*", re.IGNORECASE
)

_log = structlog.get_logger("paddock.environments")


class EnvironmentCache:
    """The environments of this machine, in the cache, and those of all machines in object storage.

    Whoever has one installed or fetched holds it (`hold`) from before until it is not needed any more.
    """

    def __init__(self, cache: FolderCache, blobs: Blobs, sandbox: Sandbox) -> None:
        self._cache = cache
        self._blobs = blobs
        self._sandbox = sandbox
        self._locks: dict[str, asyncio.Lock] = {}
        self._pip_variables: dict[str, str] | None = None

    def get_path(self, environment: str) -> Path:
        """Where an environment lies once it is here."""
        return self._cache.get_path("environments", environment)

    def lock_environment(self, environment: str) -> AbstractContextManager[Path]:
        """Keep an environment in the cache while this is entered, be it there already or not."""
        return self._cache.lock_folder("environments", environment)

    async def measure_environment(self, environment: str) -> int:
        """Return the bytes that an environment which is here takes on disk."""
        return await asyncio.to_thread(self._cache.measure_folder, "environments", environment)

    async def install_requirements(self, wanted: Requirements, say: AppendLog) -> None:
        """Make an environment unless it is there, and `say` in the build log what the installer says, as it does.

        Errors: `BadArchive` with the installer's reason.
        """
        async with self._locks.setdefault(wanted.environment, asyncio.Lock()):
            try:
                await self.fetch_environment(wanted.environment)
            except DomainError as error:
                if error.code != "not_found":
                    raise
            else:
                await say("The environment of these requirements was there already.\n")
                return
            await self._build_environment(wanted, say)

    async def fetch_environment(self, environment: str) -> None:
        """Bring an environment to this machine. Errors: `not_found`, `storage_unavailable`."""
        if self.get_path(environment).is_dir():
            return
        await fetch_folder(
            self._cache,
            self._blobs,
            self._sandbox,
            _get_object_key(environment),
            ("environments", environment),
            ENVIRONMENT_LIMITS,
        )

    async def _build_environment(self, wanted: Requirements, say: AppendLog) -> None:
        async with self._cache.open_scratch("environments") as scratch:
            target = scratch / "environment"
            target.mkdir(mode=0o755)
            with self._cache.lock_folder("", DOWNLOADS_FOLDER):
                await self._run_uv(scratch, target, wanted.text, say)
            size = await asyncio.to_thread(count_file_bytes, target)
            if size > MAX_ENVIRONMENT_BYTES:
                raise BadArchive(f"requirements.txt: installed, the requirements take {size >> 20} MiB; too much.")
            await self._sandbox.compile_bytecode(target, "/environment")
            archive = scratch / "environment.tar.gz"
            await asyncio.to_thread(pack_folder, target, archive)
            await self._blobs.upload_file(_get_object_key(wanted.environment), archive)
            place_folder(target, self.get_path(wanted.environment))
        await asyncio.to_thread(self._cache.evict_excess)

    async def _run_uv(self, scratch: Path, target: Path, text: str, say: AppendLog) -> None:
        requirements = scratch / "requirements.txt"
        requirements.write_text(text)
        uv = shutil.which("uv", path=f"{sysconfig.get_path('scripts')}:{os.environ.get('PATH', '')}")
        if uv is None:
            raise BadArchive("requirements.txt: this host has no uv to install requirements with.")
        environment = {name: value for name, value in os.environ.items() if _INHERITED_VARIABLES.fullmatch(name)}
        environment |= {"PATH": "/usr/bin:/bin", "UV_CACHE_DIR": str(self._cache.downloads_path), "NO_COLOR": "1"}
        environment |= await self._read_pip_index(environment)
        process = await asyncio.create_subprocess_exec(
            *(uv, "pip", "install", "--target", str(target), "--python", sys.executable, "--only-binary", ":all:"),
            *("--link-mode", "copy", "--requirement", str(requirements)),
            env=environment,
            cwd=scratch,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
        )
        assert process.stdout is not None
        log = _InstallerLog(process.stdout, scratch)
        reading = asyncio.create_task(log.read_lines())
        try:
            async with asyncio.timeout(INSTALL_TIMEOUT_SECONDS):
                while not (await asyncio.wait((reading,), timeout=1.0))[0]:
                    if await asyncio.to_thread(count_file_bytes, target) > MAX_ENVIRONMENT_BYTES:
                        raise BadArchive(
                            f"requirements.txt: installed, it takes more than {MAX_ENVIRONMENT_BYTES >> 20} MiB."
                        )
                    if lines := log.take_new_text():
                        await say(lines)
                await process.wait()
        except TimeoutError:
            raise BadArchive(f"requirements.txt: installing took longer than {INSTALL_TIMEOUT_SECONDS} s.") from None
        finally:
            if process.returncode is None:
                process.kill()
                await process.wait()
            reading.cancel()
            await asyncio.gather(reading, return_exceptions=True)
        if process.returncode != 0:
            shown = log.get_text()
            reason = explain_missing_wheel(shown)
            raise BadArchive(f"requirements.txt: cannot be installed. {reason}".rstrip() + f"\n{shown}")
        if lines := log.take_new_text():
            await say(lines)

    async def _read_pip_index(self, environment: dict[str, str]) -> dict[str, str]:
        """What pip is configured with, in uv's words, unless uv itself is configured by its environment."""
        if self._pip_variables is None:
            process = await asyncio.create_subprocess_exec(
                *(sys.executable, "-m", "pip", "config", "list"),
                env={**environment, "PATH": "/usr/bin:/bin"},
                stdout=asyncio.subprocess.PIPE,
                stderr=asyncio.subprocess.DEVNULL,
            )
            told, _ = await process.communicate()
            self._pip_variables = uv_variables_from_pip(told.decode(errors="replace"))
        return {name: value for name, value in self._pip_variables.items() if name not in environment}


def uv_variables_from_pip(pip_config: str) -> dict[str, str]:
    """`pip config list` as variables of uv: the index, further indexes, folders of wheels, the certificates."""
    found: dict[str, str] = {}
    for line in pip_config.splitlines():
        match = re.fullmatch(r"(?:global|install|:env:)\.([a-z-]+)='(.*)'", line.strip())
        if match:
            found[match.group(1)] = match.group(2).replace("\\n", " ").strip()
    names = {"index-url": "UV_DEFAULT_INDEX", "extra-index-url": "UV_INDEX", "cert": "SSL_CERT_FILE"}
    made = {names[name]: value for name, value in found.items() if name in names and value}
    folders = [folder for folder in found.get("find-links", "").split() if "://" in folder or Path(folder).is_dir()]
    if "UV_INDEX" in made:
        # pip takes the best version from any index it is given; uv would stop at the first that knows the name.
        made["UV_INDEX_STRATEGY"] = "unsafe-best-match"
    if folders:
        made["UV_FIND_LINKS"] = ",".join(folders)
    return made


def _get_object_key(environment: str) -> str:
    return f"environments/{environment}.tar.gz"


class _InstallerLog:
    """What the installer writes, line by line, without passwords and paths of this host."""

    def __init__(self, stream: asyncio.StreamReader, scratch: Path) -> None:
        self._stream, self._scratch = stream, str(scratch)
        self._lines: list[str] = []
        self._taken_count = 0

    async def read_lines(self) -> None:
        """Read to the end."""
        while line := await self._stream.readline():
            shown = self._clean_line(line.decode(errors="replace"))
            if shown and not shown.startswith("Using "):
                self._lines.append(shown)

    def take_new_text(self) -> str:
        """Return the lines that have come since the last call."""
        fresh, self._taken_count = self._lines[self._taken_count :], len(self._lines)
        return "".join(f"{line}\n" for line in fresh)[-MAX_LOG_CHARS:]

    def get_text(self) -> str:
        """Return the last of everything."""
        return "\n".join(self._lines)[-MAX_LOG_CHARS:] + "\n"

    def _clean_line(self, line: str) -> str:
        # Indexes may carry passwords in their addresses, and paths of this host are nobody's business.
        line = re.sub(r"(\w+://)[^/\s@]+@", r"\1***@", line.rstrip().replace(self._scratch, ""))
        # A switch that an author of requirements does not have.
        return line.replace(" (i.e., with `--no-build`)", "")


def explain_missing_wheel(said: str) -> str:
    """Return a sentence on packages that have no wheel to install, from uv's output; empty when it is not that.

    It names the packages, those that need them where the author did not, and what to do.
    """
    words = " ".join(said.split())
    sources = sorted(set(re.findall(r"Wheels are required for `([^`]+)`", words)))
    others = sorted(set(re.findall(r"we only found wheels for `([^`]+)`", words)) - set(sources))
    found = [(name, "is published without a wheel that can be installed here") for name in sources]
    found += [(name, "has wheels for other versions of Python or other systems only") for name in others]
    if not found:
        return ""
    told = []
    for name, what in found:
        needing = re.search(rf"(\S+)(?: and \S+)? depends on {re.escape(name)}(?![\w.-]*\w)", words)
        wanted = f", which {needing.group(1)} needs," if needing else ""
        told.append(f"{name}{wanted} {what}")
    return (
        f"{'; '.join(told)}. Packages are installed from wheels alone, as building one runs a stranger's code: "
        "ask for another package or version, or put its modules into the archive."
    )


def count_file_bytes(folder: Path) -> int:
    """Bytes of all files beneath a folder."""
    total = 0
    for here, _, names in os.walk(folder):
        for name in names:
            with contextlib.suppress(OSError):
                total += os.lstat(os.path.join(here, name)).st_size
    return total


def pack_folder(folder: Path, archive: Path) -> None:
    """Write a `.tar.gz` of the files and folders beneath `folder`, owned by nobody, links left out."""

    def plain(member: tarfile.TarInfo) -> tarfile.TarInfo | None:
        if not (member.isfile() or member.isdir()):
            return None
        member.uid = member.gid = 0
        member.uname = member.gname = ""
        return member

    with tarfile.open(archive, "w:gz", compresslevel=1) as packed:
        for entry in sorted(folder.iterdir()):
            packed.add(entry, arcname=entry.name, filter=plain)


def place_folder(made: Path, path: Path) -> None:
    """Put a finished folder where it belongs, at once; if another worker was faster, its folder stays."""
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        made.rename(path)
    except OSError:
        if not path.is_dir():
            raise


async def fetch_folder(
    cache: FolderCache, blobs: Blobs, sandbox: Sandbox, key: str, place_of: tuple[str, str], limits: ArchiveLimits
) -> None:
    """Bring a packed folder from object storage to its place (kind and name) in the cache, whole or not at all.

    It is unpacked inside the fence although this host packed it: object storage is not this host.
    """
    kind, name = place_of
    async with cache.open_scratch(kind) as scratch:
        archive, target = scratch / "archive", scratch / "folder"
        await blobs.download_file(key, archive)
        target.mkdir(mode=0o755)
        unpacked = await sandbox.unpack_archive(archive, target, limits)
        if unpacked.error is not None:
            raise DomainError("storage_unavailable", f"{key} in object storage is damaged: {unpacked.error}")
        place_folder(target, cache.get_path(kind, name))
    await asyncio.to_thread(cache.evict_excess)
