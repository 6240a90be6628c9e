"""Sign in users by the headers of a trusted proxy, as Databricks Apps sends them.

`X-Forwarded-Email` names the user, `X-Forwarded-User` is the user's id at the proxy, `X-Databricks-Org-Id` is the
workspace. `X-Forwarded-Access-Token` is the user's credential for Databricks: `remove_credential` removes it before
any other code sees the request.
"""

import contextlib
from typing import Final

from litestar.types import Scope

from api.addresses import Network, is_within, normalize_address
from domain import accounts
from domain.accounts import ProxyLogin, ProxyUser, check_email, proxy_logins, refuse_login
from domain.ports import Store
from domain.shared.access import Caller
from domain.shared.errors import DomainError, Forbidden
from infra.settings import WORKSPACE_ID_PATTERN, WORKSPACE_RULE, Settings

# Names in lower case and values, as in ASGI; a name may occur several times.
ProxyHeaders = tuple[tuple[bytes, bytes], ...]

_CREDENTIAL_HEADER: Final = b"x-forwarded-access-token"
_EMAIL_HEADER: Final = "X-Forwarded-Email"
_USER_HEADER: Final = "X-Forwarded-User"
_FULL_NAME_HEADER: Final = "X-Forwarded-Preferred-Username"
_WORKSPACE_HEADER: Final = "X-Databricks-Org-Id"
_DEFAULT_PORTS: Final = (":80", ":443")
MAX_EMAIL_LENGTH: Final = 254
MAX_EXTERNAL_ID_LENGTH: Final = 255
MAX_FULL_NAME_LENGTH: Final = 200


def remove_credential(scope: Scope) -> None:
    """Remove the user's credential for Databricks from a request, from a trusted proxy or not."""
    if any(name == _CREDENTIAL_HEADER for name, _ in scope["headers"]):
        scope["headers"] = [header for header in scope["headers"] if header[0] != _CREDENTIAL_HEADER]


def select_headers(scope: Scope, trusted: tuple[Network, ...], settings: Settings) -> ProxyHeaders | None:
    """Return the headers of a request that may sign in; None if sign-in is off or the peer is no trusted proxy."""
    client = scope.get("client")
    if settings.proxy_login == "off" or not client or not is_within(normalize_address(client[0]), trusted):
        return None
    return tuple((bytes(name), bytes(value)) for name, value in scope["headers"])


def read_login(headers: ProxyHeaders, settings: Settings) -> ProxyLogin | None:
    """Return the login that a trusted proxy vouches for, or None if its headers name no user.

    Errors: `unauthenticated` for headers that cannot be read or name no workspace, `forbidden` for a page of
    another origin.
    """
    email, external_id = (
        _read_text(headers, _EMAIL_HEADER, MAX_EMAIL_LENGTH),
        _read_text(headers, _USER_HEADER, MAX_EXTERNAL_ID_LENGTH),
    )
    if email is None:
        if external_id is not None:
            raise refuse_login(f"{_EMAIL_HEADER} is required from the proxy: it sent {_USER_HEADER} alone.")
        return None
    _refuse_other_origins(headers, settings)
    try:
        email = check_email(email)
    except DomainError as error:
        raise refuse_login(f"{_EMAIL_HEADER}: {error.errors[0].message}") from None
    full_name = None
    with contextlib.suppress(DomainError):
        # Only shown to people, so an unreadable name is left out.
        full_name = _read_text(headers, _FULL_NAME_HEADER, MAX_FULL_NAME_LENGTH)
    return ProxyLogin(
        workspace=_read_workspace(headers, settings.proxy_workspace),
        email=email,
        external_id=external_id,
        full_name=full_name,
    )


