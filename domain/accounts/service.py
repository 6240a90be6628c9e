"""Manage tenants, users, invitations, and the sessions that a login opens.

A tenant's id is the name that its members chose (`acme-corp`); it is bound once, when a transaction begins.
Passwords and tokens arrive here as hashes: hashing a password takes tens of milliseconds of CPU time and must not
happen inside a transaction.
"""

import re
from datetime import datetime, timedelta
from typing import Annotated, Final, Protocol

import msgspec
from msgspec import UNSET, Meta, UnsetType

from domain import llms
from domain.accounts.emails import check_email, normalize_email
from domain.ports import Tx
from domain.shared import ids
from domain.shared.access import OPERATOR_TENANT_ID, Caller, Role, limit_scopes
from domain.shared.errors import Conflict, DomainError, FieldError, Forbidden, InvalidField, require_found
from domain.shared.pages import Listing, Page

NO_NUL_PATTERN: Final = r"^[^\x00]*$"
USERNAME_PATTERN: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,62}")
TENANT_ID_PATTERN: Final = re.compile(r"[a-z0-9][a-z0-9_.-]{1,62}")
PERSONAL_TENANT_PREFIX: Final = "personal-"
# Tenants into which a trusted proxy signs users: `domain.accounts.proxy_logins`.
WORKSPACE_TENANT_PREFIX: Final = "workspace-"
_RESERVED_TENANT_PREFIXES: Final = (PERSONAL_TENANT_PREFIX, WORKSPACE_TENANT_PREFIX)
INVITE_LIFETIME: Final = timedelta(days=7)

Password = Annotated[str, Meta(min_length=8, max_length=256, examples=["securepassword123"])]
FullName = Annotated[str, Meta(max_length=200, pattern=r"^[^\x00]*$", examples=["John Doe"])]


class User(msgspec.Struct, kw_only=True):
    """Show a user. A user belongs to exactly one tenant."""

    id: str
    email: str
    username: str | None
    full_name: str | None
    role: Role
    tenant_id: str
    is_active: bool
    created_at: datetime
    updated_at: datetime


