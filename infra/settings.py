"""Read the settings from the environment, once at start. `docs/configuration.md` documents every name."""

import os
import re
import socket
from collections.abc import Mapping
from ipaddress import IPv4Network, IPv6Network, ip_network
from pathlib import Path
from typing import Any, Final, Literal, NamedTuple, get_args, get_origin
from urllib.parse import unquote

import msgspec

from domain.egress import BadEgressEntry, parse_policy
from domain.shared.addresses import NUMERIC_HOST_PATTERN
from domain.shared.secrets import Secret

MIN_SECRET_CHARACTERS: Final = 32
MAX_LABEL_CHARACTERS: Final = 64
# With the prefix of their tenants, 63 characters.
WORKSPACE_ID_PATTERN: Final = re.compile(r"[a-z0-9][a-z0-9_-]{0,52}")
WORKSPACE_RULE: Final = "must be 1 to 53 of a-z, 0-9, '_' and '-', and begin with a letter or digit."
_HOST_PATTERN: Final = re.compile(
    r"(?=.{1,253}$)[a-z0-9_](?:[a-z0-9_-]*[a-z0-9_])?(?:\.[a-z0-9_](?:[a-z0-9_-]*[a-z0-9_])?)*"
)
_BRACKETED_ADDRESS: Final = re.compile(r"\[([0-9a-f]*:[0-9a-f:./]*)\](?::([0-9]+))?")
_DSN_PATTERN: Final = re.compile(r"https?://[^@/\s]+@[^/\s]+(/[^/\s]+)*/\d+")
_HEADER_NAME_PATTERN: Final = re.compile(r"[A-Za-z0-9!#$%&'*+.^_`|~-]+")
_BOOLEAN_WORDS: Final = {"on": True, "off": False, "true": True, "false": False, "1": True, "0": False}


class SettingsError(Exception):
    """Report a setting that is missing or malformed. The message names its environment variable."""


class Settings(msgspec.Struct, kw_only=True, frozen=True):
    """Hold everything that can be configured. Durations in seconds unless the name says otherwise, sizes in bytes."""

    # Postgres, Redis, object storage and the keys of this installation.
    database_url: Secret
    database_owner_url: Secret
    database_pool: int = 10
    redis_url: Secret
    r2_endpoint_url: str
    r2_access_key_id: str
    r2_secret_access_key: Secret
    r2_bucket_name: str = "paddock"
    r2_region: str = "auto"
    secret_key: Secret
    encryption_keys: tuple[Secret, ...] = ()
    data_dir: str = ".paddock"

    # The API's processes and what they accept.
    host: str = "127.0.0.1"
    port: int = 8000
    api_workers: int = 1
    docs: bool = True
    app_name: str = "Paddock"
    environment: str = "production"
    cors_origins: tuple[str, ...] = ("http://localhost:3000", "http://localhost:8000")
    trusted_proxies: tuple[str, ...] = ()
    connections_per_address: int = 512
    request_head_bytes: int = 64 * 1024
    request_head_seconds: float = 20.0
    request_body_seconds: float = 20.0
    upload_max_bytes: int = 100 * 1024 * 1024
    file_max_bytes: int = 100 * 1024 * 1024
    body_max_bytes: int = 4 * 1024 * 1024

    # Logins, tokens and request limits.
    proxy_login: Literal["off", "databricks"] = "off"
    proxy_workspace: str = ""
    login_failures: int = 20
    access_token_minutes: int = 30
    refresh_token_days: int = 30
    jwt_algorithm: Literal["HS256", "HS384", "HS512"] = "HS256"
    rate_limit_anonymous: int = 100
    rate_limit_authenticated: int = 1000
    rate_limit_premium: int = 10000
    rate_limit_per_minute: int = 0

    # Workers, sandboxes and local models.
    build_slots: int = 2
    run_slots: int = 8
    llm_slots: int = 256
    lease_seconds: float = 15.0
    drain_seconds: float = 20.0
    worker_port: int = 0
    bwrap: str = ""
    sandbox: Literal["auto", "forkserver", "bubblewrap"] = "auto"
    warm_memory_mb: int = 512
    local_model_url: str = ""
    local_model_key: Secret = Secret("")
    local_model_door: str = ""
    local_model_idle: float = 600.0
    # Hosts and networks of private addresses that tools and models may call.
    private_hosts: tuple[str, ...] = ()
    # Hosts that uploaded code may reach: those that it declares, none, or a list.
    egress: tuple[str, ...] = ("declared",)
    # Bytes that a run may send to hosts, and receive from them.
    egress_max_bytes: int = 1 << 30

    # What tenants may use, and how long things are kept.
    tenant_max_concurrency: int = 200
    tenant_max_stored_bytes: int = 10 << 30
    # What the runs of uploaded code may leave in their work folder.
    work_max_files: int = 500
    work_file_bytes: int = 100 * 1024 * 1024
    work_total_bytes: int = 256 * 1024 * 1024
    cache_max_bytes: int = 20 << 30
    cache_days: float = 14.0
    staging_hours: float = 24.0
    retention_days: int = 0
    event_retention_days: int = 0
    upkeep_seconds: float = 2.0

    # Logs, error reports and traces.
    log_level: str = "INFO"
    sentry_dsn: Secret = Secret("")
    otlp_endpoint: str = ""
    otlp_headers: Secret = Secret("")

    @property
    def cache_dir(self) -> Path:
        """Return the folder where workers keep bundles and environments; all of it can be downloaded or built again."""
        return Path(self.data_dir).absolute() / "cache"

    @property
    def metrics_dir(self) -> Path:
        """Return the folder where several processes of the API sum up their metrics."""
        return Path(self.data_dir).absolute() / "metrics"


