"""Settings, read from the environment once, at start. Every name is documented in docs/configuration.md."""

import os
import re
import socket
from collections.abc import Mapping
from ipaddress import IPv4Network, IPv6Network, ip_network
from pathlib import Path
from typing import Any, Final, Literal, NamedTuple, get_args, get_origin
from urllib.parse import unquote

import msgspec

from domain.shared.secrets import Secret


class SettingsError(Exception):
    """A setting is missing or not of its type. The message names it."""


class Settings(msgspec.Struct, kw_only=True, frozen=True):
    """Everything that can be configured. Durations in seconds unless the name says otherwise, sizes in bytes."""

    database_url: Secret
    database_owner_url: Secret
    redis_url: Secret
    secret_key: Secret
    r2_endpoint_url: str
    r2_access_key_id: str
    r2_secret_access_key: Secret
    r2_bucket_name: str = "paddock"
    r2_region: str = "auto"
    encryption_keys: tuple[Secret, ...] = ()
    host: str = "127.0.0.1"
    port: int = 8000
    data_dir: str = ".paddock"
    bwrap: str = ""
    sandbox: Literal["auto", "forkserver", "bubblewrap"] = "auto"
    warm_memory_mb: int = 512
    docs: bool = True
    app_name: str = "Paddock"
    environment: str = "production"
    api_workers: int = 1
    sentry_dsn: Secret = Secret("")
    log_level: str = "INFO"
    cors_origins: tuple[str, ...] = ("http://localhost:3000", "http://localhost:8000")
    trusted_proxies: tuple[str, ...] = ()
    proxy_login: Literal["off", "databricks"] = "off"
    proxy_workspace: str = ""
    private_hosts: tuple[str, ...] = ()
    login_failures: int = 20
    connections_per_address: int = 512
    request_head_bytes: int = 64 * 1024
    request_head_seconds: float = 20.0
    request_body_seconds: float = 20.0
    database_pool: int = 10
    access_token_minutes: int = 30
    jwt_algorithm: Literal["HS256", "HS384", "HS512"] = "HS256"
    refresh_token_days: int = 30
    rate_limit_anonymous: int = 100
    rate_limit_authenticated: int = 1000
    rate_limit_premium: int = 10000
    rate_limit_per_minute: int = 0
    upload_max_bytes: int = 100 * 1024 * 1024
    body_max_bytes: int = 4 * 1024 * 1024
    lease_seconds: float = 15.0
    drain_seconds: float = 20.0
    worker_port: int = 0
    upkeep_seconds: float = 2.0
    staging_hours: float = 24.0
    retention_days: int = 0
    cache_days: float = 14.0
    run_slots: int = 8
    llm_slots: int = 256
    local_model_url: str = ""
    local_model_key: Secret = Secret("")
    local_model_door: str = ""
    local_model_idle: float = 600.0
    cache_max_bytes: int = 20 << 30
    tenant_max_concurrency: int = 200
    tenant_max_stored_bytes: int = 10 << 30
    build_slots: int = 2
    otlp_endpoint: str = ""
    otlp_headers: Secret = Secret("")

    @property
    def cache_dir(self) -> Path:
        """Where workers keep bundles and environments. Losing it costs time, nothing else."""
        return Path(self.data_dir).absolute() / "cache"

    @property
    def metrics_dir(self) -> Path:
        """Return where several processes of the API add up what they count."""
        return Path(self.data_dir).absolute() / "metrics"


