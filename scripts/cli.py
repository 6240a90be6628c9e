"""The command `paddock`."""

import argparse
import asyncio
import functools
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path


def _role(asked: argparse.Namespace) -> None:
    from scripts.roles import be

    be(asked.role)


def _worker(asked: argparse.Namespace) -> None:
    from scripts.roles import be

    if asked.once_idle is not None and asked.role == "upkeep":
        sys.exit("paddock: upkeep has something to do for as long as the system runs; start it without --once-idle.")
    be(asked.role, asked.once_idle)


def _seconds(text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        seconds = 0.0
    if not 0 < seconds < float("inf"):
        raise argparse.ArgumentTypeError(f"must be a number of seconds above 0, not {text!r}")
    return seconds


def _up(asked: argparse.Namespace) -> None:
    from scripts.up import up

    sys.exit(asyncio.run(up(Path(asked.data), asked.port, asked.workers, asked.once)))


def _demo(asked: argparse.Namespace) -> None:
    from scripts.demo import demo
    from scripts.up import up

    shown = functools.partial(demo, ends=asked.once)
    sys.exit(asyncio.run(up(Path(asked.data), asked.port, asked.workers, asked.once, shown)))


def _backup(asked: argparse.Namespace) -> None:
    from scripts.backup import back_up

    sys.exit(asyncio.run(back_up(Path(asked.folder).absolute(), Path(asked.data).absolute())))


def _restore(asked: argparse.Namespace) -> None:
    from scripts.backup import restore

    sys.exit(asyncio.run(restore(Path(asked.folder).absolute(), Path(asked.data).absolute())))


def _queues(asked: argparse.Namespace) -> None:
    from scripts.queues import show

    sys.exit(show(Path(asked.data), asked.url, asked.key))


def _plan(asked: argparse.Namespace) -> None:
    from scripts.release import set_plan
    from scripts.roles import settings

    sys.exit(asyncio.run(set_plan(settings(Path(asked.data)), asked.tenant, asked.plan)))


def _keys(asked: argparse.Namespace) -> None:
    from scripts.key_rotation import rotate
    from scripts.roles import settings

    sys.exit(asyncio.run(rotate(settings(Path(asked.data)))))


def _admin_key(asked: argparse.Namespace) -> None:
    from scripts.bootstrap import admin_key
    from scripts.installation import find_running
    from scripts.roles import settings

    running = None if "PADDOCK_DATABASE_URL" in os.environ else find_running(Path(asked.data))
    known = running.admin_key if running is not None else os.environ.get("PADDOCK_KNOWN_ADMIN_KEY")
    print(asyncio.run(admin_key(settings(Path(asked.data)), known)))


def _model(asked: argparse.Namespace) -> None:
    from infra.embedded.children import EmbeddedServiceError
    from infra.embedded.model import MODEL_KEY_VARIABLE, serve_model

    if not (key := os.environ.get(MODEL_KEY_VARIABLE, "")):
        sys.exit(
            f"paddock: {MODEL_KEY_VARIABLE} is not set; whoever calls the model must know it. For example: openssl rand -hex 32"  # noqa: E501
        )
    try:
        serve_model(asked.host, asked.port, key, lambda url: print(f"serving at {url}", flush=True))
    except EmbeddedServiceError as error:
        sys.exit(f"paddock: {error}")


def _version(_: argparse.Namespace) -> None:
    from infra.version import VERSION

    print(VERSION)


def parser() -> argparse.ArgumentParser:
    """Every command and its options."""
    made = argparse.ArgumentParser(prog="paddock", description="A self-hosted control plane for AI agents.")
    commands = made.add_subparsers(required=True, metavar="COMMAND")

    def command(name: str, told: str, run: Callable[[argparse.Namespace], None]) -> argparse.ArgumentParser:
        added = commands.add_parser(name, help=told, description=told)
        added.set_defaults(run=run)
        return added

    for name, told, run in (
        ("up", "start Postgres, Valkey, SeaweedFS, the API and the workers on this machine", _up),
        ("demo", "the same, and show the main job through HTTP", _demo),
    ):
        both = command(name, told, run)
        both.add_argument("--port", type=int, default=8000, help="of the API (default 8000)")
        both.add_argument("--data", default=".paddock", help="where everything is kept (default .paddock)")
        both.add_argument("--workers", type=int, default=1, help="how many run workers (default 1)")
        both.add_argument("--once", action="store_true", help="stop again once everything has worked")
    command("api", "serve the API", _role).set_defaults(role="api")
    worker = command("worker", "work on one lane", _worker)
    worker.add_argument("role", metavar="LANE", choices=("build", "run", "llm", "plan", "record", "upkeep"))
    told = "end when there was nothing to do for so many seconds, for autoscalers"
    worker.add_argument("--once-idle", type=_seconds, metavar="SECONDS", help=told)
    told = "write the embedded database, object storage and secrets of an installation, running or not, to a new folder"
    backup = command("backup", told, _backup)
    backup.add_argument("folder", metavar="DIR")
    backup.add_argument("--data", default=".paddock", help="of the installation (default .paddock)")
    told = "make an installation from such a folder, and say what is missing in it"
    restored = command("restore", told, _restore)
    restored.add_argument("folder", metavar="DIR")
    restored.add_argument("--data", default=".paddock", help="where to, an empty folder (default .paddock)")
    release = command("migrate", "bring the database to the newest schema and create the bucket", _role)
    release.set_defaults(role="release")
    _find(command("admin-key", "create an admin if there is none, and print a key", _admin_key))
    plan = command("plan", "set a tenant's plan, which picks its rate limit", _plan)
    plan.add_argument("tenant")
    plan.add_argument("plan", choices=("standard", "premium"))
    _find(plan)
    told = "the tenants' keys for outside services: seal them anew with the first of PADDOCK_ENCRYPTION_KEYS"
    keys = command("keys", told, _keys)
    keys.add_argument("what", choices=("rotate",))
    _find(keys)
    model = command(
        "model", "serve the local model for PADDOCK_LOCAL_MODEL_URL; `paddock up` does so by itself", _model
    )
    model.add_argument("--host", default="127.0.0.1", help="where to listen (default 127.0.0.1)")
    model.add_argument("--port", type=int, default=8010, help="of the model (default 8010)")
    queues = command("queues", "show what waits and runs, per lane", _queues)
    _find(queues)
    queues.add_argument("--url", help="of the API, instead")
    queues.add_argument("--key", help="an admin's API key, instead")
    command("version", "print the version", _version)
    return made


def _find(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--data", default=".paddock", help="of a running `paddock up`, where the environment names no database"
    )


def main(arguments: Sequence[str] | None = None) -> None:
    """Run one command."""
    asked = parser().parse_args(arguments)
    asked.run(asked)


if __name__ == "__main__":
    main()
