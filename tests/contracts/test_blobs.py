"""Test the contract of object storage on a real S3 server."""

import secrets
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import msgspec
import pytest

from domain.shared.errors import DomainError
from infra.r2 import PART_BYTES, S3Blobs
from infra.settings import Secret


async def _split_stream(data: bytes, size: int = 100_000) -> AsyncIterator[bytes]:
    for start in range(0, len(data), size):
        yield data[start : start + size]


async def _read_all(blobs: S3Blobs, key: str) -> bytes:
    return b"".join([chunk async for chunk in await blobs.read_object(key)])


@pytest.mark.parametrize("size", [0, 1, PART_BYTES, PART_BYTES + 1, 2 * PART_BYTES + 7])
async def test_object_is_read_as_it_was_written(resources, size: int) -> None:
    key, data = f"contract/{secrets.token_hex(4)}", secrets.token_bytes(size)
    assert await resources.blobs.write_object(key, _split_stream(data)) == size
    assert await _read_all(resources.blobs, key) == data
    await resources.blobs.delete([key, "contract/never-there"])
    with pytest.raises(DomainError) as error:
        await resources.blobs.read_object(key)
    assert error.value.code == "not_found"


async def test_broken_upload_leaves_nothing(resources) -> None:
    key = f"contract/{secrets.token_hex(4)}"

    async def break_stream() -> AsyncIterator[bytes]:
        yield b"x" * (PART_BYTES + 1)
        raise RuntimeError("the client went away")

    with pytest.raises(RuntimeError):
        await resources.blobs.write_object(key, break_stream())
    assert [blob.key async for blob in resources.blobs.list_objects(key)] == []
    assert await resources.blobs.abort_uploads(key, datetime.now(UTC) + timedelta(hours=1)) == 0


async def test_files_are_uploaded_listed_and_downloaded(resources, tmp_path: Path) -> None:
    prefix = f"contract/{secrets.token_hex(4)}/"
    file = tmp_path / "file"
    file.write_bytes(b"content")
    for name in ("a", "b"):
        await resources.blobs.upload_file(prefix + name, file)
    blobs = [blob async for blob in resources.blobs.list_objects(prefix)]
    assert [(blob.key, blob.size) for blob in blobs] == [(prefix + "a", 7), (prefix + "b", 7)]
    await resources.blobs.download_file(prefix + "a", tmp_path / "copy")
    assert (tmp_path / "copy").read_bytes() == b"content"


async def test_wrong_secret_and_missing_server_are_domain_errors(system) -> None:
    wrong_secret = msgspec.structs.replace(system.settings, r2_secret_access_key=Secret("wrong"))
    unreachable = msgspec.structs.replace(system.settings, r2_endpoint_url="http://127.0.0.1:9")
    for settings in (wrong_secret, unreachable):
        async with S3Blobs(settings) as blobs:
            with pytest.raises(DomainError) as error:
                await blobs.check_connection()
            assert error.value.code == "storage_unavailable"
