"""Read the JSON-RPC message of a request before the MCP library does, within the limits of bodies.

The library is stateless here, so that a cancellation, which is a request of its own, has to be understood outside.
"""

import hashlib
from typing import Any, Final, Literal

import msgspec
from litestar import Response
from msgspec import UNSET, UnsetType

from domain.shared.access import Caller
from domain.shared.errors import DomainError
from domain.shared.json_limits import check_json_body

PARSE_ERROR: Final = -32700
INVALID_REQUEST: Final = -32600
MAX_ID_CHARACTERS: Final = 256
SESSION_HEADER: Final = "mcp-session-id"
MAX_SESSION_CHARACTERS: Final = 128


class RpcMessage(msgspec.Struct, frozen=True, kw_only=True):
    """Hold what is read of a message: a request has an id, a notification has none, and a response has no method."""

    jsonrpc: Literal["2.0"]
    method: str | UnsetType = UNSET
    id: int | str | None | UnsetType = UNSET
    params: dict[str, Any] | None | UnsetType = UNSET

    @property
    def cancelled_id(self) -> int | str | None:
        """Return the id of the request that this message cancels."""
        if self.method != "notifications/cancelled" or not isinstance(self.params, dict):
            return None
        request_id = self.params.get("requestId")
        return request_id if isinstance(request_id, int | str) and not isinstance(request_id, bool) else None


class InvalidMessage(Exception):
    """Report a body that is not one message, with the code of JSON-RPC."""

    def __init__(self, code: int, message: str, request_id: int | str | None = None) -> None:
        super().__init__(message)
        self.code, self.request_id = code, request_id

    def to_response(self) -> Response[dict[str, Any]]:
        """Return the answer to the request."""
        error = {"code": self.code, "message": str(self)}
        return Response({"jsonrpc": "2.0", "id": self.request_id, "error": error}, status_code=400)


def parse_message(body: bytes) -> RpcMessage:
    """Return the one message of a body. Errors: `InvalidMessage`."""
    try:
        check_json_body(body)
        message = msgspec.json.decode(body, type=RpcMessage)
    except DomainError as error:
        raise InvalidMessage(PARSE_ERROR, error.detail) from None
    except RecursionError:
        raise InvalidMessage(PARSE_ERROR, "The body nests too deeply.") from None
    except msgspec.ValidationError as error:
        reason = "send one message per request, not a batch" if body.lstrip()[:1] == b"[" else str(error)
        raise InvalidMessage(INVALID_REQUEST, f"The body is not a JSON-RPC 2.0 message: {reason}.") from None
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise InvalidMessage(PARSE_ERROR, f"The body is not JSON: {error}.") from None
    if message.id is None:
        raise InvalidMessage(INVALID_REQUEST, "`id` must not be null; a notification has none.")
    if isinstance(message.id, str) and len(message.id) > MAX_ID_CHARACTERS:
        raise InvalidMessage(INVALID_REQUEST, f"`id` must be at most {MAX_ID_CHARACTERS} characters.")
    return message


def build_request_key(caller: Caller, session: str, request_id: int | str) -> str:
    """Return what names a request of a caller in all processes. Clients number their requests within a session.

    The numbers 1 and the text "1" are different ids.
    """
    text = msgspec.json.encode([caller.key_id or caller.user_id, session, request_id])
    return hashlib.sha256(text).hexdigest()[:32]
