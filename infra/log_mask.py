"""Mask the secrets of a run in what this process logs and reports about it."""

from contextvars import ContextVar
from typing import Final

from domain.shared.masking import SecretMask

_LINE_MASK: Final[ContextVar[SecretMask | None]] = ContextVar("line_mask", default=None)


def hide_in_logs(mask: SecretMask) -> None:
    """Mask the secrets in what the current task logs from now on, and the tasks that it starts."""
    _LINE_MASK.set(mask)


def mask_logged_text(text: str) -> str:
    """Return a text that the current task logs, without the secrets of its run."""
    mask = _LINE_MASK.get()
    return text if mask is None else mask.mask_text(text)
