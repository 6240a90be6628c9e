"""Which of OpenAI's interfaces a model is asked over."""

from infra.postgres.script import run

revision = "0024"
down_revision = "0023"


def upgrade() -> None:
    run("ALTER TABLE models ADD COLUMN api text CHECK (api IN ('responses', 'chat'))")
