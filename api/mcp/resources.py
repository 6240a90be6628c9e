"""Answer what MCP clients read: executions, their logs and files, and artifacts."""

import base64
import mimetypes
from collections.abc import AsyncIterator
from typing import Final

from mcp_types import (
    BlobResourceContents,
    ListResourcesResult,
    ListResourceTemplatesResult,
    PaginatedRequestParams,
    ReadResourceRequestParams,
    ReadResourceResult,
    Resource,
    ResourceTemplate,
    TextResourceContents,
)

from api.artifacts import ArtifactReader
from api.body_memory import BodyMemoryLimiter
from api.mcp.addresses import (
    URI_SCHEME,
    ResourceAddress,
    format_artifact_uri,
    format_execution_uri,
    format_file_uri,
    parse_uri,
)
from api.mcp.context import McpContext, McpExchange, answer_or_refuse, encode_json
from domain import events, executions, workspaces
from domain.artifacts import ArtifactFilter
from domain.executions import ExecutionFilter
from domain.ports import Blobs, Store, Tx
from domain.shared import access
from domain.shared.access import Caller
from domain.shared.errors import DomainError, InvalidField
from domain.shared.pages import Page

MAX_RESOURCE_BYTES: Final = 4 * 1024 * 1024
RESOURCES_PER_PAGE: Final = 50
# How far back the list goes; older ones are read by their URIs.
MAX_LISTED_RESOURCES: Final = 1000
MAX_LOG_PAGES: Final = 5
_LOG_PAGE_LINES: Final = 1000
_SCOPES_BY_KIND: Final = {"artifact": "read:artifacts"}
_JSON_TYPE: Final = "application/json"
_TEXT_TYPES: Final = ("text/", _JSON_TYPE, "application/xml", "application/yaml")
_URI_TEMPLATES: Final = (
    ("execution", "executions/{execution_id}", "A run: its input, status, result, cost and error.", _JSON_TYPE),
    ("logs", "executions/{execution_id}/logs", "The log of a run, a line each.", "text/plain"),
    ("files", "executions/{execution_id}/files", "The files that a run left: paths, sizes and digests.", _JSON_TYPE),
    ("file", "executions/{execution_id}/files/{+path}", "A file that a run left.", None),
    (
        "artifact",
        "artifacts/{artifact_id}",
        "The whole record of a run: prompts, calls, outputs and costs.",
        _JSON_TYPE,
    ),
)


class McpResources:
    """Answer `resources/list`, `resources/templates/list` and `resources/read`."""

    def __init__(
        self, *, store: Store, blobs: Blobs, artifact_reader: ArtifactReader, body_memory: BodyMemoryLimiter
    ) -> None:
        self._store, self._blobs, self._artifacts, self._memory = store, blobs, artifact_reader, body_memory

    async def list_templates(
        self, _context: McpContext, _params: PaginatedRequestParams | None
    ) -> ListResourceTemplatesResult:
        """Return the forms of URIs that can be read."""
        templates = [
            ResourceTemplate(
                name=name, uri_template=f"{URI_SCHEME}{path}", description=description, mime_type=media_type
            )
            for name, path, description, media_type in _URI_TEMPLATES
        ]
        return ListResourceTemplatesResult(resource_templates=templates)

    async def list_resources(self, context: McpContext, params: PaginatedRequestParams | None) -> ListResourcesResult:
        """Return a page of the newest executions and artifacts that the caller may read."""
        cursor = None if params is None else params.cursor

        async def list_page(exchange: McpExchange) -> ListResourcesResult:
            page = Page(limit=RESOURCES_PER_PAGE, offset=_read_offset(cursor))
            async with self._store.transaction(exchange.caller) as tx:
                resources, has_more = await _list_newest(tx, exchange.caller, page)
            end = page.offset + page.limit
            return ListResourcesResult(
                resources=resources, next_cursor=str(end) if has_more and end < MAX_LISTED_RESOURCES else None
            )

        return await answer_or_refuse(context, list_page)

    async def read_resource(self, context: McpContext, params: ReadResourceRequestParams) -> ReadResourceResult:
        """Return the contents of a resource."""

        async def read_contents(exchange: McpExchange) -> ReadResourceResult:
            address = parse_uri(params.uri)
            access.require_scope(exchange.caller, _SCOPES_BY_KIND.get(address.kind, "read:executions"))
            return ReadResourceResult(contents=[await self._read_contents(exchange.caller, params.uri, address)])

        return await answer_or_refuse(context, read_contents)

    async def _read_contents(
        self, caller: Caller, uri: str, address: ResourceAddress
    ) -> TextResourceContents | BlobResourceContents:
        if address.kind == "artifact":
            size, chunks = await self._artifacts.open_body(caller, address.id, None)
            return _render_contents(uri, _JSON_TYPE, await self._collect_bytes(uri, size, chunks))
        if address.kind == "file":
            async with self._store.transaction(caller) as tx:
                file, key = await workspaces.get_file(tx, address.id, address.path)
            _refuse_large(uri, file.size_bytes)
            content = await self._collect_bytes(uri, file.size_bytes, await self._blobs.read_object(key))
            media_type = mimetypes.guess_type(file.path)[0] or "application/octet-stream"
            return _render_contents(uri, media_type, content)
        async with self._store.transaction(caller) as tx:
            if address.kind == "logs":
                return TextResourceContents(uri=uri, mime_type="text/plain", text=await _read_log(tx, address.id))
            if address.kind == "files":
                return TextResourceContents(uri=uri, mime_type=_JSON_TYPE, text=await _list_files(tx, address.id))
            execution = await executions.get_execution(tx, address.id)
        return TextResourceContents(uri=uri, mime_type=_JSON_TYPE, text=encode_json(execution))

    async def _collect_bytes(self, uri: str, size: int, chunks: AsyncIterator[bytes]) -> bytes:
        _refuse_large(uri, size)
        # The bytes, their text, and the message that holds it.
        async with self._memory.reserve_memory(3 * size):
            return b"".join([chunk async for chunk in chunks])


