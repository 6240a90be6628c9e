"""Define roles, the scopes that they grant, and the caller of a request."""

from typing import Final, Literal

import msgspec

from domain.shared.errors import Forbidden

# The tenant of the operators of the installation: the only tenant that sees all queues and workers.
OPERATOR_TENANT_ID: Final = "default"

Role = Literal["admin", "member", "viewer"]

SCOPE_RESOURCES: Final = (
    "agents",
    "executions",
    "artifacts",
    "evaluations",
    "stats",
    "costs",
    "catalog",
    "schedules",
    "secrets",
    "files",
)
READ_SCOPES: Final = frozenset(f"read:{name}" for name in SCOPE_RESOURCES)
WRITE_SCOPES: Final = frozenset(f"write:{name}" for name in SCOPE_RESOURCES)
ALL_SCOPES: Final = READ_SCOPES | WRITE_SCOPES | {"run:agents", "admin"}

SCOPES_BY_ROLE: Final[dict[Role, frozenset[str]]] = {
    "admin": ALL_SCOPES,
    "member": ALL_SCOPES - {"admin"},
    "viewer": READ_SCOPES,
}


class Caller(msgspec.Struct, frozen=True, kw_only=True):
    """Describe an authenticated caller, as every use case receives it.

    `scopes` are the effective ones: what the role allows, limited to what the API key carries.
    `key_id` is set for API keys, `session_id` for bearer tokens from a login.
    """

    tenant_id: str
    user_id: str
    role: Role
    scopes: frozenset[str]
    plan: str = "standard"
    key_id: str | None = None
    session_id: str | None = None
    key_rate_limit: int | None = None

    @property
    def is_admin(self) -> bool:
        """Return whether this caller administers its tenant. A key needs the scope, and its owner the role."""
        return "admin" in self.scopes


def limit_scopes(role: Role, key_scopes: frozenset[str] | None) -> frozenset[str]:
    """Return the effective scopes: never more than the user's role allows now, even if the key carries more."""
    return SCOPES_BY_ROLE[role] if key_scopes is None else SCOPES_BY_ROLE[role] & key_scopes


def require_scope(caller: Caller, scope: str) -> None:
    """Raise `missing_scope` unless the caller holds `scope`.

    `admin` stands for every scope. `account` is the pseudo-scope of managing one's own keys: a
    person who logged in has it, a key only with `admin`, so that a leaked key cannot mint others.
    """
    if "admin" in caller.scopes or scope in caller.scopes:
        return
    if scope == "account" and caller.key_id is None:
        return
    raise Forbidden(f"This needs the scope {scope!r}, which this caller does not have.", "missing_scope")
