"""Who is calling: an API key first, else a bearer token, else whom a trusted proxy names; and what a route asks."""

import asyncio
import contextlib
from datetime import datetime
from typing import Any, Final

import structlog
from litestar import WebSocket
from litestar.connection import ASGIConnection
from litestar.handlers.base import BaseRouteHandler

from api import limits
from api.front import Front
from api.proxy_logins import Headers, identify_by_proxy
from domain import accounts
from domain.accounts import keys
from domain.accounts.keys import KeyIdentity
from domain.ports import Store
from domain.shared import access
from domain.shared.access import Caller
from domain.shared.errors import DomainError, FieldError
from infra.credentials import KEY_PREFIX, same, token_hash
from infra.group_commit import Batches
from infra.outage_log import tell_outage

_log = structlog.get_logger("paddock.auth")
FLUSH: Final = 2.0
# How long a stream may go on after its key or user was revoked.
RECHECK_SECONDS: Final = 3.0


def _refused(detail: str) -> DomainError:
    return DomainError("unauthenticated", detail)


async def identify(
    front: Front, headers: dict[str, str], query_token: str | None = None, forwarded: Headers | None = None
) -> Caller | None:
    """The caller of a request, or None for nobody.

    `query_token` is for WebSockets and EventSources of browsers, which cannot set headers. `forwarded` are the headers
    of a trusted proxy, which sign in a user without a credential.
    Errors: `unauthenticated` for credentials that do not hold, `forbidden` for whom the proxy may not sign in.
    """
    # The last is how Kurral's client sends it. An empty one is what an unset variable leaves behind: no key.
    key = (headers.get("x-api-key", "") or headers.get("kurral", "")).strip()
    if key:
        return await _by_key(front, key)
    scheme, _, credentials = headers.get("authorization", "").partition(" ")
    if not scheme and query_token:
        scheme, credentials = "bearer", query_token
    if not scheme:
        return None if forwarded is None else await identify_by_proxy(front, forwarded)
    if scheme.lower() != "bearer" or not credentials.strip():
        raise _refused("The Authorization header must be `Bearer` and a token or an API key.")
    token = credentials.strip()
    return await (_by_key if token.startswith(KEY_PREFIX) else _by_token)(front, token)


async def _by_key(front: Front, key: str) -> Caller:
    wanted = token_hash(key)
    found = await front.keys.add(wanted)
    caller = None
    if found is not None and same(found.key_hash, wanted):
        caller = keys.caller_of(found, front.clock())
    if caller is None or caller.key_id is None:
        raise _refused("The API key is not valid: unknown, revoked or expired.")
    return caller


def lookups(store: Store) -> Batches[bytes, KeyIdentity | None]:
    """Looks up keys by their hash: one statement, begun after they arrived, for those of concurrent requests."""

    async def find(wanted: list[bytes]) -> list[KeyIdentity | None]:
        async with store.begin_single() as tx:
            found = await tx.keys.find(list(set(wanted)))
        return [found.get(one) for one in wanted]

    return Batches(find)


async def _by_token(front: Front, token: str) -> Caller:
    named = front.tokens.read(token)
    if named is None:
        raise _refused("The access token is not valid or has expired.")
    return await _by_session(front, *named)


async def _by_session(front: Front, user_id: str, session_id: str) -> Caller:
    async with front.store.begin_single() as tx:
        found = await tx.accounts.find_session(user_id, session_id)
    if found is None or not found.is_active:
        raise _refused("The session of this access token has ended.")
    return accounts.caller_from_identity(found)


