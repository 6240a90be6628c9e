"""Read and write the files of an installation's data folder: its secrets, its lock and how to reach it."""

import contextlib
import fcntl
import os
import secrets
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import msgspec

from infra.embedded import EmbeddedServiceError
from infra.settings import Settings, SettingsError, read_settings

# Variables that a running installation writes down for other commands. Only the file's owner can read them.
_SETTING_PREFIXES: Final = ("PADDOCK_", "R2_")
# A file that marks the data folder while a backup is being restored.
RESTORING_FILE: Final = "restoring"


class InstallationSecrets(msgspec.Struct, kw_only=True):
    """Hold the secrets of an installation on one machine. They are stored in `secrets.json` in its data folder."""

    secret_key: str
    owner_password: str
    app_password: str
    redis_password: str
    s3_secret: str
    s3_signing: str
    admin_key: str | None = None


def load_secrets(data: Path) -> InstallationSecrets:
    """Return the installation's secrets, which are generated the first time. Only the owner can read their file."""
    file = data / "secrets.json"
    if file.exists():
        return msgspec.json.decode(file.read_bytes(), type=InstallationSecrets)
    generated = InstallationSecrets(
        **{name: secrets.token_hex(32) for name in InstallationSecrets.__struct_fields__ if name != "admin_key"}
    )
    save_file(file, generated)
    return generated


def save_file(file: Path, content: "InstallationSecrets | RunningInstallation") -> None:
    """Write a file that only its owner can read. The file is replaced whole or not at all."""
    fresh = file.with_suffix(".new")
    fresh.unlink(missing_ok=True)
    fresh.touch(mode=0o600)
    fresh.write_bytes(msgspec.json.format(msgspec.json.encode(content)))
    fresh.replace(file)


@contextlib.contextmanager
def lock_data(data: Path) -> Iterator[None]:
    """Lock an installation for this process. Errors: `EmbeddedServiceError` if another process holds the lock."""
    with (data / "lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise EmbeddedServiceError(f"another `paddock up` is running on {data}.") from None
        yield


def refuse_half_restored(data: Path) -> None:
    """Refuse a data folder whose restore did not finish. Errors: `EmbeddedServiceError`."""
    if (data / RESTORING_FILE).exists():
        raise EmbeddedServiceError(f"a restore to {data} was not finished; remove it and restore the backup again.")


class RunningInstallation(msgspec.Struct, kw_only=True):
    """Describe how to reach a running installation. It is stored in `running.json` in the data folder.

    `environment` holds its settings. `embedded` is true if it runs its own database and object storage.
    """

    url: str
    admin_key: str
    environment: dict[str, str] = {}
    embedded: bool = False


def filter_environment(environment: dict[str, str]) -> dict[str, str]:
    """Return the variables that other commands need to reach a running installation."""
    return {name: value for name, value in environment.items() if name.startswith(_SETTING_PREFIXES)}


def find_running_installation(data: Path) -> RunningInstallation | None:
    """Return the `paddock up` that runs on this data folder, or None."""
    if not _is_locked(data):
        # A process that was killed leaves its `running.json` behind.
        return None
    try:
        return msgspec.json.decode((data / "running.json").read_bytes(), type=RunningInstallation)
    except (OSError, msgspec.MsgspecError):
        return None


def _is_locked(data: Path) -> bool:
    try:
        with (data / "lock").open() as lock:
            fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        return False
    return False


def load_installation_settings(data: Path) -> Settings:
    """Read the settings from the environment if it names a database, else from the `paddock up` on this folder.

    Errors: `SettingsError`.
    """
    running = None if "PADDOCK_DATABASE_URL" in os.environ else find_running_installation(data)
    return read_settings(os.environ if running is None else {**os.environ, **running.environment})


def load_settings(data: Path | None = None) -> Settings:
    """Return the settings of this process, or of the `paddock up` on `data`. Bad settings end the process."""
    try:
        return read_settings() if data is None else load_installation_settings(data)
    except SettingsError as error:
        sys.exit(f"paddock: {error}")


def get_command_name() -> str:
    """Return how to call this command from the current folder: `paddock`, or its path if it is not in PATH."""
    program = Path(sys.argv[0])
    path_command = shutil.which("paddock")
    if program.name != "paddock" or (path_command is not None and Path(path_command).resolve() == program.resolve()):
        return "paddock"
    path = os.path.relpath(program)
    return path if not path.startswith("..") else str(program.absolute())
