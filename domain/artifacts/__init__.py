"""Artifacts: LLM runs on record, as Kurral's clients and our own executions write them.

`recorded` takes an uploaded body and gives what is kept of it; `read` and `tree` take a kept body apart again.
"""

from domain.artifacts.calls import CallNode, checked, failed, tree
from domain.artifacts.record import Metadata, Recorded, recorded
from domain.artifacts.schema import Artifact, ArtifactError, Level, ToolCall, read

__all__ = [
    "Artifact",
    "ArtifactError",
    "CallNode",
    "Level",
    "Metadata",
    "Recorded",
    "ToolCall",
    "checked",
    "failed",
    "read",
    "recorded",
    "tree",
]
