"""Run the SQL of migrations: many statements at once, which a prepared statement cannot hold."""

from pathlib import Path
from typing import Final

from alembic import op

BASELINE_FOLDER: Final = Path(__file__).parent / "baseline"


def run_sql(sql: str) -> None:
    """Run SQL in the migration's transaction, by Postgres' simple protocol."""
    connection = op.get_bind().connection.dbapi_connection
    assert connection is not None
    connection.run_async(lambda raw: raw.execute(sql))


def run_baseline(*names: str) -> None:
    """Run files of `schema/baseline/`, in this order."""
    for name in names:
        run_sql((BASELINE_FOLDER / f"{name}.sql").read_text())
