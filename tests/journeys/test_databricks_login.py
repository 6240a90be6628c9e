"""Test login as a Databricks App: the proxy's headers sign in, the workspace is the tenant, its first user the admin.

"When deployed as a Databricks App, authentication is handled through Databricks OAuth headers; user context extracted
from Databricks headers; automatic group assignment based on workspace." The test plays the proxy, on 127.0.0.1.
"""

import asyncio
import contextlib
import secrets
from collections.abc import AsyncIterator
from typing import Any

import asyncpg
import httpx
import pytest
import websockets

from scripts.system import System
from tests.attacks.test_accounts import SLOW_AGENT, read_until_disconnected
from tests.conftest import run_system
from tests.support.clients import TenantClient, run_second_api

DATABRICKS_CREDENTIAL = f"dapi{secrets.token_hex(16)}"


@pytest.fixture(scope="module")
async def proxied_system() -> AsyncIterator[System]:
    """Yield a system behind a trusted proxy."""
    async with run_system(
        PADDOCK_TRUSTED_PROXIES="127.0.0.1", PADDOCK_PROXY_LOGIN="databricks", PADDOCK_RATE_LIMIT_AUTHENTICATED="100000"
    ) as system:
        yield system


@contextlib.asynccontextmanager
async def connect_as_owner(system: System) -> AsyncIterator[asyncpg.Connection]:
    """Yield a database connection that sees all rows."""
    connection = await asyncpg.connect(system.settings.database_owner_url.reveal())
    try:
        await connection.execute("SET paddock.every_tenant = on")
        yield connection
    finally:
        await connection.close()


def generate_workspace() -> str:
    return str(10**15 + secrets.randbelow(10**15))


class ProxiedUser:
    """Send requests as a Databricks user whom the proxy names in every request."""

    def __init__(self, workspace: str | None, email: str | None = None, user: str | None = None, **more: str) -> None:
        self.email = email or f"{secrets.token_hex(6)}@example.com"
        self.headers = {"X-Forwarded-Email": self.email, "X-Forwarded-Access-Token": DATABRICKS_CREDENTIAL, **more}
        if user is not None:
            self.headers["X-Forwarded-User"] = user
        if workspace is not None:
            self.headers["X-Databricks-Org-Id"] = workspace

    async def send_request(self, url: str, method: str, path: str, **options: Any) -> httpx.Response:
        headers = {**self.headers, **options.pop("headers", {})}
        async with httpx.AsyncClient(base_url=f"{url}/api/v1", timeout=90) as http:
            return await http.request(method, path, headers=headers, **options)

    async def fetch_account(self, url: str) -> dict[str, Any]:
        answer = await self.send_request(url, "GET", "/auth/me")
        assert answer.status_code == 200, answer.text
        return dict(answer.json())


async def test_first_user_of_a_workspace_is_admin_and_others_are_members(proxied_system: System) -> None:
    workspace = generate_workspace()
    ada = ProxiedUser(workspace, user="4711", **{"X-Forwarded-Preferred-Username": "Ada Lovelace"})
    first = await ada.fetch_account(proxied_system.url)
    assert first["email"] == ada.email
    assert first["full_name"] == "Ada Lovelace"
    assert (first["tenant_id"], first["role"]) == (f"workspace-{workspace}", "admin")
    bob = ProxiedUser(workspace)
    assert (await bob.fetch_account(proxied_system.url))["role"] == "member"
    assert (await bob.fetch_account(proxied_system.url))["full_name"] is None
    # The same user, in any spelling of the address.
    same_user = ProxiedUser(workspace, email=ada.email.upper())
    assert (await same_user.fetch_account(proxied_system.url))["id"] == first["id"]
    users = (await ada.send_request(proxied_system.url, "GET", "/users")).json()
    assert users["total"] == 2
    # Like any tenant it has the default models.
    assert (await ada.send_request(proxied_system.url, "GET", "/models")).json()["total"] > 0


