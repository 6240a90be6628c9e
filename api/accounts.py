"""Accounts: register, login, refresh, logout, users, invitations."""

from datetime import timedelta

from litestar import Response, Router, get, patch, post
from msgspec import UNSET
from msgspec.structs import asdict

from api.front import ANYBODY, PUBLIC, Front, bad_login, created, needs
from api.requests import HttpRequest
from domain import accounts
from domain.accounts import (
    Invite,
    Login,
    NewInvite,
    PatchMe,
    PatchUser,
    Refresh,
    Register,
    Registered,
    Tokens,
    User,
)
from domain.accounts.emails import check_email
from domain.shared.access import Caller
from domain.shared.errors import invalid
from domain.shared.pages import Listing, Page
from infra.credentials import new_token, token_hash

# Whoever has no account yet has little to say.
MAX_BODY = 64 * 1024


def _lifetime(front: Front) -> timedelta:
    return timedelta(days=front.settings.refresh_token_days)


def _tokens(front: Front, user_id: str, session_id: str, refresh: str) -> Tokens:
    return Tokens(
        access_token=front.tokens.issue(user_id, session_id, front.clock()),
        refresh_token=refresh,
        expires_in=int(front.tokens.lifetime.total_seconds()),
    )


@post("/auth/register", opt=PUBLIC, request_max_body_size=MAX_BODY)
async def register(front: Front, data: Register) -> Registered:
    """Create a user, and its tenant unless an invitation to one came along. Answers with a first session."""
    tenant_id = accounts.tenant_for(data)
    accounts.checked_username(data.username, check_email(data.email))
    hashed, refresh = await front.passwords.hash(data.password), new_token("pdr_")
    async with front.store.begin_for(tenant_id) as tx:
        user = await accounts.register(tx, tenant_id, data, hashed, token_hash(data.invite_token or ""))
        session_id = await accounts.open_session(tx, user.id, token_hash(refresh), _lifetime(front))
    return Registered(**asdict(user), **asdict(_tokens(front, user.id, session_id, refresh)))


@post("/auth/login", opt=PUBLIC, status_code=200, request_max_body_size=MAX_BODY)
async def login(front: Front, request: HttpRequest, data: Login) -> Tokens:
    """Open a session. A wrong name takes as long as a wrong password, and wrong ones are counted."""
    name = accounts.login_name(data)
    async with front.guesses.turn(name, request.scope["state"]["address"]) as count_wrong:
        async with front.store.begin_unbound() as tx:
            found = await tx.accounts.find_login(name)
        right = await front.passwords.verify(found.password_hash if found else None, data.password)
        if found is None or not right or not found.is_active:
            await count_wrong()
            raise bad_login()
    refresh = new_token("pdr_")
    async with front.store.begin_for(found.tenant_id) as tx:
        session_id = await accounts.open_session(tx, found.user_id, token_hash(refresh), _lifetime(front))
    return _tokens(front, found.user_id, session_id, refresh)


@post("/auth/refresh", opt=PUBLIC, status_code=200, request_max_body_size=MAX_BODY)
async def refresh(front: Front, data: Refresh) -> Tokens:
    """Trade a refresh token for new tokens. A token that was used before ends its whole session."""
    async with front.store.begin_unbound() as tx:
        grant = await tx.accounts.find_refresh(token_hash(data.refresh_token))
    if grant is None:
        raise accounts.unknown_refresh()
    fresh = new_token("pdr_")
    async with front.store.begin_for(grant.tenant_id) as tx:
        hashes = token_hash(data.refresh_token), token_hash(fresh)
        refusal = await accounts.rotate(tx, grant, *hashes, _lifetime(front))
    if refusal is not None:
        raise refusal
    return _tokens(front, grant.user_id, grant.session_id or "", fresh)


@post("/auth/logout", opt=ANYBODY, status_code=204)
async def logout(front: Front, caller: Caller) -> None:
    """End this session: its refresh tokens and its access token are void at once."""
    async with front.store.begin(caller) as tx:
        await accounts.logout(tx, caller)


@get(["/auth/me", "/users/me"], opt=ANYBODY)
async def me(front: Front, caller: Caller) -> User:
    """The caller's own user."""
    async with front.store.begin(caller) as tx:
        return await accounts.me(tx, caller)


@patch("/users/me", opt=needs("account"))
async def patch_me(front: Front, request: HttpRequest, caller: Caller, data: PatchMe) -> User:
    """Change one's own profile. A new password needs the current one and ends all other sessions."""
    hashed = await _new_hash(front, caller, data, request.scope["state"]["address"])
    async with front.store.begin(caller) as tx:
        return await accounts.patch_me(tx, caller, data, hashed)


async def _new_hash(front: Front, caller: Caller, data: PatchMe, address: str) -> str | None:
    """The hash of a new password, if one was sent with the right current one.

    Errors: `invalid_field`, `rate_limit_exceeded`.
    """
    if data.password is UNSET:
        if data.current_password is not UNSET:
            raise invalid("current_password", "goes with a new password.")
        return None
    async with front.store.begin(caller) as tx:
        stored = await tx.accounts.password_hash(caller.user_id)
    current = "" if data.current_password is UNSET else data.current_password
    async with front.guesses.turn(caller.user_id, address) as count_wrong:
        if not await front.passwords.verify(stored, current):
            await count_wrong()
            raise invalid("current_password", "is wrong.")
    return await front.passwords.hash(data.password)


@get("/users", opt=needs("admin"))
async def list_users(front: Front, caller: Caller, part: Page) -> Listing[User]:
    """The tenant's users."""
    async with front.store.begin(caller) as tx:
        return await tx.accounts.users(part)


@get("/users/{user_id:str}", opt=needs("admin"))
async def get_user(front: Front, caller: Caller, user_id: str) -> User:
    """One user of the tenant."""
    async with front.store.begin(caller) as tx:
        return await accounts.get(tx, user_id)


@patch("/users/{user_id:str}", opt=needs("admin"))
async def patch_user(front: Front, caller: Caller, user_id: str, data: PatchUser) -> User:
    """Change a user's role, or shut the user out. A tenant keeps at least one active admin."""
    async with front.store.begin(caller) as tx:
        return await accounts.patch_user(tx, user_id, data)


@post("/users/invites", opt=needs("admin"))
async def invite(front: Front, request: HttpRequest, caller: Caller, data: NewInvite) -> Response[Invite]:
    """Invite a person into the tenant. The answer's `invite_token` is shown this once; hand it over."""
    token = new_token("pdi_")
    return await created(front, request, caller, lambda tx: accounts.invite(tx, caller, data, token, token_hash(token)))


router = Router(
    "/",
    route_handlers=[
        register,
        login,
        refresh,
        logout,
        me,
        patch_me,
        list_users,
        get_user,
        patch_user,
        invite,
    ],
    tags=["accounts"],
)
