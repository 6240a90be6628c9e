"""Schedules, and the due times that they have fired."""

from infra.postgres.script import run

revision = "0019"
down_revision = "0018"


def upgrade() -> None:
    run("SELECT 1")
