"""Define what steers when a run begins: its time, its priority, and the gates where it may have to wait."""

from datetime import timedelta
from typing import Annotated, Final, Literal

from msgspec import Meta

# Why a pending execution is not claimed: its time has not come, or its thread or its concurrency key has no room.
BlockReason = Literal["delayed", "busy"]
GateKind = Literal["thread", "key"]
IfBusy = Literal["queue", "reject", "cancel"]

# How far ahead a run may be put off: a year.
MAX_DELAY_SECONDS: Final = 366 * 24 * 3600
# A time that is no longer past means now: clocks differ.
MAX_CLOCK_SKEW: Final = timedelta(minutes=1)
MAX_CONCURRENCY_LIMIT: Final = 1000
# A run goes before those of a lower priority that came up to so much earlier per step, so that none waits for good.
PRIORITY_STEP: Final = timedelta(minutes=1)
_KEY_PATTERN: Final = r"^[^\x00-\x1f]*$(?!\n)"
_MAX_KEY_CHARACTERS: Final = 256
DelaySeconds = Annotated[float, Meta(ge=0, le=MAX_DELAY_SECONDS, description="Seconds from now.", examples=[60])]
ExpirySeconds = Annotated[
    float,
    Meta(gt=0, le=2 * MAX_DELAY_SECONDS, description="Seconds from now in which the run has to begin.", examples=[600]),
]
Priority = Annotated[int, Meta(ge=-10, le=10, examples=[5])]
ConcurrencyKey = Annotated[
    str, Meta(min_length=1, max_length=_MAX_KEY_CHARACTERS, pattern=_KEY_PATTERN, examples=["customer-42"])
]
ConcurrencyLimit = Annotated[int, Meta(ge=1, le=MAX_CONCURRENCY_LIMIT, examples=[1])]
