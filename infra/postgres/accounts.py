"""Users, tenants, invitations and sessions in Postgres."""

import contextlib
from datetime import datetime
from typing import Any

from sqlalchemy import ForeignKey, LargeBinary, Text, case, exists, func, select, text, update
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Mapped, mapped_column

from domain.accounts import Invite, ProxyUser, RefreshGrant, User, UserIdentity
from domain.shared import ids
from domain.shared.access import Role
from domain.shared.pages import Listing, Page
from infra.postgres.connection import TxConnection
from infra.postgres.db import Base, Id, struct_from_row, timestamp
from infra.postgres.pages import fetch_page


class TenantRow(Base):
    """A tenant; `plan` picks its rate limit. `by_proxy` is for those that a trusted proxy's sign-in made."""

    __tablename__ = "tenants"
    id: Mapped[str] = mapped_column(Text, primary_key=True)
    plan: Mapped[str] = mapped_column(Text)
    max_concurrency: Mapped[int | None]
    retention_days: Mapped[int | None]
    by_proxy: Mapped[bool]
    created_at: Mapped[datetime] = mapped_column(timestamp())


class UserRow(Base):
    """A user; e-mail and user name are unique over all tenants, because a login names no tenant."""

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
    created_at: Mapped[datetime] = mapped_column(timestamp())
    updated_at: Mapped[datetime] = mapped_column(timestamp())


class InviteRow(Base):
    """An invitation; its token is stored hashed."""

    __tablename__ = "invites"
    id: Mapped[str] = mapped_column(Id("inv"), primary_key=True)
    tenant_id: Mapped[str] = mapped_column(Text, ForeignKey("tenants.id"), index=True)
    email: Mapped[str] = mapped_column(Text)
    role: Mapped[str] = mapped_column(Text)
    token_hash: Mapped[bytes] = mapped_column(LargeBinary, unique=True)
    expires_at: Mapped[datetime] = mapped_column(timestamp())
    accepted_at: Mapped[datetime | None] = mapped_column(timestamp())
    created_at: Mapped[datetime] = mapped_column(timestamp())


class SessionRow(Base):
    """A login: the family that its refresh tokens belong to."""

    __tablename__ = "sessions"
    id: Mapped[str] = mapped_column(Id("ses"), primary_key=True)
    tenant_id: Mapped[str] = mapped_column(Text, ForeignKey("tenants.id"))
    user_id: Mapped[str] = mapped_column(Id("user"), ForeignKey("users.id"), index=True)
    created_at: Mapped[datetime] = mapped_column(timestamp())
    revoked_at: Mapped[datetime | None] = mapped_column(timestamp())


class RefreshRow(Base):
    """A refresh token, hashed. A used one is kept, to notice a second use."""

    __tablename__ = "refresh_tokens"
    token_hash: Mapped[bytes] = mapped_column(LargeBinary, primary_key=True)
    tenant_id: Mapped[str] = mapped_column(Text, ForeignKey("tenants.id"))
    session_id: Mapped[str] = mapped_column(Id("ses"), ForeignKey("sessions.id", ondelete="CASCADE"), index=True)
    expires_at: Mapped[datetime] = mapped_column(timestamp(), index=True)
    used_at: Mapped[datetime | None] = mapped_column(timestamp())


_TENANT = func.current_setting("paddock.tenant_id")
_FIELDS = {
    "users_email_key": "email",
    "users_username_key": "username",
    "users_external_id_key": "external_id",
}


def _identity(row: Any) -> dict[str, Any]:
    found = dict(row._mapping)
    found["user_id"] = ids.encode_id("user", found["user_id"])
    if "session_id" in found:
        found["session_id"] = ids.encode_id("ses", found["session_id"])
    return found


