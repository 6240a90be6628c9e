"""Model agents: what they are, their steps, their files, their own lane."""

from infra.postgres.script import run

revision = "0013"
down_revision = "0012"


def upgrade() -> None:
    run("SELECT 1")
