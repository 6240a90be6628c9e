"""`paddock up`: start the whole system on one machine, from one command."""

import asyncio
import signal
import sys
import time
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import httpx

from infra.embedded.children import EmbeddedServiceError
from infra.settings import SettingsError
from scripts.installation import get_command_name
from scripts.system import System

Demo = Callable[[str, str], Coroutine[Any, Any, bool]]


def _format_overview(system: System, health: dict[str, object]) -> str:
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
        ("model", system.settings.local_model_url or "starts when asked", str(system.data / "model")),
    ]
    rows += [(process.name, f"pid {process.pid}", "") for process in system.processes if process.name != "api"]
    lines = [f"  {name:<10}{where:<24}{what}".rstrip() for name, where, what in rows]
    data = "" if system.data == Path(".paddock").absolute() else f" --data {system.data}"
    return "\n".join([*lines, "", f"  admin key {system.admin_key}", f"  queues    {get_command_name()} queues{data}"])


async def run_up(data: Path, port: int, workers: int, once: bool, demo: Demo | None = None) -> int:
    """Start everything, show it, serve until Ctrl-C. Returns the exit code.

    With `once`, stop again when all is ready and the demo, if there is one, has worked.
    """
    began = time.monotonic()
    told = asyncio.Event()
    loop = asyncio.get_running_loop()
    main = asyncio.current_task()
    ready = False
    showing = demo is not None

    def say(line: str) -> None:
        # The requests of the demo itself would bury what it shows.
        if not showing or " request method=" not in line:
            print(line, flush=True)

    def stop() -> None:
        told.set()
        if not ready and main is not None:
            main.cancel()

    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, stop)
    try:
        async with System(data, port, workers, say).run() as system:
            async with httpx.AsyncClient(timeout=10) as client:
                health = (await client.get(f"{system.url}/health")).json()
            print(_format_overview(system, health), flush=True)
            if "workers" in health["problems"]:
                print(f"\n  no runs on this host: {health['problems']['workers']}", flush=True)
            print(f"\nready {system.url} after {time.monotonic() - began:.1f} s", flush=True)
            ready = True
            worked = await _run_until_stopped(demo, system, told) if demo is not None else True
            showing = False
            if not once and not told.is_set():
                print("\nServing until Ctrl-C.", flush=True)
                await told.wait()
            return 0 if worked else 1
    except (EmbeddedServiceError, SettingsError) as error:
        print(f"paddock: {error}", file=sys.stderr)
        return 1
    except asyncio.CancelledError:
        return 130


async def _run_until_stopped(demo: Demo, system: System, told: asyncio.Event) -> bool:
    showing, stopped = asyncio.create_task(demo(system.url, system.admin_key)), asyncio.create_task(told.wait())
    await asyncio.wait((showing, stopped), return_when=asyncio.FIRST_COMPLETED)
    stopped.cancel()
    if not showing.done():
        showing.cancel()
        return False
    return showing.result()
