"""Read what a request of OpenAI's clients says of its run: in fields of our own, and in headers."""

from typing import Any, Final

import msgspec

from api.openai.starts import AnswerSettings, find_previous_run
from api.requests import HttpRequest
from domain import ports, threads
from domain.executions import ExecutionMode
from domain.llms import ChatMessage
from domain.shared.access import Caller
from infra.wires.common import WireRefusal

THREAD_HEADER: Final = "x-paddock-thread"
MAX_ID_CHARACTERS: Final = 256
_OWN_FIELDS: Final = ("thread_id", "thread", "mode")


class _OwnFields(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """Hold the fields that are ours, which clients send as `extra_body`."""

    thread_id: str | None = None
    thread: bool | None = None
    mode: ExecutionMode | None = None


def read_settings(fields: dict[str, Any], request: HttpRequest) -> AnswerSettings:
    """Take our own fields out of a body and return them. Errors: `WireRefusal`."""
    own = {name: fields.pop(name) for name in _OWN_FIELDS if name in fields}
    header = request.headers.get(THREAD_HEADER)
    if header is not None and own.setdefault("thread_id", header) != header:
        message = f"The header {THREAD_HEADER} names another thread than `thread_id`: send one of them."
        raise WireRefusal(400, message, param="thread_id")
    try:
        settings = msgspec.convert(own, _OwnFields)
    except msgspec.ValidationError as error:
        field = next(name for name in own if f"$.{name}" in str(error))
        raise WireRefusal(400, f"`{field}`: {error}.", param=field) from None
    metadata = fields.get("metadata")
    if metadata is not None and not isinstance(metadata, dict):
        raise WireRefusal(400, "`metadata` must be an object.", param="metadata")
    return AnswerSettings(
        thread_id=settings.thread_id, thread=settings.thread, mode=settings.mode, metadata=metadata or None
    )


async def load_earlier(store: ports.Store, caller: Caller, settings: AnswerSettings) -> tuple[ChatMessage, ...]:
    """Return the last messages before those of a request, whose tool calls it may answer. Errors: `not_found`."""
    if settings.thread_id is None and settings.previous_id is None:
        return ()
    async with store.transaction(caller) as tx:
        if settings.previous_id is None:
            return await threads.list_last_messages(tx, settings.thread_id or "")
        previous = await find_previous_run(tx, settings.previous_id)
        return tuple(stored.message for stored in await threads.list_messages_until(tx, previous))
