"""Open the pipes between a worker and a guest."""

import os
from collections.abc import Iterator
from typing import Final

READ_CHUNK_BYTES: Final = 64 * 1024
# A pipe holds at most this much, unless root allows more (/proc/sys/fs/pipe-max-size).
MAX_PIPE_BYTES: Final = 1 << 20


class GuestPipes:
    """Hold four pipes: `feed` for requests, `answer`, `stdout` and `stderr`, each as (worker's end, guest's end)."""

    def __init__(self) -> None:
        pipes: list[tuple[int, int]] = []
        try:
            for _ in range(4):
                pipes.append(os.pipe())
        except OSError:
            for pipe in pipes:
                self.close_ends([*pipe])
            raise
        (guest_end, worker_end), self.answer, self.stdout, self.stderr = pipes
        self.feed = worker_end, guest_end
        for fd in self.worker_ends:
            os.set_blocking(fd, False)

    @property
    def worker_ends(self) -> list[int]:
        """Return the worker's ends, in the order feed, answer, stdout, stderr."""
        return [self.feed[0], self.answer[0], self.stdout[0], self.stderr[0]]

    @property
    def guest_ends(self) -> list[int]:
        """Return the guest's ends, in the order feed, answer, stdout, stderr."""
        return [self.feed[1], self.answer[1], self.stdout[1], self.stderr[1]]

    @staticmethod
    def close_ends(ends: list[int]) -> None:
        """Close one side."""
        for fd in ends:
            os.close(fd)


def drain_pipe(fd: int) -> Iterator[bytes]:
    """Yield what a pipe holds now, up to a bound, as its other end may still be written to."""
    for _ in range(MAX_PIPE_BYTES // READ_CHUNK_BYTES):
        try:
            part = os.read(fd, READ_CHUNK_BYTES)
        except BlockingIOError:
            return
        if not part:
            return
        yield part
