"""Test the settings that the five documents name: each has its effect, under the document's name and our own."""

import asyncio
import base64
import json
import re
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from aiohttp import web

from infra.credentials import AccessTokens
from infra.embedded.ports import find_free_ports
from infra.settings import VARIABLE_ALIASES, Settings, SettingsError, get_variable_name, read_settings
from scripts.system import System
from tests.conftest import run_system
from tests.support.clients import TenantClient, register_tenant

ROOT = Path(__file__).parents[2]
SEED_DOCUMENTS = ("kurral", "anymind", "agentops", "kasal", "paracle")
MINIMAL_SETTINGS = {
    "PADDOCK_DATABASE_URL": "postgresql://u:p@127.0.0.1/x",
    "PADDOCK_REDIS_URL": "redis://127.0.0.1",
    "PADDOCK_SECRET_KEY": "k" * 32,
    "R2_ACCOUNT_ID": "a",
    "R2_ACCESS_KEY_ID": "a",
    "R2_SECRET_ACCESS_KEY": "s",
}


@pytest.mark.parametrize(
    ("name", "text", "field", "value"),
    [
        ("ALGORITHM", "HS512", "jwt_algorithm", "HS512"),
        ("PARACLE_JWT_ALGORITHM", "HS384", "jwt_algorithm", "HS384"),
        ("APP_NAME", "Agent Management API", "app_name", "Agent Management API"),
        ("ACCESS_TOKEN_EXPIRE_MINUTES", "45", "access_token_minutes", 45),
        ("PARACLE_JWT_EXPIRE_MINUTES", "60", "access_token_minutes", 60),
        ("UPLOAD_MAX_SIZE", "104857600", "upload_max_bytes", 104857600),
        ("WORKER_CONCURRENCY", "4", "run_slots", 4),
        ("PARACLE_API_WORKERS", "4", "api_workers", 4),
        ("PARACLE_RATE_LIMIT_ANONYMOUS", "100", "rate_limit_anonymous", 100),
        ("PARACLE_RATE_LIMIT_AUTHENTICATED", "1000", "rate_limit_authenticated", 1000),
        ("RATE_LIMIT_PER_MINUTE", "60", "rate_limit_per_minute", 60),
        ("ENVIRONMENT", "staging", "environment", "staging"),
        ("DOCS_ENABLED", "false", "docs", False),
        ("CORS_ORIGINS", "https://app.example.com", "cors_origins", ("https://app.example.com",)),
    ],
)
def test_documented_variable_sets_the_setting(name: str, text: str, field: str, value: Any) -> None:
    assert getattr(read_settings({**MINIMAL_SETTINGS, name: text}), field) == value
    if name != get_variable_name(field):
        own_text = str(value) if not isinstance(value, bool) else "on"
        assert getattr(read_settings({**MINIMAL_SETTINGS, name: text, get_variable_name(field): own_text}), field) in (
            value,
            True,
        )
    assert f"`{name}`" in (ROOT / "docs/configuration.md").read_text()


def test_sentry_dsn_is_kept_secret() -> None:
    dsn = "https://abc@sentry.example.com/4"
    assert read_settings({**MINIMAL_SETTINGS, "SENTRY_DSN": dsn}).sentry_dsn.reveal() == dsn
    assert dsn not in repr(read_settings({**MINIMAL_SETTINGS, "SENTRY_DSN": dsn}))


@pytest.mark.parametrize(
    ("name", "text"),
    [
        *(("ALGORITHM", text) for text in ("RS256", "none", "hs256")),
        ("PADDOCK_JWT_ALGORITHM", "HS1"),
        *(("ENVIRONMENT", text) for text in ("x" * 65, "a\nb")),
        ("APP_NAME", "\x1b[31m"),
        *(("PARACLE_API_WORKERS", text) for text in ("0", "-1", "two")),
        *(("SENTRY_DSN", text) for text in ("on", "https://sentry.example.com/4", "https://a@host/", "a@host/1")),
        ("RATE_LIMIT_PER_MINUTE", "sixty"),
    ],
)
def test_invalid_variable_is_refused_by_name(name: str, text: str) -> None:
    with pytest.raises(SettingsError) as caught:
        read_settings({**MINIMAL_SETTINGS, name: text})
    field = next(
        setting
        for setting in Settings.__struct_fields__
        if name in (get_variable_name(setting), *VARIABLE_ALIASES.get(setting, ()))
    )
    assert name in str(caught.value) or get_variable_name(field) in str(caught.value)


