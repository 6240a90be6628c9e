"""Costs of model calls, and budgets."""

from infra.postgres.script import run

revision = "0014"
down_revision = "0013"


def upgrade() -> None:
    run("SELECT 1")
