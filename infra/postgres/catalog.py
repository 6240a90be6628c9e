"""Store the resources of a tenant's catalogue: rows with a name, or a slug, that is unique in the tenant."""

from typing import Any, Final, Generic, Literal, TypeVar

import asyncpg
import msgspec
from sqlalchemy import Select, delete, func, or_, select, text, update
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.exc import IntegrityError

from domain.shared import ids
from infra.postgres.connection import TxConnection
from infra.postgres.db import struct_from_row

ResourceT = TypeVar("ResourceT", bound=msgspec.Struct)

LOCK_CLAUSES: Final = {False: "", True: " FOR UPDATE", "share": " FOR SHARE"}


async def insert_row(connection: TxConnection, row_class: type[Any], values: dict[str, Any]) -> bool:
    """Insert a row; False if its name or slug is taken."""
    statement = insert(row_class).values(**values).on_conflict_do_nothing().returning(row_class.id)
    return (await connection.execute(statement)).first() is not None


async def update_row(connection: TxConnection, row_class: type[Any], row_id: str, values: dict[str, Any]) -> bool:
    """Update a row; False if its new name or slug is taken."""
    try:
        await connection.execute(update(row_class).where(row_class.id == row_id).values(**values))
    except IntegrityError:
        return False
    return True


def replace_nul(reference: str) -> str:
    """Return a reference that a statement can hold; no name has the character that replaces U+0000."""
    return reference.replace("\0", "\ufffd")


async def fetch_by_reference(
    connection: TxConnection, find_sql: str, prefix: str, reference: str, lock: bool | Literal["share"]
) -> asyncpg.Record | None:
    """Return the row of an id or a name. `find_sql` ends where the condition goes."""
    row_id = ids.decode_id(prefix, reference)
    column, value = ("name", replace_nul(reference)) if row_id is None else ("id", row_id)
    return await connection.fetch_row(f"{find_sql} {column} = $1{LOCK_CLAUSES[lock]}", value)


class CatalogRepository(Generic[ResourceT]):
    """Store resources that an id or a name refers to, each in a row with the same fields.

    A subclass sets its `row_class` and `resource_class`. The `fixed_columns` never change once a row is written.
    """

    row_class: type[Any]
    resource_class: type[ResourceT]
    fixed_columns: frozenset[str] = frozenset({"id", "tenant_id", "created_at"})

    def __init__(self, connection: TxConnection) -> None:
        self._connection = connection

    async def add(self, resource: ResourceT) -> bool:
        return await insert_row(self._connection, self.row_class, self._collect_values(resource))

    async def find(self, reference: str, lock: bool | Literal["share"] = False) -> ResourceT | None:
        query = self._select_reference(reference)
        if lock:
            query = query.with_for_update(read=lock == "share", of=self.row_class)
        row = (await self._connection.execute(query)).first()
        return None if row is None else struct_from_row(row, self.resource_class)

    async def save(self, resource: ResourceT) -> bool:
        values = self._collect_values(resource)
        row_id = values["id"]
        changed = {name: value for name, value in values.items() if name not in self.fixed_columns}
        return await update_row(self._connection, self.row_class, row_id, changed)

    async def delete(self, resource_id: str) -> None:
        await self._connection.execute(delete(self.row_class).where(self.row_class.id == resource_id))

    async def count(self) -> int:
        return (await self._connection.execute(select(func.count()).select_from(self.row_class))).scalar_one()

    async def _lock_table(self) -> None:
        """Make other transactions that lock the tenant's part of this table wait until the commit."""
        key = f"'{self.row_class.__tablename__} of ' || current_setting('paddock.tenant_id')"
        await self._connection.execute(text(f"SELECT pg_advisory_xact_lock(hashtextextended({key}, 0))"))

    def _select(self) -> Select[Any]:
        return select(self.row_class)

    def _collect_values(self, resource: ResourceT) -> dict[str, Any]:
        names = [column.name for column in self.row_class.__table__.columns]
        return {name: getattr(resource, name) for name in names if name in self.resource_class.__struct_fields__}

    def _has_id(self, reference: str) -> bool:
        return ids.decode_id(self.row_class.__table__.c.id.type.prefix, reference) is not None

    def _select_reference(self, reference: str) -> Select[Any]:
        row = self.row_class
        return self._select().where(
            row.id == reference if self._has_id(reference) else row.name == replace_nul(reference)
        )


class SluggedRepository(CatalogRepository[ResourceT]):
    """Store resources that an id, a name or a slug refers to. Where a slug is another one's name, the name counts."""

    async def list_by_references(self, references: list[str], lock: Literal["share"] | None = None) -> list[ResourceT]:
        row_ids = [reference for reference in references if self._has_id(reference)]
        named = [replace_nul(reference) for reference in references]
        row = self.row_class
        query = self._select().where(or_(row.id.in_(row_ids), row.slug.in_(named), row.name.in_(named)))
        query = query.order_by(row.id)
        if lock is not None:
            query = query.with_for_update(read=True, of=row)
        return [struct_from_row(record, self.resource_class) for record in await self._connection.execute(query)]

    def _select_reference(self, reference: str) -> Select[Any]:
        if self._has_id(reference):
            return super()._select_reference(reference)
        row, name = self.row_class, replace_nul(reference)
        return self._select().where(or_(row.slug == name, row.name == name)).order_by((row.name == name).desc())
