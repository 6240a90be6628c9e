"""Store objects on R2 or any S3 service, through aiobotocore."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from datetime import datetime
from pathlib import Path
from typing import Any, Final

from aiobotocore.config import AioConfig
from aiobotocore.session import get_session
from botocore.exceptions import BotoCoreError, ClientError

from domain.ports import BlobInfo
from domain.shared.errors import DomainError, NotFound
from infra.disks import build_full_disk_error, find_embedded_folder, is_full
from infra.settings import Settings

PART_BYTES: Final = 8 * 1024 * 1024
CHUNK_BYTES: Final = 256 * 1024
_MISSING_CODES: Final = {"NoSuchKey", "404", "NotFound"}
# Error codes of S3 servers for a full disk or quota.
_FULL_CODES: Final = {
    "InsufficientCapacity",
    "InsufficientStorage",
    "QuotaExceeded",
    "QuotaExceededException",
    "XMinioStorageFull",
}
# The size of a test object, typical for stored objects.
_PROBE_BYTES: Final = 1024 * 1024
_PROBE_KEY: Final = "health/room"


@asynccontextmanager
async def _translate_errors(key: str = "") -> AsyncIterator[None]:
    try:
        yield
    except ClientError as error:
        if error.response.get("Error", {}).get("Code") in _MISSING_CODES:
            raise NotFound("object", key) from error
        raise _error_from_client(error) from error
    except (TimeoutError, BotoCoreError, OSError) as error:
        raise _error_from_client(error) from error


def _error_from_client(error: Exception) -> DomainError:
    if isinstance(error, ClientError):
        answer = error.response
        status = answer.get("ResponseMetadata", {}).get("HTTPStatusCode")
        if status == 507 or answer.get("Error", {}).get("Code") in _FULL_CODES:
            return build_full_disk_error("object storage")
    return DomainError(
        "storage_unavailable", f"Object storage is unavailable ({type(error).__name__}). Try again.", retry_after=5
    )


class S3Blobs:
    """Store objects as `domain.ports.Blobs` describes. Open it with `async with`; a process needs one."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._bucket = settings.r2_bucket_name
        self._stack = AsyncExitStack()
        self._client: Any = None
        # The folder of the embedded server, whose errors do not mention a full disk; None for any other.
        self._disk = find_embedded_folder(Path(settings.data_dir), "seaweedfs", settings.r2_endpoint_url)
        # Whether the last write of this process found it full.
        self._was_full = False

    async def __aenter__(self) -> "S3Blobs":
        self._client = await self._stack.enter_async_context(
            get_session().create_client(
                "s3",
                region_name=self._settings.r2_region,
                endpoint_url=self._settings.r2_endpoint_url,
                aws_access_key_id=self._settings.r2_access_key_id,
                aws_secret_access_key=self._settings.r2_secret_access_key.reveal(),
                config=AioConfig(
                    signature_version="s3v4",
                    s3={"addressing_style": "path"},
                    connect_timeout=3,
                    read_timeout=30,
                    retries={"mode": "standard", "max_attempts": 2},
                    # R2 and most S3-compatible servers do not support the newer trailing checksums.
                    request_checksum_calculation="when_required",
                    response_checksum_validation="when_required",
                ),
            )
        )
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._stack.aclose()

    async def ensure_bucket(self) -> None:
        """Create the bucket if it does not exist. Errors: `storage_unavailable`."""
        async with _translate_errors():
            try:
                await self._client.head_bucket(Bucket=self._bucket)
            except ClientError as error:
                if error.response["ResponseMetadata"]["HTTPStatusCode"] != 404:
                    raise
                await self._client.create_bucket(Bucket=self._bucket)

    async def check_connection(self) -> None:
        """Check the connection with a cheap request. After a full disk, check a write too."""
        async with _translate_errors():
            await self._client.head_bucket(Bucket=self._bucket)
        if is_full(self._disk):
            raise build_full_disk_error("object storage")
        if self._was_full:
            await self.write_object(_PROBE_KEY, _stream_once(bytes(_PROBE_BYTES)))
            await self.delete([_PROBE_KEY])

    async def write_object(self, key: str, chunks: AsyncIterator[bytes]) -> int:
        """Store a stream. If `chunks` raises, the error passes through and nothing is stored."""
        try:
            size = await self._store_stream(key, chunks)
        except DomainError as error:
            if error.code == "storage_unavailable" and is_full(self._disk, 2 * PART_BYTES):
                error = build_full_disk_error("object storage")
            self._was_full = self._was_full or error.code == "storage_full"
            raise error from error.__cause__
        self._was_full = False
        return size

    async def _store_stream(self, key: str, chunks: AsyncIterator[bytes]) -> int:
        parts: list[dict[str, Any]] = []
        upload: str | None = None
        buffer, size = bytearray(), 0
        try:
            async for chunk in chunks:
                buffer += chunk
                size += len(chunk)
                if len(buffer) >= PART_BYTES:
                    async with _translate_errors(key):
                        upload = upload or await self._start_upload(key)
                        parts.append(await self._upload_part(key, upload, len(parts) + 1, bytes(buffer)))
                    buffer.clear()
            async with _translate_errors(key):
                if upload is None:
                    await self._client.put_object(Bucket=self._bucket, Key=key, Body=bytes(buffer))
                else:
                    if buffer:
                        parts.append(await self._upload_part(key, upload, len(parts) + 1, bytes(buffer)))
                    await self._client.complete_multipart_upload(
                        Bucket=self._bucket, Key=key, UploadId=upload, MultipartUpload={"Parts": parts}
                    )
        except BaseException:
            if upload is not None:
                await self._abort_upload(key, upload)
            raise
        return size

    async def upload_file(self, key: str, path: Path) -> None:
        """Store a file."""
        await self.write_object(key, _read_chunks(path))

    async def read_object(self, key: str, bounds: tuple[int, int] | None = None) -> AsyncIterator[bytes]:
        """Return the chunks of an object, or of its bytes from the first to the last, after checking that it exists."""
        part = {} if bounds is None else {"Range": f"bytes={bounds[0]}-{bounds[1]}"}
        async with _translate_errors(key):
            answer = await self._client.get_object(Bucket=self._bucket, Key=key, **part)
        return self._stream_body(key, answer["Body"])

    async def download_file(self, key: str, path: Path) -> None:
        """Write an object to a new file."""
        chunks = await self.read_object(key)
        with path.open("xb") as file:
            async for chunk in chunks:
                await asyncio.to_thread(file.write, chunk)

    async def delete(self, keys: Sequence[str]) -> None:
        """Delete objects; missing ones are ignored."""
        async with _translate_errors():
            for start in range(0, len(keys), 1000):
                objects = [{"Key": key} for key in keys[start : start + 1000]]
                await self._client.delete_objects(Bucket=self._bucket, Delete={"Objects": objects, "Quiet": True})

    async def list_objects(self, prefix: str) -> AsyncIterator[BlobInfo]:
        """Yield every object whose key begins with `prefix`."""
        async with _translate_errors():
            pages = self._client.get_paginator("list_objects_v2").paginate(Bucket=self._bucket, Prefix=prefix)
            async for page in pages:
                for item in page.get("Contents", ()):
                    yield BlobInfo(key=item["Key"], size=item["Size"], modified=item["LastModified"])

    async def abort_uploads(self, prefix: str, before: datetime) -> int:
        """Abort multipart uploads that were started before a time and never finished."""
        async with _translate_errors():
            pages = self._client.get_paginator("list_multipart_uploads").paginate(Bucket=self._bucket, Prefix=prefix)
            stale = [item async for page in pages for item in page.get("Uploads", ()) if item["Initiated"] < before]
            for item in stale:
                await self._abort_upload(item["Key"], item["UploadId"])
            return len(stale)

    async def _start_upload(self, key: str) -> str:
        response = await self._client.create_multipart_upload(Bucket=self._bucket, Key=key)
        return str(response["UploadId"])

    async def _upload_part(self, key: str, upload: str, number: int, body: bytes) -> dict[str, Any]:
        stored = await self._client.upload_part(
            Bucket=self._bucket, Key=key, UploadId=upload, PartNumber=number, Body=body
        )
        return {"ETag": stored["ETag"], "PartNumber": number}

    async def _abort_upload(self, key: str, upload: str) -> None:
        try:
            await self._client.abort_multipart_upload(Bucket=self._bucket, Key=key, UploadId=upload)
        except (ClientError, BotoCoreError, OSError):
            return  # upkeep aborts it later

    async def _stream_body(self, key: str, body: Any) -> AsyncIterator[bytes]:
        async with _translate_errors(key), body as stream:
            while chunk := await stream.read(CHUNK_BYTES):
                yield chunk


async def _stream_once(data: bytes) -> AsyncIterator[bytes]:
    yield data


async def _read_chunks(path: Path) -> AsyncIterator[bytes]:
    with path.open("rb") as file:
        while chunk := await asyncio.to_thread(file.read, CHUNK_BYTES):
            yield chunk
