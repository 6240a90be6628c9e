"""Continue from a run of the past: in its thread if nothing has followed it, else in a fork that ends with it."""

from typing import Final

from domain.executions import Execution
from domain.llms import ChatMessage
from domain.ports import Tx
from domain.shared.access import Caller
from domain.shared.errors import Conflict
from domain.threads.schema import StoredMessage, ThreadFork
from domain.threads.service import fork_thread, get_thread
from domain.threads.turns import MAX_HISTORY_TOKENS

# More than the results of tools that a model waits for, and the calls before them.
_LAST_TOKENS: Final = 100_000


async def choose_thread_after(tx: Tx, caller: Caller, execution: Execution) -> str:
    """Return the id of a thread whose last message is that of a completed run, until the commit.

    Errors: `conflict` for a run that added nothing to a thread.
    """
    thread_id, end = await _find_turn_end(tx, execution)
    thread = await get_thread(tx, thread_id, lock=True)
    if thread.last_seq == end and not await tx.threads.list_open_runs(thread.id):
        return thread.id
    return (await fork_thread(tx, caller, thread.id, ThreadFork(at=end))).id


async def list_messages_until(tx: Tx, execution: Execution) -> list[StoredMessage]:
    """Return the messages of a thread up to the end of a run, the newest if they are many. Errors: `conflict`."""
    thread_id, end = await _find_turn_end(tx, execution)
    return [stored for stored in await tx.threads.list_newest(thread_id, 0, MAX_HISTORY_TOKENS) if stored.seq <= end]


async def list_last_messages(tx: Tx, thread_id: str) -> tuple[ChatMessage, ...]:
    """Return the last messages of a thread, whose tool calls may wait for their results. Errors: `not_found`."""
    thread = await get_thread(tx, thread_id)
    return tuple(stored.message for stored in await tx.threads.list_newest(thread.id, 0, _LAST_TOKENS))


async def _find_turn_end(tx: Tx, execution: Execution) -> tuple[str, int]:
    thread_id = execution.thread_id
    end = None if thread_id is None else await tx.threads.find_turn_end(thread_id, execution.id)
    if thread_id is None or end is None:
        raise Conflict(f"The execution {execution.id} is {execution.status} and has no turn in a thread to go on from.")
    return thread_id, end