# Settings whose variables are called as other systems document them, without our prefix.
_FIXED_VARIABLES: Final = {
    "r2_endpoint_url": "R2_ENDPOINT_URL",
    "r2_access_key_id": "R2_ACCESS_KEY_ID",
    "r2_secret_access_key": "R2_SECRET_ACCESS_KEY",
    "r2_bucket_name": "R2_BUCKET_NAME",
    "r2_region": "R2_REGION",
    "cors_origins": "CORS_ORIGINS",
}
# Names that the systems which Paddock unites give to a setting. Where both are set, our own name wins.
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


def read_settings(environment: Mapping[str, str] | None = None) -> Settings:
    """Read and check the settings; without an `environment`, from that of the process.

    Errors: `SettingsError` naming the variable.
    """
    settings = Settings(**_collect_values(os.environ if environment is None else environment))
    _check_secrets(settings)
    _check_reporting(settings)
    _check_labels(settings)
    if settings.api_workers < 1:
        raise SettingsError("PADDOCK_API_WORKERS must be at least 1.")
    parse_networks(settings.trusted_proxies, "trusted_proxies")
    for entry in settings.private_hosts:
        parse_destination(entry)
    _check_egress(settings)
    if settings.proxy_login != "off":
        _check_proxy_login(settings)
    return settings


def get_variable_name(field: str) -> str:
    """Return the environment variable of a setting."""
    return _FIXED_VARIABLES.get(field, f"PADDOCK_{field.upper()}")


def _collect_values(environment: Mapping[str, str]) -> dict[str, Any]:
    values: dict[str, Any] = {}
    for field in msgspec.structs.fields(Settings):
        for variable in (get_variable_name(field.name), *VARIABLE_ALIASES.get(field.name, ())):
            if text := environment.get(variable):
                values[field.name] = _parse_value(field, variable, text)
                break
    if "database_url" in values:
        values.setdefault("database_owner_url", values["database_url"])
    if "R2_ACCOUNT_ID" in environment:
        values.setdefault("r2_endpoint_url", f"https://{environment['R2_ACCOUNT_ID']}.r2.cloudflarestorage.com")
    for field in msgspec.structs.fields(Settings):
        if field.required and field.name not in values:
            raise SettingsError(f"{get_variable_name(field.name)} is not set; see docs/configuration.md.")
    return values


def _parse_value(field: msgspec.structs.FieldInfo, variable: str, text: str) -> Any:
    if field.type is Secret:
        return Secret(text)
    if field.type is bool:
        if text.lower() not in _BOOLEAN_WORDS:
            raise SettingsError(f"{variable} must be on or off, not {text!r}.")
        return _BOOLEAN_WORDS[text.lower()]
    if field.type in (int, float):
        try:
            number = field.type(text)
        except ValueError:
            raise SettingsError(f"{variable} must be a number, not {text!r}.") from None
        if number < 0:
            raise SettingsError(f"{variable} must not be negative.")
        return number
    if field.type is str:
        return text
    if get_origin(field.type) is Literal:
        if text not in get_args(field.type):
            raise SettingsError(f"{variable} must be one of {', '.join(get_args(field.type))}, not {text!r}.")
        return text
    parts = tuple(part.strip() for part in text.split(",") if part.strip())
    return tuple(map(Secret, parts)) if field.type == tuple[Secret, ...] else parts


