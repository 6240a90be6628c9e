"""How far a process tree came, and how it ended."""

import enum
from typing import Final

import msgspec


class SandboxStartError(Exception):
    """The fence could not be built. The message says why, in the words of whoever built it."""


class GuestStage(enum.IntEnum):
    """How far a tree has come, as the bytes before its answer say. Whoever lies about it harms its own run alone."""

    STARTED = 0
    BLANK = 1  # the fence is prepared and waits to be told which code it is for
    FENCED = 2  # what runs now is the guest, and all it prints is the agent's
    IMPORTED = 3
    PAYLOAD_READ = 4  # the payload has been read: from here on a run is never repeated


STAGE_MARKS: Final = {
    b".": GuestStage.BLANK,
    b"+": GuestStage.FENCED,
    b"=": GuestStage.IMPORTED,
    b"!": GuestStage.PAYLOAD_READ,
}


class ExitReport(msgspec.Struct, kw_only=True):
    """How a process tree ended. `answer` is what it wrote, without its marks.

    `lost` says why nobody can know the status: whoever was to tell it is gone.
    """

    stage: GuestStage = GuestStage.STARTED
    status: int | None = None
    lost_reason: str | None = None
    answer: bytes = b""
    is_oversized: bool = False
    timed_out: bool = False
    kill_reason: str | None = None

    @property
    def has_been_killed(self) -> bool:
        """Whether a signal from outside ended it, as far as one can know."""
        return self.status is None or self.status < 0 or self.status > 128

    @property
    def is_retryable(self) -> bool:
        """Whether it died by itself before it had read the payload, so that another may be given it."""
        stopped = self.timed_out or self.is_oversized or self.kill_reason is not None
        return self.stage < GuestStage.PAYLOAD_READ and not self.answer and not stopped
