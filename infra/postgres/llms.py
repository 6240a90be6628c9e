"""Store the registry of models in Postgres."""

from datetime import datetime
from typing import Any

from sqlalchemy import Text, UniqueConstraint, delete, select, update
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Mapped, mapped_column

from domain.llms import Model, Provider
from domain.shared import ids
from domain.shared.pages import Listing, Page
from infra.postgres.connection import TxConnection
from infra.postgres.db import Base, Id, create_json_column, create_timestamp, struct_from_row
from infra.postgres.pages import fetch_page


class ModelRow(Base):
    """Map a row of `models`: a language model and how to reach it."""

    __tablename__ = "models"
    __table_args__ = (UniqueConstraint("tenant_id", "name"),)
    id: Mapped[str] = mapped_column(Id("model"), primary_key=True)
    tenant_id: Mapped[str] = mapped_column(Text)
    name: Mapped[str] = mapped_column(Text)
    provider: Mapped[str] = mapped_column(Text)
    model: Mapped[str] = mapped_column(Text)
    base_url: Mapped[str | None] = mapped_column(Text)
    api_key_name: Mapped[str | None] = mapped_column(Text)
    api: Mapped[str | None] = mapped_column(Text)
    parameters: Mapped[dict[str, Any]] = mapped_column(create_json_column())
    price: Mapped[Any | None] = mapped_column(create_json_column())
    created_at: Mapped[datetime] = mapped_column(create_timestamp())
    updated_at: Mapped[datetime] = mapped_column(create_timestamp())


_FIXED_COLUMNS = ("id", "tenant_id", "created_at")


class PostgresLlms:
    """Provide `domain.llms.Llms` on Postgres."""

    def __init__(self, connection: TxConnection) -> None:
        self._connection = connection

    async def add(self, model: Model) -> bool:
        values = {name: getattr(model, name) for name in Model.__struct_fields__}
        inserted = await self._connection.execute(
            insert(ModelRow).values(**values).on_conflict_do_nothing().returning(ModelRow.id)
        )
        return inserted.first() is not None

    async def find(self, reference: str, lock: bool = False) -> Model | None:
        is_id = ids.decode_id("model", reference) is not None
        criterion = ModelRow.id == reference if is_id else ModelRow.name == reference.replace("\0", "\ufffd")
        query = select(ModelRow).where(criterion)
        row = (await self._connection.execute(query.with_for_update() if lock else query)).first()
        return None if row is None else struct_from_row(row, Model)

    async def list_page(self, page: Page, provider: Provider | None) -> Listing[Model]:
        query = select(ModelRow)
        if provider is not None:
            query = query.where(ModelRow.provider == provider)
        return await fetch_page(self._connection, query, ModelRow.id.desc(), page, Model)

    async def save(self, model: Model) -> bool:
        values = {name: getattr(model, name) for name in Model.__struct_fields__ if name not in _FIXED_COLUMNS}
        try:
            await self._connection.execute(update(ModelRow).where(ModelRow.id == model.id).values(**values))
        except IntegrityError:
            return False
        return True

    async def delete(self, model_id: str) -> None:
        await self._connection.execute(delete(ModelRow).where(ModelRow.id == model_id))