async def test_concurrent_first_logins_create_one_user_each_and_one_admin(proxied_system: System) -> None:
    workspace = generate_workspace()
    people = [ProxiedUser(workspace, user=str(number)) for number in range(4)]
    accounts = await asyncio.gather(*(person.fetch_account(proxied_system.url) for person in people * 4))
    assert len({account["id"] for account in accounts}) == 4
    assert len({account["id"] for account in accounts if account["role"] == "admin"}) == 1


async def test_proxied_user_creates_keys_and_agents(proxied_system: System) -> None:
    person = ProxiedUser(generate_workspace())
    me = await person.fetch_account(proxied_system.url)
    created = await person.send_request(proxied_system.url, "POST", "/api-keys", json={"name": "mine"})
    assert created.status_code == 201, created.text
    async with httpx.AsyncClient(
        base_url=f"{proxied_system.url}/api/v1", headers={"X-API-Key": created.json()["key"]}
    ) as http:
        assert (await http.get("/auth/me")).json()["id"] == me["id"]
    agent = await person.send_request(proxied_system.url, "POST", "/agents", json={"name": "an agent"})
    assert agent.status_code == 201, agent.text
    assert agent.json()["user_id"] == me["id"]
    for _ in range(200):
        # Log lines arrive through a pipe.
        logged = [line for line in proxied_system.lines if "path=/api/v1/agents" in line]  # type: ignore[attr-defined]
        if any(me["id"] in line for line in logged):
            break
        await asyncio.sleep(0.05)
    assert any(me["id"] in line for line in logged)
    # The user has no session to log out of, and no password to change or log in with.
    assert (await person.send_request(proxied_system.url, "POST", "/auth/logout")).status_code == 422
    for current in ("", "x"):
        body = {"password": "a long password", "current_password": current}
        assert (await person.send_request(proxied_system.url, "PATCH", "/users/me", json=body)).status_code == 422
        async with httpx.AsyncClient(base_url=f"{proxied_system.url}/api/v1") as http:
            login = await http.post("/auth/login", json={"email": person.email, "password": current})
            assert login.status_code == 401


async def test_credential_wins_over_proxy_headers(proxied_system: System) -> None:
    ada, bob = ProxiedUser(generate_workspace()), ProxiedUser(generate_workspace())
    key = (await ada.send_request(proxied_system.url, "POST", "/api-keys", json={"name": "k"})).json()["key"]
    for credential in ({"X-API-Key": key}, {"Authorization": f"Bearer {key}"}):
        answer = await bob.send_request(proxied_system.url, "GET", "/auth/me", headers=credential)
        assert answer.json()["email"] == ada.email
    for invalid_credential in (
        {"X-API-Key": "pdk_wrong"},
        {"Authorization": "Bearer wrong"},
        {"Authorization": "Basic eDp5"},
    ):
        assert (
            await bob.send_request(proxied_system.url, "GET", "/auth/me", headers=invalid_credential)
        ).status_code == 401
    # Empty headers, as unset variables cause them, are ignored.
    answer = await bob.send_request(
        proxied_system.url, "GET", "/auth/me", headers={"X-API-Key": "", "Authorization": ""}
    )
    assert answer.json()["email"] == bob.email


async def test_proxy_id_identifies_the_user_across_addresses(proxied_system: System) -> None:
    workspace = generate_workspace()
    admin = ProxiedUser(workspace)
    await admin.fetch_account(proxied_system.url)
    before = ProxiedUser(workspace)
    account = await before.fetch_account(proxied_system.url)
    # First seen without an id, then with one, then under another address.
    assert (await ProxiedUser(workspace, email=before.email, user="42").fetch_account(proxied_system.url))[
        "id"
    ] == account["id"]
    renamed = ProxiedUser(workspace, user="42")
    assert (await renamed.fetch_account(proxied_system.url))["id"] == account["id"]
    assert (await renamed.fetch_account(proxied_system.url))["email"] == renamed.email
    # The old address is free: its next owner is another user.
    next_owner = ProxiedUser(workspace, email=before.email, user="43")
    assert (await next_owner.fetch_account(proxied_system.url))["id"] != account["id"]
    # The address of another user neither opens that account nor blocks one's own.
    intruder = ProxiedUser(workspace, email=renamed.email, user="44")
    assert (await intruder.send_request(proxied_system.url, "GET", "/auth/me")).status_code == 403
    conflicting = ProxiedUser(workspace, email=next_owner.email, user="42")
    assert (await conflicting.fetch_account(proxied_system.url))["id"] == account["id"]
    assert (await conflicting.fetch_account(proxied_system.url))["email"] == renamed.email
    # The same id at another workspace is another user.
    assert (await ProxiedUser(generate_workspace(), user="42").fetch_account(proxied_system.url))["id"] != account["id"]


