"""Start fork servers from the worker, request slots from them, and replace worn or lost ones."""

import asyncio
import contextlib
import functools
import itertools
import os
from typing import Literal

import structlog

from domain.builds import DEFAULT_MEMORY_MB
from domain.ports import SandboxProgram
from infra.sandbox import seccomp
from infra.sandbox.cgroups import ControlGroup, ControlGroupFactory
from infra.sandbox.exit_report import SandboxStartError
from infra.sandbox.fence import Fence
from infra.sandbox.forkserver.process import START_TIMEOUT_SECONDS, ForkedLeader, ForkServerProcess
from infra.sandbox.guest_pipes import GuestPipes
from infra.sandbox.guest_protocol import MAX_ANSWER_BYTES, create_unavailable_error, create_watchdog, encode_head
from infra.sandbox.listener import SandboxListeners
from infra.sandbox.process_tree import ProcessTree
from infra.sandbox.program_network import build_hosts_file, list_listener_places
from infra.sandbox.user_ids import reserve_uid
from infra.sandbox.watchdog import ResourceWatchdog

_log = structlog.get_logger("paddock.sandbox")


class ForkServerBackend:
    """Make slots by fork, blank ones too. Each worker process has one of these `SandboxBackend`s."""

    supports_blanks = True

    def __init__(self, fence: Fence | None = None) -> None:
        self.fence = fence or Fence()
        self._cgroups = ControlGroupFactory(memory=self.fence.has_guard("cgroup"), cpu=self.fence.has_guard("cpu"))
        self._numbers = itertools.count()
        self._lock = asyncio.Lock()
        self._server: ForkServerProcess | None = None
        self._replacement: asyncio.Task[None] | None = None
        self._retired_servers: list[ForkServerProcess] = []
        self._is_closed = False

    async def start_tree(self, program: SandboxProgram | None) -> ProcessTree:
        """Start a fresh blank slot, for any program. Errors: `sandbox_unavailable`."""
        try:
            return await self._start_slot(program.memory_mb if program is not None else DEFAULT_MEMORY_MB)
        except (SandboxStartError, OSError, seccomp.UnknownMachine) as error:
            raise create_unavailable_error(str(error)) from error

    def assign_program(self, tree: ProcessTree, program: SandboxProgram, mode: Literal["run", "check"]) -> None:
        """Send a slot the code and the entrypoint to import."""
        environment = str(program.environment) if program.environment is not None else None
        network = program.network
        head = encode_head(
            program,
            mode,
            self.fence,
            code=str(program.code),
            environment=environment,
            listeners=None if network is None else list_listener_places(network),
            hosts_file="" if network is None else build_hosts_file(network),
        )
        tree.expect_network(network)
        tree.configure_guest(head, program.memory_mb, self.create_watchdog(program))

    def create_watchdog(self, program: SandboxProgram) -> ResourceWatchdog | None:
        """Create the watchdog for a tree of this program; None where the fence has none."""
        limits_sessions, has_sockets = not self._cgroups.shares_processors, program.network is not None
        return create_watchdog(program.memory_mb, self.fence, has_sockets, limits_sessions=limits_sessions)

    @property
    def pid(self) -> int | None:
        """Return the process to kill to end the server, its parent; None while no server runs."""
        return self._server.pid if self._server is not None else None

    async def close(self) -> None:
        """Kill every server and every slot, and wait until the servers are gone."""
        self._is_closed = True
        if self._replacement is not None:
            self._replacement.cancel()
            await asyncio.wait([self._replacement])
        async with self._lock:
            servers = [*self._retired_servers, *([self._server] if self._server else [])]
        for server in servers:
            server.kill()
        for server in servers:
            await asyncio.shield(server.gone)

    async def _start_slot(self, memory_mb: int) -> ProcessTree:
        server = await self._ensure_server()
        uid = reserve_uid() if os.geteuid() == 0 and self.fence.has_guard("uid") else None
        leader = ForkedLeader(uid)
        with contextlib.ExitStack() as on_failure:
            on_failure.callback(leader.close)
            listeners = SandboxListeners()
            on_failure.callback(listeners.close)
            pipes = GuestPipes()
            on_failure.callback(GuestPipes.close_ends, pipes.worker_ends)
            try:
                fds = [*pipes.guest_ends, listeners.maker_end.fileno()]
                server.request_slot(next(self._numbers), leader, uid or 0, fds)
            finally:
                GuestPipes.close_ends(pipes.guest_ends)
                listeners.maker_end.close()
            on_failure.pop_all()
        tree = ProcessTree(leader, pipes, MAX_ANSWER_BYTES, listeners=listeners)
        try:
            async with asyncio.timeout(START_TIMEOUT_SECONDS):
                await leader.started
            if leader.pid1 is not None:
                loop = asyncio.get_running_loop()
                joining = loop.run_in_executor(None, self._add_to_group, memory_mb, leader.pid1)
                joining.add_done_callback(functools.partial(_on_group_joined, tree))
                # If this is cancelled meanwhile, the group is removed with the tree all the same.
                await asyncio.shield(joining)
        except TimeoutError:
            # It hangs, and so would every slot requested after this one.
            server.kill()
            await tree.kill_and_wait()
            raise SandboxStartError("the fork server does not answer") from None
        except BaseException:
            await tree.kill_and_wait()
            raise
        return tree

    def _add_to_group(self, memory_mb: int, pid: int) -> ControlGroup | None:
        """Put a slot that nothing untrusted has touched into a group of its own. Errors: `OSError`."""
        group = self._cgroups.create_group(memory_mb)
        if group is not None:
            try:
                group.add_process(pid)
            except OSError:
                group.remove()
                raise
        return group

    async def _ensure_server(self) -> ForkServerProcess:
        async with self._lock:
            if self._is_closed:
                raise SandboxStartError("the worker is ending")
            if self._server is not None and self._server.gone.done():
                _log.warning("the fork server is gone and is started again")
                self._server = None
            if self._server is None:
                self._server = await self._start_server()
            elif self._server.is_worn_out and self._replacement is None:
                self._replacement = asyncio.create_task(self._replace_server(self._server))
            return self._server

    async def _start_server(self) -> ForkServerProcess:
        server = ForkServerProcess(self.fence)
        try:
            await server.wait_until_ready()
        except BaseException:
            server.kill()
            await asyncio.shield(server.gone)
            raise
        return server

    async def _replace_server(self, worn_server: ForkServerProcess) -> None:
        """Start a server in the place of a worn one, which ends when its slots have ended."""
        try:
            server = await self._start_server()
        except SandboxStartError as error:
            _log.warning("the fork server cannot be replaced", reason=str(error))
            return
        finally:
            self._replacement = None
        self._server = server
        self._retired_servers = [old for old in self._retired_servers if not old.gone.done()] + [worn_server]
        worn_server.retire()


def _on_group_joined(tree: ProcessTree, joining: "asyncio.Future[ControlGroup | None]") -> None:
    if not joining.cancelled() and joining.exception() is None:
        tree.set_group(joining.result())
