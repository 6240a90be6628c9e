"""Install and cache environments: the requirements of agents, keyed by the hash of the request.

uv installs outside the fence, and therefore from wheels alone: building a source distribution would run untrusted
code. Installed packages are never imported outside the fence.
"""

import asyncio
import os
import re
import shutil
import sys
import sysconfig
from collections.abc import Awaitable, Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Final

import structlog

from domain.builds import BadArchive, Requirements
from domain.ports import ArchiveLimits, Blobs, Sandbox
from domain.shared.errors import DomainError
from infra.build_cache.archives import fetch_folder, pack_folder, place_folder
from infra.build_cache.folders import DOWNLOADS_FOLDER, FolderCache, count_file_bytes

INSTALL_TIMEOUT_SECONDS: Final = 600
# A build log takes this much of the installer's output at a time.
MAX_LOG_CHARS: Final = 4000
# A function that appends lines to a build log.
AppendLog = Callable[[str], Awaitable[None]]
MAX_ENVIRONMENT_BYTES: Final = 4 << 30
ENVIRONMENT_LIMITS: Final = ArchiveLimits(entries=200_000, depth=64, file=2 << 30, total=MAX_ENVIRONMENT_BYTES)
_INHERITED_VARIABLES: Final = re.compile(
    r"UV_.*|PIP_.*|SSL_CERT_(FILE|DIR)|(HTTPS?|ALL|NO)_PROXY|HOME|XDG_CONFIG_.*", re.IGNORECASE
)

_log = structlog.get_logger("paddock.environments")


