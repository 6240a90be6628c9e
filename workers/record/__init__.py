"""Process records: artifact bodies, evaluation scores, statistics, and exported traces."""

from workers.record.artifacts import ArtifactCapturer, BodyUploader, ObjectRemover
from workers.record.evaluations import EvaluationScorer
from workers.record.execution_terms import TermWriter
from workers.record.loops import RecordWork, forward_rings, poll_records
from workers.record.stats import StatsFolder
from workers.record.traces import TraceExporter
from workers.record.works import list_record_works

__all__ = [
    "ArtifactCapturer",
    "BodyUploader",
    "EvaluationScorer",
    "ObjectRemover",
    "RecordWork",
    "StatsFolder",
    "TermWriter",
    "TraceExporter",
    "forward_rings",
    "list_record_works",
    "poll_records",
]
