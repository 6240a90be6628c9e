"""Handle OpenAI's responses: each is a run, and those that follow each other are a thread."""

import functools
from typing import Any, Final

import msgspec
from litestar import Response, delete, get, post
from litestar.response import Stream

from api.bodies import run_off_loop
from api.openai.attachments import take_attachments
from api.openai.seal import NO_SEAL
from api.openai.sender import AnswerSender, name_run
from api.openai.settings import MAX_ID_CHARACTERS, load_earlier, read_settings
from api.openai.starts import AnswerSettings, AnswerTask
from api.openai_errors import refuse_ended_run
from api.operations import require_scope
from api.requests import HttpRequest, Store
from domain import executions
from domain.agents import AgentSpec
from domain.executions import Execution
from domain.llms import ModelOptions
from domain.ports import Tx
from domain.shared.access import Caller
from domain.shared.errors import NotFound
from infra.wires.common import WireRefusal, decode_body
from infra.wires.responses_wire import (
    RequestParser,
    ResponseLog,
    ResponseRenderer,
    ResponseRequest,
    ResponsesWire,
)

RUN_ACCESS: Final = require_scope("run:agents")
READ_ACCESS: Final = require_scope("read:executions")
_ITEM_PATH: Final = "/responses/{response_id:str}"
_RESPONSE_PREFIX: Final = "resp_"
_FIELD_NAMES: Final = {**ResponsesWire.option_fields, "schema": "text.format", "max_tokens": "max_output_tokens"}
_OPEN_STATUSES: Final = {"pending": "queued", "cancelled": "cancelled"}


@post("/responses", opt=RUN_ACCESS, status_code=200)
async def create_response(
    answer_sender: AnswerSender, store: Store, request: HttpRequest, caller: Caller
) -> Response[Any] | Stream:
    """Answer an input, in a thread unless it is not to be stored."""
    body = await request.body()
    fields = await run_off_loop(len(body), functools.partial(decode_body, body))
    settings, attachments = read_response_settings(fields, request), take_attachments(fields, "input")
    earlier = await load_earlier(store, caller, settings)
    parser = RequestParser(NO_SEAL, ResponseLog())
    asked = await run_off_loop(len(body), functools.partial(parser.parse_fields, fields, len(body), earlier))
    asked = _complete_request(asked, settings)
    task = AnswerTask(
        request=asked, settings=settings, attachments=attachments, field_names=_FIELD_NAMES, messages_field="input"
    )
    create_renderer = functools.partial(_create_renderer, asked)
    if settings.is_background and not asked.stream:
        execution = await answer_sender.start_run(request, caller, task)
        renderer = create_renderer(execution)
        return Response(renderer.render_open("queued"), headers=name_run(execution), status_code=200)
    return await answer_sender.answer_request(request, caller, task, create_renderer)


@get(_ITEM_PATH, opt=READ_ACCESS)
async def get_response(
    answer_sender: AnswerSender, store: Store, request: HttpRequest, caller: Caller, response_id: str
) -> Response[Any] | Stream:
    """Return a response in its present state; with `stream=true`, as the stream of its events."""
    async with store.transaction(caller) as tx:
        execution, asked = await _load_request(tx, response_id)
    create_renderer = functools.partial(_create_renderer, asked)
    if request.query_params.get("stream", "").lower() == "true":
        return await answer_sender.stream_run(request, caller, execution, create_renderer)
    headers = {**name_run(execution), "x-paddock-cost": f"{execution.total_cost:.8f}"}
    if execution.status == "completed":
        return Response(await answer_sender.render_run(request, caller, execution, create_renderer), headers=headers)
    return Response(_render_incomplete(create_renderer(execution), execution), headers=headers)


@post(f"{_ITEM_PATH}/cancel", opt=RUN_ACCESS, status_code=200)
async def cancel_response(store: Store, caller: Caller, response_id: str) -> Response[Any]:
    """Cancel the run of a response."""
    async with store.transaction(caller) as tx:
        execution, asked = await _load_request(tx, response_id)
        execution = await executions.cancel_execution(tx, execution.id)
    return Response(_render_incomplete(_create_renderer(asked, execution), execution), headers=name_run(execution))


@delete(_ITEM_PATH, opt=require_scope("write:executions"), status_code=200)
async def delete_response(store: Store, caller: Caller, response_id: str) -> dict[str, Any]:
    """Delete a response: its run with all it left. What its thread holds stays."""
    async with store.transaction(caller) as tx:
        execution, _ = await _load_request(tx, response_id)
        await executions.delete_execution(tx, execution.id)
    return {"id": response_id, "object": "response", "deleted": True}


