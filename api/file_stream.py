"""Read one uploaded file of a multipart request as a stream, hashed and bounded meanwhile."""

import hashlib
from collections.abc import AsyncIterator

from multipart import MultipartError, MultipartSegment, PushMultipartParser, parse_options_header

from api.operations import RequestBody
from api.requests import HttpRequest
from domain.shared.errors import DomainError, InvalidField


def describe_file_body(description: str) -> RequestBody:
    """Return the detail of a handler that reads the multipart field `file` by hand."""
    return RequestBody(
        content={
            "multipart/form-data": {
                "schema": {
                    "type": "object",
                    "required": ["file"],
                    "properties": {"file": {"type": "string", "format": "binary", "description": description}},
                }
            }
        }
    )


class FileStream:
    """Read the `file` part of a multipart request. `noun` is what error texts call the file.

    `file_name` and `content_type` are those that the client sent, known once the first bytes have come.
    """

    def __init__(
        self,
        request: HttpRequest,
        max_bytes: int,
        noun: str = "file",
        size_error: str = "file_too_large",
        *,
        may_be_empty: bool = False,
    ) -> None:
        kind, options = parse_options_header(request.headers.get("Content-Type", ""))
        if kind != "multipart/form-data" or not options.get("boundary"):
            raise DomainError("malformed_request", f"Send multipart/form-data with the {noun} in the field `file`.")
        self._request, self._boundary, self._max_bytes = request, options["boundary"], max_bytes
        self._noun, self._size_error, self._may_be_empty = noun, size_error, may_be_empty
        self._hash = hashlib.sha256()
        self.size = 0
        self.file_name: str | None = None
        self.content_type: str | None = None

    @property
    def sha256(self) -> str:
        """Return the hash of the bytes read so far, in hex."""
        return self._hash.hexdigest()

    async def read_chunks(self) -> AsyncIterator[bytes]:
        """Read the file's bytes. Errors: `malformed_request`, `file_too_large`, `invalid_field` for `file`."""
        try:
            async for chunk in self._read_parts():
                self.size += len(chunk)
                if self.size > self._max_bytes:
                    raise DomainError(self._size_error, f"The {self._noun} must be at most {self._max_bytes} bytes.")
                self._hash.update(chunk)
                yield chunk
        except MultipartError as error:
            raise DomainError("malformed_request", f"The multipart body is damaged: {error}.") from None
        # A form in which no file was chosen sends the field without a file name.
        if self.size == 0 and not (self._may_be_empty and self.file_name):
            problem = "is missing" if self._may_be_empty else "is missing or empty"
            raise InvalidField("file", f"{problem}. Send the {self._noun} in this field.")

    async def _read_parts(self) -> AsyncIterator[bytes]:
        has_file = False
        # Bytes of other fields are skipped; this bounds how many.
        max_bytes = self._max_bytes + 1024 * 1024
        with PushMultipartParser(self._boundary, max_segment_size=max_bytes + 1, max_segment_count=16) as parser:
            async for data in self._request.stream():
                for item in parser.parse(data):
                    if isinstance(item, MultipartSegment):
                        if item.name != "file":
                            raise InvalidField(
                                str(item.name), f"is not a known field. Send the {self._noun} in the field `file`."
                            )
                        if has_file:
                            raise InvalidField("file", f"is sent twice. Send one {self._noun} at a time.")
                        has_file = True
                        self.file_name, self.content_type = item.filename, item.content_type
                    elif item:
                        yield bytes(item)
