"""Start, supervise and stop a whole installation on one machine: embedded services, API and workers."""

import asyncio
import contextlib
import os
import socket
import sys
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Final

import httpx

from infra.embedded import (
    ACCESS_KEY,
    EmbeddedPostgres,
    EmbeddedSeaweed,
    EmbeddedServiceError,
    EmbeddedValkey,
    ModelBroker,
)
from infra.outage_log import OUTAGE_LOG_SECONDS
from infra.settings import Settings, read_settings
from infra.telemetry import clear_shared_metrics
from scripts.installation import (
    InstallationSecrets,
    RunningInstallation,
    filter_environment,
    load_secrets,
    lock_data,
    refuse_half_restored,
    save_file,
)
from scripts.log_format import format_log_line
from scripts.supervisor import SupervisedProcess, start_fork_server

Services = tuple[EmbeddedPostgres | None, EmbeddedValkey | None, EmbeddedSeaweed | None]
CHECK_SECONDS: Final = 0.5
# Twenty checks a second: a busy machine takes a minute.
MAX_READY_CHECKS: Final = 2400
API_ROLES: Final = ("api", "api-share")
# A service that does not start is tried again after growing pauses up to this one. The log says it once a minute.
MAX_RESTART_SECONDS: Final = 8.0


@contextlib.asynccontextmanager
async def open_services(data: Path, stored: InstallationSecrets) -> AsyncIterator[tuple[Services, dict[str, str]]]:
    """Prepare the embedded services that the environment does not replace, and stop them at the end.

    Yields Postgres, Valkey and SeaweedFS (None for a service that the environment names), and the settings that point
    to the embedded ones. The caller starts the services.
    """
    env: dict[str, str] = {}
    postgres = valkey = seaweed = None
    if "PADDOCK_DATABASE_URL" not in os.environ:
        postgres = EmbeddedPostgres(data / "postgres", stored.owner_password, stored.app_password)
        env |= {"PADDOCK_DATABASE_URL": postgres.app_url, "PADDOCK_DATABASE_OWNER_URL": postgres.owner_url}
    if "PADDOCK_REDIS_URL" not in os.environ:
        valkey = EmbeddedValkey(data / "valkey", stored.redis_password)
        env["PADDOCK_REDIS_URL"] = valkey.url
    if not {"R2_ENDPOINT_URL", "R2_ACCOUNT_ID"} & os.environ.keys():
        seaweed = EmbeddedSeaweed(data / "seaweedfs", stored.s3_secret, stored.s3_signing)
        env |= {
            "R2_ENDPOINT_URL": seaweed.endpoint_url,
            "R2_ACCESS_KEY_ID": ACCESS_KEY,
            "R2_SECRET_ACCESS_KEY": stored.s3_secret,
            "R2_BUCKET_NAME": "paddock",
        }
    services: Services = (postgres, valkey, seaweed)
    try:
        yield services, env
    finally:
        await asyncio.gather(*(service.stop() for service in services if service is not None))


