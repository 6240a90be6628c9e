"""Crews, and the tasks that they are made of."""

from infra.postgres.script import run

revision = "0017"
down_revision = "0016"


def upgrade() -> None:
    run("SELECT 1")
