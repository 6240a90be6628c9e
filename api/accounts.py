"""Handle accounts: registration, login, sessions, users and invitations."""

from datetime import timedelta
from typing import Final

from litestar import Response, Router, get, patch, post
from msgspec import UNSET
from msgspec.structs import asdict

from api.idempotency import ResourceCreator
from api.operations import ANY_CALLER, IDEMPOTENCY_KEY, PUBLIC_ACCESS, require_scope
from api.password_guesses import GuessLimiter
from api.requests import HttpRequest, Store
from domain import accounts
from domain.accounts import (
    Invite,
    Login,
    NewInvite,
    PatchMe,
    PatchUser,
    RegisteredUser,
    Registration,
    SessionTokens,
    TokenRefresh,
    User,
    check_email,
)
from domain.ports import Clock
from domain.shared.access import Caller
from domain.shared.errors import DomainError, InvalidField
from domain.shared.pages import Listing, Page
from infra.credentials import AccessTokens, Passwords, generate_token, hash_token

# Requests without an account are small.
MAX_PUBLIC_BODY_BYTES: Final = 64 * 1024
REFRESH_PREFIX: Final = "pdr_"
INVITE_PREFIX: Final = "pdi_"


class TokenIssuer:
    """Issue the access tokens of sessions, and know how long their refresh tokens last."""

    def __init__(self, tokens: AccessTokens, clock: Clock, refresh_lifetime: timedelta) -> None:
        self._tokens, self._clock, self.refresh_lifetime = tokens, clock, refresh_lifetime

    def issue_tokens(self, user_id: str, session_id: str, refresh_token: str) -> SessionTokens:
        """Return a session's tokens, with a new access token."""
        return SessionTokens(
            access_token=self._tokens.issue_token(user_id, session_id, self._clock()),
            refresh_token=refresh_token,
            expires_in=int(self._tokens.lifetime.total_seconds()),
        )


@post("/auth/register", opt=PUBLIC_ACCESS, request_max_body_size=MAX_PUBLIC_BODY_BYTES)
async def register_user(
    store: Store, passwords: Passwords, token_issuer: TokenIssuer, data: Registration
) -> RegisteredUser:
    """Create a user and a first session. The user gets a new tenant, or joins the tenant of an invitation."""
    tenant_id = accounts.choose_tenant(data)
    accounts.check_username(data.username, check_email(data.email))
    password_hash, refresh_token = await passwords.hash_password(data.password), generate_token(REFRESH_PREFIX)
    lifetime = token_issuer.refresh_lifetime
    async with store.tenant_transaction(tenant_id) as tx:
        user = await accounts.register_user(tx, tenant_id, data, password_hash, hash_token(data.invite_token or ""))
        session_id = await accounts.open_session(tx, user.id, hash_token(refresh_token), lifetime)
    return RegisteredUser(**asdict(user), **asdict(token_issuer.issue_tokens(user.id, session_id, refresh_token)))


@post("/auth/login", opt=PUBLIC_ACCESS, status_code=200, request_max_body_size=MAX_PUBLIC_BODY_BYTES)
async def log_in(
    store: Store,
    passwords: Passwords,
    token_issuer: TokenIssuer,
    guess_limiter: GuessLimiter,
    request: HttpRequest,
    data: Login,
) -> SessionTokens:
    """Open a session. Wrong passwords are counted; after too many, logins are refused for up to an hour."""
    name = accounts.read_login_name(data)
    async with guess_limiter.limit_guesses(name, request.scope["state"]["address"]) as count_wrong:
        async with store.system_transaction() as tx:
            user = await tx.accounts.find_login(name)
        # An unknown name takes as long as a wrong password, so that names cannot be found out by time.
        is_right = await passwords.verify_password(user.password_hash if user else None, data.password)
        if user is None or not is_right or not user.is_active:
            await count_wrong()
            raise _refuse_login()
    refresh_token = generate_token(REFRESH_PREFIX)
    async with store.tenant_transaction(user.tenant_id) as tx:
        lifetime = token_issuer.refresh_lifetime
        session_id = await accounts.open_session(tx, user.user_id, hash_token(refresh_token), lifetime)
    return token_issuer.issue_tokens(user.user_id, session_id, refresh_token)


def _refuse_login() -> DomainError:
    """Return the same error for an unknown user, a wrong password and a deactivated user."""
    return DomainError("invalid_credentials", "The user name or the password is wrong.")


