"""Make sandboxes by fork: a small trusted server forks each slot and builds the same fence around it.

`ForkServerBackend` loads on first use (PEP 562): the server imports this package under `python -I -S`, where no
installed package exists.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from infra.sandbox.forkserver.client import ForkServerBackend

__all__ = ["ForkServerBackend"]

if not TYPE_CHECKING:

    def __getattr__(name: str) -> Any:
        """Import the worker's side, and return its class."""
        if name not in __all__:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        return getattr(importlib.import_module(f"{__name__}.client"), name)
