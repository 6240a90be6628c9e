"""Handle the files of executions: list and download them."""

import mimetypes

from litestar import Router, get
from litestar.response import Stream

from api.operations import RANGE_HEADER, require_scope
from api.ranges import parse_range
from api.requests import Blobs, HttpRequest, Store
from domain import workspaces
from domain.shared.access import Caller
from domain.shared.pages import Listing, Page
from domain.workspaces import WorkspaceFile


@get("/executions/{execution_id:str}/files", opt=require_scope("read:executions"))
async def list_files(store: Store, caller: Caller, execution_id: str, pagination: Page) -> Listing[WorkspaceFile]:
    """List the files of an execution's workspace, by name."""
    async with store.transaction(caller) as tx:
        return await workspaces.list_files(tx, execution_id, pagination)


@get("/executions/{execution_id:str}/files/{path:path}", opt=require_scope("read:executions", RANGE_HEADER))
async def download_file(
    store: Store, blobs: Blobs, request: HttpRequest, caller: Caller, execution_id: str, path: str
) -> Stream:
    """Return a file of an execution's workspace, or one range of it. Browsers save it and never render it as a page."""
    name = str(path).lstrip("/")
    async with store.transaction(caller) as tx:
        file, blob_key = await workspaces.get_file(tx, execution_id, name)
    part = parse_range(request, file.size_bytes, file.sha256)
    headers = {"Content-Disposition": "attachment", "X-Content-Type-Options": "nosniff", **part.headers}
    media_type = mimetypes.guess_type(name)[0] or "application/octet-stream"
    chunks = await blobs.read_object(blob_key, part.bounds)
    return Stream(chunks, headers=headers, media_type=media_type, status_code=part.status_code)


router = Router("/", route_handlers=[list_files, download_file], tags=["executions"])
