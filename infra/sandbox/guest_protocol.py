"""What is said to a guest, and what its answer and its ending mean. Both ways of making sandboxes share it."""

import signal
from typing import Any, Final

import msgspec

from domain.executions import agent_error_type
from domain.ports import Outcome, Program, SandboxLost
from domain.shared.errors import DomainError
from domain.shared.json_limits import JsonTooLarge, check_json
from infra.sandbox.exit_report import Ending
from infra.sandbox.fence import Fence
from infra.sandbox.watchdog import MAX_FILES, MAX_SESSIONS, Watch

RESULT_BYTES: Final = 1024 * 1024
# An answer is a result and a line before it.
ANSWER_BYTES: Final = RESULT_BYTES + 64 * 1024
# What an answer says of an error is the agent's to write, whole megabytes of it: in characters.
MAX_MESSAGE: Final = 4000
MAX_STACK: Final = 16_000
PROCESSES: Final = 64
CHECK_SECONDS: Final = 30.0
CANNOT_ISOLATE: Final = "This host cannot isolate code:"


class _Head(msgspec.Struct, kw_only=True):
    """The first line of a guest's answer. Only its shape is believed."""

    error_type: str | None = None
    error_message: str | None = None
    stack: str | None = None
    problem: str | None = None
    size: int | None = None


# What the watch ends a tree for besides its memory.
_STOPPED: Final = {
    "too_many_files": f"The agent made more than {MAX_FILES} files.",
    "too_many_sessions": f"The agent's processes made {{amount}} sessions; {MAX_SESSIONS} at a time are allowed.",
    "not_measurable": "What the agent's processes hold could not be measured, so they were ended: {amount}.",
}


def frame(data: bytes) -> bytes:
    """As the guest reads it: its length in four bytes, then the bytes."""
    return len(data).to_bytes(4, "big") + data


def head(program: Program, mode: str, fence: Fence, **more: Any) -> bytes:
    """The frame that tells a guest what to import, whether to `check` or `run` it, and within which limits."""
    told = {
        "mode": mode,
        "entrypoint": program.entrypoint,
        "path": ["/agent", *(["/environment"] if program.environment is not None else [])],
        "most": RESULT_BYTES,
        "limits": _limits(program.memory_mb) if fence.has("limits") else {},
    }
    return frame(msgspec.json.encode({**told, **more}))


def watch(memory_mb: int, fence: Fence, sockets: bool = False, *, sessions: bool = False) -> Watch | None:
    """Return what watches a tree with this much memory, in MiB.

    `sockets` says whether the tree may have some, `sessions` whether its sessions are bounded, as they are where no
    control group shares the processors.
    """
    most = MAX_SESSIONS if sessions and fence.has("cpu") else None
    return Watch(memory_mb, MAX_FILES, sockets, max_sessions=most) if fence.has("watch") else None


def unavailable(reason: str) -> DomainError:
    """The error for a host that cannot isolate code."""
    return DomainError("sandbox_unavailable", f"{CANNOT_ISOLATE} {reason}")


def _limits(memory_mb: int) -> dict[str, int]:
    return {
        "NPROC": PROCESSES,
        "DATA": memory_mb << 20,
        "AS": (4 * memory_mb + 4096) << 20,
        "FSIZE": 256 << 20,
        "NOFILE": 256,
        "CORE": 0,
        "MEMLOCK": 64 << 10,
        "MSGQUEUE": 0,
    }


def outcome(ending: Ending, timeout: float, memory_mb: int) -> Outcome:
    """What an ending means. `timeout` in seconds and `memory_mb` in MiB are those the tree had."""
    if ending.killed_for is not None:
        kind, _, amount = ending.killed_for.partition(":")
        if kind == "out_of_memory":
            return Outcome(
                error_type=kind,
                error_message=f"The agent used all of its {memory_mb} MiB ({amount} MiB seen).",
            )
        return Outcome(error_type=kind, error_message=_STOPPED[kind].format(amount=amount))
    if ending.timed_out:
        return Outcome(error_type="timeout", error_message=f"The agent took longer than {timeout:g} s.")
    if ending.overflow:
        return Outcome(
            error_type="result_too_large", error_message=f"The result is larger than {RESULT_BYTES} bytes of JSON."
        )
    line, _, body = ending.answer.partition(b"\n")
    try:
        head = msgspec.json.decode(line, type=_Head)
    except (msgspec.MsgspecError, RecursionError):
        return crash(ending)
    if head.error_type is not None:
        stack = None if head.stack is None else head.stack[-MAX_STACK:]
        if head.error_type == "MemoryError":
            message = f"The agent needed more than its {memory_mb} MiB of memory."
            return Outcome(error_type="out_of_memory", error_message=message, stack=stack)
        kind = agent_error_type(head.error_type)
        return Outcome(error_type=kind, error_message=(head.error_message or kind)[:MAX_MESSAGE], stack=stack)
    if len(body) > RESULT_BYTES:
        size = max(head.size or 0, len(body))
        message = f"The result is {size} bytes of JSON; {RESULT_BYTES} are allowed."
        return Outcome(error_type="result_too_large", error_message=message)
    try:
        check_json(body)
    except JsonTooLarge as error:
        return Outcome(error_type="result_not_json", error_message=f"The result {error.reason}")
    try:
        msgspec.json.decode(body)
    except RecursionError:
        # How deep a result may be is the domain's rule; this one cannot even be looked at.
        return Outcome(error_type="result_not_json", error_message="The result nests too deep to be read.")
    except (msgspec.MsgspecError, UnicodeDecodeError):
        message = (head.problem or "The result is not JSON.")[:MAX_MESSAGE]
        return Outcome(error_type="result_not_json", error_message=message)
    return Outcome(output=body)


def crash(ending: Ending) -> Outcome:
    """What an ending without an answer means. Errors: `SandboxLost`."""
    if ending.lost is not None:
        raise SandboxLost(ending.lost)
    status = ending.status or 0
    # bubblewrap tells of a signal by a status past 128, and an agent may end with such a status by itself.
    number = status - 128 if status > 128 else -status
    if status == 128 + signal.SIGKILL:
        message = f"The agent's process ended with status {status}: killed, as by a host without memory, or by itself."
        return Outcome(error_type="crashed", error_message=message)
    if number == signal.SIGKILL:
        return Outcome(
            error_type="out_of_memory",
            error_message="The agent's process was killed from outside; most likely the host ran out of memory.",
        )
    if 0 < number < 65 and number in {item.value for item in signal.Signals}:
        return Outcome(
            error_type="crashed", error_message=f"The agent's process crashed: {signal.Signals(number).name}."
        )
    return Outcome(
        error_type="crashed",
        error_message=f"The agent ended its process (status {status}) before it returned a result.",
    )
