"""Mask a run's secrets in everything that it prints, says and leaves, before any of it is stored."""

import asyncio
from typing import Any, Final, get_args

import msgspec

from domain.events import ExecutionEvent
from domain.ports import OutputStream, SandboxOutcome
from domain.shared.masking import SecretMask, SecretStream
from infra.log_mask import hide_in_logs
from infra.sandbox import MAX_MESSAGE_CHARS, MAX_STACK_CHARS

# Results that are larger than this are masked in a thread: all other runs share the event loop.
MAX_LOOP_BYTES: Final = 64 * 1024


class RunMask:
    """Mask the secrets of one attempt at an execution. Without a mask, everything stays as it is."""

    def __init__(self) -> None:
        self._mask: SecretMask | None = None
        self._streams: dict[OutputStream, SecretStream] = {}

    def use_mask(self, mask: SecretMask | None) -> None:
        """Hide the secrets of a mask from now on, in the log lines of the current task as well."""
        if mask is None:
            return
        self._mask, self._streams = mask, {stream: mask.open_stream() for stream in get_args(OutputStream)}
        hide_in_logs(mask)

    def mask_output(self, stream: OutputStream, data: bytes) -> bytes:
        """Return what may be shown after a piece of output has come; a possible beginning of a secret is held back."""
        return self._streams[stream].mask_piece(data) if self._streams else data

    def flush_output(self) -> dict[OutputStream, bytes]:
        """Return what was held back of each stream, as its output has ended."""
        return {name: stream.flush_bytes() for name, stream in self._streams.items()}

    def mask_value(self, value: Any) -> Any:
        """Return a JSON value without the secrets."""
        return value if self._mask is None else self._mask.mask_value(value)

    def mask_json(self, data: bytes) -> bytes:
        """Return JSON without the secrets. Errors: `msgspec.DecodeError`."""
        return data if self._mask is None else self._mask.mask_json(data)

    def mask_text(self, text: str) -> str:
        """Return a text without the secrets."""
        return text if self._mask is None else self._mask.mask_text(text)

    def mask_events(self, events: list[ExecutionEvent]) -> list[ExecutionEvent]:
        """Return events without the secrets."""
        if self._mask is None:
            return events
        return [msgspec.structs.replace(event, data=self._mask.mask_value(event.data)) for event in events]

    async def mask_outcome(self, outcome: SandboxOutcome) -> SandboxOutcome:
        """Return an outcome without the secrets."""
        mask = self._mask
        if mask is None:
            return outcome
        if outcome.output is not None and len(outcome.output) > MAX_LOOP_BYTES:
            return await asyncio.to_thread(_mask_outcome, mask, outcome)
        return _mask_outcome(mask, outcome)


def _mask_outcome(mask: SecretMask, outcome: SandboxOutcome) -> SandboxOutcome:
    error_type, message, stack = outcome.error_type, outcome.error_message, outcome.stack
    if error_type is not None and mask.mask_text(error_type) != error_type:
        # The class of an exception may have any name.
        error_type = "Exception"
    if message is not None:
        # A message that was cut may end in the middle of a secret.
        message = (mask.mask_cut_text if len(message) >= MAX_MESSAGE_CHARS else mask.mask_text)(message)
    if stack is not None:
        # One that was cut may begin in the middle of a line.
        whole = stack.partition("\n")[2] if len(stack) >= MAX_STACK_CHARS else stack
        stack = mask.mask_text(whole)
    return SandboxOutcome(
        output=None if outcome.output is None else mask.mask_json(outcome.output),
        error_type=error_type,
        error_message=message,
        stack=stack,
    )
