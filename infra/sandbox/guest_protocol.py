"""Encode what a guest is sent, and interpret its answer and its exit. Both backends share this."""

import signal
from typing import Any, Final, Literal

import msgspec

from domain.executions import error_type_from_exception
from domain.ports import OutputStream, SandboxLost, SandboxOutcome, SandboxProgram
from domain.shared.errors import DomainError
from domain.shared.json_limits import JsonTooLarge, check_json
from infra.sandbox.exit_report import ExitReport
from infra.sandbox.fence import Fence
from infra.sandbox.program_network import build_network_variables
from infra.sandbox.watchdog import MAX_FILES, MAX_SESSIONS, ResourceWatchdog

MAX_RESULT_BYTES: Final = 1024 * 1024
# An answer is a header line and a result.
MAX_ANSWER_BYTES: Final = MAX_RESULT_BYTES + 64 * 1024
# The agent writes the error in an answer, whole megabytes if it likes.
MAX_MESSAGE_CHARS: Final = 4000
MAX_STACK_CHARS: Final = 16_000
MAX_PROCESSES: Final = 64
CHECK_TIMEOUT_SECONDS: Final = 30.0
CANNOT_ISOLATE_PREFIX: Final = "This host cannot isolate code:"


# Besides its result, an agent may send outputs and leave a state, and its payload may not fit its type.
_ProblemType = Literal["input_invalid", "output_not_json", "output_too_large", "state_not_json", "state_too_large"]


class _AnswerHeader(msgspec.Struct, kw_only=True):
    """Describe the first line of a guest's answer. Only its shape is trusted."""

    error_type: str | None = None
    error_message: str | None = None
    stack: str | None = None
    problem: str | None = None
    problem_type: _ProblemType | None = None
    size: int | None = None


# Reasons besides memory for which the watchdog ends a tree.
_KILL_MESSAGES: Final = {
    "too_many_files": f"The agent made more than {MAX_FILES} files.",
    "too_many_sessions": f"The agent's processes made {{amount}} sessions; {MAX_SESSIONS} at a time are allowed.",
    "not_measurable": "What the agent's processes hold could not be measured, so they were ended: {amount}.",
}


def encode_frame(data: bytes) -> bytes:
    """Return data as the guest reads it: its length in four bytes, then the bytes."""
    return len(data).to_bytes(4, "big") + data


def encode_request(payload: bytes, context: bytes) -> bytes:
    """Return a payload and its context, each JSON, as the guest reads them."""
    return encode_frame(payload) + encode_frame(context)


def encode_head(program: SandboxProgram, mode: str, fence: Fence, **more: Any) -> bytes:
    """Return the frame that names what to import, whether to `check` or `run` it, and the limits."""
    fields = {
        "mode": mode,
        "entrypoint": program.entrypoint,
        "path": ["/agent", *(["/environment"] if program.environment is not None else [])],
        "most": MAX_RESULT_BYTES,
        "variables": {**program.variables, **build_network_variables(program.network)},
        "limits": _build_limits(program.memory_mb) if fence.has_guard("limits") else {},
    }
    return encode_frame(msgspec.json.encode({**fields, **more}))


def create_watchdog(
    memory_mb: int, fence: Fence, has_sockets: bool = False, *, limits_sessions: bool = False
) -> ResourceWatchdog | None:
    """Create the watchdog of a tree with this much memory, in MiB; None where the fence has none.

    `has_sockets` says whether the tree may have TCP sockets, `limits_sessions` whether its sessions are bounded, as
    they are where no control group shares the processors.
    """
    if not fence.has_guard("watch"):
        return None
    max_sessions = MAX_SESSIONS if limits_sessions and fence.has_guard("cpu") else None
    return ResourceWatchdog(memory_mb, MAX_FILES, has_sockets, max_sessions=max_sessions)


def create_unavailable_error(reason: str) -> DomainError:
    """Create the error for a host that cannot isolate code."""
    return DomainError("sandbox_unavailable", f"{CANNOT_ISOLATE_PREFIX} {reason}")


def _build_limits(memory_mb: int) -> dict[str, int]:
    return {
        "NPROC": MAX_PROCESSES,
        "DATA": memory_mb << 20,
        "AS": (4 * memory_mb + 4096) << 20,
        "FSIZE": 256 << 20,
        "NOFILE": 256,
        "CORE": 0,
        "MEMLOCK": 64 << 10,
        "MSGQUEUE": 0,
    }


def ignore_output(_: OutputStream, __: bytes) -> None:
    """Discard what a guest prints."""


