"""Prompt templates, and agents that use one."""

from infra.postgres.script import run

revision = "0018"
down_revision = "0017"


def upgrade() -> None:
    run("SELECT 1")
