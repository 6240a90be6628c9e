"""Create the engine, and define the base of row classes and the two column types every table uses."""

import functools
from collections.abc import Callable, Mapping
from typing import Any, Generic, TypeVar, cast
from uuid import UUID

import asyncpg
import msgspec
from sqlalchemy import Row, types
from sqlalchemy.dialects import postgresql
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine
from sqlalchemy.orm import DeclarativeBase

from domain.shared import ids
from infra.postgres.session import guard_sessions

T = TypeVar("T")


class Base(DeclarativeBase):
    """Provide the base of row classes, which have columns only. They never leave this folder."""


class Id(types.TypeDecorator[str]):
    """Map a TypeID in Python to a `uuid` in Postgres. Text that is no such TypeID finds nothing and is never stored."""

    impl = postgresql.UUID(as_uuid=True)
    cache_ok = True

    def __init__(self, prefix: str) -> None:
        super().__init__()
        self.prefix = prefix

    def process_bind_param(self, value: str | None, dialect: Any) -> UUID | None:
        if value is None:
            return None
        decoded = ids.decode_id(self.prefix, value)
        if decoded is None:
            raise ValueError(f"{value!r} is not an id of the kind {self.prefix!r}")
        return decoded

    def process_result_value(self, value: UUID | None, dialect: Any) -> str | None:
        return None if value is None else ids.encode_id(self.prefix, value)


def create_json_column() -> types.TypeEngine[Any]:
    """Return the type `json`, not `jsonb`: what a caller sent comes back as it was sent, U+0000 included."""
    return postgresql.JSON(none_as_null=True)


def create_timestamp() -> types.TypeEngine[Any]:
    """Return the type `timestamptz`."""
    return types.DateTime(timezone=True)


@functools.cache
def _list_fields(kind: Any) -> tuple[str, ...]:
    return tuple(field.name for field in msgspec.structs.fields(kind))


def struct_from_row(row: Row[Any] | Mapping[str, Any], kind: type[T]) -> T:
    """Return a row as a domain Struct. Column names are field names; columns without a field are left out."""
    mapping = row._mapping if isinstance(row, Row) else row
    return msgspec.convert({name: mapping[name] for name in _list_fields(cast(Any, kind)) if name in mapping}, kind)


# Names of ours that are words of SQL.
_QUOTED_NAMES = {"verbose": '"verbose"'}


class RowMapper(Generic[T]):
    """Turn rows of a table into Structs on hot paths, where statements go to asyncpg as they are."""

    def __init__(self, row_class: type[Base], kind: type[T]) -> None:
        fields, table = set(_list_fields(cast(Any, kind))), row_class.__table__
        self._kind = kind
        self._readers = [(column.name, _find_reader(column.type)) for column in table.columns if column.name in fields]
        self.columns = ", ".join(_QUOTED_NAMES.get(name, name) for name, _ in self._readers)

    def to_struct(self, record: asyncpg.Record) -> T:
        """Return a record of asyncpg that has `columns`, as a Struct."""
        return self._kind(**{name: read(record[name]) if read else record[name] for name, read in self._readers})


def _find_reader(kind: types.TypeEngine[Any]) -> Callable[[Any], Any] | None:
    if isinstance(kind, Id):
        prefix = kind.prefix
        return lambda value: None if value is None else ids.encode_id(prefix, value)
    # SQLAlchemy has told asyncpg how to decode json.
    return None


def encode_json_text(value: Any) -> str | None:
    """Return a value as a parameter that is cast to json."""
    return None if value is None else msgspec.json.encode(value).decode()


def replace_unstorable_text(text: str | None) -> str | None:
    """Return text that a column of text can hold: without U+0000 and halves of surrogate pairs."""
    return None if text is None else text.encode("utf-8", "replace").decode().replace("\0", "\ufffd")


def create_engine(url: str, *, pool_size: int, application: str, as_owner: bool = False) -> AsyncEngine:
    """Return an engine on `url` (`postgresql://user:password@host:port/name`).

    Every transaction takes on `APP_ROLE`, which cannot bypass row-level security, with any login and any pooler
    in between; only migrations connect `as_owner`. Transactions begin and end by statements of `store`,
    in one round trip with what binds their tenant, so SQLAlchemy is set to send none of its own.
    Connecting raises `UnsafeSession` where that role cannot be had.
    """
    scheme, _, rest = url.partition("://")
    if scheme not in ("postgres", "postgresql", "postgresql+asyncpg"):
        raise ValueError(f"PADDOCK_DATABASE_URL must begin with postgresql://, not {scheme}://")
    engine = create_async_engine(
        f"postgresql+asyncpg://{rest}",
        pool_size=pool_size,
        max_overflow=0,
        hide_parameters=True,
        pool_timeout=10,
        pool_recycle=1800,
        **({} if as_owner else {"isolation_level": "AUTOCOMMIT"}),
        # No other parameter of the start: poolers refuse those, or drop them.
        connect_args={"server_settings": {"application_name": application}, "timeout": 5, "command_timeout": 60},
        json_serializer=lambda value: msgspec.json.encode(value).decode(),
        json_deserializer=msgspec.json.decode,
    )
    guard_sessions(engine, as_owner=as_owner)
    return engine
