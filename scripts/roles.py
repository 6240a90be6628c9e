"""Run the roles that a process can have: the API, a worker or a task that ends. The fork server imports this module."""

import asyncio
import os
import sys

import api.app
import workers.main
from infra.postgres.session import UnsafeSession
from infra.version import PADDOCK_VERSION
from scripts import bootstrap, release
from scripts.installation import load_settings


def run_role(role: str, once_idle: float | None = None) -> None:
    """Run a role: `api`, `api-share` (one of several), or a lane's worker (`build run llm plan record upkeep`).

    A worker with `once_idle` ends when it had nothing to do for that many seconds.
    The roles `version`, `release`, `migrate`, `bucket` and `admin-key` do their task and end.
    """
    try:
        _dispatch_role(role, once_idle)
    except UnsafeSession as error:
        sys.exit(f"paddock: {error}")


def _dispatch_role(role: str, once_idle: float | None) -> None:
    if role == "api":
        api.app.serve(load_settings())
    elif role == "api-share":
        api.app.serve(load_settings(), shares_port=True)
    elif role in workers.main.SERVE_BY_PROCESS:
        workers.main.run_worker(role, load_settings(), once_idle)
    elif role == "migrate":
        asyncio.run(release.prepare_release(load_settings(), with_bucket=False))
    elif role == "version":
        print(PADDOCK_VERSION)
    elif role == "release":
        asyncio.run(release.prepare_release(load_settings()))
    elif role == "bucket":
        asyncio.run(release.ensure_bucket(load_settings()))
    elif role == "admin-key":
        known_key = os.environ.get("PADDOCK_KNOWN_ADMIN_KEY")
        print(asyncio.run(bootstrap.ensure_admin_key(load_settings(), known_key)))
    else:
        sys.exit(f"paddock: unknown role {role!r}")
