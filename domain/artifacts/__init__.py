"""Store LLM runs as artifacts, as Kurral's clients and our own executions write them.

`build_record` turns an uploaded body into a record; `parse_artifact` and `parse_call_tree` read a stored body.
"""

from domain.artifacts.calls import (
    MAX_CALL_DEPTH,
    ToolCallNode,
    build_call_tree,
    complete_tool_calls,
    has_failed,
)
from domain.artifacts.capture import (
    record_from_execution,
    store_captured,
)
from domain.artifacts.determinism import (
    FACTOR_WEIGHTS,
    level_from_score,
)
from domain.artifacts.record import (
    ArtifactMetadata,
    ArtifactRecord,
    ArtifactStatus,
    build_record,
)
from domain.artifacts.schema import (
    MAX_ARTIFACT_DEPTH,
    Artifact,
    ArtifactError,
    ArtifactToolCall,
    ReplayLevel,
    parse_artifact,
)
from domain.artifacts.service import (
    ArtifactBody,
    ArtifactFilter,
    ArtifactPoint,
    Artifacts,
    ArtifactStats,
    ExecutionTokens,
    PackedArtifact,
    PendingBody,
    SemanticBucketCount,
    UnrecordedExecution,
    compute_artifact_stats,
    compute_artifact_timeseries,
    delete_artifact,
    get_artifact,
    get_artifact_body,
    list_artifacts_after,
    list_semantic_buckets,
    normalize_filter,
    parse_call_tree,
    query_from_filter,
    store_artifacts,
)

__all__ = [
    "FACTOR_WEIGHTS",
    "MAX_ARTIFACT_DEPTH",
    "MAX_CALL_DEPTH",
    "Artifact",
    "ArtifactBody",
    "ArtifactError",
    "ArtifactFilter",
    "ArtifactMetadata",
    "ArtifactPoint",
    "ArtifactRecord",
    "ArtifactStats",
    "ArtifactStatus",
    "ArtifactToolCall",
    "Artifacts",
    "ExecutionTokens",
    "PackedArtifact",
    "PendingBody",
    "ReplayLevel",
    "SemanticBucketCount",
    "ToolCallNode",
    "UnrecordedExecution",
    "build_call_tree",
    "build_record",
    "complete_tool_calls",
    "compute_artifact_stats",
    "compute_artifact_timeseries",
    "delete_artifact",
    "get_artifact",
    "get_artifact_body",
    "has_failed",
    "level_from_score",
    "list_artifacts_after",
    "list_semantic_buckets",
    "normalize_filter",
    "parse_artifact",
    "parse_call_tree",
    "query_from_filter",
    "record_from_execution",
    "store_artifacts",
    "store_captured",
]
