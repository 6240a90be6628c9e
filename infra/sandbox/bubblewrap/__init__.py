"""Make sandboxes with bubblewrap: a process tree for each run, used once."""

from infra.sandbox.bubblewrap.sandbox import UPLOAD_ARCHIVE_LIMITS, BubblewrapSandbox

__all__ = ["UPLOAD_ARCHIVE_LIMITS", "BubblewrapSandbox"]
