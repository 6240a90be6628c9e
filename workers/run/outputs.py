"""Limit what one run may stream: so many outputs, and so many bytes of them."""

from typing import Any, Final

MAX_OUTPUTS: Final = 10_000
MAX_OUTPUT_BYTES: Final = 256 * 1024
# All outputs of an attempt together.
MAX_STREAM_BYTES: Final = 4 * 1024 * 1024


class OutputLimiter:
    """Count the outputs of one attempt. `count` are those that are kept."""

    def __init__(self) -> None:
        self.count = 0
        self._bytes = self._left_out = 0
        self._is_full = False

    def has_room_for(self, data: bytes) -> bool:
        """Count an output, and return whether it is kept. After the first that exceeds a limit of all, none is."""
        size = len(data)
        self._is_full = self._is_full or self.count >= MAX_OUTPUTS or self._bytes + size > MAX_STREAM_BYTES
        if self._is_full or size > MAX_OUTPUT_BYTES:
            self._left_out += 1
            return False
        self.count += 1
        self._bytes += size
        return True

    def add_left_out(self) -> None:
        """Count a message that cannot be kept."""
        self._left_out += 1

    def describe_left_out(self) -> dict[str, Any] | None:
        """Return the data of a warning about what was left out; None if nothing was."""
        if not self._left_out:
            return None
        message = f"{self._left_out} outputs were left out: of a run the first {MAX_OUTPUTS} are kept, up to "
        message += f"{MAX_STREAM_BYTES} bytes of JSON."
        return {"message": message, "left_out": self._left_out}
