"""Artifacts: LLM runs on record, as Kurral's clients and our own executions write them.

`recorded` takes an uploaded body and gives what is kept of it; `read` and `tree` take a kept body apart again.
"""

from domain.artifacts.calls import ToolCallNode, build_call_tree, complete_tool_calls, has_failed
from domain.artifacts.record import ArtifactMetadata, ArtifactRecord, build_record
from domain.artifacts.schema import Artifact, ArtifactError, ArtifactToolCall, ReplayLevel, parse_artifact

__all__ = [
    "Artifact",
    "ArtifactError",
    "ArtifactMetadata",
    "ArtifactRecord",
    "ArtifactToolCall",
    "ReplayLevel",
    "ToolCallNode",
    "build_call_tree",
    "build_record",
    "complete_tool_calls",
    "has_failed",
    "parse_artifact",
]