@post("/auth/refresh", opt=PUBLIC_ACCESS, status_code=200, request_max_body_size=MAX_PUBLIC_BODY_BYTES)
async def refresh_tokens(store: Store, token_issuer: TokenIssuer, data: TokenRefresh) -> SessionTokens:
    """Exchange a refresh token for new tokens. Using a refresh token twice ends its whole session."""
    async with store.system_transaction() as tx:
        grant = await tx.accounts.find_refresh_token(hash_token(data.refresh_token))
    if grant is None:
        raise accounts.InvalidRefreshToken()
    refresh_token = generate_token(REFRESH_PREFIX)
    async with store.tenant_transaction(grant.tenant_id) as tx:
        hashes = hash_token(data.refresh_token), hash_token(refresh_token)
        error = await accounts.rotate_refresh_token(tx, grant, *hashes, token_issuer.refresh_lifetime)
    # Raised here and not in the transaction, which must be committed: it ends the session of a reused token.
    if error is not None:
        raise error
    return token_issuer.issue_tokens(grant.user_id, grant.session_id or "", refresh_token)


@post("/auth/logout", opt=ANY_CALLER, status_code=204)
async def log_out(store: Store, caller: Caller) -> None:
    """End this session. Its refresh tokens and its access token are invalid at once."""
    async with store.transaction(caller) as tx:
        await accounts.close_session(tx, caller)


@get(["/auth/me", "/users/me"], opt=ANY_CALLER)
async def get_me(store: Store, caller: Caller) -> User:
    """Return the caller's own user."""
    async with store.transaction(caller) as tx:
        return await accounts.get_own_user(tx, caller)


@patch("/users/me", opt=require_scope("account"))
async def update_me(
    store: Store,
    passwords: Passwords,
    guess_limiter: GuessLimiter,
    request: HttpRequest,
    caller: Caller,
    data: PatchMe,
) -> User:
    """Change your own profile. A new password requires the current one and ends all your other sessions."""
    address = request.scope["state"]["address"]
    password_hash = None
    if data.password is not UNSET:
        current_password = "" if data.current_password is UNSET else data.current_password
        async with store.transaction(caller) as tx:
            stored_hash = await tx.accounts.get_password_hash(caller.user_id)
        async with guess_limiter.limit_guesses(caller.user_id, address) as count_wrong:
            if not await passwords.verify_password(stored_hash, current_password):
                await count_wrong()
                raise InvalidField("current_password", "is wrong.")
        password_hash = await passwords.hash_password(data.password)
    elif data.current_password is not UNSET:
        raise InvalidField("current_password", "is only allowed together with a new `password`.")
    async with store.transaction(caller) as tx:
        return await accounts.patch_own_user(tx, caller, data, password_hash)


@get("/users", opt=require_scope("admin"))
async def list_users(store: Store, caller: Caller, pagination: Page) -> Listing[User]:
    """List the tenant's users."""
    async with store.transaction(caller) as tx:
        return await tx.accounts.list_users(pagination)


@get("/users/{user_id:str}", opt=require_scope("admin"))
async def get_user(store: Store, caller: Caller, user_id: str) -> User:
    """Return a user of the tenant."""
    async with store.transaction(caller) as tx:
        return await accounts.get_user(tx, user_id)


@patch("/users/{user_id:str}", opt=require_scope("admin"))
async def update_user(store: Store, caller: Caller, user_id: str, data: PatchUser) -> User:
    """Change a user's role, or deactivate the user. A tenant keeps at least one active admin."""
    async with store.transaction(caller) as tx:
        return await accounts.patch_user(tx, user_id, data)


@post("/users/invites", opt=require_scope("admin", IDEMPOTENCY_KEY))
async def invite_user(
    creator: ResourceCreator, request: HttpRequest, caller: Caller, data: NewInvite
) -> Response[Invite]:
    """Invite a person into the tenant. `invite_token` is shown only in this answer; pass it on."""
    token = generate_token(INVITE_PREFIX)
    return await creator.create_idempotently(
        request, caller, lambda tx: accounts.invite_user(tx, caller, data, token, hash_token(token))
    )


router = Router(
    "/",
    route_handlers=[
        register_user,
        log_in,
        refresh_tokens,
        log_out,
        get_me,
        update_me,
        list_users,
        get_user,
        update_user,
        invite_user,
    ],
    tags=["accounts"],
)