async def test_proxy_headers_cannot_take_over_an_account(proxied_system: System) -> None:
    workspace = generate_workspace()
    admin = ProxiedUser(workspace)
    await admin.fetch_account(proxied_system.url)
    async with httpx.AsyncClient(base_url=f"{proxied_system.url}/api/v1", timeout=90) as http:
        # A user with a password, in a separate tenant.
        body = {"email": f"{secrets.token_hex(6)}@example.com", "password": "a long password"}
        assert (await http.post("/auth/register", json=body)).status_code == 201
        # A user with a password who was invited into the workspace.
        invited = f"{secrets.token_hex(6)}@example.com"
        invite = await admin.send_request(proxied_system.url, "POST", "/users/invites", json={"email": invited})
        joining = {"invite_token": invite.json()["invite_token"], "tenant_id": f"workspace-{workspace}"}
        joined = await http.post("/auth/register", json={**body, **joining, "email": invited})
        assert joined.status_code == 201, joined.text
        # Registration cannot create a workspace's tenant, as the first user would be its admin.
        squatting_body = {
            **body,
            "email": f"{secrets.token_hex(6)}@example.com",
            "tenant_id": f"workspace-{generate_workspace()}",
        }
        assert (await http.post("/auth/register", json=squatting_body)).status_code == 422
    for workspace_tried in (workspace, generate_workspace()):
        for email in (body["email"], invited, admin.email if workspace_tried != workspace else invited):
            for user in (None, "9"):
                answer = await ProxiedUser(workspace_tried, email=email, user=user).send_request(
                    proxied_system.url, "GET", "/agents"
                )
                assert answer.status_code == 403, (email, answer.text)
                assert answer.json()["error"] == "forbidden"
                assert "e-mail address belongs to" in answer.json()["detail"]
    # Login with the password still works.
    async with httpx.AsyncClient(base_url=f"{proxied_system.url}/api/v1", timeout=90) as http:
        for email in (body["email"], invited):
            login = {"email": email, "password": body["password"]}
            assert (await http.post("/auth/login", json=login)).status_code == 200


async def test_existing_tenant_of_the_same_name_is_not_entered(proxied_system: System) -> None:
    """Refuse a workspace whose tenant exists already, as its creator must not become the admin of other users."""
    workspace = generate_workspace()
    async with connect_as_owner(proxied_system) as connection:
        await connection.execute(
            "INSERT INTO tenants (id, plan, created_at) VALUES ($1, 'standard', now())", f"workspace-{workspace}"
        )
    answer = await ProxiedUser(workspace).send_request(proxied_system.url, "GET", "/auth/me")
    assert answer.status_code == 403
    assert f"workspace-{workspace}" in answer.json()["detail"]


async def test_workspaces_are_isolated(proxied_system: System) -> None:
    ada, bob = ProxiedUser(generate_workspace()), ProxiedUser(generate_workspace())
    agent = (await ada.send_request(proxied_system.url, "POST", "/agents", json={"name": "secret plans"})).json()["id"]
    me = await ada.fetch_account(proxied_system.url)
    for path in (f"/agents/{agent}", f"/logs/{agent}", f"/users/{me['id']}"):
        assert (await ada.send_request(proxied_system.url, "GET", path)).status_code == 200, path
        assert (await bob.send_request(proxied_system.url, "GET", path)).status_code == 404, path
    for path in ("/agents", "/users", "/api-keys"):
        assert "secret plans" not in (await bob.send_request(proxied_system.url, "GET", path)).text
        assert ada.email not in (await bob.send_request(proxied_system.url, "GET", path)).text