def test_every_setting_is_documented() -> None:
    text = (ROOT / "docs/configuration.md").read_text()
    # `PADDOCK_RATE_LIMIT_ANONYMOUS`, `_AUTHENTICATED`: a name may be given by its ending.
    ends = set(re.findall(r"`(_[A-Z_]+)`", text))
    missing = [
        name
        for name in map(get_variable_name, Settings.__struct_fields__)
        if f"`{name}`" not in text and not any(name.endswith(end) for end in ends)
    ]
    assert missing == []


def test_every_documented_variable_is_in_the_table() -> None:
    # The names in the configuration sections of the documents.
    names = {
        "kurral": "DATABASE_URL SECRET_KEY R2_ACCOUNT_ID R2_ACCESS_KEY_ID R2_SECRET_ACCESS_KEY R2_BUCKET_NAME ENVIRONMENT DEBUG CORS_ORIGINS",
        "anymind": "APP_NAME APP_VERSION DEBUG DATABASE_URL SECRET_KEY ALGORITHM ACCESS_TOKEN_EXPIRE_MINUTES CORS_ORIGINS STORAGE_PATH UPLOAD_MAX_SIZE WORKER_CONCURRENCY",
        "agentops": "SUPABASE_URL SUPABASE_KEY SUPABASE_SERVICE_KEY SECRET_KEY ALLOWED_ORIGINS API_PORT RATE_LIMIT_PER_MINUTE",
        "kasal": "DOCS_ENABLED",
        "paracle": "PARACLE_API_HOST PARACLE_API_PORT PARACLE_API_WORKERS PARACLE_DATABASE_URL PARACLE_REDIS_URL PARACLE_SECRET_KEY PARACLE_JWT_ALGORITHM PARACLE_JWT_EXPIRE_MINUTES PARACLE_RATE_LIMIT_ANONYMOUS PARACLE_RATE_LIMIT_AUTHENTICATED PARACLE_CORS_ORIGINS PARACLE_LOG_LEVEL",
    }
    assert set(names) == set(SEED_DOCUMENTS)
    table = (ROOT / "docs/configuration.md").read_text().split("## Names in other systems' documents")[1]
    missing = [name for document_names in names.values() for name in document_names.split() if f"`{name}`" not in table]
    assert missing == []


@pytest.mark.parametrize("algorithm", ["HS256", "HS384", "HS512"])
def test_tokens_are_signed_with_the_configured_algorithm_only(algorithm: str) -> None:
    from datetime import UTC, datetime, timedelta

    tokens = AccessTokens("k" * 32, timedelta(minutes=5), algorithm)
    token = tokens.issue_token("user_1", "ses_1", datetime.now(UTC))
    assert json.loads(base64.urlsafe_b64decode(token.split(".")[0] + "=="))["alg"] == algorithm
    assert tokens.read_token(token) == ("user_1", "ses_1")
    for other in {"HS256", "HS384", "HS512"} - {algorithm}:
        assert AccessTokens("k" * 32, timedelta(minutes=5), other).read_token(token) is None


@pytest.fixture(scope="module")
async def configured_system() -> AsyncIterator[System]:
    """Yield a separate system with settings under the documents' names, and with three processes of the API."""
    names = {"RATE_LIMIT_PER_MINUTE": "12", "ENVIRONMENT": "staging", "APP_NAME": "Our agents", "ALGORITHM": "HS512"}
    async with run_system(**names, PARACLE_API_WORKERS="3") as separate_system:
        yield separate_system


async def test_rate_limit_and_app_name_apply_to_a_running_system(configured_system: System) -> None:
    url = configured_system.url
    async with register_tenant(url) as owner:
        document = (await owner.http.get(f"{url}/openapi.json")).json()
        assert document["info"]["title"] == "Our agents"
        assert "Our agents" in (await owner.http.get(f"{url}/docs")).text
        async with owner.open_client(await owner.create_key()) as cli:
            answers = [await cli.get("/auth/me") for _ in range(13)]
        statuses = [answer.status_code for answer in answers]
        # Windows begin with the minute, so a new one may begin during the requests.
        assert 429 in statuses or answers[-1].headers["x-ratelimit-limit"] == "12"
        assert answers[0].headers["x-ratelimit-limit"] == "12"


