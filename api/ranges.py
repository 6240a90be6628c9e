"""Read the `Range` header of downloads: one range of bytes (RFC 9110 section 14)."""

import re
from typing import Final

import msgspec

from api.requests import HttpRequest
from domain.shared.errors import DomainError

_ONE_RANGE: Final = re.compile(r"bytes=([0-9]{0,18})-([0-9]{0,18})")


class ByteRange(msgspec.Struct, frozen=True, kw_only=True):
    """Hold the part of a file that is sent. `bounds` are its first and last byte, None for the whole file."""

    bounds: tuple[int, int] | None
    headers: dict[str, str]
    status_code: int


def parse_range(request: HttpRequest, size: int, etag: str) -> ByteRange:
    """Return the part of a file of `size` bytes that a request asks for.

    A malformed header, several ranges and an `If-Range` of another version are answered with the whole file.
    Errors: `range_not_satisfiable`.
    """
    headers = {"Accept-Ranges": "bytes", "ETag": f'"{etag}"'}
    match = _ONE_RANGE.fullmatch(request.headers.get("Range", "").replace(" ", ""))
    is_current = request.headers.get("If-Range", f'"{etag}"') == f'"{etag}"'
    first, last = ("", "") if match is None or not is_current else match.groups()
    if not (first or last) or (first and last and int(last) < int(first)):
        return ByteRange(bounds=None, headers={**headers, "Content-Length": str(size)}, status_code=200)
    if first:
        start, end = int(first), min(int(last or size - 1), size - 1)
    else:
        start, end = max(0, size - int(last)), size - 1
    if start > end:
        raise DomainError("range_not_satisfiable", f"The file has {size} bytes; the range lies outside of them.")
    headers |= {"Content-Range": f"bytes {start}-{end}/{size}", "Content-Length": str(end - start + 1)}
    return ByteRange(bounds=(start, end), headers=headers, status_code=206)
