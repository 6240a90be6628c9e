"""Format and parse the URIs of resources: `paddock://executions/{id}/files/{path}`."""

from typing import Final, Literal
from urllib.parse import quote, unquote

import msgspec

from domain.shared.errors import NotFound

URI_SCHEME: Final = "paddock://"
MAX_URI_CHARACTERS: Final = 4096
ResourceKind = Literal["execution", "logs", "files", "file", "artifact"]


class ResourceAddress(msgspec.Struct, frozen=True, kw_only=True):
    """Hold what a URI names. `path` is that of a file of a run."""

    kind: ResourceKind
    id: str
    path: str = ""


def format_execution_uri(execution_id: str) -> str:
    """Return the URI of a run."""
    return f"{URI_SCHEME}executions/{execution_id}"


def format_file_uri(execution_id: str, path: str) -> str:
    """Return the URI of a file of a run."""
    return f"{URI_SCHEME}executions/{execution_id}/files/{quote(path)}"


def format_artifact_uri(kurral_id: str) -> str:
    """Return the URI of an artifact."""
    return f"{URI_SCHEME}artifacts/{quote(kurral_id, safe='')}"


def parse_uri(uri: str) -> ResourceAddress:
    """Return what a URI names. Errors: `not_found` for one that names nothing here."""
    parts = (
        uri.removeprefix(URI_SCHEME).split("/") if uri.startswith(URI_SCHEME) and len(uri) <= MAX_URI_CHARACTERS else []
    )
    names = [unquote(part) for part in parts]
    match names:
        case ["executions", execution_id]:
            return ResourceAddress(kind="execution", id=execution_id)
        case ["executions", execution_id, "logs"]:
            return ResourceAddress(kind="logs", id=execution_id)
        case ["executions", execution_id, "files"]:
            return ResourceAddress(kind="files", id=execution_id)
        case ["executions", execution_id, "files", *path] if all(path):
            return ResourceAddress(kind="file", id=execution_id, path="/".join(path))
        case ["artifacts", kurral_id]:
            return ResourceAddress(kind="artifact", id=kurral_id)
        case _:
            raise NotFound("resource", uri[:200])
