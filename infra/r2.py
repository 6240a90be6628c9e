"""Object storage on R2 or any S3, through aiobotocore."""

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
_MISSING: Final = {"NoSuchKey", "404", "NotFound"}
# What servers of S3 say of a full disk or quota.
_FULL: Final = {
    "InsufficientCapacity",
    "InsufficientStorage",
    "QuotaExceeded",
    "QuotaExceededException",
    "XMinioStorageFull",
}
# As much as an object may well have.
_ROOM: Final = 1024 * 1024
_PROBE: Final = "health/room"


@asynccontextmanager
async def _answers(key: str = "") -> AsyncIterator[None]:
    try:
        yield
    except ClientError as error:
        if error.response.get("Error", {}).get("Code") in _MISSING:
            raise NotFound("object", key) from error
        raise _away(error) from error
    except (TimeoutError, BotoCoreError, OSError) as error:
        raise _away(error) from error


def _away(error: Exception) -> DomainError:
    if isinstance(error, ClientError):
        answer = error.response
        status = answer.get("ResponseMetadata", {}).get("HTTPStatusCode")
        if status == 507 or answer.get("Error", {}).get("Code") in _FULL:
            return build_full_disk_error("object storage")
    return DomainError(
        "storage_unavailable", f"Object storage cannot be reached ({type(error).__name__}). Try again.", retry_after=5
    )


class S3Blobs:
    """Implements `domain.ports.Blobs`. Open it with `async with`; one client serves the whole process."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._bucket = settings.r2_bucket_name
        self._stack = AsyncExitStack()
        self._client: Any = None
        # Where it lies, if that is known here: the embedded one says no more than that it failed.
        self._disk = find_embedded_folder(Path(settings.data_dir), "seaweedfs", settings.r2_endpoint_url)
        # Whether it was full when it was last written to, as far as this process knows.
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
                    # R2 and most S3-alikes do not know the newer trailing checksums.
                    request_checksum_calculation="when_required",
                    response_checksum_validation="when_required",
                ),
            )
        )
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._stack.aclose()

    async def ensure_bucket(self) -> None:
        """Create the bucket if it is not there. Errors: `storage_unavailable`."""
        async with _answers():
            try:
                await self._client.head_bucket(Bucket=self._bucket)
            except ClientError as error:
                if error.response["ResponseMetadata"]["HTTPStatusCode"] != 404:
                    raise
                await self._client.create_bucket(Bucket=self._bucket)

    async def check_connection(self) -> None:
        """One cheap round trip, for health. While it was full when it was written to last, something is written."""
        async with _answers():
            await self._client.head_bucket(Bucket=self._bucket)
        if is_full(self._disk):
            raise build_full_disk_error("object storage")
        if self._was_full:
            await self.write_object(_PROBE, _once(bytes(_ROOM)))
            await self.delete([_PROBE])

    async def write_object(self, key: str, chunks: AsyncIterator[bytes]) -> int:
        """Store a stream. What `chunks` raises passes through, and nothing is stored."""
        try:
            size = await self._put(key, chunks)
        except DomainError as error:
            if error.code == "storage_unavailable" and is_full(self._disk, 2 * PART_BYTES):
                error = build_full_disk_error("object storage")
            self._was_full = self._was_full or error.code == "storage_full"
            raise error from error.__cause__
        self._was_full = False
        return size

    async def _put(self, key: str, chunks: AsyncIterator[bytes]) -> int:
        parts: list[dict[str, Any]] = []
        upload: str | None = None
        buffer, size = bytearray(), 0
        try:
            async for chunk in chunks:
                buffer += chunk
                size += len(chunk)
                if len(buffer) >= PART_BYTES:
                    async with _answers(key):
                        upload = upload or await self._begin(key)
                        parts.append(await self._part(key, upload, len(parts) + 1, bytes(buffer)))
                    buffer.clear()
            async with _answers(key):
                if upload is None:
                    await self._client.put_object(Bucket=self._bucket, Key=key, Body=bytes(buffer))
                else:
                    if buffer:
                        parts.append(await self._part(key, upload, len(parts) + 1, bytes(buffer)))
                    await self._client.complete_multipart_upload(
                        Bucket=self._bucket, Key=key, UploadId=upload, MultipartUpload={"Parts": parts}
                    )
        except BaseException:
            if upload is not None:
                await self._abort(key, upload)
            raise
        return size

    async def upload_file(self, key: str, path: Path) -> None:
        """Store a file."""
        await self.write_object(key, _chunks(path))

    async def read_object(self, key: str) -> AsyncIterator[bytes]:
        """The chunks of an object, once it is known to be there."""
        async with _answers(key):
            answer = await self._client.get_object(Bucket=self._bucket, Key=key)
        return self._read(key, answer["Body"])

    async def download_file(self, key: str, path: Path) -> None:
        """Write an object to a new file."""
        chunks = await self.read_object(key)
        with path.open("xb") as file:
            async for chunk in chunks:
                await asyncio.to_thread(file.write, chunk)

    async def delete(self, keys: Sequence[str]) -> None:
        """Delete objects; missing ones are fine."""
        async with _answers():
            for start in range(0, len(keys), 1000):
                objects = [{"Key": key} for key in keys[start : start + 1000]]
                await self._client.delete_objects(Bucket=self._bucket, Delete={"Objects": objects, "Quiet": True})

    async def list_objects(self, prefix: str) -> AsyncIterator[BlobInfo]:
        """Every object whose key begins with `prefix`."""
        async with _answers():
            pages = self._client.get_paginator("list_objects_v2").paginate(Bucket=self._bucket, Prefix=prefix)
            async for page in pages:
                for item in page.get("Contents", ()):
                    yield BlobInfo(key=item["Key"], size=item["Size"], modified=item["LastModified"])

    async def abort_uploads(self, prefix: str, before: datetime) -> int:
        """Drop multipart uploads that nobody will finish."""
        async with _answers():
            pages = self._client.get_paginator("list_multipart_uploads").paginate(Bucket=self._bucket, Prefix=prefix)
            stale = [item async for page in pages for item in page.get("Uploads", ()) if item["Initiated"] < before]
            for item in stale:
                await self._abort(item["Key"], item["UploadId"])
            return len(stale)

    async def _begin(self, key: str) -> str:
        begun = await self._client.create_multipart_upload(Bucket=self._bucket, Key=key)
        return str(begun["UploadId"])

    async def _part(self, key: str, upload: str, number: int, body: bytes) -> dict[str, Any]:
        stored = await self._client.upload_part(
            Bucket=self._bucket, Key=key, UploadId=upload, PartNumber=number, Body=body
        )
        return {"ETag": stored["ETag"], "PartNumber": number}

    async def _abort(self, key: str, upload: str) -> None:
        try:
            await self._client.abort_multipart_upload(Bucket=self._bucket, Key=key, UploadId=upload)
        except (ClientError, BotoCoreError, OSError):
            return  # upkeep drops it later

    async def _read(self, key: str, body: Any) -> AsyncIterator[bytes]:
        async with _answers(key), body as stream:
            while chunk := await stream.read(CHUNK_BYTES):
                yield chunk


async def _once(data: bytes) -> AsyncIterator[bytes]:
    yield data


async def _chunks(path: Path) -> AsyncIterator[bytes]:
    with path.open("rb") as file:
        while chunk := await asyncio.to_thread(file.read, CHUNK_BYTES):
            yield chunk
