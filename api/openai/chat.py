"""Handle OpenAI's list of models and its chat completions: a model is an agent, a crew or a workflow of the tenant."""

import functools
from typing import Any, Final

from litestar import Response, get, post
from litestar.response import Stream

from api.bodies import run_off_loop
from api.openai.attachments import take_attachments
from api.openai.sender import AnswerSender
from api.openai.settings import load_earlier, read_settings
from api.openai.starts import AnswerTask, find_target
from api.operations import require_scope
from api.requests import HttpRequest, Store
from domain.executions import Execution
from domain.shared.access import Caller
from domain.targets import RunTarget, list_targets
from infra.wires.common import decode_body
from infra.wires.openai_wire import ChatWire, CompletionRenderer, CompletionRequest, parse_fields

RUN_ACCESS: Final = require_scope("run:agents")
_FIELD_NAMES: Final = {**ChatWire.option_fields, "schema": "response_format"}


@get("/models", opt=RUN_ACCESS)
async def list_answering_models(store: Store, caller: Caller) -> dict[str, Any]:
    """List what can be named as a model."""
    async with store.transaction(caller) as tx:
        targets = await list_targets(tx)
    return {"object": "list", "data": [render_model(target) for target in targets]}


@get("/models/{model_id:path}", opt=RUN_ACCESS)
async def get_answering_model(store: Store, caller: Caller, model_id: str) -> dict[str, Any]:
    """Return one of them."""
    async with store.transaction(caller) as tx:
        return render_model(await find_target(tx, model_id.removeprefix("/")))


@post("/chat/completions", opt=RUN_ACCESS, status_code=200)
async def complete_chat(
    answer_sender: AnswerSender, store: Store, request: HttpRequest, caller: Caller
) -> Response[Any] | Stream:
    """Answer a conversation."""
    body = await request.body()
    fields = await run_off_loop(len(body), functools.partial(decode_body, body))
    settings, attachments = read_settings(fields, request), take_attachments(fields, "messages")
    earlier = await load_earlier(store, caller, settings)
    chat = await run_off_loop(len(body), functools.partial(parse_fields, fields, earlier))
    task = AnswerTask(
        request=chat,
        settings=settings,
        attachments=attachments,
        field_names=_FIELD_NAMES,
        messages_field="messages",
    )
    return await answer_sender.answer_request(request, caller, task, functools.partial(_create_renderer, chat))


def _create_renderer(chat: CompletionRequest, execution: Execution) -> CompletionRenderer:
    return CompletionRenderer(chat, execution.id.removeprefix("exec_"))


def render_model(target: RunTarget) -> dict[str, Any]:
    """Return a target as an entry of the list of models. Agents have their plain names."""
    return {
        "id": target.name if target.kind == "agent" else target.reference,
        "object": "model",
        "created": int(target.created_at.timestamp()),
        "owned_by": target.tenant_id,
        "description": target.description,
    }
