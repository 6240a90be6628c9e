"""Open, change, fork and delete threads, and add messages by hand."""

import msgspec
from msgspec import UNSET

from domain import executions
from domain.executions import ExecutionStart
from domain.llms import ChatMessage, list_open_calls, read_conversation, show_message
from domain.ports import Tx
from domain.shared import ids
from domain.shared.access import Caller
from domain.shared.errors import Conflict, DomainError, InvalidField, NotFound
from domain.shared.pages import Listing, Page, build_listing
from domain.shared.tags import check_metadata, check_tags
from domain.threads.schema import (
    DERIVED_TITLE_CHARACTERS,
    MAX_LISTED_BYTES,
    MAX_THREAD_MESSAGES,
    NewThread,
    PatchThread,
    StoredMessage,
    Thread,
    ThreadFork,
    ThreadLock,
    ThreadMessage,
    ThreadMessages,
)

# Tokens of messages that are read to find the tool calls at the end of a thread.
_TAIL_TOKENS = 64_000


async def create_thread(tx: Tx, caller: Caller, data: NewThread) -> Thread:
    """Open a thread, with messages if there are any. Errors: `invalid_field`."""
    thread = _build_thread(tx, caller, data.title)
    thread.tags, thread.metadata = check_tags(data.tags), check_metadata(data.metadata)
    await tx.threads.add(thread)
    if data.messages is not None:
        await add_messages(tx, thread, read_conversation(data.messages), None)
    return thread


def _build_thread(tx: Tx, caller: Caller, title: str | None) -> Thread:
    return Thread(
        id=ids.generate_id("thread"),
        title=(title or "").strip() or None,
        user_id=caller.user_id,
        tenant_id=caller.tenant_id,
        created_at=tx.now,
        updated_at=tx.now,
    )


async def get_thread(tx: Tx, thread_id: str, lock: ThreadLock = False) -> Thread:
    """Return a thread. Errors: `not_found`."""
    thread = await tx.threads.find(thread_id, lock)
    if thread is None:
        raise NotFound("thread", thread_id)
    return thread


async def list_threads(tx: Tx, page: Page, tag: str | None) -> Listing[Thread]:
    """List the tenant's threads, newest first, or those with a tag."""
    return await tx.threads.list_page(page, tag)


async def patch_thread(tx: Tx, thread_id: str, data: PatchThread) -> Thread:
    """Change the fields that were sent. Errors: `not_found`, `invalid_field`."""
    thread = await get_thread(tx, thread_id, lock=True)
    if data.title is not UNSET:
        thread.title = (data.title or "").strip() or None
    if data.tags is not UNSET:
        thread.tags = check_tags(data.tags)
    if data.metadata is not UNSET:
        thread.metadata = check_metadata(data.metadata)
    thread.updated_at = tx.now
    await tx.threads.save(thread)
    return thread


async def delete_thread(tx: Tx, thread_id: str) -> None:
    """Delete a thread with its messages and states, and cancel its executions, whose records stay.

    Errors: `not_found`, `thread_busy` if a run was started at this moment.
    """
    await get_thread(tx, thread_id)
    # Runs before the thread: a run that is settled locks itself first, then its thread.
    for execution_id in await tx.threads.list_open_runs(thread_id):
        try:
            await executions.cancel_execution(tx, execution_id, "The thread was deleted.")
        except DomainError as error:
            # It has ended at this moment.
            if error.code != "conflict":
                raise
    await get_thread(tx, thread_id, lock=True)
    if await tx.threads.list_open_runs(thread_id):
        raise DomainError("thread_busy", "A run of the thread was started at this moment. Delete the thread again.")
    await tx.threads.delete(thread_id)


async def list_messages(tx: Tx, thread_id: str, page: Page, is_descending: bool) -> Listing[ThreadMessage]:
    """List the messages of a thread by number. Errors: `not_found`, `invalid_field` for too large ones together."""
    thread = await get_thread(tx, thread_id)
    size = await tx.threads.measure_messages(thread.id, page, is_descending)
    if page.limit > 1 and size > MAX_LISTED_BYTES:
        message = f"is too large: these messages have {size} bytes; at most {MAX_LISTED_BYTES} are listed at a time."
        raise InvalidField("limit", message)
    stored = await tx.threads.list_messages(thread.id, page, is_descending)
    return build_listing([_show_stored(message) for message in stored], thread.last_seq, page)


def _show_stored(stored: StoredMessage) -> ThreadMessage:
    message = show_message(stored.message)
    return ThreadMessage(
        **{name: getattr(message, name) for name in message.__struct_fields__},
        seq=stored.seq,
        tokens=stored.tokens,
        execution_id=stored.execution_id,
        created_at=stored.created_at,
    )


