"""Sign users in through a trusted proxy, which has authenticated them and names the user and the workspace.

A workspace is a tenant, `workspace-<id>`. Its users have no password; each request is identified by the user's id at
the proxy, else by the e-mail address. No account is taken over: see `select_proxy_user`. (ADR 18)
"""

from typing import Final

import msgspec

from domain import llms
from domain.accounts.service import WORKSPACE_TENANT_PREFIX, ProxyUser, User
from domain.ports import Tx
from domain.shared import ids
from domain.shared.errors import Conflict, DomainError, Forbidden

# The stored hash of a user without a password: no password matches it.
NO_PASSWORD_HASH: Final = ""


class ProxyLogin(msgspec.Struct, frozen=True, kw_only=True):
    """Describe the user of a request as the proxy names it. `email` is in its normal form."""

    workspace: str
    email: str
    external_id: str | None = None
    full_name: str | None = None

    @property
    def tenant_id(self) -> str:
        """Return the tenant of the workspace."""
        return WORKSPACE_TENANT_PREFIX + self.workspace


def select_proxy_user(login: ProxyLogin, candidates: list[ProxyUser]) -> ProxyUser | None:
    """Return the user that a login names, or None for a new user.

    `candidates` are the user with this external id in the tenant of the workspace, and the user with this e-mail
    address in any tenant. Errors: `forbidden` if the address belongs to an account that the login does not prove.
    """
    if (user := _find_by_external_id(login, candidates)) is not None or not candidates:
        return user
    user = candidates[0]
    if user.tenant_id != login.tenant_id:
        raise Forbidden(
            "This e-mail address belongs to an account of another tenant. The proxy cannot sign it in here."
        )
    if user.has_password:
        raise Forbidden("This e-mail address belongs to an account with a password. Log in with the password.")
    if login.external_id is not None and user.external_id not in (None, login.external_id):
        raise Forbidden("This e-mail address belongs to another user of the proxy, with another X-Forwarded-User.")
    return user


def has_login_changed(login: ProxyLogin, user: ProxyUser, candidates: list[ProxyUser]) -> bool:
    """Return whether the stored user needs an update: a first external id, or a new e-mail address.

    An address of another account is not taken from it.
    """
    if login.external_id is not None and user.external_id is None:
        return True
    return user.email != login.email and all(other.email != login.email for other in candidates)


async def add_proxy_user(tx: Tx, login: ProxyLogin) -> None:
    """Add a new user. The first user of a workspace becomes its admin, the others members.

    Errors: `forbidden` if the tenant was not created by a proxy login, `conflict` if another request just
    added the user.
    """
    is_new = await tx.accounts.add_tenant(login.tenant_id, tx.now, by_proxy=True)
    if is_new:
        await llms.add_local_model(tx, login.tenant_id)
    elif not await tx.accounts.is_proxy_tenant(login.tenant_id):
        raise Forbidden(
            f"The tenant {login.tenant_id!r} was not created by the proxy, so the proxy cannot sign users in to it."
        )
    user = User(
        id=ids.generate_id("user"),
        email=login.email,
        username=None,
        full_name=login.full_name,
        role="admin" if is_new else "member",
        tenant_id=login.tenant_id,
        is_active=True,
        created_at=tx.now,
        updated_at=tx.now,
    )
    if await tx.accounts.add_user(user, NO_PASSWORD_HASH, login.external_id) is not None:
        raise Conflict("Another request added this user at the same time. Send the request again.")


def refuse_login(detail: str) -> DomainError:
    """Return the error for invalid headers of a proxy, or for a disabled user."""
    return DomainError("unauthenticated", detail)


def _find_by_external_id(login: ProxyLogin, candidates: list[ProxyUser]) -> ProxyUser | None:
    if login.external_id is None:
        return None
    identity = login.tenant_id, login.external_id
    return next((user for user in candidates if (user.tenant_id, user.external_id) == identity), None)