def _check_secrets(settings: Settings) -> None:
    if len(settings.secret_key.reveal()) < MIN_SECRET_CHARACTERS:
        raise SettingsError("PADDOCK_SECRET_KEY must have at least 32 characters, for example: openssl rand -hex 32")
    if any(len(key.reveal()) < MIN_SECRET_CHARACTERS for key in settings.encryption_keys):
        raise SettingsError("Each of PADDOCK_ENCRYPTION_KEYS must have at least 32 characters, as openssl rand -hex 32")


def _check_reporting(settings: Settings) -> None:
    if settings.otlp_endpoint and not settings.otlp_endpoint.startswith(("http://", "https://")):
        raise SettingsError("PADDOCK_OTLP_ENDPOINT must begin with http:// or https://, as http://127.0.0.1:4318")
    if settings.sentry_dsn.reveal() and not _DSN_PATTERN.fullmatch(settings.sentry_dsn.reveal()):
        raise SettingsError("PADDOCK_SENTRY_DSN must be a DSN as Sentry shows it: https://KEY@HOST/PROJECT.")
    parse_headers(settings.otlp_headers, "otlp_headers")


def _check_labels(settings: Settings) -> None:
    for field in ("app_name", "environment"):
        label = getattr(settings, field)
        if not label.isprintable() or len(label) > MAX_LABEL_CHARACTERS:
            raise SettingsError(
                f"{get_variable_name(field)} must be printable text of at most {MAX_LABEL_CHARACTERS} characters."
            )


def _check_egress(settings: Settings) -> None:
    try:
        parse_policy(settings.egress)
    except BadEgressEntry as error:
        raise SettingsError(f"PADDOCK_EGRESS {error} It is `off`, `declared`, or hosts, comma-separated.") from None


def _check_proxy_login(settings: Settings) -> None:
    if not settings.trusted_proxies:
        raise SettingsError(
            f"PADDOCK_PROXY_LOGIN={settings.proxy_login} needs PADDOCK_TRUSTED_PROXIES: the addresses of the "
            "proxies whose headers may sign in. Without it, any client could send these headers."
        )
    if settings.proxy_workspace and not WORKSPACE_ID_PATTERN.fullmatch(settings.proxy_workspace):
        raise SettingsError(f"PADDOCK_PROXY_WORKSPACE {WORKSPACE_RULE}")


def parse_networks(entries: tuple[str, ...], field: str) -> tuple[IPv4Network | IPv6Network, ...]:
    """Parse addresses and networks; those of IPv4 within IPv6 become networks of IPv4.

    Errors: `SettingsError` naming the entry.
    """
    networks: list[IPv4Network | IPv6Network] = []
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
        if mapped and network.prefixlen >= 96:
            network = ip_network(f"{mapped}/{network.prefixlen - 96}")
        networks.append(network)
    return tuple(networks)


def parse_headers(text: Secret, field: str) -> dict[str, str]:
    """Parse `name=value,name=value`, as OpenTelemetry writes headers; values may be percent-encoded.

    Errors: `SettingsError`, which shows no value.
    """
    headers: dict[str, str] = {}
    for part in filter(None, (part.strip() for part in text.reveal().split(","))):
        name, equals, value = part.partition("=")
        value = unquote(value.strip())
        is_valid_name = equals and _HEADER_NAME_PATTERN.fullmatch(name.strip())
        if not is_valid_name or not value.isprintable() or not value.isascii():
            raise SettingsError(
                f"{get_variable_name(field)} must be name=value, comma-separated, as HTTP headers allow."
            )
        headers[name.strip()] = value
    return headers


class PrivateDestination(NamedTuple):
    """Name a private destination that may be called: a host name or a network, on one port or on all."""

    name: str | None
    network: IPv4Network | IPv6Network | None
    port: int | None


def parse_destination(entry: str) -> PrivateDestination:
    """Parse `host`, `ip` or `cidr`, each with or without `:port` (`[v6]:port`).

    Errors: `SettingsError` naming the entry.
    """
    text = entry.strip().lower()
    if brackets := _BRACKETED_ADDRESS.fullmatch(text):
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
            if _HOST_PATTERN.fullmatch(host) and not NUMERIC_HOST_PATTERN.search(host):
                return PrivateDestination(host, None, port)
    raise SettingsError(
        f"{get_variable_name('private_hosts')}: {entry!r} is neither a host, an address nor a network, with or without "
        "a port (ollama:11434, 10.0.0.7, 10.1.0.0/16, [fd00::1]:8080)."
    )


def build_worker_id(lane: str) -> str:
    """Build a name for this process that no other process has at the same time."""
    return f"{lane}@{socket.gethostname()}:{os.getpid()}"
