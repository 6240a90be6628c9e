"""Read the images of messages: from a data: URL that holds one, or from a URL that its provider loads."""

import base64
import binascii
import re
from typing import Final
from urllib.parse import urlsplit

from domain.llms.content import IMAGE_MEDIA_TYPES, MAX_IMAGE_URL_CHARACTERS, MessageImage

_DATA_URL_PATTERN: Final = re.compile(r"data:([^;,]*)((?:;[^;,]*)*);base64,", re.IGNORECASE)
_TYPE_SYNONYMS: Final = {"image/jpg": "image/jpeg"}


class BadImage(Exception):
    """Report an image that cannot be read. `reason` continues a sentence about its field: "is not base64."."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


def read_image_url(url: str) -> MessageImage:
    """Return the image of a data: or https: URL. Errors: `BadImage`."""
    if (head := _DATA_URL_PATTERN.match(url)) is not None:
        return decode_image(head[1], url[head.end() :])
    try:
        parts = urlsplit(url)
        is_right = parts.scheme == "https" and bool(parts.hostname) and parts.username is None and parts.port != 0
    except ValueError:
        is_right = False
    if not is_right or not url.isprintable() or " " in url:
        raise BadImage("must be an https URL, or data:image/…;base64,… with the image itself.")
    if len(url) > MAX_IMAGE_URL_CHARACTERS:
        raise BadImage(f"is longer than {MAX_IMAGE_URL_CHARACTERS} characters.")
    return MessageImage(url=url)


def decode_image(media_type: str, data: str) -> MessageImage:
    """Return the image of base64 text. Errors: `BadImage`."""
    kind = _TYPE_SYNONYMS.get(media_type.strip().lower(), media_type.strip().lower())
    if kind not in IMAGE_MEDIA_TYPES:
        raise BadImage(f"is of type {media_type[:40]!r}; images are {', '.join(sorted(IMAGE_MEDIA_TYPES))}.")
    try:
        content = base64.b64decode("".join(data.split()), validate=True)
    except (binascii.Error, ValueError):
        raise BadImage("is not base64.") from None
    if not content:
        raise BadImage("is an empty image.")
    return MessageImage(data=content, media_type=kind)
