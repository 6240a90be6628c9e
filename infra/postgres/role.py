"""Name the application's role in Postgres."""

from typing import Final

# Every connection of the application takes on this role; see schema/baseline/rights.sql.
APP_ROLE: Final = "paddock_app"
