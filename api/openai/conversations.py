"""Handle OpenAI's conversations: each is a thread, with the thread's id."""

import functools
from typing import Any, Final

import msgspec
from litestar import Response, delete, get, post

from api.bodies import run_off_loop
from api.idempotency import ResourceCreator
from api.openai.seal import NO_SEAL
from api.operations import require_scope
from api.requests import HttpRequest, Store
from domain import threads
from domain.llms import ChatMessage, show_message
from domain.ports import Tx
from domain.shared.access import Caller
from domain.threads import NewThread, PatchThread, Thread
from infra.wires.common import WireRefusal, convert_fields, decode_body
from infra.wires.responses_wire import InputReader

RUN_ACCESS: Final = require_scope("run:agents")
READ_ACCESS: Final = require_scope("read:executions")
_ITEM_PATH: Final = "/conversations/{conversation_id:str}"


class ConversationBody(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """Hold the body of a new or changed conversation."""

    items: list[Any] = []
    metadata: dict[str, Any] | None = None


@post("/conversations", opt=RUN_ACCESS, status_code=200)
async def create_conversation(creator: ResourceCreator, request: HttpRequest, caller: Caller) -> Response[Any]:
    """Open a conversation, which may begin with items."""
    body = await _read_body(request)
    messages = InputReader(NO_SEAL, ()).read_input(body.items) if body.items else ()
    new_thread = NewThread(metadata=body.metadata, messages=_show_messages(messages))

    async def create(tx: Tx) -> dict[str, Any]:
        return render_conversation(await threads.create_thread(tx, caller, new_thread))

    answer = await creator.create_idempotently(request, caller, create)
    return Response(answer.content, headers=answer.headers, status_code=200)


@get(_ITEM_PATH, opt=READ_ACCESS)
async def get_conversation(store: Store, caller: Caller, conversation_id: str) -> dict[str, Any]:
    """Return a conversation."""
    async with store.transaction(caller) as tx:
        return render_conversation(await threads.get_thread(tx, conversation_id))


@post(_ITEM_PATH, opt=RUN_ACCESS, status_code=200)
async def update_conversation(
    store: Store, request: HttpRequest, caller: Caller, conversation_id: str
) -> dict[str, Any]:
    """Change the metadata of a conversation."""
    body = await _read_body(request)
    if body.items:
        raise WireRefusal(400, "`items` are for a new conversation.", param="items")
    async with store.transaction(caller) as tx:
        return render_conversation(await threads.patch_thread(tx, conversation_id, PatchThread(metadata=body.metadata)))


@delete(_ITEM_PATH, opt=RUN_ACCESS, status_code=200)
async def delete_conversation(store: Store, caller: Caller, conversation_id: str) -> dict[str, Any]:
    """Delete a conversation with its messages."""
    async with store.transaction(caller) as tx:
        await threads.delete_thread(tx, conversation_id)
    return {"id": conversation_id, "object": "conversation.deleted", "deleted": True}


def render_conversation(thread: Thread) -> dict[str, Any]:
    """Return a thread as a conversation."""
    created_at = int(thread.created_at.timestamp())
    return {"id": thread.id, "object": "conversation", "created_at": created_at, "metadata": thread.metadata or {}}


async def _read_body(request: HttpRequest) -> ConversationBody:
    body = await request.body()
    fields = await run_off_loop(len(body), functools.partial(decode_body, body or b"{}"))
    return convert_fields(fields, ConversationBody)


def _show_messages(messages: tuple[ChatMessage, ...]) -> Any:
    return [show_message(message) for message in messages] or None
