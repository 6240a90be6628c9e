"""Run untrusted code behind a fence: the adapters of `domain.ports.Sandbox`, warm slots, and the guest inside.

The names load on first use (PEP 562): the fork server imports this package under `python -I -S`, where no installed
package exists and every import costs each slot time.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from infra.sandbox.backend import SandboxBackend, SlotCounts
    from infra.sandbox.bubblewrap import BubblewrapSandbox
    from infra.sandbox.exit_report import GuestStage
    from infra.sandbox.forkserver import ForkServerBackend
    from infra.sandbox.guest_protocol import (
        CHECK_TIMEOUT_SECONDS,
        MAX_MESSAGE_CHARS,
        MAX_STACK_CHARS,
        encode_request,
    )
    from infra.sandbox.process_tree import ProcessTree
    from infra.sandbox.tree_request import TreeRequest
    from infra.sandbox.warm_sandbox import WarmSandbox, open_run_sandbox

_MODULE_NAMES = {
    "BubblewrapSandbox": "bubblewrap",
    "CHECK_TIMEOUT_SECONDS": "guest_protocol",
    "ForkServerBackend": "forkserver",
    "GuestStage": "exit_report",
    "MAX_MESSAGE_CHARS": "guest_protocol",
    "MAX_STACK_CHARS": "guest_protocol",
    "ProcessTree": "process_tree",
    "SandboxBackend": "backend",
    "SlotCounts": "backend",
    "TreeRequest": "tree_request",
    "WarmSandbox": "warm_sandbox",
    "encode_request": "guest_protocol",
    "open_run_sandbox": "warm_sandbox",
}

__all__ = [
    "CHECK_TIMEOUT_SECONDS",
    "MAX_MESSAGE_CHARS",
    "MAX_STACK_CHARS",
    "BubblewrapSandbox",
    "ForkServerBackend",
    "GuestStage",
    "ProcessTree",
    "SandboxBackend",
    "SlotCounts",
    "TreeRequest",
    "WarmSandbox",
    "encode_request",
    "open_run_sandbox",
]

if not TYPE_CHECKING:

    def __getattr__(name: str) -> Any:
        """Import the module that holds an exported name, and return the value."""
        if name not in _MODULE_NAMES:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        return getattr(importlib.import_module(f"{__name__}.{_MODULE_NAMES[name]}"), name)
