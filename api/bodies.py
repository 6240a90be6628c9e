"""Bodies of requests, and messages of WebSockets, as JSON of a type: bounded before, and with all mistakes told after.

Small ones are read at once. A larger one is read in a thread, one after the other: whoever sends many of them waits for
those before, and nobody else does.
"""

import asyncio
import functools
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Final, TypeVar

import msgspec

from domain.shared.errors import DomainError, misread, refused
from domain.shared.field_errors import collect_field_errors
from domain.shared.json_limits import SMALL_JSON_BYTES, check_body

T = TypeVar("T")
_READER: Final = ThreadPoolExecutor(max_workers=1, thread_name_prefix="bodies")


async def read_aside(size: int, read: Callable[[], T]) -> T:
    """Return what `read` makes of so many bytes, in the readers' thread if there are many of them."""
    if size <= SMALL_JSON_BYTES:
        return read()
    return await asyncio.get_running_loop().run_in_executor(_READER, read)


def decode_body(body: bytes, kind: Any) -> Any:
    """Return JSON as a `kind`. Texts are taken for numbers where those are meant, as in queries.

    Errors: `malformed_request` for what is not JSON or beyond its bounds, `invalid_field` with every field at fault.
    """
    check_body(body)
    try:
        return _decoder(kind).decode(body)
    except msgspec.ValidationError as error:
        raise _refuse_fields(body, kind, error) from None
    except RecursionError:
        raise DomainError("malformed_request", "The body nests too deeply.") from None
    except msgspec.DecodeError as error:
        raise DomainError("malformed_request", f"The body is not JSON: {error}.") from None


@functools.cache
def _decoder(kind: Any) -> msgspec.json.Decoder[Any]:
    return msgspec.json.Decoder(kind, strict=False)


def _refuse_fields(body: bytes, kind: Any, error: msgspec.ValidationError) -> DomainError:
    try:
        value = msgspec.json.decode(body)
    except msgspec.DecodeError as unreadable:
        # Such as a number past all bounds: it has no type that it could have.
        return DomainError("malformed_request", f"The body cannot be read: {unreadable}.")
    if value is None:
        return DomainError("malformed_request", "The body must be a JSON object.")
    return refused(collect_field_errors(value, kind, strict=False) or [misread(str(error))])
