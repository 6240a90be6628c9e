"""Describe threads: conversations that agents, crews and workflows go on with, one run after another."""

from datetime import datetime
from typing import Annotated, Final, Literal, Protocol

import msgspec
from msgspec import UNSET, Meta, UnsetType

from domain.llms import ChatMessage, ConversationMessage
from domain.shared.pages import Listing, Page
from domain.shared.tags import Metadata, Tags

MAX_THREAD_MESSAGES: Final = 100_000
# Of messages that are listed at a time; each is smaller.
MAX_LISTED_BYTES: Final = 16 * 1024 * 1024
MAX_TITLE_CHARACTERS: Final = 200
# A thread without a title is called after the beginning of its first message of a user.
DERIVED_TITLE_CHARACTERS: Final = 80

ThreadTitle = Annotated[str, Meta(max_length=MAX_TITLE_CHARACTERS, pattern=r"^[^\x00]*$", examples=["A trip to Rome"])]
SentMessages = Annotated[
    list[ConversationMessage],
    Meta(
        description="Messages in the form of OpenAI's chat completions.", examples=[[{"role": "user", "content": "Hi"}]]
    ),
]

ThreadLock = bool | Literal["share", "turn"]


class Thread(msgspec.Struct, kw_only=True):
    """Show a thread. `last_seq` is the number of its last message, and how many it has.

    `summary` stands for its messages up to `summarized_seq`, where an agent with `summary` had to leave some out.
    A fork has copied the messages of `forked_from` up to `forked_seq`.
    """

    id: str
    title: str | None
    tags: list[str] = []
    metadata: dict[str, object] | None = None
    user_id: str
    tenant_id: str
    summary: str | None = None
    summarized_seq: int = 0
    last_seq: int = 0
    forked_from: str | None = None
    forked_seq: int | None = None
    created_at: datetime
    updated_at: datetime


class NewThread(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """Open a thread. Without a `title` it is called after its first message; `messages` are its beginning."""

    title: ThreadTitle | None = None
    tags: Tags = []
    metadata: Metadata | None = None
    messages: SentMessages | None = None


class PatchThread(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """Change a thread. `tags` and `metadata` replace those that it had."""

    title: ThreadTitle | None | UnsetType = UNSET
    tags: Tags | UnsetType = UNSET
    metadata: Metadata | None | UnsetType = UNSET


class ThreadMessages(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """Add messages to a thread by hand. Tool calls and their results come together."""

    messages: SentMessages


class ThreadFork(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """Copy a thread up to the message with the number `at`, by default all of it; 0 copies none."""

    at: Annotated[int, Meta(ge=0, le=MAX_THREAD_MESSAGES, examples=[0])] | None = None
    title: ThreadTitle | None = None


class ThreadMessage(ConversationMessage, kw_only=True):
    """Show a message of a thread. `seq` counts from 1; `execution_id` is the run that it belongs to.

    `tokens` is an estimate of its size. What a provider alone can read of its reasoning is kept, and not shown.
    """

    seq: int
    tokens: int
    execution_id: str | None
    created_at: datetime


class StoredMessage(msgspec.Struct, frozen=True, kw_only=True):
    """Hold a message of a thread as models read it."""

    seq: int
    message: ChatMessage
    execution_id: str | None
    tokens: int
    created_at: datetime


class Threads(Protocol):
    """Store the threads of the bound tenant."""

    async def add(self, thread: Thread) -> None: ...
    async def find(self, thread_id: str, lock: ThreadLock = False) -> Thread | None:
        """Return a thread: kept from deletion with `share`, for a new turn with `turn`, for any change with True."""
        ...

    async def list_page(self, page: Page, tag: str | None) -> Listing[Thread]: ...
    async def save(self, thread: Thread) -> None: ...
    async def delete(self, thread_id: str) -> None:
        """Delete a thread with its messages, and with the states that agents keep for it."""
        ...

    async def add_messages(
        self, thread: Thread, messages: list[ChatMessage], execution_id: str | None, now: datetime
    ) -> None:
        """Write messages behind the last one of a locked thread. `thread.last_seq` is that of before."""
        ...

    async def list_messages(self, thread_id: str, page: Page, is_descending: bool) -> list[StoredMessage]:
        """Return a page of messages by number, and one more if more follow."""
        ...

    async def measure_messages(self, thread_id: str, page: Page, is_descending: bool) -> int:
        """Return the bytes of a page of messages, without loading them."""
        ...

    async def list_newest(self, thread_id: str, after: int, max_tokens: int) -> list[StoredMessage]:
        """Return the newest messages after a number, oldest first: as many as have so many tokens, and one at least."""
        ...

    async def find_last_role(self, thread_id: str) -> str | None:
        """Return the role of a thread's last message, None for a thread without any."""
        ...

    async def find_turn_end(self, thread_id: str, execution_id: str) -> int | None:
        """Return the number of the last message that a run added to a thread, None if it added none."""
        ...

    async def copy_messages(self, thread_id: str, fork_id: str, at: int) -> None: ...
    async def list_open_runs(self, thread_id: str, with_delayed: bool = True) -> list[str]:
        """Return the ids of the thread's executions that have not ended, oldest first."""
        ...

    async def delete_unused(self, before: datetime, limit: int) -> int:
        """Delete threads without open runs that were not changed since then, and return how many."""
        ...