def read_response_settings(fields: dict[str, Any], request: HttpRequest) -> AnswerSettings:
    """Take what a request says of its run and its thread out of a body. Errors: `WireRefusal`."""
    settings = read_settings(fields, request)
    is_stored, is_background = (
        _read_flag(fields, name, usual) for name, usual in (("store", True), ("background", False))
    )
    conversation = fields.pop("conversation", None)
    previous = fields.get("previous_response_id")
    thread_id = settings.thread_id
    if conversation is not None:
        thread_id = conversation.get("id") if isinstance(conversation, dict) else conversation
        if not isinstance(thread_id, str):
            raise WireRefusal(400, "`conversation` must be an id, or {id}.", param="conversation")
    if previous is not None and (not isinstance(previous, str) or len(previous) > MAX_ID_CHARACTERS):
        raise WireRefusal(400, "`previous_response_id` must be an id.", param="previous_response_id")
    if previous is not None and thread_id is not None:
        message = "`previous_response_id` names a conversation by its end: leave out the other id."
        raise WireRefusal(400, message, param="previous_response_id")
    if is_background and not is_stored:
        raise WireRefusal(400, "A response in the background must be stored.", param="background")
    if thread_id is not None and not is_stored:
        raise WireRefusal(400, "A conversation stores what is said in it: leave `store` out.", param="store")
    instructions = fields.get("instructions")
    return msgspec.structs.replace(
        settings,
        thread_id=thread_id,
        thread=True if is_stored and thread_id is None and previous is None else None,
        instructions=instructions if isinstance(instructions, str) and instructions else None,
        previous_id=None if previous is None else decode_response_id(previous),
        is_stored=is_stored,
        is_background=is_background,
    )


def _read_flag(fields: dict[str, Any], name: str, usual: bool) -> bool:
    flag = fields.get(name, usual)
    if not isinstance(flag, bool):
        raise WireRefusal(400, f"`{name}` must be true or false.", param=name)
    if name == "background":
        fields.pop(name, None)
    return flag


def decode_response_id(response_id: str) -> str:
    """Return the id of the execution that a response is."""
    return f"exec_{response_id.removeprefix(_RESPONSE_PREFIX)}" if response_id.startswith(_RESPONSE_PREFIX) else ""


def _complete_request(asked: ResponseRequest, settings: AnswerSettings) -> ResponseRequest:
    """Return a request with the messages of its input alone: instructions and earlier ones are in its settings."""
    echo = {**asked.echo, "background": settings.is_background}
    return msgspec.structs.replace(asked, messages=asked.new_messages, echo=echo)


def _create_renderer(asked: ResponseRequest, execution: Execution) -> ResponseRenderer:
    conversation = None if execution.thread_id is None else {"id": execution.thread_id}
    asked = msgspec.structs.replace(asked, echo={**asked.echo, "conversation": conversation})
    created_at = int(execution.created_at.timestamp())
    return ResponseRenderer(asked, NO_SEAL, ResponseLog(), execution.id.removeprefix("exec_"), created_at)


def _render_incomplete(renderer: ResponseRenderer, execution: Execution) -> dict[str, Any]:
    """Return the response of a run that is not completed."""
    if execution.status == "failed":
        return renderer.render_failed(refuse_ended_run(execution))
    return renderer.render_open(_OPEN_STATUSES.get(execution.status, "in_progress"))


async def _load_request(tx: Tx, response_id: str) -> tuple[Execution, ResponseRequest]:
    """Return the run of a response that was stored, and what its request asked for. Errors: `WireRefusal`."""
    try:
        execution = await executions.get_execution(tx, decode_response_id(response_id))
    except NotFound:
        raise _refuse_response(response_id) from None
    if execution.thread_id is None:
        raise _refuse_response(response_id)
    spec = await tx.executions.get_spec(execution.id)
    return execution, _rebuild_request(execution, spec)


def _refuse_response(response_id: str) -> WireRefusal:
    message = f"There is no response {response_id[:MAX_ID_CHARACTERS]!r}, or it was not stored."
    return WireRefusal(404, message, "not_found", "response_id")


def _rebuild_request(execution: Execution, spec: AgentSpec | None) -> ResponseRequest:
    """Return what a response repeats of its request, as far as its run has kept it."""
    options = ModelOptions() if spec is None or spec.options is None else spec.options
    tools = [] if spec is None else spec.client_tools
    echo = {
        "background": False,
        "instructions": None if spec is None else spec.caller_instructions,
        "max_output_tokens": options.max_tokens,
        "metadata": execution.metadata or {},
        "model": execution.agent_name or execution.crew_id or execution.workflow_id,
        "parallel_tool_calls": options.parallel_tool_calls is not False,
        "previous_response_id": None,
        "reasoning": {"effort": None if options.thinking is None else options.thinking.effort, "summary": None},
        "store": True,
        "temperature": options.temperature,
        "text": {"format": {"type": "text"}},
        "tool_choice": options.tool_choice,
        "tools": [
            {"type": "function", "strict": False, **{name: getattr(tool, name) for name in _TOOL_FIELDS}}
            for tool in tools
        ],
        "top_p": options.top_p,
        "truncation": "disabled",
    }
    return ResponseRequest(
        model=str(echo["model"]),
        messages=(),
        tools=tuple(tools),
        options=options,
        stream=True,
        echo=echo,
        new_messages=(),
        size=0,
        previous_response_id=None,
        is_stored=False,
    )


_TOOL_FIELDS: Final = ("name", "description", "parameters")
