"""${message}"""

from infra.postgres.script import run

revision = ${repr(up_revision)}
down_revision = ${repr(down_revision)}


def upgrade() -> None:
    run("""
    """)