class EnvironmentCache:
    """Keep the environments of this machine in the cache, and those of all machines in object storage.

    A caller locks an environment (`lock_environment`) before it installs or fetches it, and until it is done with it.
    """

    def __init__(self, cache: FolderCache, blobs: Blobs, sandbox: Sandbox) -> None:
        self._cache = cache
        self._blobs = blobs
        self._sandbox = sandbox
        self._locks: dict[str, asyncio.Lock] = {}
        self._pip_variables: dict[str, str] | None = None

    def get_path(self, environment: str) -> Path:
        """Return the path of an environment in the cache, present or not."""
        return self._cache.get_path("environments", environment)

    def lock_environment(self, environment: str) -> AbstractContextManager[Path]:
        """Keep an environment in the cache while this context is open, present or not."""
        return self._cache.lock_folder("environments", environment)

    async def measure_environment(self, environment: str) -> int:
        """Return the bytes that a present environment takes on disk."""
        return await asyncio.to_thread(self._cache.measure_folder, "environments", environment)

    async def install_requirements(self, requirements: Requirements, append_log: AppendLog) -> None:
        """Install an environment unless it is cached, and append the installer's output to the build log as it comes.

        Errors: `BadArchive` with the installer's reason.
        """
        async with self._locks.setdefault(requirements.environment, asyncio.Lock()):
            try:
                await self.fetch_environment(requirements.environment)
            except DomainError as error:
                if error.code != "not_found":
                    raise
            else:
                await append_log("The environment of these requirements was cached.\n")
                return
            await self._build_environment(requirements, append_log)

    async def fetch_environment(self, environment: str) -> None:
        """Fetch an environment to this machine. Errors: `not_found`, `storage_unavailable`."""
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

    async def _build_environment(self, requirements: Requirements, append_log: AppendLog) -> None:
        async with self._cache.open_scratch("environments") as scratch:
            target = scratch / "environment"
            target.mkdir(mode=0o755)
            with self._cache.lock_folder("", DOWNLOADS_FOLDER):
                await self._run_uv(scratch, target, requirements.text, append_log)
            size = await asyncio.to_thread(count_file_bytes, target)
            if size > MAX_ENVIRONMENT_BYTES:
                raise BadArchive(f"requirements.txt: installed, the requirements take {size >> 20} MiB; too much.")
            await self._sandbox.compile_bytecode(target, "/environment")
            archive = scratch / "environment.tar.gz"
            await asyncio.to_thread(pack_folder, target, archive)
            await self._blobs.upload_file(_get_object_key(requirements.environment), archive)
            place_folder(target, self.get_path(requirements.environment))
        await asyncio.to_thread(self._cache.evict_excess)

    async def _run_uv(self, scratch: Path, target: Path, text: str, append_log: AppendLog) -> None:
        requirements_file = scratch / "requirements.txt"
        requirements_file.write_text(text)
        uv = shutil.which("uv", path=f"{sysconfig.get_path('scripts')}:{os.environ.get('PATH', '')}")
        if uv is None:
            raise BadArchive("requirements.txt: this host has no uv to install requirements with.")
        environment = {name: value for name, value in os.environ.items() if _INHERITED_VARIABLES.fullmatch(name)}
        environment |= {"PATH": "/usr/bin:/bin", "UV_CACHE_DIR": str(self._cache.downloads_path), "NO_COLOR": "1"}
        environment |= await self._read_pip_index(environment)
        process = await asyncio.create_subprocess_exec(
            *(uv, "pip", "install", "--target", str(target), "--python", sys.executable, "--only-binary", ":all:"),
            *("--link-mode", "copy", "--requirement", str(requirements_file)),
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
                        await append_log(lines)
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
            output = log.get_text()
            reason = explain_missing_wheel(output)
            raise BadArchive(f"requirements.txt: cannot be installed. {reason}".rstrip() + f"\n{output}")
        if lines := log.take_new_text():
            await append_log(lines)

    async def _read_pip_index(self, environment: dict[str, str]) -> dict[str, str]:
        """Return pip's configuration as uv's variables, except those that the environment sets already."""
        if self._pip_variables is None:
            process = await asyncio.create_subprocess_exec(
                *(sys.executable, "-m", "pip", "config", "list"),
                env={**environment, "PATH": "/usr/bin:/bin"},
                stdout=asyncio.subprocess.PIPE,
                stderr=asyncio.subprocess.DEVNULL,
            )
            output, _ = await process.communicate()
            self._pip_variables = uv_variables_from_pip(output.decode(errors="replace"))
        return {name: value for name, value in self._pip_variables.items() if name not in environment}


def uv_variables_from_pip(pip_config: str) -> dict[str, str]:
    """Convert `pip config list` to variables of uv: the index, further indexes, folders of wheels, the certificates."""
    settings: dict[str, str] = {}
    for line in pip_config.splitlines():
        match = re.fullmatch(r"(?:global|install|:env:)\.([a-z-]+)='(.*)'", line.strip())
        if match:
            settings[match.group(1)] = match.group(2).replace("\\n", " ").strip()
    names = {"index-url": "UV_DEFAULT_INDEX", "extra-index-url": "UV_INDEX", "cert": "SSL_CERT_FILE"}
    variables = {names[name]: value for name, value in settings.items() if name in names and value}
    folders = [folder for folder in settings.get("find-links", "").split() if "://" in folder or Path(folder).is_dir()]
    if "UV_INDEX" in variables:
        # pip takes the best version from all its indexes; uv would stop at the first that has the name.
        variables["UV_INDEX_STRATEGY"] = "unsafe-best-match"
    if folders:
        variables["UV_FIND_LINKS"] = ",".join(folders)
    return variables


def _get_object_key(environment: str) -> str:
    return f"environments/{environment}.tar.gz"


class _InstallerLog:
    """Read the installer's output line by line, and strip passwords and paths of this host."""

    def __init__(self, stream: asyncio.StreamReader, scratch: Path) -> None:
        self._stream, self._scratch = stream, str(scratch)
        self._lines: list[str] = []
        self._taken_count = 0

    async def read_lines(self) -> None:
        """Read to the end."""
        while line := await self._stream.readline():
            text = self._clean_line(line.decode(errors="replace"))
            if text and not text.startswith("Using "):
                self._lines.append(text)

    def take_new_text(self) -> str:
        """Return the lines that have come since the last call."""
        fresh, self._taken_count = self._lines[self._taken_count :], len(self._lines)
        return "".join(f"{line}\n" for line in fresh)[-MAX_LOG_CHARS:]

    def get_text(self) -> str:
        """Return the last of everything."""
        return "\n".join(self._lines)[-MAX_LOG_CHARS:] + "\n"

    def _clean_line(self, line: str) -> str:
        # Addresses of indexes may hold passwords, and a log must not show paths of this host.
        line = re.sub(r"(\w+://)[^/\s@]+@", r"\1***@", line.rstrip().replace(self._scratch, ""))
        # An author of requirements cannot set this option.
        return line.replace(" (i.e., with `--no-build`)", "")


def explain_missing_wheel(output: str) -> str:
    """Return a sentence on packages that have no wheel to install, from uv's output; empty when it is not that.

    It names the packages, those that need them where the author did not, and what to do.
    """
    words = " ".join(output.split())
    sources = sorted(set(re.findall(r"Wheels are required for `([^`]+)`", words)))
    others = sorted(set(re.findall(r"we only found wheels for `([^`]+)`", words)) - set(sources))
    missing = [(name, "is published without a wheel that can be installed here") for name in sources]
    missing += [(name, "has wheels for other versions of Python or other systems only") for name in others]
    if not missing:
        return ""
    sentences = []
    for name, problem in missing:
        needing = re.search(rf"(\S+)(?: and \S+)? depends on {re.escape(name)}(?![\w.-]*\w)", words)
        requirer = f", which {needing.group(1)} needs," if needing else ""
        sentences.append(f"{name}{requirer} {problem}")
    return (
        f"{'; '.join(sentences)}. Packages are installed from wheels alone, as building one runs untrusted code: "
        "ask for another package or version, or put its modules into the archive."
    )
