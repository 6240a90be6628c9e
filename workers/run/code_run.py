"""Hold what belongs to one run of uploaded code: what it is given, what it prints and says, and what it leaves."""

from collections.abc import Awaitable, Callable
from datetime import datetime, timedelta
from typing import Annotated, Any, Final

import msgspec
from msgspec import Meta

from domain import executions, states, threads
from domain.events import ExecutionEvent, build_log_event
from domain.executions import Execution
from domain.ports import (
    Clock,
    MessageKind,
    NetworkServer,
    OutputStream,
    ProgramHooks,
    SandboxOutcome,
    Store,
    Tx,
)
from domain.shared.errors import DomainError
from domain.shared.json_limits import JsonTooLarge, check_json
from domain.work_folder import WORK_FOLDER
from workers.output import OutputLog
from workers.progress import ProgressState
from workers.run.outputs import OutputLimiter
from workers.run.run_mask import RunMask
from workers.run.work_files import NoRoomForFiles, WorkFiles

# Writes something that a run has left, in the transaction that settles it.
WriteResult = Callable[[Tx], Awaitable[None]]
# Reasons for which a state or a turn is not written; then its run fails.
_STATE_ERRORS: Final = ("state_conflict", "quota_exceeded", "thread_changed")
# Bytes of JSON of the messages that code receives: the newest turns of its conversation.
MAX_CONTEXT_BYTES: Final = 1024 * 1024


