"""Parse the command line of `paddock` and run the command it names.

Each command imports what it needs when it runs: `paddock --help` must not load the application.
"""

import argparse
import asyncio
import functools
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

WORKER_LANES = ("build", "run", "llm", "plan", "record", "upkeep")


def _run_role(arguments: argparse.Namespace) -> None:
    from scripts.roles import run_role

    run_role(arguments.role)


def _run_worker(arguments: argparse.Namespace) -> None:
    from scripts.roles import run_role

    if arguments.once_idle is not None and arguments.role == "upkeep":
        sys.exit("paddock: the upkeep worker always has work to do; start it without --once-idle.")
    run_role(arguments.role, arguments.once_idle)


def _parse_seconds(text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        seconds = 0.0
    if not 0 < seconds < float("inf"):
        raise argparse.ArgumentTypeError(f"must be a number of seconds above 0, not {text!r}")
    return seconds


def _parse_port(text: str) -> int:
    port = int(text) if text.isascii() and text.isdecimal() and len(text) <= 5 else 0
    if not 1 <= port <= 65535:
        raise argparse.ArgumentTypeError(f"must be a port from 1 to 65535, not {text[:40]!r}")
    return port


def _run_up(arguments: argparse.Namespace) -> None:
    from scripts.up import UpOptions, run_up

    demo = None
    if arguments.with_demo:
        from scripts.demo import run_demo

        demo = functools.partial(run_demo, ends=arguments.once)
    options = UpOptions(
        data=Path(arguments.data),
        port=arguments.port,
        workers=arguments.workers,
        once=arguments.once,
        is_quiet=arguments.is_quiet,
    )
    sys.exit(asyncio.run(run_up(options, demo)))


def _run_backup(arguments: argparse.Namespace) -> None:
    from scripts.backup import create_backup

    sys.exit(asyncio.run(create_backup(Path(arguments.folder).absolute(), Path(arguments.data).absolute())))


def _run_restore(arguments: argparse.Namespace) -> None:
    from scripts.backup import restore_backup

    sys.exit(asyncio.run(restore_backup(Path(arguments.folder).absolute(), Path(arguments.data).absolute())))


def _show_queues(arguments: argparse.Namespace) -> None:
    from scripts.queues import show_queues

    sys.exit(show_queues(Path(arguments.data), arguments.url, arguments.key))


def _set_plan(arguments: argparse.Namespace) -> None:
    from scripts.installation import load_settings
    from scripts.release import set_tenant_plan

    settings = load_settings(Path(arguments.data))
    sys.exit(asyncio.run(set_tenant_plan(settings, arguments.tenant, arguments.plan)))


def _rotate_keys(arguments: argparse.Namespace) -> None:
    from scripts.installation import load_settings
    from scripts.key_rotation import rotate_keys

    sys.exit(asyncio.run(rotate_keys(load_settings(Path(arguments.data)))))


def _print_admin_key(arguments: argparse.Namespace) -> None:
    from scripts.bootstrap import ensure_admin_key
    from scripts.installation import find_running_installation, load_settings

    running = None if "PADDOCK_DATABASE_URL" in os.environ else find_running_installation(Path(arguments.data))
    known_key = running.admin_key if running is not None else os.environ.get("PADDOCK_KNOWN_ADMIN_KEY")
    print(asyncio.run(ensure_admin_key(load_settings(Path(arguments.data)), known_key)))


def _serve_model(arguments: argparse.Namespace) -> None:
    from infra.embedded import MODEL_KEY_VARIABLE, EmbeddedServiceError, serve_model

    if not (key := os.environ.get(MODEL_KEY_VARIABLE, "")):
        hint = "set it to the key that callers must send, for example the output of `openssl rand -hex 32`"
        sys.exit(f"paddock: {MODEL_KEY_VARIABLE} is not set; {hint}")
    try:
        serve_model(arguments.host, arguments.port, key, lambda url: print(f"serving at {url}", flush=True))
    except EmbeddedServiceError as error:
        sys.exit(f"paddock: {error}")


def _print_version(_: argparse.Namespace) -> None:
    from infra.version import PADDOCK_VERSION

    print(PADDOCK_VERSION)


class _Commands:
    """Collect the commands of the command line."""

    def __init__(self, parser: argparse.ArgumentParser) -> None:
        self._subparsers = parser.add_subparsers(required=True, metavar="COMMAND")

    def add_command(
        self, name: str, description: str, run: Callable[[argparse.Namespace], None]
    ) -> argparse.ArgumentParser:
        """Add a command that `run` performs."""
        command = self._subparsers.add_parser(name, help=description, description=description)
        command.set_defaults(run=run)
        return command


def build_parser() -> argparse.ArgumentParser:
    """Build the parser with every command and its options."""
    parser = argparse.ArgumentParser(prog="paddock", description="A self-hosted control plane for AI agents.")
    commands = _Commands(parser)
    _add_up_commands(commands)
    _add_process_commands(commands)
    _add_backup_commands(commands)
    _add_operator_commands(commands)
    commands.add_command("version", "print the version", _print_version)
    return parser


def _add_up_commands(commands: _Commands) -> None:
    for name, description, with_demo in (
        ("up", "start Postgres, Valkey, SeaweedFS, the API and the workers on this machine", False),
        ("demo", "start the same and run a demo through the HTTP API", True),
    ):
        command = commands.add_command(name, description, _run_up)
        command.set_defaults(with_demo=with_demo)
        command.add_argument("--port", type=_parse_port, default=8000, help="port of the API (default 8000)")
        command.add_argument("--data", default=".paddock", help="folder for all data (default .paddock)")
        command.add_argument("--workers", type=int, default=1, help="number of run workers (default 1)")
        command.add_argument(
            "--once",
            action="store_true",
            help="stop after the demo" if with_demo else "stop as soon as everything is ready",
        )
        outputs = command.add_mutually_exclusive_group()
        outputs.add_argument(
            "--quiet",
            dest="is_quiet",
            action="store_true",
            default=with_demo,
            help="write the log to the file paddock.log of the data folder" + (" (default)" if with_demo else ""),
        )
        outputs.add_argument(
            "--verbose",
            dest="is_quiet",
            action="store_false",
            default=with_demo,
            help="print the log on the screen" + ("" if with_demo else " (default)"),
        )


def _add_process_commands(commands: _Commands) -> None:
    commands.add_command("api", "serve the API", _run_role).set_defaults(role="api")
    worker = commands.add_command("worker", "run the worker of one lane", _run_worker)
    worker.add_argument("role", metavar="LANE", choices=WORKER_LANES, help=", ".join(WORKER_LANES))
    worker.add_argument(
        "--once-idle",
        type=_parse_seconds,
        metavar="SECONDS",
        help="end after SECONDS without work, for autoscalers",
    )
    migrate = commands.add_command("migrate", "migrate the database and create the bucket", _run_role)
    migrate.set_defaults(role="release")
    model = commands.add_command(
        "model", "serve the local model for PADDOCK_LOCAL_MODEL_URL; `paddock up` starts its own", _serve_model
    )
    model.add_argument("--host", default="127.0.0.1", help="address to listen on (default 127.0.0.1)")
    model.add_argument("--port", type=_parse_port, default=8010, help="port to listen on (default 8010)")


def _add_backup_commands(commands: _Commands) -> None:
    backup = commands.add_command(
        "backup",
        "write the embedded database, object storage and secrets to a new folder; the installation may be running",
        _run_backup,
    )
    backup.add_argument("folder", metavar="DIR", help="the new folder")
    backup.add_argument("--data", default=".paddock", help="data folder of the installation (default .paddock)")
    restore = commands.add_command(
        "restore", "create an installation from a backup, and list the objects that it lacks", _run_restore
    )
    restore.add_argument("folder", metavar="DIR", help="the folder of the backup")
    restore.add_argument("--data", default=".paddock", help="an empty folder for the installation (default .paddock)")


def _add_operator_commands(commands: _Commands) -> None:
    admin_key = commands.add_command(
        "admin-key", "print an admin's API key; creates the admin if there is no admin yet", _print_admin_key
    )
    _add_data_option(admin_key)
    plan = commands.add_command("plan", "set a tenant's plan, which decides its rate limit", _set_plan)
    plan.add_argument("tenant", help="the tenant's id")
    plan.add_argument("plan", choices=("standard", "premium"))
    _add_data_option(plan)
    keys = commands.add_command(
        "keys",
        "seal provider keys and secrets again with the first of PADDOCK_ENCRYPTION_KEYS",
        _rotate_keys,
    )
    keys.add_argument("action", choices=("rotate",))
    _add_data_option(keys)
    queues = commands.add_command("queues", "show waiting and running work for each lane", _show_queues)
    _add_data_option(queues)
    queues.add_argument("--url", help="URL of the API, instead of --data")
    queues.add_argument("--key", help="an admin's API key, instead of --data")


def _add_data_option(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--data",
        default=".paddock",
        help="data folder of a running `paddock up`; used if the environment names no database (default .paddock)",
    )


def main(arguments: Sequence[str] | None = None) -> None:
    """Run one command."""
    parsed = build_parser().parse_args(arguments)
    parsed.run(parsed)


if __name__ == "__main__":
    main()
