"""Store users, tenants, invitations and sessions in Postgres."""

import contextlib
from datetime import datetime
from typing import Any

from sqlalchemy import ARRAY, ForeignKey, LargeBinary, Text, case, exists, func, select, text, update
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Mapped, mapped_column

from domain.accounts import Invite, ProxyUser, RefreshGrant, User, UserIdentity
from domain.shared import ids
from domain.shared.access import Role
from domain.shared.pages import Listing, Page
from infra.postgres.connection import TxConnection
from infra.postgres.db import Base, Id, create_timestamp, struct_from_row
from infra.postgres.pages import fetch_page


class TenantRow(Base):
    """Map a row of `tenants`: a tenant; `plan` picks its rate limit.

    `by_proxy` is for those that a trusted proxy's sign-in made.
    """

    __tablename__ = "tenants"
    id: Mapped[str] = mapped_column(Text, primary_key=True)
    plan: Mapped[str] = mapped_column(Text)
    max_concurrency: Mapped[int | None]
    retention_days: Mapped[int | None]
    event_retention_days: Mapped[int | None]
    events_removed_until: Mapped[datetime | None] = mapped_column(create_timestamp())
    egress: Mapped[list[str] | None] = mapped_column(ARRAY(Text))
    by_proxy: Mapped[bool]
    created_at: Mapped[datetime] = mapped_column(create_timestamp())


class UserRow(Base):
    """Map a row of `users`: a user.

    E-mail and user name are unique over all tenants, because a login names no tenant.
    """

    __tablename__ = "users"
    id: Mapped[str] = mapped_column(Id("user"), primary_key=True)
    tenant_id: Mapped[str] = mapped_column(Text, ForeignKey("tenants.id"), index=True)
    email: Mapped[str] = mapped_column(Text, unique=True)
    username: Mapped[str | None] = mapped_column(Text)
    full_name: Mapped[str | None] = mapped_column(Text)
    external_id: Mapped[str | None] = mapped_column(Text)
    password_hash: Mapped[str] = mapped_column(Text)
    role: Mapped[str] = mapped_column(Text)
    is_active: Mapped[bool]
    created_at: Mapped[datetime] = mapped_column(create_timestamp())
    updated_at: Mapped[datetime] = mapped_column(create_timestamp())


class InviteRow(Base):
    """Map a row of `invites`: an invitation; its token is stored hashed."""

    __tablename__ = "invites"
    id: Mapped[str] = mapped_column(Id("inv"), primary_key=True)
    tenant_id: Mapped[str] = mapped_column(Text, ForeignKey("tenants.id"), index=True)
    email: Mapped[str] = mapped_column(Text)
    role: Mapped[str] = mapped_column(Text)
    token_hash: Mapped[bytes] = mapped_column(LargeBinary, unique=True)
    expires_at: Mapped[datetime] = mapped_column(create_timestamp())
    accepted_at: Mapped[datetime | None] = mapped_column(create_timestamp())
    created_at: Mapped[datetime] = mapped_column(create_timestamp())


class SessionRow(Base):
    """Map a row of `sessions`: a login: the family that its refresh tokens belong to."""

    __tablename__ = "sessions"
    id: Mapped[str] = mapped_column(Id("ses"), primary_key=True)
    tenant_id: Mapped[str] = mapped_column(Text, ForeignKey("tenants.id"))
    user_id: Mapped[str] = mapped_column(Id("user"), ForeignKey("users.id"), index=True)
    created_at: Mapped[datetime] = mapped_column(create_timestamp())
    revoked_at: Mapped[datetime | None] = mapped_column(create_timestamp())


class RefreshRow(Base):
    """Map a row of `refresh_tokens`: a refresh token, hashed. A used one is kept, to notice a second use."""

    __tablename__ = "refresh_tokens"
    token_hash: Mapped[bytes] = mapped_column(LargeBinary, primary_key=True)
    tenant_id: Mapped[str] = mapped_column(Text, ForeignKey("tenants.id"))
    session_id: Mapped[str] = mapped_column(Id("ses"), ForeignKey("sessions.id", ondelete="CASCADE"), index=True)
    expires_at: Mapped[datetime] = mapped_column(create_timestamp(), index=True)
    used_at: Mapped[datetime | None] = mapped_column(create_timestamp())


