"""Kasal as a Databricks App: the proxy's headers sign in, the workspace is the tenant, its first user the admin.

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
from tests.attacks.test_accounts import SLOW, read_until_shut_out
from tests.conftest import run_system
from tests.support.clients import TenantClient, run_second_api

CREDENTIAL = f"dapi{secrets.token_hex(16)}"


@pytest.fixture(scope="module")
async def app() -> AsyncIterator[System]:
    """A system behind a trusted proxy."""
    async with run_system(
        PADDOCK_TRUSTED_PROXIES="127.0.0.1", PADDOCK_PROXY_LOGIN="databricks", PADDOCK_RATE_LIMIT_AUTHENTICATED="100000"
    ) as system:
        yield system


@contextlib.asynccontextmanager
async def owner_of(system: System) -> AsyncIterator[asyncpg.Connection]:
    """A connection that sees all rows."""
    connection = await asyncpg.connect(system.settings.database_owner_url.reveal())
    try:
        await connection.execute("SET paddock.every_tenant = on")
        yield connection
    finally:
        await connection.close()


def fresh_workspace() -> str:
    return str(10**15 + secrets.randbelow(10**15))


class Person:
    """Somebody at Databricks, whom the proxy names in every request."""

    def __init__(self, workspace: str | None, email: str | None = None, user: str | None = None, **more: str) -> None:
        self.email = email or f"{secrets.token_hex(6)}@example.com"
        self.headers = {"X-Forwarded-Email": self.email, "X-Forwarded-Access-Token": CREDENTIAL, **more}
        if user is not None:
            self.headers["X-Forwarded-User"] = user
        if workspace is not None:
            self.headers["X-Databricks-Org-Id"] = workspace

    async def ask(self, url: str, method: str, path: str, **options: Any) -> httpx.Response:
        headers = {**self.headers, **options.pop("headers", {})}
        async with httpx.AsyncClient(base_url=f"{url}/api/v1", timeout=90) as http:
            return await http.request(method, path, headers=headers, **options)

    async def me(self, url: str) -> dict[str, Any]:
        answer = await self.ask(url, "GET", "/auth/me")
        assert answer.status_code == 200, answer.text
        return dict(answer.json())


async def test_the_first_of_a_workspace_is_its_admin_and_the_others_are_members(app: System) -> None:
    workspace = fresh_workspace()
    ada = Person(workspace, user="4711", **{"X-Forwarded-Preferred-Username": "Ada Lovelace"})
    first = await ada.me(app.url)
    assert first["email"] == ada.email
    assert first["full_name"] == "Ada Lovelace"
    assert (first["tenant_id"], first["role"]) == (f"workspace-{workspace}", "admin")
    bob = Person(workspace)
    assert (await bob.me(app.url))["role"] == "member"
    assert (await bob.me(app.url))["full_name"] is None
    # The same user each time, however the address is written.
    shouted = Person(workspace, email=ada.email.upper())
    assert (await shouted.me(app.url))["id"] == first["id"]
    users = (await ada.ask(app.url, "GET", "/users")).json()
    assert users["total"] == 2
    # As any tenant it has the models that come along.
    assert (await ada.ask(app.url, "GET", "/models")).json()["total"] > 0


async def test_those_who_come_at_once_are_one_user_each_and_have_one_admin(app: System) -> None:
    workspace = fresh_workspace()
    people = [Person(workspace, user=str(number)) for number in range(4)]
    found = await asyncio.gather(*(person.me(app.url) for person in people * 4))
    assert len({one["id"] for one in found}) == 4
    assert len({one["id"] for one in found if one["role"] == "admin"}) == 1


async def test_the_user_makes_keys_and_is_known_in_what_was_made(app: System) -> None:
    person = Person(fresh_workspace())
    me = await person.me(app.url)
    made = await person.ask(app.url, "POST", "/api-keys", json={"name": "mine"})
    assert made.status_code == 201, made.text
    async with httpx.AsyncClient(base_url=f"{app.url}/api/v1", headers={"X-API-Key": made.json()["key"]}) as http:
        assert (await http.get("/auth/me")).json()["id"] == me["id"]
    agent = await person.ask(app.url, "POST", "/agents", json={"name": "an agent"})
    assert agent.status_code == 201, agent.text
    assert agent.json()["user_id"] == me["id"]
    for _ in range(200):
        # Log lines come over a pipe.
        logged = [line for line in app.lines if "path=/api/v1/agents" in line]  # type: ignore[attr-defined]
        if any(me["id"] in line for line in logged):
            break
        await asyncio.sleep(0.05)
    assert any(me["id"] in line for line in logged)
    # No session: there is nothing to log out of, and no password to change or log in with.
    assert (await person.ask(app.url, "POST", "/auth/logout")).status_code == 422
    for current in ("", "x"):
        body = {"password": "a long password", "current_password": current}
        assert (await person.ask(app.url, "PATCH", "/users/me", json=body)).status_code == 422
        async with httpx.AsyncClient(base_url=f"{app.url}/api/v1") as http:
            login = await http.post("/auth/login", json={"email": person.email, "password": current})
            assert login.status_code == 401


async def test_a_credential_wins_over_the_headers(app: System) -> None:
    ada, bob = Person(fresh_workspace()), Person(fresh_workspace())
    key = (await ada.ask(app.url, "POST", "/api-keys", json={"name": "k"})).json()["key"]
    for credential in ({"X-API-Key": key}, {"Authorization": f"Bearer {key}"}):
        got = await bob.ask(app.url, "GET", "/auth/me", headers=credential)
        assert got.json()["email"] == ada.email
    for wrong in ({"X-API-Key": "pdk_wrong"}, {"Authorization": "Bearer wrong"}, {"Authorization": "Basic eDp5"}):
        assert (await bob.ask(app.url, "GET", "/auth/me", headers=wrong)).status_code == 401
    # What an unset variable leaves behind is none.
    got = await bob.ask(app.url, "GET", "/auth/me", headers={"X-API-Key": "", "Authorization": ""})
    assert got.json()["email"] == bob.email


async def test_the_id_at_the_proxy_outlives_the_address(app: System) -> None:
    workspace = fresh_workspace()
    admin = Person(workspace)
    await admin.me(app.url)
    before = Person(workspace)
    known = await before.me(app.url)
    # First seen without an id, then with one, then under another address.
    assert (await Person(workspace, email=before.email, user="42").me(app.url))["id"] == known["id"]
    married = Person(workspace, user="42")
    assert (await married.me(app.url))["id"] == known["id"]
    assert (await married.me(app.url))["email"] == married.email
    # The old address is free: who has it now is somebody else.
    heir = Person(workspace, email=before.email, user="43")
    assert (await heir.me(app.url))["id"] != known["id"]
    # An address that has an owner leads nobody else into the account, and keeps nobody from their own.
    thief = Person(workspace, email=married.email, user="44")
    assert (await thief.ask(app.url, "GET", "/auth/me")).status_code == 403
    crossed = Person(workspace, email=heir.email, user="42")
    assert (await crossed.me(app.url))["id"] == known["id"]
    assert (await crossed.me(app.url))["email"] == married.email
    # The same id at another workspace is another user.
    assert (await Person(fresh_workspace(), user="42").me(app.url))["id"] != known["id"]


async def test_no_account_is_taken_over(app: System) -> None:
    workspace = fresh_workspace()
    admin = Person(workspace)
    await admin.me(app.url)
    async with httpx.AsyncClient(base_url=f"{app.url}/api/v1", timeout=90) as http:
        # One with a password, in a tenant of its own.
        body = {"email": f"{secrets.token_hex(6)}@example.com", "password": "a long password"}
        assert (await http.post("/auth/register", json=body)).status_code == 201
        # One with a password that was invited into the workspace.
        invited = f"{secrets.token_hex(6)}@example.com"
        invite = await admin.ask(app.url, "POST", "/users/invites", json={"email": invited})
        joining = {"invite_token": invite.json()["invite_token"], "tenant_id": f"workspace-{workspace}"}
        joined = await http.post("/auth/register", json={**body, **joining, "email": invited})
        assert joined.status_code == 201, joined.text
        # A tenant of a workspace cannot be made by registering: whoever came first would be its admin.
        squat = {**body, "email": f"{secrets.token_hex(6)}@example.com", "tenant_id": f"workspace-{fresh_workspace()}"}
        assert (await http.post("/auth/register", json=squat)).status_code == 422
    for place in (workspace, fresh_workspace()):
        for email in (body["email"], invited, admin.email if place != workspace else invited):
            for user in (None, "9"):
                answer = await Person(place, email=email, user=user).ask(app.url, "GET", "/agents")
                assert answer.status_code == 403, (email, answer.text)
                assert answer.json()["error"] == "forbidden"
                assert "e-mail address belongs to" in answer.json()["detail"]
    # With the password all is as it was.
    async with httpx.AsyncClient(base_url=f"{app.url}/api/v1", timeout=90) as http:
        for email in (body["email"], invited):
            login = {"email": email, "password": body["password"]}
            assert (await http.post("/auth/login", json=login)).status_code == 200


async def test_a_tenant_that_a_login_did_not_make_is_not_entered(app: System) -> None:
    """One of such a name may be from before: whoever made it is not to be the admin of strangers."""
    workspace = fresh_workspace()
    async with owner_of(app) as connection:
        await connection.execute(
            "INSERT INTO tenants (id, plan, created_at) VALUES ($1, 'standard', now())", f"workspace-{workspace}"
        )
    answer = await Person(workspace).ask(app.url, "GET", "/auth/me")
    assert answer.status_code == 403
    assert f"workspace-{workspace}" in answer.json()["detail"]


async def test_a_workspace_sees_nothing_of_another(app: System) -> None:
    ada, bob = Person(fresh_workspace()), Person(fresh_workspace())
    agent = (await ada.ask(app.url, "POST", "/agents", json={"name": "secret plans"})).json()["id"]
    me = await ada.me(app.url)
    for path in (f"/agents/{agent}", f"/logs/{agent}", f"/users/{me['id']}"):
        assert (await ada.ask(app.url, "GET", path)).status_code == 200, path
        assert (await bob.ask(app.url, "GET", path)).status_code == 404, path
    for path in ("/agents", "/users", "/api-keys"):
        assert "secret plans" not in (await bob.ask(app.url, "GET", path)).text
        assert ada.email not in (await bob.ask(app.url, "GET", path)).text


async def test_without_a_workspace_nobody_is_let_in(app: System) -> None:
    answer = await Person(None).ask(app.url, "GET", "/auth/me")
    assert answer.status_code == 401
    assert "X-Databricks-Org-Id" in answer.json()["detail"]
    async with run_second_api(app, DATABRICKS_WORKSPACE_ID="77") as url:
        assert (await Person(None).me(url))["tenant_id"] == "workspace-77"
        assert (await Person("77").me(url))["tenant_id"] == "workspace-77"
        other = await Person("78").ask(url, "GET", "/auth/me")
        assert other.status_code == 401
        assert "another workspace" in other.json()["detail"]


async def test_limits_count_for_the_user(app: System) -> None:
    workspace = fresh_workspace()
    ada, bob = Person(workspace), Person(workspace)
    async with run_second_api(app, PADDOCK_RATE_LIMIT_PER_MINUTE="3", PADDOCK_RATE_LIMIT_AUTHENTICATED="0") as url:
        answers = [await ada.ask(url, "GET", "/auth/me") for _ in range(8)]
        # The minute may turn once in between.
        assert 1 <= [one.status_code for one in answers].count(429) <= 5
        assert (await bob.ask(url, "GET", "/auth/me")).status_code == 200


@pytest.mark.parametrize(
    "settings",
    [
        {"PADDOCK_TRUSTED_PROXIES": "203.0.113.7"},
        {"PADDOCK_PROXY_LOGIN": "off"},
        {"PADDOCK_PROXY_LOGIN": ""},
    ],
)
async def test_forged_headers_sign_nobody_in_and_change_no_answer(app: System, settings: dict[str, str]) -> None:
    workspace = fresh_workspace()
    known = Person(workspace)
    await known.me(app.url)
    async with run_second_api(app, **settings) as url, httpx.AsyncClient(base_url=f"{url}/api/v1", timeout=90) as http:
        plain = await http.get("/auth/me", headers={"X-Request-ID": "r"})
        assert plain.status_code == 401
        for person in (known, Person(workspace), Person(None), Person(workspace, email="nonsense")):
            for more in ({}, {"X-Forwarded-For": "203.0.113.7"}, {"Forwarded": "for=203.0.113.7"}):
                forged = await person.ask(url, "GET", "/auth/me", headers={"X-Request-ID": "r", **more})
                assert forged.status_code == 401
                assert forged.content == plain.content
                assert set(forged.headers) == set(plain.headers)
    assert (await known.ask(app.url, "GET", "/users")).json()["total"] == 1


async def test_a_page_of_another_origin_does_not_act_for_whoever_is_signed_in(app: System) -> None:
    person = Person(fresh_workspace())
    evil = {"Origin": "https://evil.example.com", "Content-Type": "text/plain"}
    answer = await person.ask(app.url, "POST", "/agents", json={"name": "a"}, headers=evil)
    assert answer.status_code == 403
    own = {"Origin": "https://app.example.com", "X-Forwarded-Host": "app.example.com"}
    assert (await person.ask(app.url, "POST", "/agents", json={"name": "a"}, headers=own)).status_code == 201
    url = app.url.replace("http://", "ws://")
    with pytest.raises(websockets.InvalidStatus):
        async with websockets.connect(
            f"{url}/api/v1/execution-logs/exe_x/stream", additional_headers={**person.headers, "Origin": evil["Origin"]}
        ):
            pass


async def test_streams_end_when_the_user_is_shut_out(app: System) -> None:
    workspace = fresh_workspace()
    admin, member = Person(workspace), Person(workspace)
    await admin.me(app.url)
    user_id = (await member.me(app.url))["id"]
    async with httpx.AsyncClient(base_url=f"{app.url}/api/v1", headers=admin.headers, timeout=90) as http:
        owner = TenantClient(http, await admin.me(app.url), "")
        agent = await owner.deploy_agent(SLOW, "name: slow\nentrypoint: agent:handle\ntimeout: 300\n")
        run = await owner.start_execution(agent)
        async with read_until_shut_out(owner, run["id"], member.headers):
            shut = await http.patch(f"/users/{user_id}", json={"is_active": False})
            assert shut.status_code == 200, shut.text
    refused = await member.ask(app.url, "GET", "/auth/me")
    assert refused.status_code == 401
    assert "deactivated" in refused.json()["detail"]
    # Nor as somebody new.
    assert (await Person(workspace, email=member.email, user="9").ask(app.url, "GET", "/auth/me")).status_code == 401


async def test_a_websocket_starts_runs_for_the_user(app: System) -> None:
    person = Person(fresh_workspace())
    async with httpx.AsyncClient(base_url=f"{app.url}/api/v1", headers=person.headers, timeout=90) as http:
        owner = TenantClient(http, await person.me(app.url), "")
        agent = await owner.deploy_agent("def handle(p):\n    return 1\n")
        path = f"{app.url.replace('http://', 'ws://')}/api/v1/agents/{agent}/stream"
        async with websockets.connect(path, additional_headers=person.headers) as socket:
            await socket.send('{"payload": {}}')
            async with asyncio.timeout(90):
                while '"complete"' not in (message := str(await socket.recv())):
                    pass
        assert '"completed"' in message


async def test_the_credential_for_databricks_is_nowhere(app: System) -> None:
    """Not in an answer, an event, a row or a line of the log, whatever was asked and however it went."""
    source = (
        "import os\ndef handle(p):\n    print(dict(os.environ))\n    return {'environment': dict(os.environ), 'p': p}\n"
    )
    person = Person(fresh_workspace())
    async with httpx.AsyncClient(base_url=f"{app.url}/api/v1", headers=person.headers, timeout=90) as http:
        owner = TenantClient(http, await person.me(app.url), "")
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
        answers.append((await http.get(f"{app.url}/metrics")).text)
    assert not [text for text in answers if CREDENTIAL in text]
    assert run["status"] == "completed"
    async with owner_of(app) as connection:
        tables = await connection.fetch(
            "SELECT c.oid::regclass::text AS name FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace "
            "WHERE n.nspname = 'public' AND c.relkind IN ('r', 'p')"
        )
        assert len(tables) > 20
        for table in tables:
            found = await connection.fetchval(
                f"SELECT count(*) FROM {table['name']} AS t WHERE t::text LIKE '%' || $1 || '%'",
                CREDENTIAL,
            )
            assert found == 0, table["name"]
    lines = app.lines  # type: ignore[attr-defined]
    assert any(owner.account["id"] in line for line in lines), lines[-5:]
    assert not [line for line in lines if CREDENTIAL in line]
