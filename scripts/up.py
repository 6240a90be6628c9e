"""Run `paddock up` and `paddock demo`: the whole system on one machine, from one command."""

import asyncio
import signal
import sys
import time
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any, Final

import httpx
import msgspec

from infra.embedded import EmbeddedServiceError
from infra.settings import SettingsError
from scripts.installation import get_command_name
from scripts.log_format import LogOutput
from scripts.system import System

Demo = Callable[[str, str], Coroutine[Any, Any, bool]]
# The file of the data folder that a quiet installation logs to.
LOG_FILE: Final = "paddock.log"


class UpOptions(msgspec.Struct, frozen=True, kw_only=True):
    """Hold the options of `paddock up`.

    `once` stops when the system is ready and the demo, if one runs, has ended. `is_quiet` sends the log to a file.
    """

    data: Path
    port: int
    workers: int
    once: bool = False
    is_quiet: bool = False


async def run_up(options: UpOptions, demo: Demo | None = None) -> int:
    """Start everything, print an overview, run the demo if there is one, serve until Ctrl-C.

    Returns the exit code of the command: 0, or 1 if something did not start or the demo failed, or 130 after Ctrl-C
    during the start.
    """
    log = LogOutput(options.data.absolute() / LOG_FILE if options.is_quiet else None)
    stopping = asyncio.Event()
    main = asyncio.current_task()
    is_ready = False

    def on_signal() -> None:
        stopping.set()
        if not is_ready and main is not None:
            main.cancel()

    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, on_signal)
    started_at = time.monotonic()
    if log.file is not None:
        print(f"Starting Paddock. Its log is written to {log.file}", flush=True)
    try:
        async with System(options.data, options.port, options.workers, log.write_line).run() as system:
            await _print_overview(system, log.file)
            print(f"\nready {system.url} after {time.monotonic() - started_at:.1f} s", flush=True)
            is_ready = True
            succeeded = await _run_until_stopped(demo, system, stopping) if demo is not None else True
            if not succeeded and log.file is not None and not stopping.is_set():
                print(f"\n  The log may say more: {log.file}", flush=True)
            if not options.once and not stopping.is_set():
                print("\nServing until Ctrl-C.", flush=True)
                await stopping.wait()
            return 0 if succeeded else 1
    except (EmbeddedServiceError, SettingsError) as error:
        where = f" The log is in {log.file}." if log.file is not None and log.file.exists() else ""
        print(f"paddock: {error}{where}", file=sys.stderr)
        return 1
    except asyncio.CancelledError:
        return 130
    finally:
        log.close()


async def _print_overview(system: System, log_file: Path | None) -> None:
    async with httpx.AsyncClient(timeout=10) as client:
        health = (await client.get(f"{system.url}/health")).json()
    print(_format_overview(system, log_file), flush=True)
    if "workers" in health["problems"]:
        print(f"\n  No runs on this host: {health['problems']['workers']}", flush=True)


def _format_overview(system: System, log_file: Path | None) -> str:
    postgres, valkey, seaweed = system.services
    rows = [
        (
            "postgres",
            f"127.0.0.1:{postgres.port}" if postgres else "PADDOCK_DATABASE_URL",
            str(system.data / "postgres"),
        ),
        ("valkey", f"127.0.0.1:{valkey.port}" if valkey else "PADDOCK_REDIS_URL", str(system.data / "valkey")),
        ("storage", system.settings.r2_endpoint_url.split("//")[-1], str(system.data / "seaweedfs") if seaweed else ""),
        ("api", system.url.split("//")[-1], f"docs at {system.url}/docs"),
        ("model", system.settings.local_model_url or "starts on demand", str(system.data / "model")),
    ]
    rows += [(process.name, f"pid {process.pid}", "") for process in system.processes if process.name != "api"]
    lines = [f"  {name:<10}{address:<24}{note}".rstrip() for name, address, note in rows]
    data_option = "" if system.data == Path(".paddock").absolute() else f" --data {system.data}"
    lines += ["", f"  admin key {system.admin_key}", f"  queues    {get_command_name()} queues{data_option}"]
    if log_file is not None:
        lines.append(f"  log       {log_file}")
    return "\n".join(lines)


async def _run_until_stopped(demo: Demo, system: System, stopping: asyncio.Event) -> bool:
    """Run the demo, and give it up at Ctrl-C. Returns True if the demo succeeded."""
    running = asyncio.create_task(demo(system.url, system.admin_key))
    stopped = asyncio.create_task(stopping.wait())
    await asyncio.wait((running, stopped), return_when=asyncio.FIRST_COMPLETED)
    stopped.cancel()
    if not running.done():
        running.cancel()
        return False
    return running.result()
