"""How far a process tree came, and how it ended."""

import enum
from typing import Final

import msgspec


class StartFailed(Exception):
    """The fence could not be built. The message says why, in the words of whoever built it."""


class Stage(enum.IntEnum):
    """How far a tree has come, as the bytes before its answer say. Whoever lies about it harms its own run alone."""

    STARTED = 0
    BLANK = 1  # the fence is prepared and waits to be told which code it is for
    FENCED = 2  # what runs now is the guest, and all it prints is the agent's
    IMPORTED = 3
    TAKEN = 4  # the payload has been read: from here on a run is never repeated


MARKS: Final = {b".": Stage.BLANK, b"+": Stage.FENCED, b"=": Stage.IMPORTED, b"!": Stage.TAKEN}


class Ending(msgspec.Struct, kw_only=True):
    """How a process tree ended. `answer` is what it wrote, without its marks.

    `lost` says why nobody can know the status: whoever was to tell it is gone.
    """

    stage: Stage = Stage.STARTED
    status: int | None = None
    lost: str | None = None
    answer: bytes = b""
    overflow: bool = False
    timed_out: bool = False
    killed_for: str | None = None

    @property
    def killed(self) -> bool:
        """Whether a signal from outside ended it, as far as one can know."""
        return self.status is None or self.status < 0 or self.status > 128

    @property
    def untouched(self) -> bool:
        """Whether it died by itself before it had read the payload, so that another may be given it."""
        stopped = self.timed_out or self.overflow or self.killed_for is not None
        return self.stage < Stage.TAKEN and not self.answer and not stopped