def outcome_from_report(report: ExitReport, timeout: float, memory_mb: int) -> SandboxOutcome:
    """Interpret an exit report. `timeout` in seconds and `memory_mb` in MiB are the limits that the tree had.

    Errors: `SandboxLost`.
    """
    if report.kill_reason is not None:
        return _outcome_from_kill(report.kill_reason, memory_mb)
    if report.timed_out:
        return SandboxOutcome(error_type="timeout", error_message=f"The agent took longer than {timeout:g} s.")
    if report.is_oversized:
        return SandboxOutcome(
            error_type="result_too_large", error_message=f"The result is larger than {MAX_RESULT_BYTES} bytes of JSON."
        )
    if report.is_malformed:
        message = "The agent wrote to the pipe of its result, which is Paddock's own."
        return SandboxOutcome(error_type="crashed", error_message=message)
    line, _, body = report.answer.partition(b"\n")
    try:
        header = msgspec.json.decode(line, type=_AnswerHeader)
    except (msgspec.MsgspecError, RecursionError):
        return outcome_from_crash(report)
    if header.error_type is not None:
        return _outcome_from_exception(header, header.error_type, memory_mb)
    if header.problem_type is not None:
        message = (header.problem or header.problem_type)[:MAX_MESSAGE_CHARS]
        return SandboxOutcome(error_type=header.problem_type, error_message=message)
    return _outcome_from_body(header, body)


def _outcome_from_kill(reason: str, memory_mb: int) -> SandboxOutcome:
    kind, _, amount = reason.partition(":")
    if kind == "out_of_memory":
        return SandboxOutcome(
            error_type=kind,
            error_message=f"The agent used all of its {memory_mb} MiB ({amount} MiB seen).",
        )
    return SandboxOutcome(error_type=kind, error_message=_KILL_MESSAGES[kind].format(amount=amount))


def _outcome_from_exception(header: _AnswerHeader, error_type: str, memory_mb: int) -> SandboxOutcome:
    stack = None if header.stack is None else header.stack[-MAX_STACK_CHARS:]
    if error_type == "MemoryError":
        message = f"The agent needed more than its {memory_mb} MiB of memory."
        return SandboxOutcome(error_type="out_of_memory", error_message=message, stack=stack)
    kind = error_type_from_exception(error_type)
    return SandboxOutcome(
        error_type=kind, error_message=(header.error_message or kind)[:MAX_MESSAGE_CHARS], stack=stack
    )


def _outcome_from_body(header: _AnswerHeader, body: bytes) -> SandboxOutcome:
    if len(body) > MAX_RESULT_BYTES:
        size = max(header.size or 0, len(body))
        message = f"The result is {size} bytes of JSON; {MAX_RESULT_BYTES} are allowed."
        return SandboxOutcome(error_type="result_too_large", error_message=message)
    try:
        check_json(body)
    except JsonTooLarge as error:
        return SandboxOutcome(error_type="result_not_json", error_message=f"The result {error.reason}")
    try:
        msgspec.json.decode(body)
    except RecursionError:
        # The domain decides how deep a result may be; this one cannot even be parsed.
        return SandboxOutcome(error_type="result_not_json", error_message="The result nests too deep to be read.")
    except (msgspec.MsgspecError, UnicodeDecodeError):
        message = (header.problem or "The result is not JSON.")[:MAX_MESSAGE_CHARS]
        return SandboxOutcome(error_type="result_not_json", error_message=message)
    return SandboxOutcome(output=body)


def outcome_from_crash(report: ExitReport) -> SandboxOutcome:
    """Interpret an exit without an answer. Errors: `SandboxLost`."""
    if report.lost_reason is not None:
        raise SandboxLost(report.lost_reason)
    status = report.status or 0
    # bubblewrap reports a signal as a status past 128, and an agent may end with the same status itself.
    number = status - 128 if status > 128 else -status
    if status == 128 + signal.SIGKILL:
        message = f"The agent's process ended with status {status}: killed, as by a host without memory, or by itself."
        return SandboxOutcome(error_type="crashed", error_message=message)
    if number == signal.SIGKILL:
        return SandboxOutcome(
            error_type="out_of_memory",
            error_message="The agent's process was killed from outside; most likely the host ran out of memory.",
        )
    if 0 < number < 65 and number in {item.value for item in signal.Signals}:
        return SandboxOutcome(
            error_type="crashed", error_message=f"The agent's process crashed: {signal.Signals(number).name}."
        )
    return SandboxOutcome(
        error_type="crashed",
        error_message=f"The agent ended its process (status {status}) before it returned a result.",
    )
