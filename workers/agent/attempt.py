"""Keep what one attempt at a model agent's run writes: its steps on record, and the events between them."""

import contextlib
from collections.abc import Awaitable, Callable
from datetime import datetime
from typing import Any, Final

from domain.events import ExecutionEvent
from domain.executions import Execution, RunStep, steps
from domain.llms import ModelToolCall
from domain.ports import Clock, Store, Tx
from domain.shared.leases import HandoverRequested, LostLease
from workers.agent.messages import render_arguments
from workers.event_writer import EventWriter

_SAME_INPUT: Final = object()


class AgentAttempt:
    """Record one attempt at an execution. `finished_steps` are what earlier attempts left on record.

    Events gather in the event writer; they are flushed before a step is written, so the log is in order.
    """

    def __init__(
        self,
        store: Store,
        events: EventWriter,
        execution: Execution,
        clock: Clock,
        earlier_steps: list[RunStep],
        is_draining: Callable[[], bool] = lambda: False,
    ) -> None:
        self._store, self._events, self.execution, self.clock = store, events, execution, clock
        self.is_draining = is_draining
        self._steps = {step.path: step for step in earlier_steps}
        was_decided = any(step.status in ("approved", "rejected") for step in earlier_steps)
        tries = execution.attempt - execution.resumes - execution.handovers
        self._follows_loss = tries > 1 and not was_decided

    @property
    def tenant_id(self) -> str:
        """The tenant whose run it is."""
        return self.execution.tenant_id

    def stop_if_draining(self) -> None:
        """Stop between two steps if this worker is about to end. Errors: `HandoverRequested`."""
        if self.is_draining():
            raise HandoverRequested

    # events

    def add_event(self, kind: str, **data: Any) -> None:
        """Add an event to the log."""
        self._events.add_event(self.execution, kind, **data)

    def warn(self, message: str, **data: Any) -> None:
        """Add a warning to the log."""
        self.add_event("warning", message=message, **data)

    def warn_of_lost_worker(self, path: str) -> None:
        """Log once, if a worker was lost, that its events of the step at `path` do not count."""
        if self._follows_loss:
            self._follows_loss = False
            self.warn("The worker was lost; the run goes on from its last finished step.", step=path, discards=path)

    async def add_piece(self, kind: str, content: str, path: str) -> None:
        """Add a piece of an answer to the log, and wait while too many are unwritten. Errors: `LostLease`."""
        self.add_event(kind, content=content, step=path)
        await self._events.wait_for_space(self.execution)

    async def flush_events(self) -> None:
        """Wait until the events so far are written. Errors: `LostLease`."""
        await self._events.flush(self.execution)

    async def flush_if_held(self) -> None:
        """Wait until the events so far are written, if this attempt still holds the run."""
        with contextlib.suppress(LostLease):
            await self.flush_events()

    # steps

    def find_step(self, path: str) -> RunStep | None:
        """Return the step at a path, None if it has not begun."""
        return self._steps.get(path)

    def find_output(self, path: str) -> dict[str, Any] | None:
        """Return the output of the step at a path, None if it is not finished."""
        step = self._steps.get(path)
        return dict(step.output) if step is not None and step.status == "finished" else None

    def count_finished(self) -> int:
        """Return how many steps are finished."""
        return sum(step.status == "finished" for step in self._steps.values())

    async def finish_model_step(self, tx: Tx, path: str, name: str, started_at: datetime, output: Any) -> None:
        """Write a finished model call in the transaction that bills it."""
        step = self._build_step(path, "model", name, "finished", started_at, output=output)
        await steps.write_step(tx, step, [])
        self._steps[path] = step

    async def begin_tool_step(
        self, path: str, call: ModelToolCall, status: steps.RunStepStatus, step_input: Any = _SAME_INPUT
    ) -> None:
        """Write that a tool call is about to be made, or waits for approval, before any of it happens."""
        arguments, step_before = render_arguments(call.arguments), self._steps.get(path)
        data = {"tool": call.name, "args": arguments, "call_id": call.id, "step": path}
        events = [] if step_before is not None else [ExecutionEvent(type="tool_call", data=data, at=self.clock())]
        step = self._build_step(
            path,
            "tool",
            call.name,
            status,
            self.clock() if step_before is None else step_before.started_at,
            call_id=call.id,
            input=arguments if step_input is _SAME_INPUT else step_input,
        )
        await self._write_step(step, events)

    async def finish_tool_step(
        self,
        path: str,
        call: ModelToolCall,
        answer: dict[str, Any],
        commit: Callable[[Tx], Awaitable[None]] | None = None,
    ) -> dict[str, Any]:
        """Write a finished tool call, with `commit` in the same transaction, and return its answer."""
        step_before = self._steps.get(path)
        data = {"tool": call.name, "call_id": call.id, "step": path, **answer}
        event = ExecutionEvent(type="tool_result", data=data, at=self.clock())
        step = self._build_step(
            path,
            "tool",
            call.name,
            "finished",
            self.clock() if step_before is None else step_before.started_at,
            call_id=call.id,
            input=render_arguments(call.arguments) if step_before is None else step_before.input,
            output=answer,
        )
        await self._write_step(step, [event], commit)
        return answer

    async def park(self) -> None:
        """Give the run up until its waiting tool calls are decided on. Errors: `LostLease`."""
        await self.flush_events()
        waiting = [step for step in self._steps.values() if step.status == "waiting"]

        await self._store.run(
            self.tenant_id, lambda tx: steps.park_for_approval(tx, self.execution, waiting), retry=True
        )

    def _build_step(
        self, path: str, kind: Any, name: str, status: steps.RunStepStatus, started_at: datetime, **fields: Any
    ) -> RunStep:
        return RunStep(
            execution_id=self.execution.id,
            path=path,
            kind=kind,
            name=name,
            status=status,
            attempt=self.execution.attempt,
            started_at=started_at,
            finished_at=self.clock() if status == "finished" else None,
            **fields,
        )

    async def _write_step(
        self, step: RunStep, events: list[ExecutionEvent], commit: Callable[[Tx], Awaitable[None]] | None = None
    ) -> None:
        await self.flush_events()

        async def write(tx: Tx) -> None:
            await steps.write_step(tx, step, events)
            if commit is not None:
                await commit(tx)

        await self._store.run(self.tenant_id, write, retry=True)
        self._steps[step.path] = step