async def test_login_requires_a_workspace(proxied_system: System) -> None:
    answer = await ProxiedUser(None).send_request(proxied_system.url, "GET", "/auth/me")
    assert answer.status_code == 401
    assert "X-Databricks-Org-Id" in answer.json()["detail"]
    async with run_second_api(proxied_system, DATABRICKS_WORKSPACE_ID="77") as url:
        assert (await ProxiedUser(None).fetch_account(url))["tenant_id"] == "workspace-77"
        assert (await ProxiedUser("77").fetch_account(url))["tenant_id"] == "workspace-77"
        other = await ProxiedUser("78").send_request(url, "GET", "/auth/me")
        assert other.status_code == 401
        assert "another workspace" in other.json()["detail"]


async def test_rate_limits_count_per_user(proxied_system: System) -> None:
    workspace = generate_workspace()
    ada, bob = ProxiedUser(workspace), ProxiedUser(workspace)
    async with run_second_api(
        proxied_system, PADDOCK_RATE_LIMIT_PER_MINUTE="3", PADDOCK_RATE_LIMIT_AUTHENTICATED="0"
    ) as url:
        answers = [await ada.send_request(url, "GET", "/auth/me") for _ in range(8)]
        # At most one new minute begins during the requests.
        assert 1 <= [answer.status_code for answer in answers].count(429) <= 5
        assert (await bob.send_request(url, "GET", "/auth/me")).status_code == 200


@pytest.mark.parametrize(
    "settings",
    [
        {"PADDOCK_TRUSTED_PROXIES": "203.0.113.7"},
        {"PADDOCK_PROXY_LOGIN": "off"},
        {"PADDOCK_PROXY_LOGIN": ""},
    ],
)
async def test_forged_proxy_headers_are_ignored(proxied_system: System, settings: dict[str, str]) -> None:
    workspace = generate_workspace()
    first_user = ProxiedUser(workspace)
    await first_user.fetch_account(proxied_system.url)
    async with (
        run_second_api(proxied_system, **settings) as url,
        httpx.AsyncClient(base_url=f"{url}/api/v1", timeout=90) as http,
    ):
        plain = await http.get("/auth/me", headers={"X-Request-ID": "r"})
        assert plain.status_code == 401
        for forger in (first_user, ProxiedUser(workspace), ProxiedUser(None), ProxiedUser(workspace, email="nonsense")):
            for more in ({}, {"X-Forwarded-For": "203.0.113.7"}, {"Forwarded": "for=203.0.113.7"}):
                forged = await forger.send_request(url, "GET", "/auth/me", headers={"X-Request-ID": "r", **more})
                assert forged.status_code == 401
                assert forged.content == plain.content
                assert set(forged.headers) == set(plain.headers)
    assert (await first_user.send_request(proxied_system.url, "GET", "/users")).json()["total"] == 1


async def test_pages_of_other_origins_cannot_act_for_the_user(proxied_system: System) -> None:
    person = ProxiedUser(generate_workspace())
    foreign_origin = {"Origin": "https://evil.example.com", "Content-Type": "text/plain"}
    answer = await person.send_request(
        proxied_system.url, "POST", "/agents", json={"name": "a"}, headers=foreign_origin
    )
    assert answer.status_code == 403
    own_origin = {"Origin": "https://app.example.com", "X-Forwarded-Host": "app.example.com"}
    assert (
        await person.send_request(proxied_system.url, "POST", "/agents", json={"name": "a"}, headers=own_origin)
    ).status_code == 201
    url = proxied_system.url.replace("http://", "ws://")
    with pytest.raises(websockets.InvalidStatus):
        async with websockets.connect(
            f"{url}/api/v1/execution-logs/exe_x/stream",
            additional_headers={**person.headers, "Origin": foreign_origin["Origin"]},
        ):
            pass


