"""Check that a session of the database cannot bypass row-level security, with any login and through any pooler."""

from typing import Any, Final, cast

import asyncpg
import msgspec
from sqlalchemy import event
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine
from sqlalchemy.util import await_only

from infra.postgres.role import APP_ROLE

_SESSION_KEY: Final = "paddock.session"
# A pooler hands each transaction to another session of the server, where statements prepared before are not known.
_WITHOUT_NAMES: Final[dict[str, Any]] = {
    "statement_cache_size": 0,
    "prepared_statement_cache_size": 0,
    "prepared_statement_name_func": lambda: "",
}
_SESSION_SQL: Final = """
    SELECT pg_backend_pid() AS pid, CAST(session_user AS text) AS login, CAST(current_user AS text) AS role,
           r.rolsuper OR r.rolbypassrls AS mighty,
           EXISTS (SELECT FROM pg_class c WHERE c.oid = to_regclass('public.tenants')
                   AND pg_has_role(current_user, c.relowner, 'USAGE')) AS owns
    FROM pg_roles r WHERE r.rolname = current_user
"""


class UnsafeSession(Exception):
    """Report a session that could read past row-level security. The message says why and what to do."""


class SessionStart(msgspec.Struct, frozen=True, kw_only=True):
    """Describe how transactions begin on a connection.

    `opening` is the text before what binds the tenant. A statement by itself needs none where the login is
    the application's own role and nothing stands between us and the server.
    """

    opening: str
    single: bool


def get_session_start(connection: AsyncConnection) -> SessionStart:
    """Return what was found when this connection was made."""
    return cast(SessionStart, connection.info[_SESSION_KEY])


def guard_sessions(engine: AsyncEngine, *, as_owner: bool) -> None:
    """Inspect each connection of the engine when it is made.

    Connecting raises `UnsafeSession` where the application's role cannot be taken on, or could bypass
    row-level security. Only connections for migrations are `as_owner` and take on no role.
    """
    pooled = False

    @event.listens_for(engine.sync_engine, "do_connect")
    def connect(dialect: Any, record: Any, arguments: list[Any], parameters: dict[str, Any]) -> Any:
        nonlocal pooled
        unnamed = pooled
        inserted = dialect.connect(*arguments, **(parameters | _WITHOUT_NAMES if unnamed else parameters))
        try:
            direct = await_only(_inspect_session(inserted.driver_connection, record.info, as_owner))
        except BaseException:
            inserted.terminate()
            raise
        if direct or unnamed:
            return inserted
        inserted.close()
        pooled = True
        return connect(dialect, record, arguments, parameters)


async def check_session(raw: "asyncpg.Connection[asyncpg.Record]") -> asyncpg.Record:
    """Return what the session of an open transaction is. Errors: `UnsafeSession`."""
    # Without a name: behind a pooler it would stay, and stand in the way of the next one's.
    result = await (await raw.prepare(_SESSION_SQL, name="")).fetchrow()
    if result is None or result["role"] != APP_ROLE:
        role = "nobody" if result is None else result["role"]
        raise UnsafeSession(f"Sessions of the database work as {role!r}, not as {APP_ROLE!r}.")
    if result["mighty"]:
        raise UnsafeSession(
            f"The role {APP_ROLE} can bypass row-level security. Run: ALTER ROLE {APP_ROLE} NOSUPERUSER NOBYPASSRLS"
        )
    if result["owns"]:
        raise UnsafeSession(
            f"The role {APP_ROLE} has the rights of the tables' owner. Revoke from it the role that owns them."
        )
    return result


async def _inspect_session(raw: "asyncpg.Connection[asyncpg.Record]", info: dict[str, Any], as_owner: bool) -> bool:
    """Note how transactions begin. Returns whether nothing stands between us and the server."""
    if as_owner:
        pid = await (await raw.prepare("SELECT pg_backend_pid()", name="")).fetchval()
        return bool(pid == raw.get_server_pid())
    try:
        await raw.execute(f"BEGIN; SET LOCAL ROLE {APP_ROLE}")
    except (asyncpg.InsufficientPrivilegeError, asyncpg.InvalidParameterValueError) as error:
        raise UnsafeSession(
            f"The login of PADDOCK_DATABASE_URL cannot take on the role {APP_ROLE} ({error}). "
            f"Run `paddock migrate`, and as the owner of the tables: GRANT {APP_ROLE} TO the login."
        ) from error
    result = await check_session(raw)
    await raw.execute("COMMIT")
    # A pooler makes up the process id that a client receives, since the sessions behind it change.
    direct = bool(result["pid"] == raw.get_server_pid())
    # Compiling a statement takes longer than any of ours runs.
    if direct:
        await raw.execute("SET jit = off")
    compiled = "" if direct else "SET LOCAL jit = off; "
    info[_SESSION_KEY] = SessionStart(
        opening=f"BEGIN; SET LOCAL ROLE {APP_ROLE}; {compiled}",
        single=direct and result["login"] == APP_ROLE,
    )
    return direct
