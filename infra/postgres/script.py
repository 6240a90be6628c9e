"""Runs a migration's SQL, many statements at once, which a prepared statement cannot."""

from alembic import op


def run(sql: str) -> None:
    """Run SQL in the migration's transaction, by Postgres' simple protocol."""
    connection = op.get_bind().connection.dbapi_connection
    assert connection is not None
    connection.run_async(lambda raw: raw.execute(sql))
