"""Sign-in by the headers of a trusted proxy, as Databricks Apps sends them.

`X-Forwarded-Email` names the user, `X-Forwarded-User` is the user's id at the proxy, `X-Databricks-Org-Id` is the
workspace. `X-Forwarded-Access-Token` is the user's credential for Databricks: `take_out_credential` removes it before
anything else sees the request.
"""

import contextlib
from typing import Final

from litestar.types import Scope

from api.addresses import Network, is_within, normalize_address
from api.front import Front
from domain import accounts
from domain.accounts import ProxyUser, proxy_logins
from domain.accounts.emails import check_email
from domain.accounts.proxy_logins import ProxyLogin, refuse_login
from domain.shared.access import Caller
from domain.shared.errors import DomainError, forbidden
from infra.settings import WORKSPACE_ID, WORKSPACE_RULE, Settings

# Names in lower case and values, as ASGI has them: of one name there may be several.
Headers = tuple[tuple[bytes, bytes], ...]

_CREDENTIAL: Final = b"x-forwarded-access-token"
_EMAIL: Final = "X-Forwarded-Email"
_USER: Final = "X-Forwarded-User"
_FULL_NAME: Final = "X-Forwarded-Preferred-Username"
_WORKSPACE: Final = "X-Databricks-Org-Id"
_DEFAULT_PORTS: Final = (":80", ":443")
MAX_EMAIL: Final = 254
MAX_EXTERNAL_ID: Final = 255
MAX_FULL_NAME: Final = 200


def take_out_credential(scope: Scope) -> None:
    """Remove the user's credential for Databricks from a request, whoever sent it."""
    if any(name == _CREDENTIAL for name, _ in scope["headers"]):
        scope["headers"] = [header for header in scope["headers"] if header[0] != _CREDENTIAL]


def select_headers(scope: Scope, trusted: tuple[Network, ...], settings: Settings) -> Headers | None:
    """Return the headers of a request that may sign in, or None: sign-in is off, or the peer is no trusted proxy."""
    client = scope.get("client")
    if settings.proxy_login == "off" or not client or not is_within(normalize_address(client[0]), trusted):
        return None
    return tuple((bytes(name), bytes(value)) for name, value in scope["headers"])


def read_login(headers: Headers, settings: Settings) -> ProxyLogin | None:
    """Return whom a trusted proxy names, or None if it names nobody.

    Errors: `unauthenticated` for headers that cannot be read or name no workspace, `forbidden` for a page of
    another origin.
    """
    email, external_id = _read_text(headers, _EMAIL, MAX_EMAIL), _read_text(headers, _USER, MAX_EXTERNAL_ID)
    if email is None:
        if external_id is not None:
            raise refuse_login(f"{_EMAIL} is required from the proxy: it sent {_USER} alone.")
        return None
    _refuse_other_origins(headers, settings)
    try:
        email = check_email(email)
    except DomainError as error:
        raise refuse_login(f"{_EMAIL}: {error.errors[0].message}") from None
    full_name = None
    with contextlib.suppress(DomainError):
        # Shown to people and nothing else: what cannot be read is left out.
        full_name = _read_text(headers, _FULL_NAME, MAX_FULL_NAME)
    return ProxyLogin(
        workspace=_read_workspace(headers, settings.proxy_workspace),
        email=email,
        external_id=external_id,
        full_name=full_name,
    )


async def identify_by_proxy(front: Front, headers: Headers) -> Caller | None:
    """Return the caller whom a trusted proxy names, added when seen for the first time; None if it names nobody.

    One statement for a user who is known. Errors: those of `read_login` and `select_user`; `unauthenticated` for a user
    who was shut out.
    """
    login = read_login(headers, front.settings)
    if login is None:
        return None
    user, changed = await _find_user(front, login)
    if user is None:
        await _add_user(front, login)
        user, changed = await _find_user(front, login)
    if user is not None and changed:
        async with front.store.begin_for(login.tenant_id) as tx:
            await tx.accounts.save_proxy_login(user.user_id, login.email, login.external_id, tx.now)
    if user is None or not user.is_active:
        raise refuse_login("This user has been shut out. An admin of the workspace can let the user in again.")
    return accounts.caller_from_identity(user)


async def _add_user(front: Front, login: ProxyLogin) -> None:
    try:
        async with front.store.begin_for(login.tenant_id) as tx:
            await proxy_logins.add_user(tx, login)
    except DomainError as error:
        # Another request of the same user was faster: the user is there.
        if error.code != "conflict":
            raise


async def _find_user(front: Front, login: ProxyLogin) -> tuple[ProxyUser | None, bool]:
    async with front.store.begin_single() as tx:
        candidates = await tx.accounts.find_proxy_users(login.tenant_id, login.external_id, login.email)
    user = proxy_logins.select_user(login, candidates)
    return user, user is not None and proxy_logins.has_changed(login, user, candidates)


def _read_text(headers: Headers, name: str, most: int) -> str | None:
    """Return the one value of a header, None without any. Errors: `unauthenticated`, which does not repeat it."""
    values = [value.strip() for key, value in headers if key == name.lower().encode() and value.strip()]
    if not values:
        return None
    if len(values) > 1:
        raise refuse_login(f"{name} came {len(values)} times: the proxy must send it once, in place of what it got.")
    try:
        text = values[0].decode()
    except UnicodeDecodeError:
        raise refuse_login(f"{name} must be UTF-8.") from None
    if len(text) > most or not text.isprintable():
        raise refuse_login(f"{name} must be printable text of at most {most} characters.")
    return text


def _read_workspace(headers: Headers, own: str) -> str:
    sent = _read_text(headers, _WORKSPACE, MAX_EXTERNAL_ID)
    if own and sent not in (None, own):
        raise refuse_login(f"{_WORKSPACE} names another workspace than this installation's.")
    workspace = own or sent
    if workspace is None:
        raise refuse_login(
            f"The request names no workspace: the proxy must send {_WORKSPACE}, or PADDOCK_PROXY_WORKSPACE be set."
        )
    if not WORKSPACE_ID.fullmatch(workspace):
        raise refuse_login(f"{_WORKSPACE} {WORKSPACE_RULE}")
    return workspace


def _refuse_other_origins(headers: Headers, settings: Settings) -> None:
    """Refuse what the page of another origin asks: a browser sends the proxy's cookie along, whoever asks."""
    hosts = {
        _drop_default_port(host) for name in (b"host", b"x-forwarded-host") for host in _list_values(headers, name)
    }
    for origin in _list_values(headers, b"origin"):
        if origin not in settings.cors_origins and _drop_default_port(origin.partition("://")[2]) not in hosts:
            raise forbidden(
                "A page of another origin asked, which the proxy's sign-in does not hold for. Add the origin to "
                "CORS_ORIGINS, or send an API key."
            )


def _drop_default_port(host: str) -> str:
    for port in _DEFAULT_PORTS:
        host = host.removesuffix(port)
    return host.lower()


def _list_values(headers: Headers, name: bytes) -> list[str]:
    return [part.strip() for key, value in headers if key == name for part in value.decode("latin-1").split(",")]
