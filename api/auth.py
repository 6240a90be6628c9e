"""Authenticate callers by an API key, a bearer token or a trusted proxy, and authorize them for routes."""

import asyncio
import contextlib
from datetime import datetime
from typing import Any, Final

from litestar import WebSocket
from litestar.connection import ASGIConnection
from litestar.handlers.base import BaseRouteHandler

from api.limits import RateLimiter
from api.operations import ANY_SCOPE, NO_CALLER
from api.proxy_logins import ProxyHeaders, ProxyLogins
from domain import accounts
from domain.accounts import ApiKeyIdentity
from domain.ports import Clock, Store
from domain.shared import access
from domain.shared.access import Caller
from domain.shared.errors import DomainError, FieldError
from infra.credentials import API_KEY_PREFIX, AccessTokens, hash_token, is_same_digest
from infra.group_commit import GroupCommit
from infra.polling import PollResult, poll

KEY_USAGE_FLUSH_SECONDS: Final = 2.0
# How long a stream may go on after its key or user was revoked.
STREAM_RECHECK_SECONDS: Final = 3.0
_NO_CREDENTIALS: Final = "Send an API key as X-API-Key, or a bearer token in Authorization."
_INVALID_KEY: Final = "The API key is not valid: it is unknown, revoked or expired."


def _refuse_credentials(detail: str) -> DomainError:
    return DomainError("unauthenticated", detail)


class Authenticator:
    """Find the callers of requests by their credentials."""

    def __init__(self, store: Store, clock: Clock, tokens: AccessTokens, proxy_logins: ProxyLogins) -> None:
        self._store, self._clock, self._tokens, self._proxy_logins = store, clock, tokens, proxy_logins
        # One statement, begun after they arrived, for the keys of concurrent requests.
        self._key_lookups: GroupCommit[bytes, ApiKeyIdentity | None] = GroupCommit(self._find_keys)

    async def identify_caller(
        self, headers: dict[str, str], query_token: str | None = None, proxy_headers: ProxyHeaders | None = None
    ) -> Caller | None:
        """Return the caller of a request, or None for a request without credentials.

        `query_token` is for WebSockets and EventSources of browsers, which cannot set headers. `proxy_headers` are the
        headers of a trusted proxy, which sign in a user without a credential.
        Errors: `unauthenticated` for invalid credentials, `forbidden` for users that the proxy may not sign in.
        """
        # Kurral's client sends its key in the last one. An empty header is what an unset variable leaves: no key.
        key = (headers.get("x-api-key", "") or headers.get("kurral", "")).strip()
        if key:
            return await self._authenticate_key(key)
        scheme, _, credentials = headers.get("authorization", "").partition(" ")
        if not scheme and query_token:
            scheme, credentials = "bearer", query_token
        if not scheme:
            return None if proxy_headers is None else await self._proxy_logins.identify_caller(proxy_headers)
        if scheme.lower() != "bearer" or not credentials.strip():
            raise _refuse_credentials("The Authorization header must be `Bearer` and a token or an API key.")
        token = credentials.strip()
        return await (self._authenticate_key if token.startswith(API_KEY_PREFIX) else self._authenticate_token)(token)

    async def find_session(self, user_id: str, session_id: str) -> Caller:
        """Return the caller of an open session. Errors: `unauthenticated`."""
        async with self._store.autocommit() as tx:
            session = await tx.accounts.find_session(user_id, session_id)
        if session is None or not session.is_active:
            raise _refuse_credentials("The session of this access token has ended.")
        return accounts.caller_from_identity(session)

    async def _authenticate_key(self, key: str) -> Caller:
        key_hash = hash_token(key)
        identity = await self._key_lookups.add(key_hash)
        caller = None
        if identity is not None and is_same_digest(identity.key_hash, key_hash):
            caller = accounts.caller_from_api_key(identity, self._clock())
        if caller is None or caller.key_id is None:
            raise _refuse_credentials(_INVALID_KEY)
        return caller

    async def _find_keys(self, key_hashes: list[bytes]) -> list[ApiKeyIdentity | None]:
        async with self._store.autocommit() as tx:
            identities = await tx.api_keys.find(list(set(key_hashes)))
        return [identities.get(key_hash) for key_hash in key_hashes]

    async def _authenticate_token(self, token: str) -> Caller:
        claims = self._tokens.read_token(token)
        if claims is None:
            raise _refuse_credentials("The access token is not valid or has expired.")
        return await self.find_session(*claims)