class PostgresAccounts:
    """Implements `domain.accounts.Accounts`. The `find_*` go through functions of the owner, by exact match."""

    def __init__(self, connection: TxConnection) -> None:
        self._connection = connection

    async def find_login(self, name: str) -> UserIdentity | None:
        row = (await self._connection.execute(text("SELECT * FROM find_login(:name)"), {"name": name})).first()
        return None if row is None else struct_from_row(_identity(row), UserIdentity)

    async def find_session(self, user_id: str, session_id: str) -> UserIdentity | None:
        user, session = ids.decode_id("user", user_id), ids.decode_id("ses", session_id)
        found = await self._connection.execute(
            text("SELECT * FROM find_session(:user, :session)"), {"user": user, "session": session}
        )
        row = found.first()
        return None if row is None else struct_from_row(_identity(row), UserIdentity)

    async def find_refresh_token(self, token_hash: bytes) -> RefreshGrant | None:
        found = await self._connection.execute(text("SELECT * FROM find_refresh(:hash)"), {"hash": token_hash})
        row = found.first()
        return None if row is None else struct_from_row(_identity(row), RefreshGrant)

    async def find_proxy_users(self, tenant_id: str, external_id: str | None, email: str) -> list[ProxyUser]:
        found = await self._connection.execute(
            text("SELECT * FROM find_proxy_users(:tenant, :external, :email)"),
            {"tenant": tenant_id, "external": external_id, "email": email},
        )
        return [struct_from_row(_identity(row), ProxyUser) for row in found]

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
        made = await self._connection.execute(
            insert(TenantRow)
            .values(id=tenant_id, plan="standard", created_at=now, by_proxy=by_proxy)
            .on_conflict_do_nothing()
            .returning(TenantRow.id)
        )
        return made.first() is not None

    async def is_proxy_tenant(self, tenant_id: str) -> bool:
        found = await self._connection.execute(select(TenantRow.by_proxy).where(TenantRow.id == tenant_id))
        return bool(found.scalar_one_or_none())

    async def add_user(self, user: User, password_hash: str, external_id: str | None = None) -> str | None:
        values = {name: getattr(user, name) for name in User.__struct_fields__}
        try:
            await self._connection.execute(
                insert(UserRow).values(**values, password_hash=password_hash, external_id=external_id)
            )
        except IntegrityError as error:
            return _taken(error)
        return None

    async def get_user(self, user_id: str, lock: bool = False) -> User | None:
        if ids.decode_id("user", user_id) is None:
            return None
        query = select(UserRow).where(UserRow.id == user_id)
        row = (await self._connection.execute(query.with_for_update() if lock else query)).first()
        return None if row is None else struct_from_row(row, User)

    async def get_password_hash(self, user_id: str) -> str:
        found = await self._connection.execute(select(UserRow.password_hash).where(UserRow.id == user_id))
        return found.scalar_one()

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
            return _taken(error)
        return None

    async def count_other_admins(self, user_id: str) -> int:
        # Locking the tenant's admins keeps two admins from demoting each other at once.
        found = await self._connection.execute(
            select(UserRow.id).where(UserRow.role == "admin", UserRow.is_active).order_by(UserRow.id).with_for_update()
        )
        return sum(1 for (admin,) in found if admin != user_id)

    async def add_invite(self, invite: Invite, token_hash: bytes) -> None:
        values = {name: getattr(invite, name) for name in Invite.__struct_fields__ if name != "invite_token"}
        await self._connection.execute(insert(InviteRow).values(**values, token_hash=token_hash))

    async def redeem_invite(self, email: str, token_hash: bytes, now: datetime) -> Role | None:
        taken = await self._connection.execute(
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
        role: Role | None = taken.scalar_one_or_none()  # type: ignore[assignment]
        return role

    async def add_session(self, session_id: str, user_id: str, now: datetime) -> None:
        await self._connection.execute(
            insert(SessionRow).values(id=session_id, tenant_id=_TENANT, user_id=user_id, created_at=now)
        )

    async def add_refresh_token(self, token_hash: bytes, session_id: str, expires_at: datetime) -> None:
        await self._connection.execute(
            insert(RefreshRow).values(
                token_hash=token_hash, tenant_id=_TENANT, session_id=session_id, expires_at=expires_at
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


def _taken(error: IntegrityError) -> str:
    for constraint, field in _FIELDS.items():
        if constraint in str(error.orig):
            return field
    raise error
