"""Translate errors of the database into named outages, which end by themselves or need an operator's help."""

from typing import Final

import asyncpg
from sqlalchemy import exc

from domain.shared.errors import DomainError
from infra.postgres.session import UnsafeSession

_RETRY_ADVICE: Final = "Try again; with an Idempotency-Key nothing is done twice."
# Connections that are of no use any more: what was asked may be asked again on a fresh one.
LOST_CONNECTION_ERRORS: Final = (
    exc.OperationalError,
    OSError,
    TimeoutError,
    exc.TimeoutError,
    asyncpg.CannotConnectNowError,
    asyncpg.ConnectionDoesNotExistError,
    asyncpg.AdminShutdownError,
    asyncpg.CrashShutdownError,
    asyncpg.InterfaceError,
    # What asyncpg says of a connection that was lost in the middle of something.
    asyncpg.InternalClientError,
)
_TRANSIENT_ERRORS: Final = (asyncpg.DeadlockDetectedError, asyncpg.SerializationError)
# SQLSTATE (Appendix A of PostgreSQL's manual) → code and what is wrong.
_OUTAGES_BY_STATE: Final = {
    "53100": ("storage_full", "The disk of the database is full. Work goes on by itself once there is room."),
    "53200": ("database_busy", "The database is out of memory."),
    "53300": ("database_busy", "The database has no connection left: raise max_connections, or start fewer processes."),
    "53400": ("database_busy", "The database is at a limit of its configuration."),
    "25006": ("database_read_only", "The database takes no writes: it is a standby, or was set read-only."),
    "57014": ("database_slow", "The database did not answer in the time that it is given."),
}
# The same by class of SQLSTATE: connecting, and logging in. Poolers say all they have to say as the first.
_OUTAGES_BY_CLASS: Final = {"08": "The way to the database is shut", "28": "The database refuses the login"}


def find_outage(error: BaseException) -> DomainError | None:
    """Name the outage that an error of the database is a sign of; `None` for any other error."""
    for cause in _list_causes(error):
        if isinstance(cause, UnsafeSession):
            return DomainError("database_unsafe", str(cause), retry_after=30)
        if isinstance(cause, exc.TimeoutError):
            return _build_outage("database_busy", "All connections of this process to the database are in use.")
        if isinstance(cause, asyncpg.PostgresError):
            state = cause.sqlstate or ""
            if state in _OUTAGES_BY_STATE:
                return _build_outage(*_OUTAGES_BY_STATE[state])
            if state[:2] in _OUTAGES_BY_CLASS:
                return _build_outage("unavailable", f"{_OUTAGES_BY_CLASS[state[:2]]} ({cause}).")
    if isinstance(error, TimeoutError):
        return _build_outage("database_slow", "The database did not answer in time.")
    if any(isinstance(cause, (*LOST_CONNECTION_ERRORS, *_TRANSIENT_ERRORS)) for cause in _list_causes(error)):
        return _build_outage("unavailable", "The database did not answer.")
    if isinstance(error, exc.DBAPIError) and error.connection_invalidated:
        return _build_outage("unavailable", "The database did not answer.")
    return None


def _list_causes(error: BaseException) -> list[BaseException]:
    """Return the error, and the errors that SQLAlchemy has wrapped in it."""
    result = [error]
    if isinstance(error, exc.DBAPIError) and error.orig is not None:
        result.append(error.orig)
        if error.orig.__cause__ is not None:
            result.append(error.orig.__cause__)
    return result


def _build_outage(code: str, message: str) -> DomainError:
    return DomainError(code, f"{message} {_RETRY_ADVICE}", retry_after=5 if code == "storage_full" else 1)