async def test_artifact_records_the_environment(configured_system: System) -> None:
    async with register_tenant(configured_system.url) as registered:
        # A key with a limit of its own: twelve requests a minute are too few here.
        key = await registered.create_key(rate_limit_per_minute=1000)
        async with registered.open_client(key) as http:
            owner = TenantClient(http, registered.account, registered.password)
            agent = await owner.deploy_agent("def handle(payload): return {}")
            ended = await owner.run_agent(agent)
            for _ in range(400):
                answer = await owner.http.get(f"/artifacts/{ended['id']}/metadata")
                if answer.status_code == 200:
                    break
                await asyncio.sleep(0.1)
            assert answer.json()["environment"] == "staging"
            assert (await owner.http.get("/artifacts?environment=staging")).json()["total"] == 1


async def test_api_processes_share_port_and_metrics(configured_system: System) -> None:
    system = configured_system
    assert len({process.pid for process in system.processes if process.name.startswith("api-")}) == 3
    for _ in range(30):
        # One connection for each request, so that the kernel distributes them.
        async with httpx.AsyncClient() as client:
            assert (await client.get(f"{system.url}/health/live")).status_code == 200
    counts = set()
    for _ in range(5):
        async with httpx.AsyncClient() as client:
            text = (await client.get(f"{system.url}/metrics")).text
        (line,) = re.findall(r'paddock_requests_total{endpoint="/health/live".*} ([\d.]+)', text)
        counts.add(float(line))
    assert counts == {30.0}


async def test_error_reports_contain_no_tenant_data(tmp_path: Path) -> None:
    received: list[dict[str, Any]] = []

    async def receive_envelope(request: web.Request) -> web.Response:
        body = await request.read()
        received.append({"path": request.path, "lines": [json.loads(line) for line in body.splitlines() if line]})
        return web.json_response({})

    app = web.Application()
    app.router.add_post("/api/4/envelope/", receive_envelope)
    runner = web.AppRunner(app)
    await runner.setup()
    (port,) = find_free_ports(1)
    await web.TCPSite(runner, "127.0.0.1", port).start()
    program = """
import structlog, sentry_sdk
from infra.settings import read_settings
from infra.telemetry import open_telemetry
open_telemetry(read_settings(), "api")
password = "hunter2-of-a-tenant"
try:
    raise RuntimeError("the cause")
except RuntimeError:
    structlog.get_logger("paddock.x").exception("it broke", request_id="req_1", body=password)
structlog.get_logger("paddock.x").error("no exception, no report")
import asyncpg
try:
    try:
        raise asyncpg.CheckViolationError("new row violates a check\\nDETAIL:  Failing row contains (swordfish).")
    except asyncpg.PostgresError as error:
        raise ValueError("wrapped") from error
except ValueError:
    structlog.get_logger("paddock.x").exception("a row broke")
sentry_sdk.flush()
"""
    environment = {**MINIMAL_SETTINGS, "SENTRY_DSN": f"http://abc@127.0.0.1:{port}/4", "ENVIRONMENT": "staging"}
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", program), env=environment, cwd=ROOT, stdout=subprocess.PIPE
    )
    output, _ = await process.communicate()
    await runner.cleanup()
    assert process.returncode == 0
    assert b"RuntimeError: the cause" in output
    event, row_event = [line for envelope in received for line in envelope["lines"] if "exception" in line]
    assert [exception["type"] for exception in row_event["exception"]["values"]] == [
        "CheckViolationError",
        "ValueError",
    ]
    assert row_event["exception"]["values"][1]["value"] == "wrapped"
    assert b"swordfish" in output
    assert "swordfish" not in str(received)
    assert event["exception"]["values"][0]["value"] == "the cause"
    assert (event["environment"], event["release"][:8]) == ("staging", "paddock@")
    assert event["tags"] == {"component": "api", "logger": "paddock.x", "event": "it broke", "request_id": "req_1"}
    assert "hunter2" not in str(received)
