"""Open the pipes between a worker and a guest, and write to them."""

import asyncio
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


class FeedWriter:
    """Write to a guest as fast as it reads, from the loop."""

    def __init__(self, fd: int) -> None:
        self._fd, self._loop = fd, asyncio.get_running_loop()
        self._unsent = memoryview(b"")

    def send(self, data: bytes) -> None:
        """Send data after all that was sent before."""
        is_idle = not self._unsent
        self._unsent = memoryview(data if is_idle else bytes(self._unsent) + data)
        if is_idle:
            self._write_unsent()

    def close(self) -> None:
        """Close the pipe."""
        self._loop.remove_writer(self._fd)
        os.close(self._fd)

    def _write_unsent(self) -> None:
        try:
            while self._unsent:
                self._unsent = self._unsent[os.write(self._fd, self._unsent[:READ_CHUNK_BYTES]) :]
        except BlockingIOError:
            self._loop.add_writer(self._fd, self._write_unsent)
            return
        except BrokenPipeError:
            self._unsent = memoryview(b"")  # the guest is gone; its report says why
        self._loop.remove_writer(self._fd)


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