async def test_streams_end_when_the_user_is_deactivated(proxied_system: System) -> None:
    workspace = generate_workspace()
    admin, member = ProxiedUser(workspace), ProxiedUser(workspace)
    await admin.fetch_account(proxied_system.url)
    user_id = (await member.fetch_account(proxied_system.url))["id"]
    async with httpx.AsyncClient(base_url=f"{proxied_system.url}/api/v1", headers=admin.headers, timeout=90) as http:
        owner = TenantClient(http, await admin.fetch_account(proxied_system.url), "")
        agent = await owner.deploy_agent(SLOW_AGENT, "name: slow\nentrypoint: agent:handle\ntimeout: 300\n")
        run = await owner.start_execution(agent)
        async with read_until_disconnected(owner, run["id"], member.headers):
            deactivated = await http.patch(f"/users/{user_id}", json={"is_active": False})
            assert deactivated.status_code == 200, deactivated.text
    refused = await member.send_request(proxied_system.url, "GET", "/auth/me")
    assert refused.status_code == 401
    assert "deactivated" in refused.json()["detail"]
    # Nor with a new id.
    assert (
        await ProxiedUser(workspace, email=member.email, user="9").send_request(proxied_system.url, "GET", "/auth/me")
    ).status_code == 401


async def test_websocket_starts_executions_for_the_user(proxied_system: System) -> None:
    person = ProxiedUser(generate_workspace())
    async with httpx.AsyncClient(base_url=f"{proxied_system.url}/api/v1", headers=person.headers, timeout=90) as http:
        owner = TenantClient(http, await person.fetch_account(proxied_system.url), "")
        agent = await owner.deploy_agent("def handle(p):\n    return 1\n")
        path = f"{proxied_system.url.replace('http://', 'ws://')}/api/v1/agents/{agent}/stream"
        async with websockets.connect(path, additional_headers=person.headers) as socket:
            await socket.send('{"payload": {}}')
            async with asyncio.timeout(90):
                while '"complete"' not in (message := str(await socket.recv())):
                    pass
        assert '"completed"' in message


async def test_databricks_credential_is_never_stored_or_shown(proxied_system: System) -> None:
    """Search answers, events, rows and log lines for the credential."""
    source = (
        "import os\ndef handle(p):\n    print(dict(os.environ))\n    return {'environment': dict(os.environ), 'p': p}\n"
    )
    person = ProxiedUser(generate_workspace())
    async with httpx.AsyncClient(base_url=f"{proxied_system.url}/api/v1", headers=person.headers, timeout=90) as http:
        owner = TenantClient(http, await person.fetch_account(proxied_system.url), "")
        agent = await owner.deploy_agent(source)
        run = await owner.run_agent(agent, {"a": 1})
        answers = [
            (await http.get(path)).text
            for path in (
                *("/auth/me", "/users", "/agents", "/nothing-here", "/executions?bad=1", "/executions/exe_x"),
                *(f"/executions/{run['id']}", f"/execution-logs/{run['id']}", f"/logs/{agent}", "/artifacts"),
            )
        ]
        answers.append(str(await owner.list_events(run["id"])))
        answers.append((await http.post("/agents", content=b"{")).text)
        answers.append((await http.get(f"{proxied_system.url}/metrics")).text)
    assert not [text for text in answers if DATABRICKS_CREDENTIAL in text]
    assert run["status"] == "completed"
    async with connect_as_owner(proxied_system) as connection:
        tables = await connection.fetch(
            "SELECT c.oid::regclass::text AS name FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace "
            "WHERE n.nspname = 'public' AND c.relkind IN ('r', 'p')"
        )
        assert len(tables) > 20
        for table in tables:
            matches = await connection.fetchval(
                f"SELECT count(*) FROM {table['name']} AS t WHERE t::text LIKE '%' || $1 || '%'",
                DATABRICKS_CREDENTIAL,
            )
            assert matches == 0, table["name"]
    lines = proxied_system.lines  # type: ignore[attr-defined]
    assert any(owner.account["id"] in line for line in lines), lines[-5:]
    assert not [line for line in lines if DATABRICKS_CREDENTIAL in line]
