"""One line a minute for an outage, however many requests and leases meet it."""

import time
from typing import Any, Final

from domain.shared.errors import OUTAGE_CODES, DomainError

OUTAGE_LOG_SECONDS: Final = 60.0
_told_at: dict[str, float] = {}


def log_outage(log: Any, event: str, error: BaseException, **fields: Any) -> None:
    """Log that something waits or was refused: each error as it is, but an outage once a minute.

    The line has the outage's `code`; what else met it within the minute is not in the log.
    """
    if not isinstance(error, DomainError) or error.code not in OUTAGE_CODES:
        log.warning(event, error=str(error), **fields)
        return
    now = time.monotonic()
    if now - _told_at.get(error.code, -OUTAGE_LOG_SECONDS) < OUTAGE_LOG_SECONDS:
        return
    _told_at[error.code] = now
    log.warning(event, code=error.code, error=error.detail, **fields)


def reset_outage_log() -> None:
    """Tell the next one at once. For tests."""
    _told_at.clear()
