"""Store the registry of models in Postgres."""

from datetime import datetime
from typing import Any

from sqlalchemy import Text, UniqueConstraint, select
from sqlalchemy.orm import Mapped, mapped_column

from domain.llms import Model, Provider
from domain.shared.pages import Listing, Page
from infra.postgres.catalog import CatalogRepository
from infra.postgres.db import Base, Id, create_json_column, create_timestamp
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


class PostgresLlms(CatalogRepository[Model]):
    """Provide `domain.llms.Llms` on Postgres."""

    row_class = ModelRow
    resource_class = Model

    async def list_page(self, page: Page, provider: Provider | None) -> Listing[Model]:
        query = select(ModelRow)
        if provider is not None:
            query = query.where(ModelRow.provider == provider)
        return await fetch_page(self._connection, query, ModelRow.id.desc(), page, Model)
