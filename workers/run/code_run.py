"""Hold what belongs to one run of uploaded code: what it is given, what it prints and says, and what it leaves."""

from collections.abc import Awaitable, Callable
from datetime import datetime, timedelta
from typing import Any

import msgspec

from domain.events import ExecutionEvent
from domain.executions import Execution
from domain.ports import Clock, NetworkServer, OutputStream, ProgramHooks, Tx
from workers.output import OutputLog
from workers.run.run_mask import RunMask

# Writes something that a run has left, in the transaction that settles it.
WriteResult = Callable[[Tx], Awaitable[None]]


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
        self._results: list[WriteResult] = []

    @property
    def write_results(self) -> WriteResult | None:
        """Return what writes the results of the run besides its outcome, if there are any."""
        if not self._results:
            return None
        results = list(self._results)

        async def write(tx: Tx) -> None:
            for result in results:
                await result(tx)

        return write

    def add_result(self, write: WriteResult) -> None:
        """Add something that is written in the transaction that settles the run."""
        self._results.append(write)

    def add_output(self, stream: OutputStream, data: bytes) -> None:
        """Accept a piece of what is printed."""
        if shown := self.mask.mask_output(stream, data):
            self.output.add_output(stream, shown)

    def take_last_events(self) -> list[ExecutionEvent]:
        """Return the events that are not written yet, as the output has ended."""
        for stream, rest in self.mask.flush_output().items():
            if rest:
                self.output.add_output(stream, rest)
        return self.mask.mask_events(self.output.take_rest())

    def build_hooks(self, serve: NetworkServer | None) -> ProgramHooks:
        """Return the hooks of the run. `serve` serves its network."""
        return ProgramHooks(context=msgspec.json.encode(self._build_context()), serve=serve)

    def _build_context(self) -> dict[str, Any]:
        deadline: datetime = self._clock() + timedelta(seconds=self.execution.timeout)
        return {"execution_id": self.execution.id, "attempt": self.execution.attempt, "deadline": deadline}
