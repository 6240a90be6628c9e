"""The name of the application's role in Postgres."""

from typing import Final

# Every connection of the application takes it on; see schema/versions/0001_accounts.py.
APP_ROLE: Final = "paddock_app"