# Settings whose names are fixed by other systems' documents.
_NAMES: Final = {
    "r2_endpoint_url": "R2_ENDPOINT_URL",
    "r2_access_key_id": "R2_ACCESS_KEY_ID",
    "r2_secret_access_key": "R2_SECRET_ACCESS_KEY",
    "r2_bucket_name": "R2_BUCKET_NAME",
    "r2_region": "R2_REGION",
    "cors_origins": "CORS_ORIGINS",
}
# What the documents of the systems that Paddock unites call a setting. Our own name goes first where both are set.
VARIABLE_ALIASES: Final = {
    "access_token_minutes": ("ACCESS_TOKEN_EXPIRE_MINUTES", "PARACLE_JWT_EXPIRE_MINUTES"),
    "api_workers": ("PARACLE_API_WORKERS",),
    "app_name": ("APP_NAME",),
    "docs": ("DOCS_ENABLED",),
    "environment": ("ENVIRONMENT",),
    "jwt_algorithm": ("ALGORITHM", "PARACLE_JWT_ALGORITHM"),
    "proxy_workspace": ("DATABRICKS_WORKSPACE_ID",),
    "rate_limit_anonymous": ("PARACLE_RATE_LIMIT_ANONYMOUS",),
    "rate_limit_authenticated": ("PARACLE_RATE_LIMIT_AUTHENTICATED",),
    "rate_limit_per_minute": ("RATE_LIMIT_PER_MINUTE",),
    "run_slots": ("WORKER_CONCURRENCY",),
    "sentry_dsn": ("SENTRY_DSN",),
    "upload_max_bytes": ("UPLOAD_MAX_SIZE",),
}
MAX_LABEL_CHARACTERS: Final = 64
# With the prefix of their tenants, 63 characters.
WORKSPACE_ID_PATTERN: Final = re.compile(r"[a-z0-9][a-z0-9_-]{0,52}")
WORKSPACE_RULE: Final = "must be 1 to 53 of a-z, 0-9, '_' and '-', and begin with a letter or digit."
# Resolvers read a name as an address when its last part is a number (127.1, 0x7f.1, 0177.0.0.1, 2130706433).
NUMERIC_HOST_PATTERN: Final = re.compile(r"(?:^|\.)(?:0x[0-9a-f]*|[0-9]+)\.*$")
_NAME: Final = re.compile(r"(?=.{1,253}$)[a-z0-9_](?:[a-z0-9_-]*[a-z0-9_])?(?:\.[a-z0-9_](?:[a-z0-9_-]*[a-z0-9_])?)*")
_BRACKETS: Final = re.compile(r"\[([0-9a-f]*:[0-9a-f:./]*)\](?::([0-9]+))?")
_DSN: Final = re.compile(r"https?://[^@/\s]+@[^/\s]+(/[^/\s]+)*/\d+")
_HEADER: Final = re.compile(r"[A-Za-z0-9!#$%&'*+.^_`|~-]+")
_ON_OFF: Final = {"on": True, "off": False, "true": True, "false": False, "1": True, "0": False}


def get_variable_name(field: str) -> str:
    """The environment variable of a setting."""
    return _NAMES.get(field, f"PADDOCK_{field.upper()}")


def read_settings(environment: Mapping[str, str] | None = None) -> Settings:
    """Read the settings. Errors: `BadSettings` naming the variable."""
    env = os.environ if environment is None else environment
    values: dict[str, Any] = {}
    for field in msgspec.structs.fields(Settings):
        for name in (get_variable_name(field.name), *VARIABLE_ALIASES.get(field.name, ())):
            if text := env.get(name):
                values[field.name] = _parse(field, name, text)
                break
    if "database_url" in values:
        values.setdefault("database_owner_url", values["database_url"])
    if "R2_ACCOUNT_ID" in env:
        values.setdefault("r2_endpoint_url", f"https://{env['R2_ACCOUNT_ID']}.r2.cloudflarestorage.com")
    for field in msgspec.structs.fields(Settings):
        if field.required and field.name not in values:
            raise SettingsError(f"{get_variable_name(field.name)} is not set; see docs/configuration.md.")
    settings = Settings(**values)
    if len(settings.secret_key.reveal()) < 32:
        raise SettingsError("PADDOCK_SECRET_KEY must have at least 32 characters, for example: openssl rand -hex 32")
    if any(len(key.reveal()) < 32 for key in settings.encryption_keys):
        raise SettingsError("Each of PADDOCK_ENCRYPTION_KEYS must have at least 32 characters, as openssl rand -hex 32")
    if settings.otlp_endpoint and not settings.otlp_endpoint.startswith(("http://", "https://")):
        raise SettingsError("PADDOCK_OTLP_ENDPOINT must begin with http:// or https://, as http://127.0.0.1:4318")
    if settings.sentry_dsn.reveal() and not _DSN.fullmatch(settings.sentry_dsn.reveal()):
        raise SettingsError("PADDOCK_SENTRY_DSN must be a DSN as Sentry shows it: https://KEY@HOST/PROJECT.")
    parse_headers(settings.otlp_headers, "otlp_headers")
    for field_name in ("app_name", "environment"):
        text = getattr(settings, field_name)
        if not text.isprintable() or len(text) > MAX_LABEL_CHARACTERS:
            raise SettingsError(
                f"{get_variable_name(field_name)} must be printable text of at most {MAX_LABEL_CHARACTERS} characters."
            )
    if settings.api_workers < 1:
        raise SettingsError("PADDOCK_API_WORKERS must be at least 1.")
    parse_networks(settings.trusted_proxies, "trusted_proxies")
    for entry in settings.private_hosts:
        parse_destination(entry)
    if settings.proxy_login != "off":
        _check_proxy_login(settings)
    return settings


