"""Describe how far a process tree got, and how it ended."""

import enum
from typing import Final

import msgspec


class SandboxStartError(Exception):
    """Report that the fence could not be built. The message is the reason that its builder gave."""


class GuestStage(enum.IntEnum):
    """Number the stages of a tree, as the bytes before its answer mark them.

    A guest that lies about its stage harms its own run alone.
    """

    STARTED = 0
    BLANK = 1  # the fence is prepared and waits for its program
    FENCED = 2  # from here on the guest runs, and all that it prints is the agent's
    IMPORTED = 3
    PAYLOAD_READ = 4  # from here on a run is never repeated


STAGE_MARKS: Final = {
    b".": GuestStage.BLANK,
    b"+": GuestStage.FENCED,
    b"=": GuestStage.IMPORTED,
    b"!": GuestStage.PAYLOAD_READ,
}


class ExitReport(msgspec.Struct, kw_only=True):
    """Describe how a process tree ended. `answer` is what it wrote, without its marks.

    `lost_reason` says why the status is unknown: the process that was to report it is gone.
    """

    stage: GuestStage = GuestStage.STARTED
    status: int | None = None
    lost_reason: str | None = None
    answer: bytes = b""
    is_oversized: bool = False
    is_malformed: bool = False
    timed_out: bool = False
    kill_reason: str | None = None

    @property
    def has_been_killed(self) -> bool:
        """Return whether a signal from outside ended the tree, as far as its status shows."""
        return self.status is None or self.status < 0 or self.status > 128

    @property
    def is_retryable(self) -> bool:
        """Return whether the tree died before it read the payload and not by our hand: another tree may run it."""
        stopped = self.timed_out or self.is_oversized or self.is_malformed or self.kill_reason is not None
        return self.stage < GuestStage.PAYLOAD_READ and not self.answer and not stopped
