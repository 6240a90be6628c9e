"""Log one line a minute for an outage, however many requests and leases meet it."""

import time
from typing import Any, Final

from domain.shared.errors import OUTAGE_CODES, DomainError

OUTAGE_LOG_SECONDS: Final = 60.0
_logged_at: dict[str, float] = {}


def log_outage(log: Any, event: str, error: BaseException, **fields: Any) -> None:
    """Log that work waits or was refused: an outage once a minute, every other error each time.

    The line has the outage's `code`. What else met the outage within the minute is not logged.
    """
    if not isinstance(error, DomainError) or error.code not in OUTAGE_CODES:
        log.warning(event, error=str(error), **fields)
        return
    now = time.monotonic()
    if now - _logged_at.get(error.code, -OUTAGE_LOG_SECONDS) < OUTAGE_LOG_SECONDS:
        return
    _logged_at[error.code] = now
    log.warning(event, code=error.code, error=error.detail, **fields)