_BOUND_TENANT = func.current_setting("paddock.tenant_id")
_FIELDS_BY_CONSTRAINT = {
    "users_email_key": "email",
    "users_username_key": "username",
    "users_external_id_key": "external_id",
}


def _decode_ids(row: Any) -> dict[str, Any]:
    result = dict(row._mapping)
    result["user_id"] = ids.encode_id("user", result["user_id"])
    if "session_id" in result:
        result["session_id"] = ids.encode_id("ses", result["session_id"])
    return result


class PostgresAccounts:
    """Provide `domain.accounts.Accounts` on Postgres.

    The `find_*` go through functions of the owner, by exact match.
    """

    def __init__(self, connection: TxConnection) -> None:
        self._connection = connection

    async def find_login(self, name: str) -> UserIdentity | None:
        row = (await self._connection.execute(text("SELECT * FROM find_login(:name)"), {"name": name})).first()
        return None if row is None else struct_from_row(_decode_ids(row), UserIdentity)

    async def find_session(self, user_id: str, session_id: str) -> UserIdentity | None:
        user, session = ids.decode_id("user", user_id), ids.decode_id("ses", session_id)
        result = await self._connection.execute(
            text("SELECT * FROM find_session(:user, :session)"), {"user": user, "session": session}
        )
        row = result.first()
        return None if row is None else struct_from_row(_decode_ids(row), UserIdentity)

    async def find_refresh_token(self, token_hash: bytes) -> RefreshGrant | None:
        result = await self._connection.execute(text("SELECT * FROM find_refresh(:hash)"), {"hash": token_hash})
        row = result.first()
        return None if row is None else struct_from_row(_decode_ids(row), RefreshGrant)

    async def find_proxy_users(self, tenant_id: str, external_id: str | None, email: str) -> list[ProxyUser]:
        result = await self._connection.execute(
            text("SELECT * FROM find_proxy_users(:tenant, :external, :email)"),
            {"tenant": tenant_id, "external": external_id, "email": email},
        )
        return [struct_from_row(_decode_ids(row), ProxyUser) for row in result]

    async def save_proxy_login(self, user_id: str, email: str, external_id: str | None, now: datetime) -> None:
        values = {
            "email": email,
            # A user name that is the e-mail address stays so.
            "username": case((func.lower(UserRow.username) == UserRow.email, email), else_=UserRow.username),
            "external_id": func.coalesce(UserRow.external_id, external_id),
            "updated_at": now,
        }
        # Another request may be doing the same, or somebody may be registering with this address.
        with contextlib.suppress(IntegrityError):
            await self._connection.execute(update(UserRow).where(UserRow.id == user_id).values(**values))

    async def add_tenant(self, tenant_id: str, now: datetime, by_proxy: bool = False) -> bool:
        inserted = await self._connection.execute(
            insert(TenantRow)
            .values(id=tenant_id, plan="standard", created_at=now, by_proxy=by_proxy)
            .on_conflict_do_nothing()
            .returning(TenantRow.id)
        )
        return inserted.first() is not None

    async def is_proxy_tenant(self, tenant_id: str) -> bool:
        result = await self._connection.execute(select(TenantRow.by_proxy).where(TenantRow.id == tenant_id))
        return bool(result.scalar_one_or_none())

    async def add_user(self, user: User, password_hash: str, external_id: str | None = None) -> str | None:
        values = {name: getattr(user, name) for name in User.__struct_fields__}
        try:
            await self._connection.execute(
                insert(UserRow).values(**values, password_hash=password_hash, external_id=external_id)
            )
        except IntegrityError as error:
            return _find_taken_field(error)
        return None

    async def get_user(self, user_id: str, lock: bool = False) -> User | None:
        if ids.decode_id("user", user_id) is None:
            return None
        query = select(UserRow).where(UserRow.id == user_id)
        row = (await self._connection.execute(query.with_for_update() if lock else query)).first()
        return None if row is None else struct_from_row(row, User)

    async def get_password_hash(self, user_id: str) -> str:
        result = await self._connection.execute(select(UserRow.password_hash).where(UserRow.id == user_id))
        return result.scalar_one()

    async def list_users(self, page: Page) -> Listing[User]:
        return await fetch_page(self._connection, select(UserRow), UserRow.id.desc(), page, User)

    async def save_user(self, user: User, password_hash: str | None) -> str | None:
        values: dict[str, Any] = {
            "username": user.username,
            "full_name": user.full_name,
            "role": user.role,
            "is_active": user.is_active,
            "updated_at": user.updated_at,
        }
        if password_hash is not None:
            values["password_hash"] = password_hash
        try:
            await self._connection.execute(update(UserRow).where(UserRow.id == user.id).values(**values))
        except IntegrityError as error:
            return _find_taken_field(error)
        return None

    async def count_other_admins(self, user_id: str) -> int:
        # Locking the tenant's admins keeps two admins from demoting each other at once.
        result = await self._connection.execute(
            select(UserRow.id).where(UserRow.role == "admin", UserRow.is_active).order_by(UserRow.id).with_for_update()
        )
        return sum(1 for (admin,) in result if admin != user_id)

    async def add_invite(self, invite: Invite, token_hash: bytes) -> None:
        values = {name: getattr(invite, name) for name in Invite.__struct_fields__ if name != "invite_token"}
        await self._connection.execute(insert(InviteRow).values(**values, token_hash=token_hash))

    async def redeem_invite(self, email: str, token_hash: bytes, now: datetime) -> Role | None:
        claimed_row = await self._connection.execute(
            update(InviteRow)
            .where(
                InviteRow.token_hash == token_hash,
                InviteRow.email == email,
                InviteRow.accepted_at.is_(None),
                InviteRow.expires_at > now,
            )
            .values(accepted_at=now)
            .returning(InviteRow.role)
        )
        role: Role | None = claimed_row.scalar_one_or_none()  # type: ignore[assignment]
        return role

    async def add_session(self, session_id: str, user_id: str, now: datetime) -> None:
        await self._connection.execute(
            insert(SessionRow).values(id=session_id, tenant_id=_BOUND_TENANT, user_id=user_id, created_at=now)
        )

    async def add_refresh_token(self, token_hash: bytes, session_id: str, expires_at: datetime) -> None:
        await self._connection.execute(
            insert(RefreshRow).values(
                token_hash=token_hash, tenant_id=_BOUND_TENANT, session_id=session_id, expires_at=expires_at
            )
        )

    async def use_refresh_token(self, token_hash: bytes, now: datetime) -> bool:
        used = await self._connection.execute(
            update(RefreshRow)
            .where(
                RefreshRow.token_hash == token_hash,
                RefreshRow.used_at.is_(None),
                exists().where(SessionRow.id == RefreshRow.session_id, SessionRow.revoked_at.is_(None)),
            )
            .values(used_at=now)
            .returning(RefreshRow.session_id)
        )
        return used.first() is not None

    async def revoke_session(self, session_id: str, now: datetime) -> None:
        await self._connection.execute(
            update(SessionRow)
            .where(SessionRow.id == session_id, SessionRow.revoked_at.is_(None))
            .values(revoked_at=now)
        )

    async def revoke_sessions(self, user_id: str, keep: str | None, now: datetime) -> None:
        statement = update(SessionRow).where(SessionRow.user_id == user_id, SessionRow.revoked_at.is_(None))
        if keep is not None:
            statement = statement.where(SessionRow.id != keep)
        await self._connection.execute(statement.values(revoked_at=now))


def _find_taken_field(error: IntegrityError) -> str:
    for constraint, field in _FIELDS_BY_CONSTRAINT.items():
        if constraint in str(error.orig):
            return field
    raise error