class StreamAccess:
    """Check at intervals that the caller who opened a stream may still read it: its key or user may be revoked.

    A session lasts longer than the token that it was opened with, and so may a stream.
    """

    def __init__(
        self,
        authenticator: Authenticator,
        connection: ASGIConnection[Any, Any, Any, Any],
        caller: Caller,
        scope: str,
    ) -> None:
        self._authenticator, self._caller, self._scope = authenticator, caller, scope
        self._headers = {name.lower(): value for name, value in connection.headers.items()}
        self._token = connection.query_params.get("access_token")
        self._proxy_headers: ProxyHeaders | None = connection.scope["state"].get("proxy_headers")
        self._loop = asyncio.get_running_loop()
        self.next_check = self._loop.time() + STREAM_RECHECK_SECONDS

    async def check_access(self) -> None:
        """Authenticate the caller again if a check is due. Errors: `unauthenticated`, `forbidden`, `missing_scope`."""
        if self._loop.time() < self.next_check:
            return
        self.next_check = self._loop.time() + STREAM_RECHECK_SECONDS
        try:
            access.require_scope(await self._find_caller(), self._scope)
        except DomainError as error:
            # After any other error, for example in an outage, the next check decides.
            if error.code in ("unauthenticated", "forbidden", "missing_scope"):
                raise

    async def _find_caller(self) -> Caller:
        if self._caller.session_id is not None:
            return await self._authenticator.find_session(self._caller.user_id, self._caller.session_id)
        caller = await self._authenticator.identify_caller(self._headers, self._token, self._proxy_headers)
        if caller is None:
            raise _refuse_credentials(_INVALID_KEY)
        return caller

    @property
    def seconds_left(self) -> float:
        """Return the seconds until the next check is due."""
        return max(0.0, self.next_check - self._loop.time())


async def authorize_message(
    authenticator: Authenticator, rate_limiter: RateLimiter, socket: WebSocket[Any, Any, Any], scope: str
) -> Caller:
    """Authenticate and count the caller of an open WebSocket again, as for a request of its own.

    Errors: `unauthenticated`, `forbidden`, `missing_scope`, `rate_limit_exceeded`.
    """
    headers = {name.lower(): value for name, value in socket.headers.items()}
    proxy_headers = socket.scope["state"].get("proxy_headers")
    caller = await authenticator.identify_caller(headers, socket.query_params.get("access_token"), proxy_headers)
    if caller is None:
        raise _refuse_credentials(_NO_CREDENTIALS)
    access.require_scope(caller, scope)
    await rate_limiter.check_request(caller)
    return caller


async def authorize_route(connection: ASGIConnection[Any, Any, Any, Any], handler: BaseRouteHandler) -> None:
    """Guard every route: check limits, then authentication, then the scope, then names of query parameters.

    A coroutine because Litestar calls other guards in a thread.
    """
    if connection.scope.get("method") == "OPTIONS":
        return
    state = connection.scope["state"]
    if state.get("limit_error") is not None:
        raise state["limit_error"]
    required_scope = handler.opt.get("required_scope")
    if required_scope is None:
        raise DomainError("not_found", f"No route matches {connection.url.path}.")
    if required_scope != NO_CALLER:
        if state.get("auth_error") is not None:
            raise state["auth_error"]
        caller = state.get("caller")
        if caller is None:
            raise _refuse_credentials(_NO_CREDENTIALS)
        if required_scope != ANY_SCOPE:
            access.require_scope(caller, required_scope)
    _refuse_unknown_parameters(connection)


def _refuse_unknown_parameters(connection: ASGIConnection[Any, Any, Any, Any]) -> None:
    route = connection.scope["path_template"], connection.scope.get("method")
    allowed = connection.app.state.query_parameters.get(route)
    if allowed is None:
        return
    unknown = [name for name in connection.query_params if name not in allowed]
    if unknown:
        names = ", ".join(sorted(allowed)) or "none"
        message = f"is not a query parameter of this route. Known parameters: {names}."
        errors = [FieldError(field=name, message=message) for name in unknown]
        raise DomainError("invalid_field", f"{unknown[0]}: {message}", errors)


class KeyUsageWriter:
    """Count the uses of API keys and write them every few seconds, so that no request waits for the write."""

    def __init__(self) -> None:
        self._uses: dict[str, tuple[int, datetime]] = {}

    def count_use(self, key_id: str, now: datetime) -> None:
        """Count one use of a key at this moment."""
        uses, _ = self._uses.get(key_id, (0, now))
        self._uses[key_id] = (uses + 1, now)

    async def run_until_stopped(self, store: Store, stop: asyncio.Event) -> None:
        """Write counted uses until `stop` is set; then write the remaining ones."""

        async def flush_uses() -> PollResult:
            did_work = bool(self._uses)
            await self._flush_uses(store)
            return PollResult(did_work, KEY_USAGE_FLUSH_SECONDS)

        await poll("key usage", flush_uses, stop=stop)
        with contextlib.suppress(Exception):
            await self._flush_uses(store)

    async def _flush_uses(self, store: Store) -> None:
        uses, self._uses = self._uses, {}
        if not uses:
            return
        try:
            async with store.system_transaction() as tx:
                await tx.api_keys.count_use(uses)
        except Exception:
            for key_id, (count, used_at) in uses.items():
                newer_count, newest = self._uses.get(key_id, (0, used_at))
                self._uses[key_id] = (newer_count + count, newest)
            raise
