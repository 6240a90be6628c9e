"""Workflows."""

from infra.postgres.script import run

revision = "0016"
down_revision = "0015"


def upgrade() -> None:
    run("SELECT 1")
