"""List the work of the record process on what the database holds."""

from domain.ports import Blobs, Store
from infra.embeddings import WordLlamaSimilarity
from workers.record.artifacts import ArtifactCapturer, BodyUploader, ObjectRemover
from workers.record.bulk_operations import BulkProcessor
from workers.record.evaluations import EvaluationScorer
from workers.record.execution_terms import TermWriter
from workers.record.loops import RecordWork
from workers.record.stats import StatsFolder


def list_record_works(store: Store, blobs: Blobs, environment: str) -> list[RecordWork]:
    """Return all work but the export of traces. `environment` is the name of the installation's environment."""
    return [
        RecordWork("fold", StatsFolder(store).fold_deltas, 0.5),
        RecordWork("store", BodyUploader(store, blobs).upload_bodies, 0.05),
        RecordWork("remove", ObjectRemover(store, blobs).remove_objects, 0.2),
        RecordWork("judge", EvaluationScorer(store, WordLlamaSimilarity()).score_evaluations, 0.05),
        RecordWork("capture", ArtifactCapturer(store, environment).capture_artifacts, 0.1),
        RecordWork("bulk", BulkProcessor(store).process_operations, 0.05),
        # A second: most executions have ended by then, and are written once.
        RecordWork("search", TermWriter(store).write_terms, 1.0),
    ]
