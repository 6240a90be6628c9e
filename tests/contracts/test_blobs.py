"""What object storage promises, on a real S3."""

import secrets
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import msgspec
import pytest

from domain.shared.errors import DomainError
from infra.r2 import PART_BYTES, S3Blobs
from infra.settings import Secret


async def _stream(data: bytes, size: int = 100_000) -> AsyncIterator[bytes]:
    for start in range(0, len(data), size):
        yield data[start : start + size]


async def _all(blobs: S3Blobs, key: str) -> bytes:
    return b"".join([chunk async for chunk in await blobs.read_object(key)])


@pytest.mark.parametrize("size", [0, 1, PART_BYTES, PART_BYTES + 1, 2 * PART_BYTES + 7])
async def test_what_goes_in_comes_out(resources, size: int) -> None:
    key, data = f"contract/{secrets.token_hex(4)}", secrets.token_bytes(size)
    assert await resources.blobs.write_object(key, _stream(data)) == size
    assert await _all(resources.blobs, key) == data
    await resources.blobs.delete([key, "contract/never-there"])
    with pytest.raises(DomainError) as caught:
        await resources.blobs.read_object(key)
    assert caught.value.code == "not_found"


async def test_a_stream_that_breaks_leaves_nothing(resources) -> None:
    key = f"contract/{secrets.token_hex(4)}"

    async def broken() -> AsyncIterator[bytes]:
        yield b"x" * (PART_BYTES + 1)
        raise RuntimeError("the client went away")

    with pytest.raises(RuntimeError):
        await resources.blobs.write_object(key, broken())
    assert [blob.key async for blob in resources.blobs.list_objects(key)] == []
    assert await resources.blobs.abort_uploads(key, datetime.now(UTC) + timedelta(hours=1)) == 0


async def test_files_and_listing(resources, tmp_path: Path) -> None:
    prefix = f"contract/{secrets.token_hex(4)}/"
    file = tmp_path / "file"
    file.write_bytes(b"content")
    for name in ("a", "b"):
        await resources.blobs.upload_file(prefix + name, file)
    listed = [blob async for blob in resources.blobs.list_objects(prefix)]
    assert [(blob.key, blob.size) for blob in listed] == [(prefix + "a", 7), (prefix + "b", 7)]
    await resources.blobs.download_file(prefix + "a", tmp_path / "copy")
    assert (tmp_path / "copy").read_bytes() == b"content"


async def test_wrong_secrets_and_absent_storage_are_errors_of_ours(system) -> None:
    wrong = msgspec.structs.replace(system.settings, r2_secret_access_key=Secret("wrong"))
    away = msgspec.structs.replace(system.settings, r2_endpoint_url="http://127.0.0.1:9")
    for settings in (wrong, away):
        async with S3Blobs(settings) as blobs:
            with pytest.raises(DomainError) as caught:
                await blobs.check_connection()
            assert caught.value.code == "storage_unavailable"
