"""Run one request in a process tree, with its network served and its work folder filled and collected."""

from __future__ import annotations

import asyncio
import contextlib
from functools import partial
from typing import TYPE_CHECKING, Final

import msgspec

from domain.ports import NO_HOOKS, MessageKind, OutputCallback, ProgramHooks
from domain.work_folder import WorkCallback
from infra.sandbox.exit_report import ExitReport, GuestStage
from infra.sandbox.guest_protocol import encode_frame
from infra.sandbox.work_folder import TmpfsWorkFolder

if TYPE_CHECKING:
    from infra.sandbox.process_tree import ProcessTree

# How often to look whether the first process of a tree is known, in seconds.
PID_POLL_SECONDS: Final = 0.001


class TreeRequest(msgspec.Struct, frozen=True, kw_only=True):
    """Hold what a tree is sent, and who receives what it prints and says.

    Output is kept until `output_stage`; the output of a tree that dies before it, and can be retried, is dropped.
    With `returns_early`, a run returns as soon as the answer is complete, with all that was printed before it: the
    tree is killed and ends a millisecond or two later.
    """

    data: bytes
    on_output: OutputCallback
    output_stage: GuestStage = GuestStage.FENCED
    hooks: ProgramHooks = NO_HOOKS
    returns_early: bool = False


async def serve_request(tree: ProcessTree, request: TreeRequest, deadline: float) -> ExitReport:
    """Run a request while its network is served, with its work folder filled before and collected after.

    `deadline` is a time of the loop. Errors: those of `ProcessTree.run`, and of the request's hooks.
    """
    hooks, clock = request.hooks, asyncio.get_running_loop().time
    async with contextlib.AsyncExitStack() as stack:
        loader = await stack.enter_async_context(StateLoader(tree, hooks))
        request = msgspec.structs.replace(
            request, hooks=msgspec.structs.replace(hooks, on_message=loader.handle_message)
        )
        await stack.enter_async_context(tree.serve_network(hooks.serve))
        folder = None
        if hooks.fill_work is not None or hooks.collect_work is not None:
            folder = await _open_work_folder(tree, deadline)
        if folder is None:
            return await tree.run(request, deadline - clock())
        stack.callback(folder.close)
        fill = None if hooks.fill_work is None else partial(_fill_work, tree, folder, hooks.fill_work, deadline)
        report = await tree.run(request, deadline - clock(), fill)
        if hooks.collect_work is not None and not report.is_retryable:
            # A run that is cancelled, or whose sandbox was lost, leaves nothing.
            await _collect_work(tree, folder, hooks.collect_work)
        return report


class StateLoader:
    """Answer a guest that asks for its state, once, and pass on all other messages, while it is entered."""

    def __init__(self, tree: ProcessTree, hooks: ProgramHooks) -> None:
        self._tree, self._hooks = tree, hooks
        self._loading: asyncio.Task[None] | None = None

    async def __aenter__(self) -> StateLoader:
        return self

    async def __aexit__(self, *_: object) -> None:
        if self._loading is not None:
            self._loading.cancel()
            await asyncio.wait([self._loading])

    def handle_message(self, kind: MessageKind, data: bytes) -> None:
        """Load the state for a `state_request`."""
        if kind != "state_request":
            if self._hooks.on_message is not None:
                self._hooks.on_message(kind, data)
        elif self._loading is None:
            self._loading = asyncio.get_running_loop().create_task(self._send_state())

    async def _send_state(self) -> None:
        try:
            state = b"" if self._hooks.load_state is None else await self._hooks.load_state()
        except Exception as error:
            self._tree.fail(error)
        else:
            self._tree.send_data(encode_frame(state))


async def _fill_work(tree: ProcessTree, folder: TmpfsWorkFolder, fill: WorkCallback, deadline: float) -> None:
    """Fill the work folder after the import, which runs the code: what it finds must not depend on which is faster."""
    seconds = max(0.0, deadline - asyncio.get_running_loop().time())
    if await tree.wait_for_stage(GuestStage.IMPORTED, seconds):
        await fill(folder)
        # The worker's gifts do not count as the agent's memory.
        tree.allow_memory(folder.written_bytes)


async def _collect_work(tree: ProcessTree, folder: TmpfsWorkFolder, collect: WorkCallback) -> None:
    """Collect what lies in the work folder, if anything does, once no process is left that could change it."""
    if not folder.is_empty():
        # A run returns while its processes are still being killed.
        await tree.kill_and_wait()
        await collect(folder)


async def _open_work_folder(tree: ProcessTree, deadline: float) -> TmpfsWorkFolder | None:
    """Open the work folder once the fence stands; None if the tree ends before."""
    clock = asyncio.get_running_loop().time
    await tree.wait_for_stage(GuestStage.FENCED, max(0.0, deadline - clock()))
    while tree.pid is None and not tree.is_gone and clock() < deadline:  # noqa: ASYNC110 - it takes a millisecond
        # bubblewrap reports the process by another pipe than the marks.
        await asyncio.sleep(PID_POLL_SECONDS)
    if tree.is_gone or tree.pid is None:
        return None
    try:
        return TmpfsWorkFolder.open_in_sandbox(tree.pid)
    except OSError:
        return None
