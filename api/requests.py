"""Define what handlers receive: the request, the store, and the headers they read by hand."""

import functools
import re
from typing import Annotated, Any, Final

from litestar import Request
from litestar.params import Parameter, SkipValidation
from litestar.types import Empty

from api.bodies import decode_body, run_off_loop
from domain import ports
from domain.shared.errors import InvalidField
from domain.shared.unicode_text import repair_json

# What Litestar calls a request; we use none of its three type parameters.
HttpRequest = Request[Any, Any, Any]
# Protocols have no instances that Litestar could check.
Store = SkipValidation[ports.Store]
Blobs = SkipValidation[ports.Blobs]
# A time in a query, read by `domain.shared.times`; as the end of a stretch, a date is the whole of that day.
QueryTime = Annotated[
    str | None,
    Parameter(
        description="A date, a time (RFC 3339) or seconds since 1970, in UTC unless it names another zone. "
        "A date at the end of a range includes that whole day."
    ),
]
MAX_WAIT_SECONDS: Final = 60
_WAIT_PATTERN: Final = re.compile(r"(?:^|[,;\s])wait=(\d+)(?:$|[,;\s])")


class MendingRequest(HttpRequest):
    """Mend a request's body when it is first read, and bound its JSON and decode it as the handler's type."""

    async def body(self) -> bytes:
        """Return the body; in JSON, halves of surrogate pairs are mended (see `domain.shared.unicode_text`)."""
        is_first_read = self._connection_state.body is Empty
        body = await super().body()
        if is_first_read and "yaml" not in self.content_type[0]:
            mended = await run_off_loop(len(body), functools.partial(repair_json, body))
            body = self._body = self._connection_state.body = mended
        return body

    async def json(self) -> Any:
        """Return the body as the type of the handler's `data`. Errors: `malformed_request`, `invalid_field`."""
        body = await self.body()
        kind = self.route_handler.parsed_fn_signature.parameters["data"].raw
        return await run_off_loop(len(body), functools.partial(decode_body, body, kind))


def read_preferred_wait(request: HttpRequest) -> int:
    """Return the seconds of `Prefer: wait=N` (RFC 7240), 0 without. Errors: `invalid_field` past a minute."""
    match = _WAIT_PATTERN.search(request.headers.get("Prefer", ""))
    seconds = int(match.group(1)[:9]) if match else 0
    if seconds > MAX_WAIT_SECONDS:
        raise InvalidField("Prefer", f"wait must be at most {MAX_WAIT_SECONDS} seconds.")
    return seconds
