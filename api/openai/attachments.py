"""Take files out of the messages of OpenAI's clients: they become files of the run."""

import base64
import binascii
import hashlib
import re
from collections.abc import AsyncIterator
from datetime import timedelta
from typing import Any, Final

import msgspec

from domain import files, ports
from domain.files import FileUpload
from domain.shared.access import Caller, require_scope
from infra.wires.common import WireRefusal

MAX_ATTACHMENTS: Final = 100
# The run has copies of its files; these are removed.
_UPLOAD_LIFETIME: Final = timedelta(hours=1)
# No set: what clients send as a type may be any JSON.
_FILE_KINDS: Final = ("file", "input_file")
_DATA_URL_PATTERN: Final = re.compile(r"data:([^;,]*)((?:;[^;,]*)*);base64,", re.IGNORECASE)


class FileAttachment(msgspec.Struct, frozen=True, kw_only=True):
    """Hold a file of a message: its id here, or its bytes."""

    name: str
    file_id: str | None = None
    data: bytes = b""
    content_type: str | None = None


class StoredAttachments(msgspec.Struct, frozen=True, kw_only=True):
    """Hold the files of a run by name, and those of them that are new. `quota` is in bytes."""

    files: dict[str, str] = {}
    uploads: tuple[FileUpload, ...] = ()
    quota: int = 0


def take_attachments(fields: dict[str, Any], field: str) -> list[FileAttachment]:
    """Replace the file parts of messages or items by their names, and return the files. Errors: `WireRefusal`."""
    attachments: list[FileAttachment] = []
    messages = fields.get(field)
    for place, message in enumerate(messages if isinstance(messages, list) else ()):
        content = message.get("content") if isinstance(message, dict) else None
        if not isinstance(content, list):
            continue
        for number, part in enumerate(content):
            if isinstance(part, dict) and part.get("type") in _FILE_KINDS:
                attachment = _read_part(part, f"{field}[{place}].content[{number}]")
                content[number] = {"type": "text", "text": f"(file: {attachment.name})"}
                attachments.append(attachment)
    if len(attachments) > MAX_ATTACHMENTS:
        raise WireRefusal(400, f"A request may have {MAX_ATTACHMENTS} files.", param=field)
    names = [attachment.name for attachment in attachments]
    if duplicate := next((name for name in names if names.count(name) > 1), None):
        raise WireRefusal(400, f"Two files are called {duplicate!r}: give each a `filename` of its own.", param=field)
    return attachments


async def store_attachments(
    blobs: ports.Blobs, caller: Caller, attachments: list[FileAttachment], quota: int
) -> StoredAttachments:
    """Write new files to object storage; upkeep removes those that no run is given. Errors: `missing_scope`."""
    named: dict[str, str] = {}
    uploads: list[FileUpload] = []
    for attachment in attachments:
        if attachment.file_id is not None:
            named[attachment.name] = attachment.file_id
            continue
        require_scope(caller, "write:files")
        file_id = files.generate_file_id()
        await blobs.write_object(files.format_file_key(caller.tenant_id, file_id), _iterate_once(attachment.data))
        uploads.append(
            FileUpload(
                file_id=file_id,
                name=files.check_file_name(attachment.name),
                content_type=files.clean_content_type(attachment.content_type),
                size_bytes=len(attachment.data),
                sha256=hashlib.sha256(attachment.data).hexdigest(),
                lifetime=_UPLOAD_LIFETIME,
            )
        )
        named[attachment.name] = file_id
    return StoredAttachments(files=named, uploads=tuple(uploads), quota=quota)


async def _iterate_once(data: bytes) -> AsyncIterator[bytes]:
    yield data


def _read_part(part: dict[str, Any], where: str) -> FileAttachment:
    file = part.get("file") if part["type"] == "file" else part
    if not isinstance(file, dict):
        raise WireRefusal(400, f"`{where}.file` must be an object.", param=f"{where}.file")
    name, file_id, data = file.get("filename"), file.get("file_id"), file.get("file_data")
    if isinstance(file_id, str) and data is None:
        return FileAttachment(name=name if isinstance(name, str) and name else file_id, file_id=file_id)
    if not isinstance(data, str) or not isinstance(name, str) or not name:
        message = f"`{where}` must have a `file_id`, or `file_data` in base64 with a `filename`."
        raise WireRefusal(400, message, param=where)
    head = _DATA_URL_PATTERN.match(data)
    try:
        content = base64.b64decode(data[head.end() :] if head else data, validate=True)
    except (binascii.Error, ValueError):
        raise WireRefusal(400, f"`{where}.file_data` is not base64.", param=f"{where}.file_data") from None
    return FileAttachment(name=name, data=content, content_type=head[1] if head else None)
