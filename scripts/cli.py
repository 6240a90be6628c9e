"""The command `paddock`."""

import argparse
import asyncio
import functools
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path


def _run_role(asked: argparse.Namespace) -> None:
    from scripts.roles import run_role

    run_role(asked.role)


def _run_worker(asked: argparse.Namespace) -> None:
    from scripts.roles import run_role

    if asked.once_idle is not None and asked.role == "upkeep":
        sys.exit("paddock: upkeep has something to do for as long as the system runs; start it without --once-idle.")
    run_role(asked.role, asked.once_idle)


def _parse_seconds(text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        seconds = 0.0
    if not 0 < seconds < float("inf"):
        raise argparse.ArgumentTypeError(f"must be a number of seconds above 0, not {text!r}")
    return seconds


def _run_up(asked: argparse.Namespace) -> None:
    from scripts.up import run_up

    sys.exit(asyncio.run(run_up(Path(asked.data), asked.port, asked.workers, asked.once)))


def _run_demo(asked: argparse.Namespace) -> None:
    from scripts.demo import run_demo
    from scripts.up import run_up

    shown = functools.partial(run_demo, ends=asked.once)
    sys.exit(asyncio.run(run_up(Path(asked.data), asked.port, asked.workers, asked.once, shown)))


def _run_backup(asked: argparse.Namespace) -> None:
    from scripts.backup import create_backup

    sys.exit(asyncio.run(create_backup(Path(asked.folder).absolute(), Path(asked.data).absolute())))


def _run_restore(asked: argparse.Namespace) -> None:
    from scripts.backup import restore_backup

    sys.exit(asyncio.run(restore_backup(Path(asked.folder).absolute(), Path(asked.data).absolute())))


def _show_queues(asked: argparse.Namespace) -> None:
    from scripts.queues import show_queues

    sys.exit(show_queues(Path(asked.data), asked.url, asked.key))


def _set_plan(asked: argparse.Namespace) -> None:
    from scripts.release import set_tenant_plan
    from scripts.roles import load_settings

    sys.exit(asyncio.run(set_tenant_plan(load_settings(Path(asked.data)), asked.tenant, asked.plan)))


def _rotate_keys(asked: argparse.Namespace) -> None:
    from scripts.key_rotation import rotate_keys
    from scripts.roles import load_settings

    sys.exit(asyncio.run(rotate_keys(load_settings(Path(asked.data)))))


def _print_admin_key(asked: argparse.Namespace) -> None:
    from scripts.bootstrap import ensure_admin_key
    from scripts.installation import find_running_installation
    from scripts.roles import load_settings

    running = None if "PADDOCK_DATABASE_URL" in os.environ else find_running_installation(Path(asked.data))
    known = running.admin_key if running is not None else os.environ.get("PADDOCK_KNOWN_ADMIN_KEY")
    print(asyncio.run(ensure_admin_key(load_settings(Path(asked.data)), known)))


def _serve_model(asked: argparse.Namespace) -> None:
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


def _print_version(_: argparse.Namespace) -> None:
    from infra.version import PADDOCK_VERSION

    print(PADDOCK_VERSION)


def build_parser() -> argparse.ArgumentParser:
    """Every command and its options."""
    made = argparse.ArgumentParser(prog="paddock", description="A self-hosted control plane for AI agents.")
    commands = made.add_subparsers(required=True, metavar="COMMAND")

    def add_command(name: str, told: str, run: Callable[[argparse.Namespace], None]) -> argparse.ArgumentParser:
        added = commands.add_parser(name, help=told, description=told)
        added.set_defaults(run=run)
        return added

    for name, told, run in (
        ("up", "start Postgres, Valkey, SeaweedFS, the API and the workers on this machine", _run_up),
        ("demo", "the same, and show the main job through HTTP", _run_demo),
    ):
        both = add_command(name, told, run)
        both.add_argument("--port", type=int, default=8000, help="of the API (default 8000)")
        both.add_argument("--data", default=".paddock", help="where everything is kept (default .paddock)")
        both.add_argument("--workers", type=int, default=1, help="how many run workers (default 1)")
        both.add_argument("--once", action="store_true", help="stop again once everything has worked")
    add_command("api", "serve the API", _run_role).set_defaults(role="api")
    worker = add_command("worker", "work on one lane", _run_worker)
    worker.add_argument("role", metavar="LANE", choices=("build", "run", "llm", "plan", "record", "upkeep"))
    told = "end when there was nothing to do for so many seconds, for autoscalers"
    worker.add_argument("--once-idle", type=_parse_seconds, metavar="SECONDS", help=told)
    told = "write the embedded database, object storage and secrets of an installation, running or not, to a new folder"
    backup = add_command("backup", told, _run_backup)
    backup.add_argument("folder", metavar="DIR")
    backup.add_argument("--data", default=".paddock", help="of the installation (default .paddock)")
    told = "make an installation from such a folder, and say what is missing in it"
    restored = add_command("restore", told, _run_restore)
    restored.add_argument("folder", metavar="DIR")
    restored.add_argument("--data", default=".paddock", help="where to, an empty folder (default .paddock)")
    release = add_command("migrate", "bring the database to the newest schema and create the bucket", _run_role)
    release.set_defaults(role="release")
    _add_data_option(add_command("admin-key", "create an admin if there is none, and print a key", _print_admin_key))
    plan = add_command("plan", "set a tenant's plan, which picks its rate limit", _set_plan)
    plan.add_argument("tenant")
    plan.add_argument("plan", choices=("standard", "premium"))
    _add_data_option(plan)
    told = "the tenants' keys for outside services: seal them anew with the first of PADDOCK_ENCRYPTION_KEYS"
    keys = add_command("keys", told, _rotate_keys)
    keys.add_argument("what", choices=("rotate",))
    _add_data_option(keys)
    model = add_command(
        "model", "serve the local model for PADDOCK_LOCAL_MODEL_URL; `paddock up` does so by itself", _serve_model
    )
    model.add_argument("--host", default="127.0.0.1", help="where to listen (default 127.0.0.1)")
    model.add_argument("--port", type=int, default=8010, help="of the model (default 8010)")
    queues = add_command("queues", "show what waits and runs, per lane", _show_queues)
    _add_data_option(queues)
    queues.add_argument("--url", help="of the API, instead")
    queues.add_argument("--key", help="an admin's API key, instead")
    add_command("version", "print the version", _print_version)
    return made


def _add_data_option(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--data", default=".paddock", help="of a running `paddock up`, where the environment names no database"
    )


def main(arguments: Sequence[str] | None = None) -> None:
    """Run one command."""
    asked = build_parser().parse_args(arguments)
    asked.run(asked)


if __name__ == "__main__":
    main()
