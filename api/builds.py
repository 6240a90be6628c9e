"""Handle archives and versions: stream an archive to object storage and make a version of it to build."""

from collections.abc import AsyncIterator
from typing import Final

from litestar import Response, Router, get, post
from litestar.openapi.datastructures import ResponseSpec
from litestar.response import Stream

from api.file_stream import FileStream, describe_file_body
from api.idempotency import CREATED_STATUS, ResourceCreator, read_idempotency_key
from api.operations import IDEMPOTENCY_KEY, PREFER_WAIT, require_scope, return_files
from api.requests import Blobs, HttpRequest, Store, read_preferred_wait
from api.waiting import StatusWaiter
from domain import agents, builds, ports
from domain.builds import AgentVersion, ArchiveUpload
from domain.shared.access import Caller
from domain.shared.errors import DomainError
from domain.shared.pages import Listing, Page
from infra.settings import Settings

_GZIP_MAGIC: Final = b"\x1f\x8b"
_NOT_GZIP_TEXT: Final = (
    "File must be a .tar.gz archive: this one is {}. Pack the folder with `tar -czf agent.tar.gz -C FOLDER .`"
)
_BINARY_TYPE: Final = "application/octet-stream"
_ARCHIVE_BODY: Final = describe_file_body("A .tar.gz archive.")


class ArchiveStream(FileStream):
    """Read an uploaded archive as a stream."""

    def __init__(self, request: HttpRequest, max_bytes: int) -> None:
        super().__init__(request, max_bytes, "archive", "archive_too_large")

    async def read_chunks(self) -> AsyncIterator[bytes]:
        """Read the archive's bytes. Errors: `malformed_request`, `archive_too_large`, `invalid_field` for `file`."""
        magic = b""
        async for chunk in super().read_chunks():
            magic = (magic + chunk[: len(_GZIP_MAGIC)])[: len(_GZIP_MAGIC)]
            if not _GZIP_MAGIC.startswith(magic):
                actual = "a zip file" if magic == b"PK" else "not gzip"
                raise DomainError("malformed_request", _NOT_GZIP_TEXT.format(actual))
            yield chunk


class ArchiveUploader:
    """Stream uploaded archives to object storage and make versions of them, which are built in the background."""

    def __init__(
        self, store: ports.Store, blobs: ports.Blobs, settings: Settings, creator: ResourceCreator, waiter: StatusWaiter
    ) -> None:
        self._store, self._blobs, self._settings = store, blobs, settings
        self._creator, self._waiter = creator, waiter

    async def upload_archive(self, request: HttpRequest, caller: Caller, agent_id: str) -> Response[AgentVersion]:
        """Store the archive of a request; answer 201 with its version, after its build if the caller prefers to wait.

        Errors: `not_found`, those of `ArchiveStream.read_chunks` and `builds.enqueue_build`.
        """
        # Both headers are checked before the archive is read.
        read_idempotency_key(request)
        seconds = read_preferred_wait(request)
        async with self._store.transaction(caller) as tx:
            await agents.get_agent(tx, agent_id)
        upload = await self._store_archive(request, caller)
        quota = self._settings.tenant_max_stored_bytes
        answer = await self._creator.create_idempotently(
            request,
            caller,
            lambda tx: builds.enqueue_build(tx, caller, agent_id, upload, quota),
            fingerprint=bytes.fromhex(upload.sha256),
        )
        version_id = upload.version_id
        if "Idempotency-Replayed" in answer.headers:
            # The first request's copy stays.
            await self._blobs.delete([upload.path])
            version_id = answer.content["id"]
        if not seconds:
            return answer
        version, headers = await self.wait_for_build(request, caller, agent_id, version_id)
        return Response(version, status_code=CREATED_STATUS, headers={**answer.headers, **headers})

    async def wait_for_build(
        self, request: HttpRequest, caller: Caller, agent_id: str, version_id: str
    ) -> tuple[AgentVersion, dict[str, str]]:
        """Return a version and response headers, once it is built or `Prefer: wait=N` runs out."""

        async def fetch_version() -> AgentVersion:
            return await self.find_version(caller, agent_id, version_id)

        return await self._waiter.wait_for_status(request, version_id, fetch_version, builds.FINAL_VERSION_STATUSES)

    async def find_version(self, caller: Caller, agent_id: str, version: str) -> AgentVersion:
        """Return a version by id, name or number, read in a transaction of its own. Errors: `not_found`."""
        async with self._store.transaction(caller) as tx:
            return await builds.get_version(tx, agent_id, version)

    async def _store_archive(self, request: HttpRequest, caller: Caller) -> ArchiveUpload:
        """Stream the archive to object storage. Upkeep removes it if no version is made of it."""
        version_id = builds.generate_version_id()
        path = builds.get_archive_path(caller.tenant_id, version_id)
        archive = ArchiveStream(request, self._settings.upload_max_bytes)
        await self._blobs.write_object(path, archive.read_chunks())
        return ArchiveUpload(version_id=version_id, path=path, sha256=archive.sha256, size_bytes=archive.size)


