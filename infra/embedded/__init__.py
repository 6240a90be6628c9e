"""Run Postgres, Valkey, SeaweedFS and the local model as child processes, from their wheels.

The names load on first use (PEP 562): the API needs one function of this package and none of its libraries, and the
local model's process is started from a module of it.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from infra.embedded.child_process import (
        ChildProcess,
        EmbeddedServiceError,
        create_parent_bond,
    )
    from infra.embedded.dumps import dump_database, load_database
    from infra.embedded.model import MODEL_KEY_VARIABLE, ModelBroker, serve_model
    from infra.embedded.ports import find_free_ports, is_listening
    from infra.embedded.postgres import EmbeddedPostgres
    from infra.embedded.seaweedfs import ACCESS_KEY, EmbeddedSeaweed
    from infra.embedded.valkey import EmbeddedValkey

_MODULE_NAMES = {
    "ACCESS_KEY": "seaweedfs",
    "ChildProcess": "child_process",
    "EmbeddedPostgres": "postgres",
    "EmbeddedSeaweed": "seaweedfs",
    "EmbeddedServiceError": "child_process",
    "EmbeddedValkey": "valkey",
    "MODEL_KEY_VARIABLE": "model",
    "ModelBroker": "model",
    "create_parent_bond": "child_process",
    "dump_database": "dumps",
    "find_free_ports": "ports",
    "is_listening": "ports",
    "load_database": "dumps",
    "serve_model": "model",
}

__all__ = [
    "ACCESS_KEY",
    "MODEL_KEY_VARIABLE",
    "ChildProcess",
    "EmbeddedPostgres",
    "EmbeddedSeaweed",
    "EmbeddedServiceError",
    "EmbeddedValkey",
    "ModelBroker",
    "create_parent_bond",
    "dump_database",
    "find_free_ports",
    "is_listening",
    "load_database",
    "serve_model",
]

if not TYPE_CHECKING:

    def __getattr__(name: str) -> Any:
        """Import the module that holds an exported name, and return the value."""
        if name not in _MODULE_NAMES:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        return getattr(importlib.import_module(f"{__name__}.{_MODULE_NAMES[name]}"), name)