async def _list_newest(tx: Tx, caller: Caller, page: Page) -> tuple[list[Resource], bool]:
    """Return the newest resources, and whether there are more. Errors: `missing_scope` if the caller may read none."""
    resources: list[Resource] = []
    has_more = False
    reads_artifacts = {"read:artifacts", "admin"} & caller.scopes
    if not reads_artifacts or {"read:executions", "admin"} & caller.scopes:
        access.require_scope(caller, "read:executions")
        runs = await executions.list_executions(tx, ExecutionFilter(), page)
        has_more = runs.has_more
        resources += [
            Resource(
                name=run.run_name,
                uri=format_execution_uri(run.id),
                description=f"A run of {run.created_at:%Y-%m-%d %H:%M} UTC, {run.status}.",
                mime_type=_JSON_TYPE,
            )
            for run in runs.items
        ]
    if reads_artifacts:
        artifacts = await tx.artifacts.list_page(ArtifactFilter(), page)
        has_more = has_more or artifacts.has_more
        resources += [
            Resource(
                name=artifact.kurral_id,
                uri=format_artifact_uri(artifact.kurral_id),
                description=f"An artifact of {artifact.created_at:%Y-%m-%d %H:%M} UTC.",
                mime_type=_JSON_TYPE,
            )
            for artifact in artifacts.items
        ]
    return resources, has_more


async def _read_log(tx: Tx, execution_id: str) -> str:
    lines: list[str] = []
    for number in range(MAX_LOG_PAGES):
        page = await events.list_logs(tx, execution_id, Page(limit=_LOG_PAGE_LINES, offset=number * _LOG_PAGE_LINES))
        lines += [f"{entry.timestamp.isoformat()} {entry.level} {entry.message}" for entry in page.items]
        if not page.has_more:
            return "\n".join(lines)
    return "\n".join([*lines, f"… more lines: GET /api/v1/execution-logs/{execution_id}?offset={len(lines)}"])


async def _list_files(tx: Tx, execution_id: str) -> str:
    files = await workspaces.list_files(tx, execution_id, Page(limit=workspaces.MAX_WORKSPACE_FILES))
    return encode_json(
        [
            {"path": file.path, "uri": format_file_uri(execution_id, file.path), "size_bytes": file.size_bytes}
            | {"sha256": file.sha256}
            for file in files.items
        ]
    )


def _render_contents(uri: str, media_type: str, content: bytes) -> TextResourceContents | BlobResourceContents:
    """Return bytes as text where their type is text and they are, else in base 64."""
    if media_type.startswith(_TEXT_TYPES):
        try:
            return TextResourceContents(uri=uri, mime_type=media_type, text=content.decode())
        except UnicodeDecodeError:
            pass
    return BlobResourceContents(uri=uri, mime_type=media_type, blob=base64.b64encode(content).decode())


def _refuse_large(uri: str, size: int) -> None:
    if size > MAX_RESOURCE_BYTES:
        path = uri.removeprefix(URI_SCHEME)
        raise DomainError(
            "file_too_large",
            f"The resource has {size} bytes, more than the {MAX_RESOURCE_BYTES} that are read here. "
            f"Download /api/v1/{path} instead.",
        )


def _read_offset(cursor: str | None) -> int:
    if cursor is None:
        return 0
    if not (cursor.isascii() and cursor.isdigit() and int(cursor[:9]) < MAX_LISTED_RESOURCES and len(cursor) < 5):
        raise InvalidField("cursor", "is not a cursor of this list.")
    return int(cursor)
