"""Parse the head of a request to the proxy, which untrusted code wrote. Strict: anything unusual is refused."""

import re
from typing import Final

from workers.run.egress.schema import EgressEnd

MAX_HEAD_BYTES: Final = 8 * 1024
_REQUEST_LINE: Final = re.compile(rb"CONNECT ([A-Za-z0-9._-]{1,253}):([1-9][0-9]{0,4}) HTTP/1\.[01]")
_OTHER_REQUEST: Final = re.compile(rb"[A-Z]{1,20} [!-~]+ HTTP/1\.[01]")
_HEADER_LINE: Final = re.compile(rb"[!#$%&'*+.^_`|~0-9A-Za-z-]{1,100}:[\t -~\x80-\xff]*")
_HEAD_END: Final = b"\r\n\r\n"


_REASON_PHRASES: Final = {
    400: "Bad Request",
    403: "Forbidden",
    405: "Method Not Allowed",
    408: "Request Timeout",
    429: "Too Many Requests",
    431: "Request Header Fields Too Large",
    502: "Bad Gateway",
    504: "Gateway Timeout",
}


def build_refusal(end: EgressEnd) -> bytes:
    """Return the proxy's answer to a request that it does not carry out."""
    body = f"{end.reason}\n".encode()
    head = f"HTTP/1.1 {end.status} {_REASON_PHRASES[end.status]}\r\nContent-Type: text/plain; charset=utf-8\r\n"
    return f"{head}Content-Length: {len(body)}\r\nConnection: close\r\n\r\n".encode() + body


def split_head(data: bytes) -> tuple[bytes, bytes] | None:
    """Return a head and what follows it; None while the head is not complete. Errors: `EgressEnd` if it is too long."""
    head, end, rest = data.partition(_HEAD_END)
    if len(head) > MAX_HEAD_BYTES - len(_HEAD_END):
        raise EgressEnd("refused", f"The head of a request is longer than {MAX_HEAD_BYTES} bytes.", 431)
    return (head, rest) if end else None


def parse_connect(head: bytes) -> tuple[str, int]:
    """Return the host, in lower case, and the port of a request to connect. Errors: `EgressEnd`."""
    first, *headers = head.split(b"\r\n")
    match = _REQUEST_LINE.fullmatch(first)
    if match is None:
        if _OTHER_REQUEST.fullmatch(first) and not first.startswith(b"CONNECT "):
            reason = "The proxy takes CONNECT only: names that begin with `*.` are reached by HTTPS."
            raise EgressEnd("refused", reason, 405)
        raise EgressEnd("refused", "The request is not `CONNECT host:port HTTP/1.1`, with a host name.", 400)
    if not all(_HEADER_LINE.fullmatch(line) for line in headers):
        raise EgressEnd("refused", "A header of the request is malformed.", 400)
    host, port = match[1].decode().lower(), int(match[2])
    if port > 65535:
        raise EgressEnd("refused", "The port of the request is larger than 65535.", 400)
    return host, port