class Registration(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """Register a user. Without `tenant_id` the user gets a personal tenant; an existing tenant needs an invitation."""

    email: Annotated[str, Meta(max_length=254, examples=["user@example.com"])]
    password: Password
    username: Annotated[str, Meta(max_length=254, examples=["username"])] | None = None
    full_name: FullName | None = None
    tenant_id: Annotated[str, Meta(max_length=63, examples=["acme-corp"])] | None = None
    group_id: Annotated[str, Meta(max_length=63, description="Another name for tenant_id.")] | None = None
    invite_token: str | None = None


class Login(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """Log in with `email` or `username`; either may contain the e-mail address."""

    password: Annotated[str, Meta(max_length=256, examples=["securepassword123"])]
    email: Annotated[str, Meta(max_length=254, pattern=NO_NUL_PATTERN, examples=["user@example.com"])] | None = None
    username: Annotated[str, Meta(max_length=254, pattern=NO_NUL_PATTERN)] | None = None


class TokenRefresh(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """Refresh a session. A refresh token can be used once."""

    refresh_token: Annotated[str, Meta(max_length=200)]


class SessionTokens(msgspec.Struct, kw_only=True):
    """Hold the tokens of a session. `expires_in` is the lifetime of the access token in seconds."""

    access_token: str
    refresh_token: str
    expires_in: int
    token_type: str = "bearer"  # noqa: S105 - the name of a scheme, not a secret


class RegisteredUser(User, kw_only=True):
    """Show a new user with the tokens of a first session."""

    access_token: str
    refresh_token: str
    expires_in: int
    token_type: str = "bearer"  # noqa: S105 - the name of a scheme, not a secret


class PatchMe(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """Change the caller's own profile. A new password needs the current one and ends all other sessions."""

    username: str | None | UnsetType = UNSET
    full_name: FullName | None | UnsetType = UNSET
    password: Password | UnsetType = UNSET
    current_password: Annotated[str, Meta(max_length=256)] | UnsetType = UNSET


class PatchUser(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """Change a user of the caller's tenant, as an admin."""

    role: Role | UnsetType = UNSET
    is_active: bool | UnsetType = UNSET


class NewInvite(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """Invite a person to the tenant with a role."""

    email: Annotated[str, Meta(max_length=254, examples=["colleague@example.com"])]
    role: Role = "member"


class Invite(msgspec.Struct, kw_only=True):
    """Show an invitation. `invite_token` is shown once; the invited person registers with it."""

    id: str
    email: str
    role: Role
    tenant_id: str
    expires_at: datetime
    created_at: datetime
    invite_token: str | None = None


class UserIdentity(msgspec.Struct, kw_only=True):
    """Hold the data that a password or a token is checked against, looked up before any tenant is bound."""

    user_id: str
    tenant_id: str
    role: Role
    is_active: bool
    plan: str
    password_hash: str = ""
    session_id: str | None = None


class ProxyUser(UserIdentity, kw_only=True):
    """Describe a user that a trusted proxy may name. `external_id` is the user's id at the proxy."""

    email: str
    external_id: str | None
    has_password: bool


class RefreshGrant(UserIdentity, kw_only=True):
    """Describe a presented refresh token."""

    used: bool
    revoked: bool
    expires_at: datetime


class Accounts(Protocol):
    """Store the users, invitations and sessions of the bound tenant; `find_*` work before a tenant is bound."""

    async def find_login(self, name: str) -> UserIdentity | None: ...
    async def find_session(self, user_id: str, session_id: str) -> UserIdentity | None: ...
    async def find_refresh_token(self, token_hash: bytes) -> RefreshGrant | None: ...
    async def find_proxy_users(self, tenant_id: str, external_id: str | None, email: str) -> list[ProxyUser]: ...
    async def save_proxy_login(self, user_id: str, email: str, external_id: str | None, now: datetime) -> None: ...
    async def add_tenant(self, tenant_id: str, now: datetime, by_proxy: bool = False) -> bool: ...
    async def is_proxy_tenant(self, tenant_id: str) -> bool: ...
    async def add_user(self, user: User, password_hash: str, external_id: str | None = None) -> str | None: ...
    async def get_user(self, user_id: str, lock: bool = False) -> User | None: ...
    async def get_password_hash(self, user_id: str) -> str: ...
    async def list_users(self, page: Page) -> Listing[User]: ...
    async def save_user(self, user: User, password_hash: str | None) -> str | None: ...
    async def count_other_admins(self, user_id: str) -> int: ...
    async def add_invite(self, invite: Invite, token_hash: bytes) -> None: ...
    async def redeem_invite(self, email: str, token_hash: bytes, now: datetime) -> Role | None: ...
    async def add_session(self, session_id: str, user_id: str, now: datetime) -> None: ...
    async def add_refresh_token(self, token_hash: bytes, session_id: str, expires_at: datetime) -> None: ...
    async def use_refresh_token(self, token_hash: bytes, now: datetime) -> bool: ...
    async def revoke_session(self, session_id: str, now: datetime) -> None: ...
    async def revoke_sessions(self, user_id: str, keep: str | None, now: datetime) -> None: ...


def caller_from_identity(identity: UserIdentity) -> Caller:
    """Return the caller of a logged-in user, with all scopes of the role."""
    return Caller(
        tenant_id=identity.tenant_id,
        user_id=identity.user_id,
        role=identity.role,
        scopes=limit_scopes(identity.role, None),
        plan=identity.plan,
        session_id=identity.session_id,
    )


def check_username(text: str | None, email: str) -> str | None:
    """Return a valid user name, or the user's own e-mail address.

    The address of another user would allow impersonation at login. Errors: `invalid_field`.
    """
    if text is None or USERNAME_PATTERN.fullmatch(text):
        return text
    if normalize_email(text) != email:
        raise InvalidField(
            "username", "must be at most 63 letters, digits, '_', '.' and '-', or your own e-mail address."
        )
    return text if text.lower() == email else email


def choose_tenant(data: Registration) -> str:
    """Return the tenant of a registration: the named one, or a new personal one. Errors: `invalid_field`."""
    if data.group_id is not None and data.tenant_id not in (None, data.group_id):
        raise InvalidField("group_id", "is another name for tenant_id and has a different value. Send one of them.")
    tenant_id = data.tenant_id or data.group_id
    if tenant_id is None:
        if data.invite_token is not None:
            raise InvalidField(
                "tenant_id", "is required with an invite_token. Send the id of the tenant that invites you."
            )
        return PERSONAL_TENANT_PREFIX + ids.generate_id("t").removeprefix("t_")
    if not TENANT_ID_PATTERN.fullmatch(tenant_id) or (
        tenant_id.startswith(_RESERVED_TENANT_PREFIXES) and data.invite_token is None
    ):
        raise InvalidField(
            "tenant_id",
            "must be 2 to 63 of a-z, 0-9, '_', '.' and '-', begin with a letter or digit, "
            f"and not begin with {PERSONAL_TENANT_PREFIX!r} or {WORKSPACE_TENANT_PREFIX!r} without an invitation.",
        )
    return tenant_id


async def register_user(
    tx: Tx, tenant_id: str, data: Registration, password_hash: str, invite_hash: bytes, by_operator: bool = False
) -> User:
    """Add a user; the first user of a tenant becomes its admin. Only operators can create the operators' tenant.

    Errors: `invitation_required` if the tenant exists and no valid invitation was sent, `conflict` naming `email` or
    `username` if it is taken.
    """
    email = check_email(data.email)
    # Checked before the tenant: a caller with a taken e-mail or name learns nothing about the tenant.
    for field, name in (("email", email), ("username", check_username(data.username, email))):
        if name is not None and await tx.accounts.find_login(name) is not None:
            _refuse_taken(field)
    can_create = by_operator or (tenant_id != OPERATOR_TENANT_ID and data.invite_token is None)
    is_new = can_create and await tx.accounts.add_tenant(tenant_id, tx.now)
    if is_new:
        await llms.add_local_model(tx, tenant_id)
    role = "admin" if is_new else await tx.accounts.redeem_invite(email, invite_hash, tx.now)
    if role is None:
        raise Forbidden(
            "This tenant_id is taken. Choose another one, or join with an invitation (POST /api/v1/users/invites): "
            "register with the invited e-mail address and its `invite_token`.",
            "invitation_required",
        )
    user = User(
        id=ids.generate_id("user"),
        email=email,
        username=check_username(data.username, email),
        full_name=data.full_name,
        role=role,
        tenant_id=tenant_id,
        is_active=True,
        created_at=tx.now,
        updated_at=tx.now,
    )
    _refuse_taken(await tx.accounts.add_user(user, password_hash))
    return user


def read_login_name(data: Login) -> str:
    """Return the name to look a user up by. Errors: `invalid_field` if no name or two different names are sent."""
    names = {normalize_email(name) for name in (data.email, data.username) if name}
    if len(names) != 1:
        raise InvalidField("username", "send either `email` or `username`.")
    return names.pop()


async def open_session(tx: Tx, user_id: str, refresh_hash: bytes, lifetime: timedelta) -> str:
    """Open a session with a first refresh token, and return its id."""
    session_id = ids.generate_id("ses")
    await tx.accounts.add_session(session_id, user_id, tx.now)
    await tx.accounts.add_refresh_token(refresh_hash, session_id, tx.now + lifetime)
    return session_id


class InvalidRefreshToken(DomainError):
    """Refuse a refresh token without saying why it is not valid."""

    def __init__(self) -> None:
        super().__init__("unauthenticated", "The refresh token is not valid or has expired. Log in again.")


def check_refresh_grant(grant: RefreshGrant, now: datetime) -> DomainError | None:
    """Return why a presented refresh token is refused, or None if it is valid."""
    if grant.revoked or not grant.is_active or grant.expires_at <= now:
        return InvalidRefreshToken()
    if grant.used:
        return DomainError(
            "refresh_token_reused",
            "This refresh token was used before. It may have been copied, so its session was ended. Log in again.",
        )
    return None


async def rotate_refresh_token(
    tx: Tx, grant: RefreshGrant, old_hash: bytes, new_hash: bytes, lifetime: timedelta
) -> DomainError | None:
    """Replace a refresh token by a new one.

    The error is returned instead of raised, because ending the session on reuse has to be committed
    (RFC 9700 section 4.14.2).
    """
    refusal = check_refresh_grant(grant, tx.now)
    session_id = grant.session_id or ""
    if refusal is None and not await tx.accounts.use_refresh_token(old_hash, tx.now):
        # Two requests raced with one token, and either may be the thief's.
        refusal = check_refresh_grant(msgspec.structs.replace(grant, used=True), tx.now)
    if refusal is not None:
        if refusal.code == "refresh_token_reused":
            await tx.accounts.revoke_session(session_id, tx.now)
        return refusal
    await tx.accounts.add_refresh_token(new_hash, session_id, tx.now + lifetime)
    return None


async def close_session(tx: Tx, caller: Caller) -> None:
    """End the session of the caller's token. Its refresh tokens and its access token become invalid."""
    if caller.session_id is None:
        raise InvalidField(
            "Authorization",
            "must be the bearer token of a login. An API key or a proxy's sign-in has no session to end.",
        )
    await tx.accounts.revoke_session(caller.session_id, tx.now)


async def get_own_user(tx: Tx, caller: Caller) -> User:
    """Return the caller's own user."""
    return await get_user(tx, caller.user_id)


async def get_user(tx: Tx, user_id: str, lock: bool = False) -> User:
    """Return a user of the bound tenant. Errors: `not_found`."""
    return require_found("user", user_id, await tx.accounts.get_user(user_id, lock))


async def patch_own_user(tx: Tx, caller: Caller, data: PatchMe, new_hash: str | None) -> User:
    """Change the caller's profile. The current password was checked before, because that costs CPU time."""
    user = await get_user(tx, caller.user_id, lock=True)
    if data.username is not UNSET:
        user.username = check_username(data.username, user.email)
    if data.full_name is not UNSET:
        user.full_name = data.full_name
    user.updated_at = tx.now
    _refuse_taken(await tx.accounts.save_user(user, new_hash))
    if new_hash is not None:
        await tx.accounts.revoke_sessions(user.id, caller.session_id, tx.now)
    return user


async def patch_user(tx: Tx, user_id: str, data: PatchUser) -> User:
    """Change a user's role, or disable the user. Errors: `not_found`, `conflict` for a tenant's last admin."""
    # Locked before the user itself: two admins who demote each other then queue instead of deadlocking.
    others = await tx.accounts.count_other_admins(user_id)
    user = await get_user(tx, user_id, lock=True)
    role = user.role if data.role is UNSET else data.role
    active = user.is_active if data.is_active is UNSET else data.is_active
    if user.role == "admin" and (role != "admin" or not active) and not others:
        raise Conflict("This user is the last active admin of the tenant. Make another user admin first.")
    user.role, user.is_active, user.updated_at = role, active, tx.now
    await tx.accounts.save_user(user, None)
    if not active:
        await tx.accounts.revoke_sessions(user.id, None, tx.now)
    return user


async def invite_user(tx: Tx, caller: Caller, data: NewInvite, token: str, token_hash: bytes) -> Invite:
    """Invite a person by e-mail address. The inviting user passes the token on."""
    new_invite = Invite(
        id=ids.generate_id("inv"),
        email=check_email(data.email),
        role=data.role,
        tenant_id=caller.tenant_id,
        expires_at=tx.now + INVITE_LIFETIME,
        created_at=tx.now,
    )
    await tx.accounts.add_invite(new_invite, token_hash)
    new_invite.invite_token = token
    return new_invite


def _refuse_taken(field: str | None) -> None:
    if field is not None:
        raise Conflict(f"{field}: is already taken.", errors=[FieldError(field=field, message="is already taken.")])