async def add_messages_by_hand(tx: Tx, thread_id: str, data: ThreadMessages) -> Thread:
    """Add messages to a thread. Errors: `not_found`, `thread_busy` while a run of it is open, `invalid_field`."""
    thread = await get_thread(tx, thread_id, lock=True)
    if open_runs := await tx.threads.list_open_runs(thread.id, with_delayed=False):
        reason = "Add messages when it has ended, or send them as `messages` of the next start."
        raise DomainError("thread_busy", f"The execution {open_runs[0]} of this thread has not ended. {reason}")
    open_calls = await list_open_calls_of(tx, thread)
    await add_messages(tx, thread, read_conversation(data.messages, open_calls=open_calls), None)
    return thread


async def add_messages(tx: Tx, thread: Thread, messages: list[ChatMessage], execution_id: str | None) -> None:
    """Write messages behind the last one of a locked thread, and count them in it. Errors: `quota_exceeded`."""
    if thread.last_seq + len(messages) > MAX_THREAD_MESSAGES:
        reason = "Open another thread, or fork this one at an earlier message."
        raise DomainError("quota_exceeded", f"A thread has at most {MAX_THREAD_MESSAGES} messages. {reason}")
    await tx.threads.add_messages(thread, messages, execution_id, tx.now)
    thread.last_seq += len(messages)
    thread.title = thread.title or _derive_title(messages)
    thread.updated_at = tx.now
    await tx.threads.save(thread)


def _derive_title(messages: list[ChatMessage]) -> str | None:
    text = next((message.content for message in messages if message.role == "user" and message.content.strip()), "")
    line = " ".join(text[: 4 * DERIVED_TITLE_CHARACTERS].replace("\0", " ").split())
    if len(line) > DERIVED_TITLE_CHARACTERS:
        line = line[: DERIVED_TITLE_CHARACTERS - 1].rstrip() + "…"
    return line or None


async def fork_thread(tx: Tx, caller: Caller, thread_id: str, data: ThreadFork, field: str = "at") -> Thread:
    """Copy a thread up to a message into a new one, with its tags and metadata. States of agents are not copied.

    Errors: `not_found`, `invalid_field`.
    """
    # Its messages are there until they are copied.
    source = await get_thread(tx, thread_id, lock="share")
    at = source.last_seq if data.at is None else data.at
    if at > source.last_seq:
        raise InvalidField(field, f"must be at most {source.last_seq}, the number of the last message.")
    fork = _build_thread(tx, caller, data.title or source.title)
    keeps_summary = source.summary is not None and source.summarized_seq <= at
    fork = msgspec.structs.replace(
        fork,
        tags=source.tags,
        metadata=source.metadata,
        last_seq=at,
        forked_from=source.id,
        forked_seq=at,
        summary=source.summary if keeps_summary else None,
        summarized_seq=source.summarized_seq if keeps_summary else 0,
    )
    await tx.threads.add(fork)
    await tx.threads.copy_messages(source.id, fork.id, at)
    return fork


async def list_open_calls_of(tx: Tx, thread: Thread) -> list[str]:
    """Return the ids of the tool calls at the end of a thread that have no result yet."""
    tail = await tx.threads.list_newest(thread.id, 0, _TAIL_TOKENS)
    return list_open_calls([stored.message for stored in tail])


async def prepare_start(tx: Tx, caller: Caller, data: ExecutionStart) -> ExecutionStart:
    """Return a start with its thread, which exists until the commit, and with messages that were checked.

    Errors: `not_found`, `thread_busy`, `invalid_field`.
    """
    if data.fork_at is not None and (data.thread_id is None or data.if_busy is not None):
        reason = (
            "copies the thread of thread_id, which must be sent as well, and waits for none of its runs: no if_busy."
        )
        raise InvalidField("fork_at", reason)
    thread: Thread | None = None
    # Before the row of the thread is locked: a run that is settled locks itself first, then its thread.
    await executions.reserve_thread(tx, data)
    if data.thread:
        if data.thread_id is not None:
            raise InvalidField("thread", "opens a new thread; leave it out to go on with thread_id.")
        thread = _build_thread(tx, caller, None)
        await tx.threads.add(thread)
    elif data.thread_id is not None:
        thread = await tx.threads.find(data.thread_id, "share")
        if thread is None:
            raise NotFound("thread", data.thread_id)
        if data.fork_at is not None:
            thread = await fork_thread(tx, caller, thread.id, ThreadFork(at=data.fork_at), "fork_at")
    if thread is not None and data.state is not None:
        raise InvalidField("state", "is for runs without a thread; in a thread, an agent has the state of the thread.")
    if data.messages is not None:
        is_result = bool(data.messages) and data.messages[0].role == "tool"
        open_calls = await list_open_calls_of(tx, thread) if thread is not None and is_result else []
        read_conversation(data.messages, open_calls=open_calls)
    return msgspec.structs.replace(data, thread=None, fork_at=None, thread_id=None if thread is None else thread.id)


async def lock_thread_for_retry(tx: Tx, thread_id: str) -> None:
    """Keep the thread of a run that is repeated until the commit. Errors: `conflict` for one that was deleted."""
    if await tx.threads.find(thread_id, "share") is None:
        raise Conflict("The thread of this execution was deleted. Start the run anew, in another thread or in none.")
