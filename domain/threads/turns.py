"""Read what a run sees of its thread, and write the turn that it adds when it is settled."""

from typing import Any, Final

import msgspec

from domain import llms
from domain.agents import Agent
from domain.executions import Execution
from domain.llms import ChatMessage, ConversationMessage, message_to_json, read_conversation, show_message
from domain.ports import Tx
from domain.shared.errors import DomainError
from domain.threads.schema import StoredMessage
from domain.threads.service import add_messages
from domain.threads.window import DEFAULT_CONTEXT_TOKENS, LOCAL_CONTEXT_TOKENS, split_units

# Tokens of a thread that one run with a summary reads at most: what comes before is lost to it.
MAX_HISTORY_TOKENS: Final = 1_000_000


class Conversation(msgspec.Struct, kw_only=True):
    """Hold what a run sees before its task: messages of its thread, and those that its start brought along.

    `last_seq` is the number of the thread's last message, None without a thread. `summary` stands for messages up to
    `summarized_seq`; it is changed where more messages are left out.
    """

    history: list[StoredMessage] = []
    sent: list[ChatMessage] = []
    last_seq: int | None = None
    summary: str | None = None
    summarized_seq: int = 0


# Reasons for which a turn is not written; then its run fails.
THREAD_ERRORS: Final = ("thread_changed", "quota_exceeded")
NO_CONVERSATION: Final = Conversation()


async def choose_context_tokens(tx: Tx, agent: Agent) -> int:
    """Return how much of a conversation a model reads whose agent does not say."""
    try:
        resolved = await llms.resolve_model(tx, agent.model or "", agent.provider)
    except DomainError as error:
        if error.code != "invalid_field":
            raise
        return DEFAULT_CONTEXT_TOKENS
    return LOCAL_CONTEXT_TOKENS if resolved.model.provider == "local" else DEFAULT_CONTEXT_TOKENS


async def load_conversation(tx: Tx, execution: Execution, max_tokens: int, has_summary: bool = False) -> Conversation:
    """Return the conversation of a run, with at most so many tokens of its thread, the newest.

    With `has_summary`, it is all that the thread's summary does not stand for. Errors: `thread_changed` if the thread
    was deleted.
    """
    conversation = Conversation(sent=read_sent_messages(execution))
    if execution.thread_id is None:
        return conversation
    thread = await tx.threads.find(execution.thread_id)
    if thread is None:
        raise DomainError("thread_changed", "The thread was deleted while this run was under way.")
    conversation.last_seq = thread.last_seq
    if has_summary:
        conversation.summary, conversation.summarized_seq = thread.summary, thread.summarized_seq
        max_tokens = MAX_HISTORY_TOKENS
    conversation.history = await tx.threads.list_newest(thread.id, conversation.summarized_seq, max_tokens)
    return conversation


def read_sent_messages(execution: Execution) -> list[ChatMessage]:
    """Return the messages that the start of a run brought along."""
    if not execution.messages:
        return []
    sent = msgspec.convert(execution.messages, list[ConversationMessage])
    # They were checked at the start; calls of the thread may have their results among them.
    results = [message.tool_call_id for message in sent if message.tool_call_id is not None]
    return read_conversation(sent, open_calls=results)


async def append_turn(tx: Tx, execution: Execution, conversation: Conversation, turn: list[ChatMessage]) -> None:
    """Write the turn of a completed run to its thread, if the thread is as the run read it. Errors: `thread_changed`.

    Of a conversation with a new summary, that is written too.
    """
    if execution.thread_id is None:
        return
    thread = await tx.threads.find(execution.thread_id, "turn")
    if thread is None or conversation.last_seq not in (None, thread.last_seq):
        change = "was deleted" if thread is None else "has other messages"
        reason = "so this run cannot be completed. Run it again."
        raise DomainError("thread_changed", f"The thread {change} since this run read it, {reason}")
    if conversation.summarized_seq > thread.summarized_seq:
        thread.summary, thread.summarized_seq = conversation.summary, conversation.summarized_seq
    await add_messages(tx, thread, turn, execution.id)


def render_messages(conversation: Conversation, max_bytes: int) -> list[dict[str, Any]]:
    """Return a conversation as JSON for code: the newest turns of it that have so many bytes together."""
    messages = [*(stored.message for stored in conversation.history), *conversation.sent]
    newest: list[dict[str, Any]] = []
    for start, end in reversed(split_units(messages, len(messages))):
        unit = [message_to_json(show_message(message)) for message in messages[start:end]]
        max_bytes -= len(msgspec.json.encode(unit))
        if max_bytes < 0:
            break
        newest = unit + newest
    return newest


def build_plain_turn(execution: Execution, output: Any) -> list[ChatMessage]:
    """Return the turn of a run without a model of its own: its task, or its payload as JSON, and its result as text."""
    payload = execution.input_data
    turn = read_sent_messages(execution)
    if payload or not turn:
        is_task = isinstance(payload, dict) and payload.keys() == {"task"} and isinstance(payload["task"], str)
        turn.append(ChatMessage(role="user", content=payload["task"] if is_task else _render_json(payload)))
    turn.append(ChatMessage(role="assistant", content=_render_result(output)))
    return turn


def _render_result(output: Any) -> str:
    if isinstance(output, dict) and len(output) == 1:
        (name, value), *_ = output.items()
        if name in ("content", "result") and isinstance(value, str):
            return value
    return output if isinstance(output, str) else _render_json(output)


def _render_json(value: Any) -> str:
    return msgspec.json.encode(value).decode()
