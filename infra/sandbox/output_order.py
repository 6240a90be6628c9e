"""Put what a guest prints and what it sends as outputs in the order in which it did so.

They come by different pipes. Before an output, the guest writes the output's number to stdout and stderr, behind a mark
(`guest/context.py`). What an agent forges here changes the order of its own output and nothing else.
"""

from collections.abc import Callable
from typing import Final, get_args

from domain.ports import OutputStream

OUTPUT_MARK: Final = b"\x00\x1bpaddock\x1b\x00"
_MARK_BYTES: Final = len(OUTPUT_MARK) + 4
# What was printed after an output that has not come yet is kept up to this much, pieces counted with their overhead.
MAX_HELD_BYTES: Final = 64 * 1024
_PIECE_OVERHEAD_BYTES: Final = 64
_LAST_NUMBER: Final = (1 << 32) - 1


class OutputOrder:
    """Deliver the output of both streams by `deliver`, without marks, and what follows a mark after its output."""

    def __init__(self, deliver: Callable[[OutputStream, bytes], None]) -> None:
        self._deliver = deliver
        # The number behind the last mark of each stream, and the number of the last output.
        self._marked: dict[OutputStream, int] = dict.fromkeys(get_args(OutputStream), 0)
        self._reached = 0
        # What came after each mark, and the beginning of a mark that is not complete.
        self._held: dict[OutputStream, list[tuple[int, bytes]]] = {stream: [] for stream in self._marked}
        self._held_bytes: dict[OutputStream, int] = dict.fromkeys(self._marked, 0)
        self._cut: dict[OutputStream, bytes] = dict.fromkeys(self._marked, b"")

    def has_mark(self, stream: OutputStream, number: int) -> bool:
        """Return whether all that a stream holds before this output has come."""
        return self._marked[stream] >= number

    def add_output(self, stream: OutputStream, data: bytes) -> None:
        """Take what was printed: deliver it, or keep it until its output has come."""
        if self._cut[stream]:
            data, self._cut[stream] = self._cut[stream] + data, b""
        start = 0
        while (at := data.find(OUTPUT_MARK, start)) >= 0 and len(data) >= at + _MARK_BYTES:
            self._hold(stream, data[start:at])
            start = at + _MARK_BYTES
            number = int.from_bytes(data[at + len(OUTPUT_MARK) : start], "big")
            self._marked[stream] = max(self._marked[stream], number)
        end = _find_cut_mark(data, start)
        self._cut[stream] = data[end:]
        self._hold(stream, data[start:end])

    def begin_output(self, number: int) -> None:
        """Deliver what was printed before an output."""
        self._release(number - 1)

    def end_output(self, number: int) -> None:
        """Deliver what was printed after an output so far."""
        self._release(number)

    def deliver_rest(self) -> None:
        """Deliver all that is left."""
        for stream, cut in self._cut.items():
            self._hold(stream, cut)
            self._cut[stream] = b""
        self._release(_LAST_NUMBER)

    def _hold(self, stream: OutputStream, data: bytes) -> None:
        if not data:
            return
        if self._marked[stream] <= self._reached:
            self._deliver(stream, data)
            return
        self._held[stream].append((self._marked[stream], data))
        self._held_bytes[stream] += len(data) + _PIECE_OVERHEAD_BYTES
        if self._held_bytes[stream] > MAX_HELD_BYTES:
            self._release(self._marked[stream])

    def _release(self, number: int) -> None:
        self._reached = max(self._reached, number)
        for stream, pieces in self._held.items():
            if not pieces:
                continue
            self._held[stream] = later = [(mark, data) for mark, data in pieces if mark > self._reached]
            self._held_bytes[stream] = sum(len(data) + _PIECE_OVERHEAD_BYTES for _, data in later)
            for mark, data in pieces:
                if mark <= self._reached:
                    self._deliver(stream, data)


def _find_cut_mark(data: bytes, start: int) -> int:
    """Return where the beginning of a mark stands at the end of data, after `start`; else the length of data."""
    at = data.find(OUTPUT_MARK[:1], max(start, len(data) - _MARK_BYTES + 1))
    while at >= 0:
        tail = data[at:]
        if tail.startswith(OUTPUT_MARK) or OUTPUT_MARK.startswith(tail):
            return at
        at = data.find(OUTPUT_MARK[:1], at + 1)
    return len(data)
