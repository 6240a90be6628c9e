"""How other commands find a running `paddock up`, and how to call them."""

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

from infra.embedded.children import EmbeddedServiceError
from infra.settings import Settings, read_settings

# What of the environment a running installation writes down for other commands. The file is its owner's alone.
_KEPT_PREFIXES = ("PADDOCK_", "R2_")


# A file beside the data while a backup is being restored.
RESTORING_FILE: Final = "restoring"


class InstallationSecrets(msgspec.Struct, kw_only=True):
    """What an installation on one machine keeps to itself, in `secrets.json` beside its data."""

    secret_key: str
    owner_password: str
    app_password: str
    redis_password: str
    s3_secret: str
    s3_signing: str
    admin_key: str | None = None


def load_secrets(data: Path) -> InstallationSecrets:
    """The secrets beside the data, made when there are none. The file is readable by its owner alone."""
    file = data / "secrets.json"
    if file.exists():
        return msgspec.json.decode(file.read_bytes(), type=InstallationSecrets)
    made = InstallationSecrets(
        **{name: secrets.token_hex(32) for name in InstallationSecrets.__struct_fields__ if name != "admin_key"}
    )
    save_file(file, made)
    return made


def save_file(file: Path, what: "InstallationSecrets | RunningInstallation") -> None:
    """Write a file for its owner alone, whole or not at all."""
    fresh = file.with_suffix(".new")
    fresh.unlink(missing_ok=True)
    fresh.touch(mode=0o600)
    fresh.write_bytes(msgspec.json.format(msgspec.json.encode(what)))
    fresh.replace(file)


@contextlib.contextmanager
def lock_data(data: Path) -> Iterator[None]:
    """Keep every other process away from an installation. Errors: `EmbeddedServiceError` when one is there."""
    with (data / "lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise EmbeddedServiceError(f"another `paddock up` runs on {data}.") from None
        yield


def refuse_half_restored(data: Path) -> None:
    """Errors: `EmbeddedServiceError` where a restore was not finished."""
    if (data / RESTORING_FILE).exists():
        raise EmbeddedServiceError(f"a restore to {data} was not finished; remove the folder and restore again.")


class RunningInstallation(msgspec.Struct, kw_only=True):
    """How to reach a running installation, in `running.json` beside its data.

    `environment` has its settings, `embedded` tells whether its database and its object storage are its own.
    """

    url: str
    admin_key: str
    environment: dict[str, str] = {}
    embedded: bool = False


def filter_environment(environment: dict[str, str]) -> dict[str, str]:
    """Return what another command needs of the environment of a running installation."""
    return {name: value for name, value in environment.items() if name.startswith(_KEPT_PREFIXES)}


def find_running_installation(data: Path) -> RunningInstallation | None:
    """Return the `paddock up` that serves this folder, or None."""
    if not _is_locked(data):
        # What one that was killed has left behind.
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
    """Read the settings: of the environment if it names a database, else of the `paddock up` on this folder.

    Errors: `BadSettings`.
    """
    running = None if "PADDOCK_DATABASE_URL" in os.environ else find_running_installation(data)
    return read_settings(os.environ if running is None else {**os.environ, **running.environment})


def get_command_name() -> str:
    """Return how this command can be called again from this folder: `paddock`, or its path where PATH has it not."""
    program = Path(sys.argv[0])
    found = shutil.which("paddock")
    if program.name != "paddock" or (found is not None and Path(found).resolve() == program.resolve()):
        return "paddock"
    path = os.path.relpath(program)
    return path if not path.startswith("..") else str(program.absolute())
