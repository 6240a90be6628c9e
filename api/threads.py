"""Handle threads: create, list, get, update, delete and fork them, and list and add messages."""

from typing import Annotated, Literal

from litestar import Response, Router, delete, get, patch, post
from litestar.params import Parameter

from api.idempotency import ResourceCreator
from api.operations import IDEMPOTENCY_KEY, require_scope
from api.requests import HttpRequest, Store
from domain import threads
from domain.shared.access import Caller
from domain.shared.pages import Listing, Page
from domain.threads import NewThread, PatchThread, Thread, ThreadFork, ThreadMessage, ThreadMessages

_ITEM_PATH = "/threads/{thread_id:str}"
_MESSAGES_PATH = "/threads/{thread_id:str}/messages"
_WRITE_ACCESS = require_scope("run:agents")
_CREATE_ACCESS = require_scope("run:agents", IDEMPOTENCY_KEY)
MessageOrder = Annotated[Literal["asc", "desc"], Parameter(description="By number: the oldest or the newest first.")]


@post("/threads", opt=_CREATE_ACCESS)
async def create_thread(
    creator: ResourceCreator, request: HttpRequest, caller: Caller, data: NewThread
) -> Response[Thread]:
    """Open a thread. Starts that name it as `thread_id` go on with its conversation, one after another."""
    return await creator.create_idempotently(request, caller, lambda tx: threads.create_thread(tx, caller, data))


@get("/threads", opt=require_scope("read:executions"))
async def list_threads(store: Store, caller: Caller, pagination: Page, tag: str | None = None) -> Listing[Thread]:
    """List the tenant's threads, newest first, or those with a tag."""
    async with store.transaction(caller) as tx:
        return await threads.list_threads(tx, pagination, tag)


@get(_ITEM_PATH, opt=require_scope("read:executions"))
async def get_thread(store: Store, caller: Caller, thread_id: str) -> Thread:
    """Return a thread, without its messages."""
    async with store.transaction(caller) as tx:
        return await threads.get_thread(tx, thread_id)


@patch(_ITEM_PATH, opt=_WRITE_ACCESS)
async def update_thread(store: Store, caller: Caller, thread_id: str, data: PatchThread) -> Thread:
    """Change the title, the tags or the metadata of a thread."""
    async with store.transaction(caller) as tx:
        return await threads.patch_thread(tx, thread_id, data)


@delete(_ITEM_PATH, opt=_WRITE_ACCESS)
async def delete_thread(store: Store, caller: Caller, thread_id: str) -> None:
    """Delete a thread, its messages and its states, and cancel its executions, whose records stay."""
    async with store.transaction(caller) as tx:
        await threads.delete_thread(tx, thread_id)


@get(_MESSAGES_PATH, opt=require_scope("read:executions"))
async def list_thread_messages(
    store: Store, caller: Caller, thread_id: str, pagination: Page, order: MessageOrder = "asc"
) -> Listing[ThreadMessage]:
    """List the messages of a thread by number, the oldest first."""
    async with store.transaction(caller) as tx:
        return await threads.list_messages(tx, thread_id, pagination, order == "desc")


@post(_MESSAGES_PATH, opt=_CREATE_ACCESS)
async def add_thread_messages(
    creator: ResourceCreator, request: HttpRequest, caller: Caller, thread_id: str, data: ThreadMessages
) -> Response[Thread]:
    """Add messages to a thread by hand. Refused with 409 while a run of the thread has not ended."""
    return await creator.create_idempotently(
        request, caller, lambda tx: threads.add_messages_by_hand(tx, thread_id, data)
    )


@post("/threads/{thread_id:str}/fork", opt=_CREATE_ACCESS)
async def fork_thread(
    creator: ResourceCreator, request: HttpRequest, caller: Caller, thread_id: str, data: ThreadFork | None = None
) -> Response[Thread]:
    """Copy a thread up to a message into a new one, to go on from there in another way."""
    return await creator.create_idempotently(
        request, caller, lambda tx: threads.fork_thread(tx, caller, thread_id, data or ThreadFork())
    )


router = Router(
    "/",
    route_handlers=[
        create_thread,
        list_threads,
        get_thread,
        update_thread,
        delete_thread,
        list_thread_messages,
        add_thread_messages,
        fork_thread,
    ],
    tags=["threads"],
)
