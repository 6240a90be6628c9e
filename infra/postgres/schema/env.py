"""Run migrations, as Alembic's entry point; `infra.postgres.migrate` sets the connection."""

from alembic import context

from infra.postgres.db import Base

connection = context.config.attributes["connection"]
context.configure(connection=connection, target_metadata=Base.metadata)
with context.begin_transaction():
    context.run_migrations()
