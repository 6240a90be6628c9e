"""Turn a request for an answer into the start of an agent, a crew or a workflow."""

from typing import Any, Final

import msgspec

from api.openai.attachments import FileAttachment, StoredAttachments
from domain import crews, executions, files, launch, threads, workflows
from domain.executions import AnswerStart, Execution, ExecutionMode
from domain.llms import ChatMessage, MessageImage, ModelOptions, ToolSpec, show_message
from domain.ports import Tx
from domain.shared.access import Caller
from domain.shared.errors import NotFound
from domain.targets import RunTarget, resolve_target
from infra.wires.common import AnswerRequest, WireRefusal

MAX_TASK_CHARACTERS: Final = 100_000
# Options that do nothing for code, and that many clients send: with any value, or with the one that asks for nothing.
_IGNORED_OPTIONS: Final = frozenset({"temperature"})
_NEUTRAL_OPTIONS: Final[dict[str, Any]] = {
    "top_p": 1.0,
    "presence_penalty": 0.0,
    "frequency_penalty": 0.0,
    "parallel_tool_calls": True,
    "tool_choice": "auto",
    "must_apply": False,
}


class AnswerSettings(msgspec.Struct, frozen=True, kw_only=True):
    """Hold what a request says about its run beside what it asks.

    `previous_id` is the execution that it goes on from: in a thread, or without one if it is not `is_stored`.
    """

    thread_id: str | None = None
    thread: bool | None = None
    mode: ExecutionMode | None = None
    metadata: dict[str, Any] | None = None
    instructions: str | None = None
    previous_id: str | None = None
    is_stored: bool = True
    is_background: bool = False


class AnswerTask(msgspec.Struct, frozen=True, kw_only=True):
    """Hold a parsed request. Its `attachments` become `stored` before it starts a run.

    `field_names` has the request's names of options that it calls otherwise.
    """

    request: AnswerRequest
    settings: AnswerSettings
    attachments: list[FileAttachment] = []
    stored: StoredAttachments = StoredAttachments()
    field_names: dict[str, str]
    messages_field: str


async def start_answer(tx: Tx, caller: Caller, task: AnswerTask) -> Execution:
    """Start what a request names as its model. Errors: `WireRefusal`, and those of starting it."""
    target = await find_target(tx, task.request.model)
    if task.settings.previous_id is not None:
        task = await _follow_run(tx, caller, target, task)
    start = _build_model_start(task) if target.uses_model else await _build_plain_start(tx, caller, target, task)
    start = msgspec.structs.replace(start, **{f"{target.kind}_id": target.id})
    for upload in task.stored.uploads:
        await files.add_file(tx, caller, upload, task.stored.quota)
    execution = await launch.start_target(tx, caller, start)
    if task.stored.files and execution.lane == "llm":
        spec = await tx.executions.get_spec(execution.id)
        if spec is None or not spec.tools:
            message = f"{target.name!r} has no tools, and could not read the files: send their text."
            raise WireRefusal(400, message, param=task.messages_field)
    return execution


async def find_target(tx: Tx, name: str) -> RunTarget:
    """Return what a name of a model means. Errors: `WireRefusal`, `conflict`."""
    try:
        return await resolve_target(tx, name)
    except NotFound as error:
        message = f"{error.detail} `model` names an agent, a crew or a workflow: GET /v1/models lists them."
        raise WireRefusal(404, message, "model_not_found", "model") from None


async def _follow_run(tx: Tx, caller: Caller, target: RunTarget, task: AnswerTask) -> AnswerTask:
    """Return a task that goes on from an earlier run. Errors: `WireRefusal`, `conflict`."""
    settings, request = task.settings, task.request
    previous = await find_previous_run(tx, settings.previous_id or "")
    if target.id not in (previous.agent_id, previous.crew_id, previous.workflow_id):
        raise refuse_previous(f"is an answer of another model than {request.model!r}")
    if settings.is_stored:
        thread_id = await threads.choose_thread_after(tx, caller, previous)
        return msgspec.structs.replace(task, settings=msgspec.structs.replace(settings, thread_id=thread_id))
    earlier = tuple(stored.message for stored in await threads.list_messages_until(tx, previous))
    return msgspec.structs.replace(
        task, request=msgspec.structs.replace(request, messages=(*earlier, *request.messages))
    )


async def find_previous_run(tx: Tx, execution_id: str) -> Execution:
    """Return the run that a request goes on from. Errors: `WireRefusal` if it cannot."""
    try:
        previous = await executions.get_execution(tx, execution_id)
    except NotFound:
        raise refuse_previous("is unknown") from None
    if previous.status != "completed" or previous.thread_id is None:
        reason = "was not stored" if previous.status == "completed" else f"is {previous.status}, not completed"
        raise refuse_previous(reason)
    return previous