@post(
    "/uploads/agent/{agent_id:str}",
    opt=require_scope("write:agents", PREFER_WAIT, IDEMPOTENCY_KEY, _ARCHIVE_BODY),
    request_max_body_size=None,
    responses={201: ResponseSpec(AgentVersion, description="The new version, `queued`")},
)
async def upload_archive(
    archive_uploader: ArchiveUploader, request: HttpRequest, caller: Caller, agent_id: str
) -> Response[AgentVersion]:
    """Upload a `.tar.gz` as multipart field `file`. It becomes a version, which is built in the background.

    `Prefer: wait=N` holds the answer until the build has ended.
    """
    return await archive_uploader.upload_archive(request, caller, agent_id)


@get(
    "/uploads/{path:path}",
    opt=require_scope("read:agents", return_files(_BINARY_TYPE)),
    media_type=_BINARY_TYPE,
)
async def download_archive(store: Store, blobs: Blobs, caller: Caller, path: str) -> Stream:
    """Return an archive as it was uploaded, by a version's `tarball_path`."""
    async with store.transaction(caller) as tx:
        version = await builds.get_version_by_path(tx, str(path).lstrip("/"))
    name = f"{version.agent_id}-{version.version}.tar.gz"
    headers = {"Content-Disposition": f'attachment; filename="{name}"', "Content-Length": str(version.size_bytes)}
    return Stream(await blobs.read_object(version.tarball_path), headers=headers, media_type=_BINARY_TYPE)


@get("/agents/{agent_id:str}/versions", opt=require_scope("read:agents"))
async def list_versions(store: Store, caller: Caller, agent_id: str, pagination: Page) -> Listing[AgentVersion]:
    """List an agent's versions, newest first."""
    async with store.transaction(caller) as tx:
        return await builds.list_versions(tx, agent_id, pagination)


@get("/agents/{agent_id:str}/versions/{version:str}", opt=require_scope("read:agents", PREFER_WAIT))
async def get_version(
    archive_uploader: ArchiveUploader, request: HttpRequest, caller: Caller, agent_id: str, version: str
) -> Response[AgentVersion]:
    """Return a version by id, name (`v3`) or number, with its build log. `Prefer: wait=N` waits for its build."""
    requested = await archive_uploader.find_version(caller, agent_id, version)
    built, headers = await archive_uploader.wait_for_build(request, caller, agent_id, requested.id)
    return Response(built, headers=headers)


@post("/agents/{agent_id:str}/versions/{version:str}/activate", opt=require_scope("write:agents"), status_code=200)
async def activate_version(store: Store, caller: Caller, agent_id: str, version: str) -> AgentVersion:
    """Make a ready version the one that new executions run."""
    async with store.transaction(caller) as tx:
        return await builds.activate_version(tx, agent_id, version)


router = Router(
    "/",
    route_handlers=[upload_archive, download_archive, list_versions, get_version, activate_version],
    tags=["versions"],
)
