"""Where workers serve their health and metrics."""

from infra.postgres.script import run

revision = "0023"
down_revision = "0022"


def upgrade() -> None:
    run("ALTER TABLE workers ADD metrics_port integer")
