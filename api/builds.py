"""Uploads and versions: an archive streams through to object storage and becomes a version to build."""

import hashlib
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any, Final

from litestar import Response, Router, get, post
from litestar.openapi.datastructures import ResponseSpec
from litestar.response import Stream
from multipart import MultipartError, MultipartSegment, PushMultipartParser, parse_options_header

from api.front import Front, created, needs, prefer_wait, waited
from api.requests import HttpRequest, idempotency_key
from domain import agents, builds
from domain.builds import Upload, Version
from domain.shared.access import Caller
from domain.shared.errors import DomainError, invalid
from domain.shared.pages import Listing, Page

_GZIP: Final = b"\x1f\x8b"
_NO_GZIP: Final = (
    "File must be a .tar.gz archive: this one is {}. Pack the folder with `tar -czf agent.tar.gz -C FOLDER .`"
)


def _fetcher(front: Front, caller: Caller, agent_id: str, version: str) -> Callable[[], Awaitable[Version]]:
    async def fetch() -> Version:
        async with front.store.begin(caller) as tx:
            return await builds.get(tx, agent_id, version)

    return fetch


class Archive:
    """The `file` part of a multipart request, as a stream that is hashed and bounded on its way."""

    def __init__(self, request: HttpRequest, most: int) -> None:
        kind, options = parse_options_header(request.headers.get("Content-Type", ""))
        if kind != "multipart/form-data" or not options.get("boundary"):
            raise DomainError("malformed_request", "Send multipart/form-data with the archive in the field `file`.")
        self._request, self._boundary, self._most = request, options["boundary"], most
        self._hash = hashlib.sha256()
        self.size = 0

    @property
    def sha256(self) -> str:
        """Of what has passed so far, in hex."""
        return self._hash.hexdigest()

    async def chunks(self) -> AsyncIterator[bytes]:
        """The archive's bytes. Errors: `malformed_request`, `archive_too_large`, `invalid_field` naming `file`."""
        begin = b""
        try:
            async for chunk in self._file():
                begin = (begin + chunk[: len(_GZIP)])[: len(_GZIP)]
                if not _GZIP.startswith(begin):
                    raise DomainError(
                        "malformed_request", _NO_GZIP.format("a zip, not gzip" if begin == b"PK" else "not gzip")
                    )
                self.size += len(chunk)
                if self.size > self._most:
                    raise DomainError("archive_too_large", f"The archive is larger than {self._most} bytes.")
                self._hash.update(chunk)
                yield chunk
        except MultipartError as error:
            raise DomainError("malformed_request", f"The multipart body is damaged: {error}.") from None
        if self.size == 0:
            raise invalid("file", "is missing or empty; send the archive in this field.")

    async def _file(self) -> AsyncIterator[bytes]:
        seen = False
        # Bytes of other fields are read past; this bounds how many.
        most = self._most + 1024 * 1024
        with PushMultipartParser(self._boundary, max_segment_size=most + 1, max_segment_count=16) as parser:
            async for data in self._request.stream():
                for item in parser.parse(data):
                    if isinstance(item, MultipartSegment):
                        if item.name != "file":
                            raise invalid(str(item.name), "is not a field here; there is: file.")
                        if seen:
                            raise invalid("file", "is there twice; send one archive at a time.")
                        seen = True
                    elif item:
                        yield bytes(item)


@post(
    "/uploads/agent/{agent_id:str}",
    opt=needs("write:agents"),
    request_max_body_size=None,
    responses={201: ResponseSpec(Version, description="The new version, `queued`")},
)
async def upload_archive(front: Front, request: HttpRequest, caller: Caller, agent_id: str) -> Response[Version]:
    """Upload a `.tar.gz` as multipart field `file`. It becomes a version, which is built in the background.

    `Prefer: wait=N` holds the answer until the build has ended.
    """
    idempotency_key(request)
    prefer_wait(request)
    async with front.store.begin(caller) as tx:
        await agents.get(tx, agent_id)
    upload = await _store(front, request, caller)
    fingerprint = bytes.fromhex(upload.sha256)
    quota = front.settings.tenant_max_stored_bytes
    make = lambda tx: builds.enqueue(tx, caller, agent_id, upload, quota)  # noqa: E731
    answer = await created(front, request, caller, make, fingerprint)
    return await _after_upload(front, request, caller, agent_id, upload, answer)


async def _store(front: Front, request: HttpRequest, caller: Caller) -> Upload:
    """Stream the request's archive to object storage. Upkeep removes it if no version comes of it."""
    version_id = builds.new_id()
    path = builds.archive_path(caller.tenant_id, version_id)
    archive = Archive(request, front.settings.upload_max_bytes)
    await front.blobs.put(path, archive.chunks())
    return Upload(version_id=version_id, path=path, sha256=archive.sha256, size_bytes=archive.size)


async def _after_upload(
    front: Front, request: HttpRequest, caller: Caller, agent_id: str, upload: Upload, answer: Response[Any]
) -> Response[Any]:
    """Drop the second copy of a repeated upload, and wait for the build if the caller prefers to."""
    version_id = upload.version_id
    if "Idempotency-Replayed" in answer.headers:
        await front.blobs.delete([upload.path])
        version_id = answer.content["id"]
    if not prefer_wait(request):
        return answer
    fetch = _fetcher(front, caller, agent_id, version_id)
    row, headers = await waited(front, request, version_id, fetch, builds.FINAL)
    return Response(row, status_code=201, headers={**answer.headers, **headers})


@get("/uploads/{path:path}", opt=needs("read:agents"), media_type="application/octet-stream")
async def download_archive(front: Front, caller: Caller, path: str) -> Stream:
    """The archive as it was uploaded, by a version's `tarball_path`."""
    async with front.store.begin(caller) as tx:
        version = await builds.stored_at(tx, str(path).lstrip("/"))
    name = f"{version.agent_id}-{version.version}.tar.gz"
    headers = {"Content-Disposition": f'attachment; filename="{name}"', "Content-Length": str(version.size_bytes)}
    return Stream(await front.blobs.get(version.tarball_path), headers=headers, media_type="application/octet-stream")


@get("/agents/{agent_id:str}/versions", opt=needs("read:agents"))
async def list_versions(front: Front, caller: Caller, agent_id: str, part: Page) -> Listing[Version]:
    """An agent's versions, newest first."""
    async with front.store.begin(caller) as tx:
        return await builds.list_versions(tx, agent_id, part)


@get("/agents/{agent_id:str}/versions/{version:str}", opt=needs("read:agents"))
async def get_version(
    front: Front, request: HttpRequest, caller: Caller, agent_id: str, version: str
) -> Response[Version]:
    """A version by id, name (`v3`) or number, with its build log. `Prefer: wait=N` waits for its build."""
    fetch = _fetcher(front, caller, agent_id, version)
    found = await fetch()
    row, headers = await waited(front, request, found.id, fetch, builds.FINAL)
    return Response(row, headers=headers)


@post("/agents/{agent_id:str}/versions/{version:str}/activate", opt=needs("write:agents"), status_code=200)
async def activate_version(front: Front, caller: Caller, agent_id: str, version: str) -> Version:
    """Make a ready version the one that executions run."""
    async with front.store.begin(caller) as tx:
        return await builds.activate(tx, agent_id, version)


router = Router(
    "/",
    route_handlers=[upload_archive, download_archive, list_versions, get_version, activate_version],
    tags=["versions"],
)