def refuse_previous(problem: str) -> WireRefusal:
    """Return the refusal of a `previous_response_id`."""
    message = f"`previous_response_id` {problem}."
    return WireRefusal(400, message, "previous_response_not_found", "previous_response_id")


def _build_model_start(task: AnswerTask) -> AnswerStart:
    request, choice = task.request, task.request.options
    tools, allowed = request.tools, choice.allowed_tools
    if choice.tool_choice == "none":
        tools = ()
    elif choice.tool_choice == "auto" and allowed is not None:
        tools = tuple(tool for tool in tools if tool.name in allowed)
    is_required = choice.tool_choice == "required"
    options = msgspec.structs.replace(
        choice,
        tool_choice="required" if is_required else "auto",
        # The agent has tools of its own, which a caller cannot ask for.
        allowed_tools=(allowed or tuple(tool.name for tool in tools)) if is_required else None,
        must_apply=True,
    )
    return msgspec.structs.replace(
        _add_conversation(_begin_start(task), request.messages, task), options=options, client_tools=tools
    )


async def _build_plain_start(tx: Tx, caller: Caller, target: RunTarget, task: AnswerTask) -> AnswerStart:
    """Build the start of what has no single model. Errors: `WireRefusal` for what would have no effect."""
    _refuse_options(target, task)
    messages = task.request.messages
    for place, message in enumerate(messages):
        if any(isinstance(part, MessageImage) for part in message.parts):
            field = f"{task.messages_field}[{place}].content"
            raise WireRefusal(400, f"`{field}`: images are for model agents; upload a file instead.", param=field)
    last = messages[-1] if messages else None
    if last is None or last.role != "user":
        raise WireRefusal(400, "The last message must be of the role user.", param=task.messages_field)
    if target.kind == "agent":
        return _add_conversation(_begin_start(task), messages, task)
    payload = await _build_plan_payload(tx, caller, target, _check_task(last.content, task))
    return msgspec.structs.replace(_begin_start(task), payload=payload)


def _begin_start(task: AnswerTask) -> AnswerStart:
    settings = task.settings
    return AnswerStart(
        thread_id=settings.thread_id,
        thread=settings.thread,
        mode=settings.mode,
        metadata=settings.metadata,
        files=task.stored.files or None,
        instructions=settings.instructions,
    )


def _add_conversation(start: AnswerStart, messages: tuple[ChatMessage, ...], task: AnswerTask) -> AnswerStart:
    """Add the messages of a request: a text of the user that comes last is the task, and the others come before it."""
    last = messages[-1]
    if last.role == "user" and not last.parts and last.content and len(last.content) <= MAX_TASK_CHARACTERS:
        start, messages = msgspec.structs.replace(start, task=last.content), messages[:-1]
    sent = [show_message(message) for message in messages]
    return msgspec.structs.replace(start, messages=sent or None)


def _check_task(text: str, task: AnswerTask) -> str:
    if len(text) > MAX_TASK_CHARACTERS:
        message = f"The last message must be at most {MAX_TASK_CHARACTERS} characters."
        raise WireRefusal(400, message, param=task.messages_field)
    return text


async def _build_plan_payload(tx: Tx, caller: Caller, target: RunTarget, text: str) -> dict[str, Any]:
    """Return the inputs of a crew or a workflow: an object of JSON as it is, a text as its only input or its task."""
    if (fields := _read_object(text)) is not None:
        return fields
    if target.kind == "workflow":
        names = list((await workflows.get_workflow(tx, target.id)).inputs or ())
    else:
        crew = await crews.get_crew(tx, target.id)
        names = crews.list_plan_inputs(await crews.compile_crew(tx, caller, crew, None))
    return {names[0] if len(names) == 1 else "task": text}


def _read_object(text: str) -> dict[str, Any] | None:
    if not text.lstrip().startswith("{"):
        return None
    try:
        fields = msgspec.json.decode(text)
    except (msgspec.DecodeError, RecursionError):
        return None
    return fields if isinstance(fields, dict) else None


def _refuse_options(target: RunTarget, task: AnswerTask) -> None:
    """Refuse options that only a model agent can apply. Errors: `WireRefusal` names the field."""
    tools: tuple[ToolSpec, ...] = task.request.tools
    if tools:
        raise _refuse_option(target, "tools")
    usual = ModelOptions()
    for name in ModelOptions.__struct_fields__:
        value = getattr(task.request.options, name)
        if name in _IGNORED_OPTIONS or value in (getattr(usual, name), _NEUTRAL_OPTIONS.get(name)):
            continue
        raise _refuse_option(target, task.field_names.get(name, name))
    if task.settings.instructions:
        raise _refuse_option(target, "instructions")


def _refuse_option(target: RunTarget, field: str) -> WireRefusal:
    subject = f"{target.name!r} runs uploaded code" if target.kind == "agent" else f"{target.name!r} is a {target.kind}"
    return WireRefusal(400, f"`{field}` is for model agents, and {subject}: leave it out.", "unsupported_option", field)
