"""What has been exported as traces."""

from infra.postgres.script import run

revision = "0020"
down_revision = "0019"


def upgrade() -> None:
    run("SELECT 1")
