"""Build the content of a message out of its texts and images, and read the marks for a provider's cache."""

from collections.abc import Mapping, Sequence
from typing import Any, Final
from urllib.parse import urlsplit

import msgspec

from domain.egress import EgressEntry
from domain.llms import (
    MAX_IMAGES,
    BadImage,
    CacheTtl,
    ChatMessage,
    ImageDetail,
    MessageImage,
    MessagePart,
    MessageText,
    decode_image,
    join_text,
    read_image_url,
)
from infra.wires.common.errors import WireRefusal
from infra.wires.common.parser import drop_notes

# Parts of this kind are images, in the shapes of the three APIs. Libraries mix them.
IMAGE_KINDS: Final = frozenset({"image_url", "input_image", "image"})


class PartRules(msgspec.Struct, frozen=True, kw_only=True):
    """Define the parts of one of OpenAI's APIs: the field of each kind of text, and fields that are mere labels."""

    text_fields: Mapping[str, str]
    notes: frozenset[str]
    # What refusals say: what a part must be, and the kinds of texts and images that this API documents.
    shape: str
    text_kind: str
    image_kind: str
    # The kind of a part that names none; None if it has to.
    default_kind: str | None = None


class _CacheControl(msgspec.Struct, forbid_unknown_fields=True):
    """Hold a mark for the cache as Anthropic has it."""

    type: str
    ttl: CacheTtl = "5m"


class _ImageLink(msgspec.Struct, forbid_unknown_fields=True):
    """Hold where an image is, as chat completions have it."""

    url: str
    detail: ImageDetail | None = None


class _ImageSource(msgspec.Struct, forbid_unknown_fields=True):
    """Hold where an image is, as Anthropic has it."""

    type: str
    media_type: str = ""
    data: str = ""
    url: str = ""


def read_cache_mark(fields: dict[str, Any], where: str) -> CacheTtl | None:
    """Take the mark for the cache out of the fields of a part, a tool or a request. Errors: `WireRefusal`."""
    breakpoint_mark = fields.pop("prompt_cache_breakpoint", None)  # OpenAI's
    value = fields.pop("cache_control", None)
    if value is None:
        return None if breakpoint_mark is None else "5m"
    place = f"{where}.cache_control" if where else "cache_control"
    try:
        mark = msgspec.convert(value, _CacheControl)
    except msgspec.ValidationError as error:
        raise WireRefusal(400, f"`{place}`: {error}.", param=place) from None
    if mark.type != "ephemeral":
        raise WireRefusal(400, f"`{place}.type` must be 'ephemeral'.", param=f"{place}.type")
    return mark.ttl


def read_part_mark(value: Any, where: str) -> CacheTtl | None:
    """Return the mark for the cache that `cache_control` holds, None for none. Errors: `WireRefusal`."""
    return read_cache_mark({"cache_control": value}, where)


def read_part(part: Any, where: str, rules: PartRules, takes_images: bool) -> MessagePart:
    """Return a text or an image of a message's content. Errors: `WireRefusal` names what is not taken."""
    if isinstance(part, str):
        return MessageText(text=part)
    if not isinstance(part, dict):
        raise WireRefusal(400, f"`{where}` must be {rules.shape}.", param=where)
    fields = drop_notes(part, rules.notes)
    kind = fields.pop("type", rules.default_kind)
    if takes_images and isinstance(kind, str) and kind in IMAGE_KINDS:
        return read_image(kind, fields, where)
    field = rules.text_fields.get(kind) if isinstance(kind, str) else None
    if field is None:
        others = f"and {rules.image_kind!r}" if takes_images else "alone"
        message = f"`{where}` is of type {str(kind)[:40]!r}; parts of type {rules.text_kind!r} {others} are taken here."
        raise WireRefusal(400, message, param=where)
    return read_text(fields, field, where)


def read_text(fields: dict[str, Any], field: str, where: str) -> MessageText:
    """Return a text part, whose fields are those beside its `type`. Errors: `WireRefusal` names what is wrong."""
    cache = read_cache_mark(fields, where)
    text = fields.pop(field, None)
    if not isinstance(text, str):
        raise WireRefusal(400, f"`{where}.{field}` must be text.", param=f"{where}.{field}")
    _refuse_other_fields(fields, where)
    return MessageText(text=text, cache=cache)


