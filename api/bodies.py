"""Decode bodies of requests and messages of WebSockets as JSON of a type, within bounds and with every field error.

Small bodies are decoded at once. Larger ones are decoded in one thread, in their order, so that a client which sends
many of them delays no other client.
"""

import asyncio
import functools
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Final, TypeVar

import msgspec

from domain.shared.errors import DomainError, InvalidFields
from domain.shared.field_errors import list_field_errors
from domain.shared.json_limits import SMALL_JSON_BYTES, check_json_body

ResultT = TypeVar("ResultT")
_DECODER_THREAD: Final = ThreadPoolExecutor(max_workers=1, thread_name_prefix="bodies")


async def run_off_loop(size: int, decode: Callable[[], ResultT]) -> ResultT:
    """Return the result of `decode` for a body of this size; a large one is decoded in the decoder thread."""
    if size <= SMALL_JSON_BYTES:
        return decode()
    return await asyncio.get_running_loop().run_in_executor(_DECODER_THREAD, decode)


def decode_body(body: bytes, kind: Any) -> Any:
    """Decode JSON as a `kind`. Texts are accepted for numbers, as in queries.

    Errors: `malformed_request` for invalid or too large JSON, `invalid_field` with every field error.
    """
    check_json_body(body)
    try:
        return _get_decoder(kind).decode(body)
    except msgspec.ValidationError as error:
        raise _describe_field_errors(body, kind, error) from None
    except RecursionError:
        raise DomainError("malformed_request", "The body nests too deeply.") from None
    except msgspec.DecodeError as error:
        raise DomainError("malformed_request", f"The body is not JSON: {error}.") from None


@functools.cache
def _get_decoder(kind: Any) -> msgspec.json.Decoder[Any]:
    return msgspec.json.Decoder(kind, strict=False)


def _describe_field_errors(body: bytes, kind: Any, error: msgspec.ValidationError) -> DomainError:
    try:
        value = msgspec.json.decode(body)
    except msgspec.DecodeError as unreadable:
        # For example a number past all bounds, which fits no type.
        return DomainError("malformed_request", f"The body cannot be read: {unreadable}.")
    if value is None:
        return DomainError("malformed_request", "The body must be a JSON object.")
    return InvalidFields(list_field_errors(value, kind, error, strict=False))