def _check_proxy_login(settings: Settings) -> None:
    if not settings.trusted_proxies:
        raise SettingsError(
            f"PADDOCK_PROXY_LOGIN={settings.proxy_login} needs PADDOCK_TRUSTED_PROXIES: the addresses of the "
            "proxies whose headers may sign in. Anybody else could send such headers."
        )
    if settings.proxy_workspace and not WORKSPACE_ID_PATTERN.fullmatch(settings.proxy_workspace):
        raise SettingsError(f"PADDOCK_PROXY_WORKSPACE {WORKSPACE_RULE}")


def parse_networks(entries: tuple[str, ...], field: str) -> tuple[IPv4Network | IPv6Network, ...]:
    """Return addresses and networks as networks; those of IPv4 within IPv6 as those of IPv4.

    Errors: `BadSettings` naming the entry.
    """
    found: list[IPv4Network | IPv6Network] = []
    for entry in entries:
        try:
            network = ip_network(entry[1:-1] if entry.startswith("[") and entry.endswith("]") else entry)
        except ValueError as error:
            why = f": {error}" if "host bits" in str(error) else ""
            raise SettingsError(
                f"{get_variable_name(field)} takes addresses and networks, comma-separated (10.0.0.7, 10.0.0.0/8, "
                f"fd00::/8); {entry!r} is neither{why}."
            ) from None
        mapped = network.network_address.ipv4_mapped if isinstance(network, IPv6Network) else None
        found.append(
            ip_network(f"{mapped}/{network.prefixlen - 96}") if mapped and network.prefixlen >= 96 else network
        )
    return tuple(found)


def parse_headers(given: Secret, field: str) -> dict[str, str]:
    """`name=value,name=value`, as OpenTelemetry writes headers: values percent-encoded where they need be.

    Errors: `BadSettings`, which shows no value.
    """
    found: dict[str, str] = {}
    for part in filter(None, (part.strip() for part in given.reveal().split(","))):
        name, equals, value = part.partition("=")
        value = unquote(value.strip())
        if not equals or not _HEADER.fullmatch(name.strip()) or not value.isprintable() or not value.isascii():
            raise SettingsError(
                f"{get_variable_name(field)} must be name=value, comma-separated, fit for HTTP headers."
            )
        found[name.strip()] = value
    return found


def _parse(field: msgspec.structs.FieldInfo, name: str, text: str) -> Any:
    if field.type is Secret:
        return Secret(text)
    if field.type is bool:
        if text.lower() not in _ON_OFF:
            raise SettingsError(f"{name} must be on or off, not {text!r}.")
        return _ON_OFF[text.lower()]
    if field.type in (int, float):
        try:
            number = field.type(text)
        except ValueError:
            raise SettingsError(f"{name} must be a number, not {text!r}.") from None
        if number < 0:
            raise SettingsError(f"{name} must not be negative.")
        return number
    if field.type is str:
        return text
    if get_origin(field.type) is Literal:
        if text not in get_args(field.type):
            raise SettingsError(f"{name} must be one of {', '.join(get_args(field.type))}, not {text!r}.")
        return text
    listed = tuple(part.strip() for part in text.split(",") if part.strip())
    return tuple(map(Secret, listed)) if field.type == tuple[Secret, ...] else listed


def build_worker_id(lane: str) -> str:
    """A name for this process that no other process has at the same time."""
    return f"{lane}@{socket.gethostname()}:{os.getpid()}"


class PrivateDestination(NamedTuple):
    """A destination let through: a name or a network, on one port or on all."""

    name: str | None
    network: IPv4Network | IPv6Network | None
    port: int | None


def parse_destination(entry: str) -> PrivateDestination:
    """From `host`, `ip` or `cidr`, with `:port` or not (`[v6]:port`). Errors: `BadSettings` naming the entry."""
    text = entry.strip().lower()
    if brackets := _BRACKETS.fullmatch(text):
        host, digits = brackets[1], brackets[2]
    elif text.count(":") > 1:
        host, digits = text, None
    else:
        host, colon, digits = text.partition(":")
        digits = digits if colon else None
    port = int(digits) if digits is not None and re.fullmatch(r"[0-9]{1,5}", digits) else None
    if (digits is None) == (port is None) and (port is None or 0 < port < 65536):
        try:
            if "%" not in host:
                return PrivateDestination(None, ip_network(host), port)
        except ValueError:
            if _NAME.fullmatch(host) and not NUMERIC_HOST_PATTERN.search(host):
                return PrivateDestination(host, None, port)
    raise SettingsError(
        f"{get_variable_name('private_hosts')}: {entry!r} is neither a host, an address nor a network, with or without "
        "a port (ollama:11434, 10.0.0.7, 10.1.0.0/16, [fd00::1]:8080)."
    )
