"""The files that a run of a model agent leaves behind."""

import mimetypes

from litestar import Router, get
from litestar.response import Stream

from api.front import Front, needs
from domain import workspaces
from domain.shared.access import Caller
from domain.shared.pages import Listing, Page
from domain.workspaces import File


@get("/executions/{execution_id:str}/files", opt=needs("read:executions"))
async def list_files(front: Front, caller: Caller, execution_id: str, part: Page) -> Listing[File]:
    """The files of an execution's workspace, by name."""
    async with front.store.begin(caller) as tx:
        return await workspaces.files(tx, execution_id, part)


@get("/executions/{execution_id:str}/files/{path:path}", opt=needs("read:executions"))
async def download_file(front: Front, caller: Caller, execution_id: str, path: str) -> Stream:
    """A file of an execution's workspace. Never shown by a browser as a page of ours: it is a download."""
    name = str(path).lstrip("/")
    async with front.store.begin(caller) as tx:
        found, stored = await workspaces.file(tx, execution_id, name)
    headers = {
        "Content-Disposition": "attachment",
        "Content-Length": str(found.size_bytes),
        "X-Content-Type-Options": "nosniff",
        "ETag": f'"{found.sha256}"',
    }
    media = mimetypes.guess_type(name)[0] or "application/octet-stream"
    return Stream(await front.blobs.get(stored), headers=headers, media_type=media)


router = Router("/", route_handlers=[list_files, download_file], tags=["executions"])