class ProxyLogins:
    """Sign in users whom a trusted proxy names, and add those who are new."""

    def __init__(self, store: Store, settings: Settings) -> None:
        self._store, self._settings = store, settings

    async def identify_caller(self, headers: ProxyHeaders) -> Caller | None:
        """Return the caller whom a trusted proxy names, or None if it names no user. New users are added.

        Runs one statement for a known user. Errors: those of `read_login` and `select_user`; `unauthenticated` for a
        user whom an admin has deactivated.
        """
        login = read_login(headers, self._settings)
        if login is None:
            return None
        user, has_changed = await self._find_user(login)
        if user is None:
            await self._add_user(login)
            user, has_changed = await self._find_user(login)
        if user is not None and has_changed:
            async with self._store.tenant_transaction(login.tenant_id) as tx:
                await tx.accounts.save_proxy_login(user.user_id, login.email, login.external_id, tx.now)
        if user is None or not user.is_active:
            raise refuse_login("This user is deactivated. An admin of the workspace can activate the user again.")
        return accounts.caller_from_identity(user)

    async def _add_user(self, login: ProxyLogin) -> None:
        try:
            async with self._store.tenant_transaction(login.tenant_id) as tx:
                await proxy_logins.add_proxy_user(tx, login)
        except DomainError as error:
            # A concurrent request of the same user was faster: the user exists.
            if error.code != "conflict":
                raise

    async def _find_user(self, login: ProxyLogin) -> tuple[ProxyUser | None, bool]:
        async with self._store.autocommit() as tx:
            candidates = await tx.accounts.find_proxy_users(login.tenant_id, login.external_id, login.email)
        user = proxy_logins.select_proxy_user(login, candidates)
        return user, user is not None and proxy_logins.has_login_changed(login, user, candidates)


def _read_text(headers: ProxyHeaders, name: str, max_length: int) -> str | None:
    """Return the only value of a header, or None. Errors: `unauthenticated`, without the value in its text."""
    values = [value.strip() for key, value in headers if key == name.lower().encode() and value.strip()]
    if not values:
        return None
    if len(values) > 1:
        raise refuse_login(
            f"{name} was sent {len(values)} times. The proxy must send it once and replace what clients send."
        )
    try:
        text = values[0].decode()
    except UnicodeDecodeError:
        raise refuse_login(f"{name} must be UTF-8.") from None
    if len(text) > max_length or not text.isprintable():
        raise refuse_login(f"{name} must be printable text of at most {max_length} characters.")
    return text


def _read_workspace(headers: ProxyHeaders, own_workspace: str) -> str:
    sent = _read_text(headers, _WORKSPACE_HEADER, MAX_EXTERNAL_ID_LENGTH)
    if own_workspace and sent not in (None, own_workspace):
        raise refuse_login(f"{_WORKSPACE_HEADER} names another workspace, not this installation's.")
    workspace = own_workspace or sent
    if workspace is None:
        raise refuse_login(
            f"The request names no workspace. The proxy must send {_WORKSPACE_HEADER}, or set PADDOCK_PROXY_WORKSPACE."
        )
    if not WORKSPACE_ID_PATTERN.fullmatch(workspace):
        raise refuse_login(f"{_WORKSPACE_HEADER} {WORKSPACE_RULE}")
    return workspace


def _refuse_other_origins(headers: ProxyHeaders, settings: Settings) -> None:
    """Refuse requests from pages of other origins: a browser attaches the proxy's cookie to those too."""
    hosts = {
        _drop_default_port(host) for name in (b"host", b"x-forwarded-host") for host in _list_values(headers, name)
    }
    for origin in _list_values(headers, b"origin"):
        if origin not in settings.cors_origins and _drop_default_port(origin.partition("://")[2]) not in hosts:
            raise Forbidden(
                "The request comes from a page of another origin, which the proxy's sign-in does not cover. Add the "
                "origin to CORS_ORIGINS, or send an API key."
            )


def _drop_default_port(host: str) -> str:
    for port in _DEFAULT_PORTS:
        host = host.removesuffix(port)
    return host.lower()


def _list_values(headers: ProxyHeaders, name: bytes) -> list[str]:
    return [part.strip() for key, value in headers if key == name for part in value.decode("latin-1").split(",")]