class Admission:
    """Whether whoever opened a stream may still read it: its key or user may be revoked meanwhile.

    A session holds for longer than the token that it was shown by, and so a stream does too.
    """

    def __init__(
        self, front: Front, connection: ASGIConnection[Any, Any, Any, Any], caller: Caller, scope: str
    ) -> None:
        self._front, self._caller, self._scope = front, caller, scope
        self._headers = {name.lower(): value for name, value in connection.headers.items()}
        self._token = connection.query_params.get("access_token")
        self._forwarded: Headers | None = connection.scope["state"].get("forwarded")
        self._loop = asyncio.get_running_loop()
        self.next_check = self._loop.time() + RECHECK_SECONDS

    async def check(self) -> None:
        """Look again, if it is time to. Errors: `unauthenticated`, `forbidden`, `missing_scope`."""
        if self._loop.time() < self.next_check:
            return
        self.next_check = self._loop.time() + RECHECK_SECONDS
        try:
            access.require(await self._find(), self._scope)
        except DomainError as error:
            # What cannot be looked at now is looked at next time.
            if error.code in ("unauthenticated", "forbidden", "missing_scope"):
                raise

    async def _find(self) -> Caller:
        if self._caller.session_id is not None:
            return await _by_session(self._front, self._caller.user_id, self._caller.session_id)
        found = await identify(self._front, self._headers, self._token, self._forwarded)
        if found is None:
            raise _refused("The API key is not valid: unknown, revoked or expired.")
        return found

    @property
    def seconds_left(self) -> float:
        """Until it is time to look again."""
        return max(0.0, self.next_check - self._loop.time())


async def readmit(front: Front, socket: WebSocket[Any, Any, Any], scope: str) -> Caller:
    """The caller of an open WebSocket, authenticated and counted anew for one more piece of work.

    Errors: `unauthenticated`, `forbidden`, `missing_scope`, `rate_limit_exceeded`.
    """
    headers = {name.lower(): value for name, value in socket.headers.items()}
    forwarded = socket.scope["state"].get("forwarded")
    caller = await identify(front, headers, socket.query_params.get("access_token"), forwarded)
    if caller is None:
        raise _refused("Send an API key as X-API-Key, or a bearer token in Authorization.")
    access.require(caller, scope)
    over = limits.refusal(await limits.count(front, caller, ""), front.clock().timestamp())
    if over is not None:
        raise over
    return caller


async def admit(connection: ASGIConnection[Any, Any, Any, Any], handler: BaseRouteHandler) -> None:
    """The guard of every route: limits, then authentication, then scope, then names of query parameters.

    A coroutine because Litestar calls other guards in a thread.
    """
    if connection.scope.get("method") == "OPTIONS":
        return
    state = connection.scope["state"]
    if state.get("limited") is not None:
        raise state["limited"]
    needed = handler.opt.get("needs")
    if needed is None:
        raise DomainError("not_found", f"There is nothing at {connection.url.path}.")
    if needed != "nothing":
        if state.get("refusal") is not None:
            raise state["refusal"]
        caller = state.get("caller")
        if caller is None:
            raise _refused("Send an API key as X-API-Key, or a bearer token in Authorization.")
        if needed != "anybody":
            access.require(caller, needed)
    _refuse_unknown_parameters(connection)


def _refuse_unknown_parameters(connection: ASGIConnection[Any, Any, Any, Any]) -> None:
    allowed = connection.app.state.query_names.get((connection.scope["path_template"], connection.scope.get("method")))
    if allowed is None:
        return
    unknown = [name for name in connection.query_params if name not in allowed]
    if unknown:
        names = ", ".join(sorted(allowed)) or "none"
        errors = [FieldError(field=name, message=f"is not a parameter here; there are: {names}.") for name in unknown]
        raise DomainError("invalid_field", f"{unknown[0]}: is not a parameter here; there are: {names}.", errors)


class KeyUse:
    """Counts the uses of keys and writes them down every few seconds, so that no request waits for it."""

    def __init__(self) -> None:
        self._uses: dict[str, tuple[int, datetime]] = {}

    def count(self, key_id: str, now: datetime) -> None:
        """One use, now."""
        self._uses[key_id] = (self._uses.get(key_id, (0, now))[0] + 1, now)

    async def write_always(self, front: Front) -> None:
        """Run for as long as the process does, and write what is left when it ends."""
        try:
            while True:
                await asyncio.sleep(FLUSH)
                await self._write(front)
        finally:
            with contextlib.suppress(Exception):
                await asyncio.shield(self._write(front))

    async def _write(self, front: Front) -> None:
        uses, self._uses = self._uses, {}
        if not uses:
            return
        try:
            async with front.store.begin_unbound() as tx:
                await tx.keys.count_use(uses)
        except Exception as error:
            tell_outage(_log, "uses of keys are not written yet", error)
            for key_id, (count, at) in uses.items():
                self._uses[key_id] = (self._uses.get(key_id, (0, at))[0] + count, self._uses.get(key_id, (0, at))[1])
