"""Models, keys for outside services, tools."""

from infra.postgres.script import run

revision = "0012"
down_revision = "0011"


def upgrade() -> None:
    run("SELECT 1")
