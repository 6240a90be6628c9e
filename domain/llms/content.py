"""Describe what a message holds besides plain text: images, and the places up to which a provider is to cache."""

import hashlib
from typing import Final, Literal

import msgspec

# How long a provider keeps the prompt up to a mark in its cache.
CacheTtl = Literal["5m", "1h"]
ImageDetail = Literal["auto", "low", "high", "original"]
# The formats that all providers of images know.
IMAGE_MEDIA_TYPES: Final = frozenset({"image/png", "image/jpeg", "image/gif", "image/webp"})
# Images of one request. Providers take 20 to 600.
MAX_IMAGES: Final = 100
MAX_IMAGE_URL_CHARACTERS: Final = 2048
# Bytes of text that an image counts for: its tokens depend on its width and height, and are rarely more.
COUNTED_IMAGE_BYTES: Final = 16 * 1024


class MessageText(msgspec.Struct, frozen=True, kw_only=True, tag="text"):
    """Hold a piece of a message's text. With `cache`, the prompt up to its end is to be cached."""

    text: str
    cache: CacheTtl | None = None


class MessageImage(msgspec.Struct, frozen=True, kw_only=True, tag="image"):
    """Hold an image: its bytes and their type, or the `url` from which the provider loads it.

    `detail` is OpenAI's: how closely the model looks.
    """

    data: bytes = b""
    media_type: str = ""
    url: str | None = None
    detail: ImageDetail | None = None
    cache: CacheTtl | None = None

    @property
    def label(self) -> str:
        """The words that stand for the image where text alone is kept: its URL, or its type, size and hash."""
        if self.url is not None:
            return f"[image {self.url}]"
        return f"[image {self.media_type}, {len(self.data)} bytes, sha256 {hashlib.sha256(self.data).hexdigest()}]"

    def __repr__(self) -> str:
        """Return the label: logs and errors must not repeat megabytes."""
        return f"MessageImage({self.label})"


MessagePart = MessageText | MessageImage


def join_text(parts: tuple[MessagePart, ...]) -> str:
    """Return the parts of a message as text, with a label in the place of each image."""
    return "\n".join(part.text if isinstance(part, MessageText) else part.label for part in parts)
