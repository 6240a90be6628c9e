"""Check the tags and the metadata by which callers find their agents, executions and threads again."""

import re
from collections.abc import Iterable
from typing import Annotated, Any, Final

import msgspec
from msgspec import Meta

from domain.shared.errors import FieldError, InvalidField, InvalidFields
from domain.shared.json_limits import check_json_field

MAX_TAGS: Final = 32
MAX_TAG_CHARACTERS: Final = 64
MAX_METADATA_KEYS: Final = 64
MAX_METADATA_KEY_CHARACTERS: Final = 128
MAX_METADATA_BYTES: Final = 16 * 1024
MAX_METADATA_FILTERS: Final = 16
# A key of a message about it is cut here.
_SHOWN_KEY_CHARACTERS: Final = 40
_PLAIN_TEXT: Final = re.compile(r"(?!\s)[^\x00-\x1f\x7f-\x9f\u2028\u2029]+(?<!\s)")
_TEXT_RULE: Final = "without line breaks, control characters or surrounding spaces."

Tags = Annotated[
    list[str],
    Meta(description=f"At most {MAX_TAGS} tags of {MAX_TAG_CHARACTERS} characters.", examples=[["nightly", "eu"]]),
]
Metadata = Annotated[
    dict[str, Any],
    Meta(
        description=f"At most {MAX_METADATA_KEYS} keys of {MAX_METADATA_KEY_CHARACTERS} characters, and "
        f"{MAX_METADATA_BYTES // 1024} KiB.",
        examples=[{"customer": 7}],
    ),
]


def check_tags(tags: Iterable[str], field: str = "tags") -> list[str]:
    """Return tags in their order, each once. Errors: `invalid_field`, naming `tags[40]`."""
    distinct = dict[str, None]()
    errors = list[FieldError]()
    for number, tag in enumerate(tags):
        if len(tag) > MAX_TAG_CHARACTERS or _PLAIN_TEXT.fullmatch(tag) is None:
            message = f"must be 1 to {MAX_TAG_CHARACTERS} characters, {_TEXT_RULE}"
            errors.append(FieldError(field=f"{field}[{number}]", message=message))
        distinct[tag] = None
        if len(distinct) > MAX_TAGS:
            errors.append(FieldError(field=f"{field}[{number}]", message=f"is one too many: send at most {MAX_TAGS}."))
            break
    if errors:
        raise InvalidFields(errors)
    return list(distinct)


def check_metadata(metadata: dict[str, Any] | None, field: str = "metadata") -> dict[str, Any] | None:
    """Return metadata within the limits; None for an empty object. Errors: `invalid_field`, naming `metadata.<key>`."""
    if not metadata:
        return None
    for number, key in enumerate(metadata):
        name = f"{field}.{key[:_SHOWN_KEY_CHARACTERS]}"
        if len(key) > MAX_METADATA_KEY_CHARACTERS or _PLAIN_TEXT.fullmatch(key) is None:
            raise InvalidField(name, f"must have a key of 1 to {MAX_METADATA_KEY_CHARACTERS} characters, {_TEXT_RULE}")
        if number == MAX_METADATA_KEYS:
            raise InvalidField(name, f"is one too many: send at most {MAX_METADATA_KEYS} keys.")
    check_json_field(field, metadata)
    for key, value in metadata.items():
        if _contains_nul(value):
            raise InvalidField(f"{field}.{key[:_SHOWN_KEY_CHARACTERS]}", "must not contain the character U+0000.")
    if len(msgspec.json.encode(metadata)) > MAX_METADATA_BYTES:
        raise InvalidField(field, f"must be at most {MAX_METADATA_BYTES} bytes as JSON.")
    return metadata


def check_metadata_filters(entries: list[str], field: str = "metadata") -> list[str]:
    """Return members of the metadata that a list filters by, each as `key:value`. Errors: `invalid_field`."""
    errors = [
        FieldError(field=f"{field}[{number}]", message="must be key:value, for example customer:7.")
        for number, entry in enumerate(entries)
        if ":" not in entry[1:] or "\0" in entry
    ]
    if errors:
        raise InvalidFields(errors)
    if len(entries) > MAX_METADATA_FILTERS:
        raise InvalidField(field, f"must be sent at most {MAX_METADATA_FILTERS} times.")
    return entries


def _contains_nul(value: Any) -> bool:
    if isinstance(value, dict):
        return any("\0" in key or _contains_nul(member) for key, member in value.items())
    if isinstance(value, list):
        return any(_contains_nul(member) for member in value)
    return isinstance(value, str) and "\0" in value
