"""Handle uploaded files: stream them to object storage, list, get, download and delete them."""

from datetime import timedelta
from typing import Annotated, Final
from urllib.parse import quote

from litestar import Response, Router, delete, get, post
from litestar.openapi.datastructures import ResponseSpec
from litestar.params import Parameter
from litestar.response import Stream

from api.file_stream import FileStream, describe_file_body
from api.idempotency import ResourceCreator, read_idempotency_key
from api.operations import IDEMPOTENCY_KEY, RANGE_HEADER, require_scope, return_files
from api.ranges import parse_range
from api.requests import Blobs, HttpRequest, Store
from domain import files, ports
from domain.files import FileUpload, StoredFile
from domain.shared.access import Caller
from domain.shared.pages import Listing, Page
from infra.settings import Settings

_BINARY_TYPE: Final = "application/octet-stream"
_FILE_BODY: Final = describe_file_body("Any file. Its name and content type are kept.")
_MAX_LIFETIME_SECONDS: Final = 10 * 365 * 86_400
Lifetime = Annotated[
    int | None,
    Parameter(ge=60, le=_MAX_LIFETIME_SECONDS, description="Seconds until the file is deleted; without it, it stays."),
]


class FileUploader:
    """Stream uploaded files to object storage."""

    def __init__(self, blobs: ports.Blobs, settings: Settings, creator: ResourceCreator) -> None:
        self._blobs, self._settings, self._creator = blobs, settings, creator

    async def upload_file(self, request: HttpRequest, caller: Caller, expires_in: int | None) -> Response[StoredFile]:
        """Store the file of a request, and answer 201. Errors: those of `FileStream`, `quota_exceeded`."""
        read_idempotency_key(request)
        file_id = files.generate_file_id()
        key = files.format_file_key(caller.tenant_id, file_id)
        stream = FileStream(request, self._settings.file_max_bytes, may_be_empty=True)
        # Upkeep removes the object if no file is made of it.
        await self._blobs.write_object(key, stream.read_chunks())
        upload = FileUpload(
            file_id=file_id,
            name=files.check_file_name(stream.file_name),
            content_type=files.clean_content_type(stream.content_type),
            size_bytes=stream.size,
            sha256=stream.sha256,
            lifetime=None if expires_in is None else timedelta(seconds=expires_in),
        )
        quota = self._settings.tenant_max_stored_bytes
        answer = await self._creator.create_idempotently(
            request,
            caller,
            lambda tx: files.add_file(tx, caller, upload, quota),
            fingerprint=bytes.fromhex(upload.sha256),
        )
        if "Idempotency-Replayed" in answer.headers:
            # The first request's copy stays.
            await self._blobs.delete([key])
        return answer


@post(
    "/files",
    opt=require_scope("write:files", IDEMPOTENCY_KEY, _FILE_BODY),
    request_max_body_size=None,
    responses={201: ResponseSpec(StoredFile, description="The new file")},
)
async def upload_file(
    file_uploader: FileUploader, request: HttpRequest, caller: Caller, expires_in: Lifetime = None
) -> Response[StoredFile]:
    """Upload a file as multipart field `file`. Runs are given it by its id, in `files` of their start."""
    return await file_uploader.upload_file(request, caller, expires_in)


@get("/files", opt=require_scope("read:files"))
async def list_uploaded_files(store: Store, caller: Caller, pagination: Page) -> Listing[StoredFile]:
    """List the tenant's uploaded files, newest first."""
    async with store.transaction(caller) as tx:
        return await files.list_files(tx, pagination)


@get("/files/{file_id:str}", opt=require_scope("read:files"))
async def get_uploaded_file(store: Store, caller: Caller, file_id: str) -> StoredFile:
    """Return an uploaded file's name, size and hash."""
    async with store.transaction(caller) as tx:
        return await files.get_file(tx, file_id)


@get(
    "/files/{file_id:str}/content",
    opt=require_scope("read:files", RANGE_HEADER, return_files(_BINARY_TYPE)),
    media_type=_BINARY_TYPE,
)
async def download_uploaded_file(
    store: Store, blobs: Blobs, request: HttpRequest, caller: Caller, file_id: str
) -> Response[None] | Stream:
    """Return the bytes of an uploaded file, or one range of them. Browsers save it and never render it as a page."""
    async with store.transaction(caller) as tx:
        file = await files.get_file(tx, file_id)
    part = parse_range(request, file.size_bytes, file.sha256)
    chunks = await blobs.read_object(files.format_file_key(file.tenant_id, file.id), part.bounds)
    headers = {
        "Content-Disposition": f"attachment; filename*=UTF-8''{quote(file.name, safe='')}",
        "X-Content-Type-Options": "nosniff",
        **part.headers,
    }
    return Stream(chunks, headers=headers, media_type=file.content_type, status_code=part.status_code)


@delete("/files/{file_id:str}", opt=require_scope("write:files"))
async def delete_uploaded_file(store: Store, caller: Caller, file_id: str) -> None:
    """Delete an uploaded file. Runs that were given it keep its bytes."""
    async with store.transaction(caller) as tx:
        await files.delete_file(tx, file_id)


router = Router(
    "/",
    route_handlers=[upload_file, list_uploaded_files, get_uploaded_file, download_uploaded_file, delete_uploaded_file],
    tags=["files"],
)