def read_image(kind: str, fields: dict[str, Any], where: str) -> MessageImage:
    """Return an image part, whose fields are those beside its `type`. Errors: `WireRefusal` names what is wrong."""
    cache = read_cache_mark(fields, where)
    if kind == "image":
        image = _read_source(_convert(fields.pop("source", None), _ImageSource, f"{where}.source"), f"{where}.source")
    else:
        link = fields.pop("image_url", None)
        if isinstance(link, str):
            link = {"url": link}
        if isinstance(link, dict) and "detail" in fields:
            link = {**link, "detail": fields.pop("detail")}
        image_link = _convert(link, _ImageLink, f"{where}.image_url")
        image = msgspec.structs.replace(_read_url(image_link.url, f"{where}.image_url"), detail=image_link.detail)
    _refuse_other_fields(fields, where)
    return msgspec.structs.replace(image, cache=cache)


def _refuse_other_fields(fields: dict[str, Any], where: str) -> None:
    if fields:
        name = min(fields)[:64]
        raise WireRefusal(400, f"`{where}.{name}` is an unknown field: leave it out.", param=f"{where}.{name}")


def build_message(role: Any, parts: Sequence[MessagePart], separator: str = "\n", **more: Any) -> ChatMessage:
    """Return a message of these parts: as plain text, unless there are images, or marks before its end."""
    texts = [part.text for part in parts if isinstance(part, MessageText)]
    if len(texts) == len(parts) and all(part.cache is None for part in parts[:-1]):
        cache = parts[-1].cache if parts else None
        return ChatMessage(role=role, content=separator.join(texts), cache=cache, **more)
    return ChatMessage(role=role, content=join_text(tuple(parts)), parts=tuple(parts), **more)


def find_last_mark(parts: Sequence[MessagePart]) -> CacheTtl | None:
    """Return the last mark of a message that is kept as plain text."""
    return next((part.cache for part in reversed(parts) if part.cache is not None), None)


def check_images(messages: Sequence[ChatMessage], egress: Sequence[EgressEntry]) -> None:
    """Check the number of images, and that their URLs lead to hosts that the run may reach. Errors: `WireRefusal`.

    A provider loads an image from its URL. What an agent writes into one would leave by a host that it did not declare.
    """
    images = [part for message in messages for part in message.parts if isinstance(part, MessageImage)]
    if len(images) > MAX_IMAGES:
        raise WireRefusal(400, f"A request may have {MAX_IMAGES} images, and this one has {len(images)}.", "images")
    for image in images:
        if image.url is None:
            continue
        url = urlsplit(image.url)
        host, port = (url.hostname or "").lower().rstrip("."), url.port or 443
        if not any(entry.is_matching(host, port) for entry in egress):
            message = (
                f"The provider would load an image from {host[:253]}, port {port}, which is not in the `egress` of the "
                "manifest: name the host there, or send the image itself as a data: URL."
            )
            raise WireRefusal(400, message, "image_host_not_declared")


def _convert(value: Any, kind: Any, where: str) -> Any:
    fields = {name: field for name, field in value.items() if field is not None} if isinstance(value, dict) else value
    try:
        return msgspec.convert(fields, kind)
    except msgspec.ValidationError as error:
        raise WireRefusal(400, f"`{where}`: {error}.", param=where) from None


def _read_source(source: _ImageSource, where: str) -> MessageImage:
    match source.type:
        case "base64":
            return _decode_image(source.media_type, source.data, where)
        case "url":
            return _read_url(source.url, f"{where}.url")
    message = f"`{where}.type` is {source.type[:40]!r}: images are taken as base64 or by url."
    raise WireRefusal(400, message, param=f"{where}.type")


def _read_url(url: str, where: str) -> MessageImage:
    try:
        return read_image_url(url)
    except BadImage as error:
        raise WireRefusal(400, f"`{where}` {error.reason}", param=where) from None


def _decode_image(media_type: str, data: str, where: str) -> MessageImage:
    try:
        return decode_image(media_type, data)
    except BadImage as error:
        raise WireRefusal(400, f"`{where}` {error.reason}", param=where) from None