class System:
    """Run one installation: its embedded services, its processes, and how to reach it.

    `log` receives each line of the processes' log, formatted for people.
    """

    def __init__(self, data: Path, port: int, workers: int, log: Callable[[str], None] = print) -> None:
        self.data, self.port, self.workers, self.log = data.absolute(), port, workers, log
        self.url = f"http://127.0.0.1:{port}"
        self.processes: list[SupervisedProcess] = []
        self.settings: Settings
        self.environment: dict[str, str] = {}
        self.admin_key = ""
        self.services: Services = (None, None, None)
        self.model_broker: ModelBroker
        self._tasks: list[asyncio.Task[None]] = []

    @contextlib.asynccontextmanager
    async def run(self) -> AsyncIterator["System"]:
        """Start everything, wait until it is ready, and stop it at the end.

        Errors: `EmbeddedServiceError`, `SettingsError`.
        """
        start_fork_server()
        self.data.mkdir(parents=True, exist_ok=True)
        os.chmod(self.data, 0o700)
        with lock_data(self.data):
            refuse_half_restored(self.data)
            _check_port(self.port)
            stored = load_secrets(self.data)
            async with open_services(self.data, stored) as (services, env):
                self.services = services
                with contextlib.closing(ModelBroker(self.data / "model")) as self.model_broker:
                    self.environment = self._build_environment(
                        env | {"PADDOCK_LOCAL_MODEL_DOOR": self.model_broker.address}, stored
                    )
                    self.settings = read_settings(self.environment)
                    async with self.model_broker.accept_workers(self.settings.local_model_idle, self.log):
                        try:
                            await self._start(stored)
                            yield self
                        finally:
                            await self._stop()

    async def _stop(self) -> None:
        await asyncio.gather(*(process.stop() for process in self.processes))
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        (self.data / "running.json").unlink(missing_ok=True)

    async def _start(self, stored: InstallationSecrets) -> None:
        postgres, valkey, seaweed = self.services
        storage = asyncio.create_task(seaweed.start()) if seaweed is not None else None
        try:
            # The fork server imports the application while the services start.
            services = [service for service in (postgres, valkey) if service is not None]
            await asyncio.gather(self._run_once("version"), *(service.start() for service in services))
            await self._run_once("migrate")
            self._start_processes()
            key = asyncio.create_task(self._run_once("admin-key", PADDOCK_KNOWN_ADMIN_KEY=stored.admin_key or ""))
            if storage is not None:
                await storage
            await self._run_once("bucket")
            self.admin_key = (await key).strip()
        except BaseException:
            if storage is not None:
                storage.cancel()
            raise
        self._tasks += [
            asyncio.create_task(self._supervise_service(service)) for service in self.services if service is not None
        ]
        if self.admin_key != stored.admin_key:
            stored.admin_key = self.admin_key
            save_file(self.data / "secrets.json", stored)
        save_file(self.data / "running.json", self._describe_running())
        await self._wait_until_ready()

    def _describe_running(self) -> RunningInstallation:
        postgres, _, seaweed = self.services
        return RunningInstallation(
            url=self.url,
            admin_key=self.admin_key,
            environment=filter_environment(self.environment),
            embedded=bool(postgres and seaweed),
        )

    async def _run_once(self, role: str, **environment: str) -> str:
        """Run a role that ends on its own. Returns its output. Errors: `EmbeddedServiceError` quotes the output."""
        output: list[bytes] = []
        status = await SupervisedProcess(role, role, {**self.environment, **environment}, output.append).run()
        text = b"".join(output).decode(errors="replace")
        if status != 0:
            raise EmbeddedServiceError(f"{role} ended with status {status}.\n{text}")
        return text

    def _start_processes(self) -> None:
        for number in range(self.workers):
            self._add_process("run" if self.workers == 1 else f"run-{number + 1}", "run")
        for role in ("llm", "plan", "build", "record", "upkeep"):
            self._add_process(role, role)
        if self.settings.api_workers == 1:
            self._add_process("api", "api")
            return
        clear_shared_metrics(self.settings.metrics_dir)
        for number in range(self.settings.api_workers):
            self._add_process(f"api-{number + 1}", "api-share")

    def _add_process(self, name: str, role: str) -> None:
        environment = self.environment
        if self.settings.worker_port and role not in API_ROLES:
            # Each worker has its own port, in the order in which the workers start.
            port = self.settings.worker_port + len(self.processes)
            _check_port(port, "PADDOCK_WORKER_PORT")
            environment = {**environment, "PADDOCK_WORKER_PORT": str(port)}
        process = SupervisedProcess(name, role, environment, lambda line: self.log(format_log_line(name, line)))
        self.processes.append(process)

        def on_exit(status: int) -> None:
            self.log(f"{name} ended with status {status}; restarting it")

        self._tasks.append(asyncio.create_task(process.supervise(on_exit)))

    def _build_environment(self, env: dict[str, str], stored: InstallationSecrets) -> dict[str, str]:
        # There are no rate limits on a laptop unless the environment sets them.
        defaults = {
            "PADDOCK_SECRET_KEY": stored.secret_key,
            "PADDOCK_RATE_LIMIT_ANONYMOUS": "0",
            "PADDOCK_RATE_LIMIT_AUTHENTICATED": "0",
            "PADDOCK_RATE_LIMIT_PREMIUM": "0",
            "PADDOCK_CONNECTIONS_PER_ADDRESS": "0",
            "PADDOCK_DATA_DIR": str(self.data),
            "PADDOCK_PORT": str(self.port),
            # After Ctrl-C, runs get two seconds to end.
            "PADDOCK_DRAIN_SECONDS": "2",
        }
        return {**defaults, **os.environ, **env, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}

    async def _supervise_service(self, service: EmbeddedPostgres | EmbeddedValkey | EmbeddedSeaweed) -> None:
        """Restart a service whenever it ends."""
        pause, logged_at = CHECK_SECONDS, -OUTAGE_LOG_SECONDS
        while True:
            await asyncio.sleep(pause)
            if service.child is None or service.child.is_alive():
                pause = CHECK_SECONDS
                continue
            ended, failure = service.child, ""
            pause = min(2 * pause, MAX_RESTART_SECONDS)
            try:
                await service.start()
            except Exception as error:  # any error: only this task restarts the service
                # The last line of its output gives the reason, for example that its disk is full.
                failure = f" It does not start: {_get_last_line(error)}"
            if not failure or time.monotonic() - logged_at >= OUTAGE_LOG_SECONDS:
                logged_at = time.monotonic()
                self.log(f"{ended.name} ended with status {ended.process.returncode}; restarting it.{failure}")

    async def _wait_until_ready(self) -> None:
        async with httpx.AsyncClient(timeout=5) as client:
            for _ in range(MAX_READY_CHECKS):
                with contextlib.suppress(httpx.HTTPError, ValueError, KeyError):
                    health = (await client.get(f"{self.url}/health")).json()
                    lanes = {"build", "run", "llm", "plan", "record", "upkeep"}
                    workers = health["problems"].get("workers", "")
                    if health["status"] == "healthy" or not any(lane in workers for lane in lanes | {"database"}):
                        return
                await asyncio.sleep(0.05)
        raise EmbeddedServiceError("the API and the workers did not become ready; their log gives the reason.")


def _get_last_line(error: Exception) -> str:
    """Return the last fatal line of the output of a service that did not start, else its last line."""
    lines = (str(error).strip() or type(error).__name__).splitlines()
    return next((line for line in reversed(lines) if "FATAL" in line or "PANIC" in line), lines[-1])


def _check_port(port: int, setting: str = "--port") -> None:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError as error:
            raise EmbeddedServiceError(
                f"port {port} cannot be used ({error.strerror}); choose another with {setting}."
            ) from None
