"""Create the tables, views and rights that Paddock starts with.

Functions and triggers are not part of it: `infra.postgres.migrate` applies `schema/functions/` after the migrations.
"""

from infra.postgres.schema.sql_files import run_baseline

revision = "0001_baseline"
down_revision = None


def upgrade() -> None:
    """Create everything, in the order in which tables refer to each other."""
    run_baseline("accounts", "catalog", "executions", "records", "rights")
