"""${message}"""

from infra.postgres.schema.sql_files import run_sql

revision = ${repr(up_revision)}
down_revision = ${repr(down_revision)}


def upgrade() -> None:
    run_sql("""
    """)