class CodeRun:
    """Collect what one attempt at an execution says and leaves. `write_events` appends to its event log."""

    def __init__(
        self, execution: Execution, clock: Clock, write_events: Callable[[list[ExecutionEvent]], Awaitable[None]]
    ) -> None:
        self.execution = execution
        # Hides the run's secrets in all that is stored of it.
        self.mask = RunMask()
        self.output = OutputLog(lambda events: write_events(self.mask.mask_events(events)), clock)
        self._clock = clock
        self._outputs = OutputLimiter()
        self._files: WorkFiles | None = None
        # The revision of the state that was read, and the JSON of the one that the run leaves.
        self._state_revision: int | None = None
        self._new_state: bytes | None = None
        self._write_state: WriteResult | None = None
        self._conversation = threads.NO_CONVERSATION
        self._write_turn: WriteResult | None = None

    @property
    def write_results(self) -> WriteResult | None:
        """Return what writes the results of the run besides its outcome, if there are any."""
        results: list[WriteResult] = []
        if self._files is not None and self._files.has_results:
            results.append(self._files.write_rows)
        if self._write_state is not None:
            results.append(self._write_state)
        if self._write_turn is not None:
            results.append(self._write_turn)
        if not results:
            return None

        async def write(tx: Tx) -> None:
            for result in results:
                await result(tx)

        return write

    def add_egress(self, data: dict[str, Any]) -> None:
        """Record a connection with a host outside."""
        self.output.add_event(ExecutionEvent(type="egress", data=data, at=self._clock()))

    def add_output(self, stream: OutputStream, data: bytes) -> None:
        """Accept a piece of what is printed."""
        if masked := self.mask.mask_output(stream, data):
            self.output.add_output(stream, masked)

    def take_last_events(self) -> list[ExecutionEvent]:
        """Return the events that are not written yet, as the output has ended.

        A warning about outputs that were left out is the last of them.
        """
        for stream, rest in self.mask.flush_output().items():
            if rest:
                self.output.add_output(stream, rest)
        events = self.output.take_rest()
        if (warning := self._outputs.describe_left_out()) is not None:
            events.append(ExecutionEvent(type="warning", data=warning, at=self._clock()))
        return self.mask.mask_events(events)

    async def load_conversation(self, store: Store) -> None:
        """Read the conversation that the run goes on with. Errors: `thread_changed`."""
        execution = self.execution
        if execution.thread_id is None and execution.messages is None:
            return
        tokens = MAX_CONTEXT_BYTES // 4
        self._conversation = await store.run(
            execution.tenant_id, lambda tx: threads.load_conversation(tx, execution, tokens), retry=True
        )

    def build_hooks(self, store: Store, serve: NetworkServer | None, files: WorkFiles) -> ProgramHooks:
        """Return the hooks of the run. `serve` serves its network, `files` are those of its work folder."""
        files.mask_text = self.mask.mask_text

        async def load_state() -> bytes:
            execution, name = self.execution, states.get_state_name(self.execution)
            value, self._state_revision = await store.run(
                execution.tenant_id, lambda tx: tx.states.find_json(execution.agent_id or "", name), retry=True
            )
            return value

        return ProgramHooks(
            context=msgspec.json.encode(self._build_context(files)),
            on_message=self.handle_message,
            load_state=load_state,
            serve=serve,
            fill_work=files.fill_folder if files.paths else None,
            collect_work=files.collect_folder,
        )

    def keep_state(self, outcome: SandboxOutcome) -> SandboxOutcome:
        """Have the state of a completed run written with its outcome; return the outcome, or why that cannot be."""
        value, revision = self._new_state, self._state_revision
        if value is None or revision is None or outcome.error_type is not None:
            return outcome
        outcome = executions.enforce_result_limits(outcome)
        if outcome.error_type is not None:
            return outcome
        # Masking may lengthen it, and fails on what is no JSON.
        problem = states.explain_bad_state(value)
        masked = value if problem is not None else self.mask.mask_json(value)
        problem = problem or states.explain_bad_state(masked)
        if problem is not None:
            return SandboxOutcome(error_type="state_not_json", error_message=problem)
        self._write_state = lambda tx: states.save_run_state(tx, self.execution, masked, revision)
        return outcome

    def keep_turn(self, outcome: SandboxOutcome) -> SandboxOutcome:
        """Have the turn of a completed run written to its thread with its outcome; return the outcome."""
        execution, conversation = self.execution, self._conversation
        if execution.thread_id is None or outcome.error_type is not None:
            return outcome
        outcome = executions.enforce_result_limits(outcome)
        if outcome.error_type is None:
            turn = threads.build_plain_turn(execution, _decode_output(outcome.output or b"null"))
            self._write_turn = lambda tx: threads.append_turn(tx, execution, conversation, turn)
        return outcome

    def drop_results(self, error: DomainError) -> SandboxOutcome | None:
        """Drop a state or a turn that could not be written, and return the outcome then; None for other errors."""
        if (self._write_state is None and self._write_turn is None) or error.code not in _STATE_ERRORS:
            return None
        self._write_state = self._write_turn = None
        return SandboxOutcome(error_type=error.code, error_message=error.detail)

    def handle_message(self, kind: MessageKind, data: bytes) -> None:
        """Take what the entrypoint sends. All of it may be forged but its length."""
        if kind == "state":
            self._new_state = data
            return
        if kind == "output":
            if not self._outputs.has_room_for(data):
                return
            number = self._outputs.count
        try:
            value = self._read_message(data)
            if kind == "output":
                event = ExecutionEvent(type="output", data={"number": number, "value": value}, at=self._clock())
                self.output.add_event(event)
            elif kind == "progress":
                self.output.update_progress(msgspec.convert(value, _ProgressMessage).to_state())
        except (JsonTooLarge, msgspec.MsgspecError, RecursionError, UnicodeDecodeError):
            # Our guest never sends this.
            self._outputs.add_left_out()

    def _read_message(self, data: bytes) -> Any:
        """Decode a message. All that the code says, besides what it prints and its result, comes through here."""
        check_json(data)
        return msgspec.json.decode(data)

    def take_files(self, files: WorkFiles) -> None:
        """Add the files that the run left to its results, and what was not kept to its log."""
        self._files = files
        if files.notice is not None:
            self.output.add_event(self._build_notice(files.notice))

    def drop_files(self, error: NoRoomForFiles) -> list[ExecutionEvent]:
        """Keep none of the files that the run left, for which there is no room; return an event that names them."""
        notice = None if self._files is None else self._files.drop_results(error.reason)
        return [] if notice is None else [self._build_notice(notice)]

    def _build_notice(self, notice: str) -> ExecutionEvent:
        return build_log_event("WARNING", notice, self._clock(), "paddock")

    def _build_context(self, files: WorkFiles) -> dict[str, Any]:
        deadline: datetime = self._clock() + timedelta(seconds=self.execution.timeout)
        paths = {path: f"{WORK_FOLDER}/{path}" for path in files.paths}
        return {
            "execution_id": self.execution.id,
            "thread_id": self.execution.thread_id,
            "messages": threads.render_messages(self._conversation, MAX_CONTEXT_BYTES),
            "attempt": self.execution.attempt,
            "deadline": deadline,
            "files": paths,
        }


def _decode_output(output: bytes) -> Any:
    """Return a result; as text if it holds what JSON of the standard cannot."""
    try:
        return msgspec.json.decode(output)
    except (msgspec.MsgspecError, RecursionError, UnicodeDecodeError):
        return output.decode("utf-8", "replace")


class _ProgressMessage(msgspec.Struct):
    fraction: Annotated[float, Meta(ge=0, le=1)] | None = None
    message: Annotated[str, Meta(max_length=4000)] | None = None

    def to_state(self) -> ProgressState:
        message = self.message
        return ProgressState(self.fraction, None if message is None else message.replace("\0", "\ufffd"))
