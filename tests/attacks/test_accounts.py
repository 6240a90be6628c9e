"""Attacks on accounts: guesses with many keys, many keys for more calls, streams after losing access, look-alike names."""

import asyncio
import contextlib
import secrets
from collections.abc import AsyncIterator

import httpx
import pytest
import websockets

from domain import accounts
from tests.support.clients import TenantClient, register_tenant, run_second_api

SLOW_AGENT = (
    "import time\ndef handle(p):\n    for n in range(600):\n        print(n, flush=True)\n        time.sleep(0.2)\n"
)


def generate_email() -> str:
    return f"{secrets.token_hex(6)}@example.com"


async def test_password_guesses_count_for_the_account_with_any_key(
    system, acme: TenantClient, other_tenant: TenantClient
) -> None:
    async with run_second_api(system, PADDOCK_LOGIN_FAILURES="3", PADDOCK_TRUSTED_PROXIES="127.0.0.1") as url:
        base = f"{url}/api/v1"
        address = f"203.0.113.{secrets.randbelow(250)}"
        victim = acme.account["email"]
        names = [victim, victim.upper(), victim.replace("@", "＠")]
        foreign_keys = [await other_tenant.create_key() for _ in range(4)]

        async def guess(
            name: str, number: int, client_address: str = address, password: str = "wrong"
        ) -> httpx.Response:
            headers = {"X-API-Key": foreign_keys[number % 4], "X-Forwarded-For": f"{client_address}:{4000 + number}"}
            async with httpx.AsyncClient(base_url=base, timeout=90) as client:
                return await client.post("/auth/login", json={"username": name, "password": password}, headers=headers)

        # Concurrently, with three spellings and four keys.
        answers = await asyncio.gather(*(guess(names[number % 3], number) for number in range(12)))
        statuses = sorted(answer.status_code for answer in answers)
        assert statuses == [401] * 3 + [429] * 9, statuses
        refused = next(answer for answer in answers if answer.status_code == 429)
        assert refused.json()["error"] == "rate_limit_exceeded"
        assert 0 < int(refused.headers["retry-after"]) <= 3600
        # The right password is refused too from there; from another address it works, and right passwords never count.
        assert (await guess(victim, 0, password=acme.password)).status_code == 429
        other_address = f"198.51.100.{secrets.randbelow(250)}"
        for number in range(6):
            assert (await guess(victim, number, other_address, acme.password)).status_code == 200
        # An account that does not exist is refused at the same count.
        missing_email = generate_email()
        assert [(await guess(missing_email, number, other_address)).status_code for number in range(5)] == [401] * 3 + [
            429
        ] * 2
        # Guesses from many addresses together are limited too.
        target = other_tenant.account["email"]
        statuses_of_addresses = [(await guess(target, n, f"192.0.2.{n // 3}")).status_code for n in range(33)]
        assert statuses_of_addresses == [401] * 30 + [429] * 3


async def test_guesses_of_the_current_password_count(system, acme: TenantClient) -> None:
    body = {"password": "a new password", "current_password": "wrong"}
    async with (
        run_second_api(system, PADDOCK_LOGIN_FAILURES="2") as url,
        httpx.AsyncClient(base_url=f"{url}/api/v1", headers=acme.http.headers, timeout=90) as client,
    ):
        answers = [await client.patch("/users/me", json=body) for _ in range(3)]
    assert [answer.status_code for answer in answers] == [422, 422, 429]


async def test_more_keys_allow_no_more_calls(system, acme: TenantClient) -> None:
    async with run_second_api(system, PADDOCK_RATE_LIMIT_AUTHENTICATED="6") as url:
        remaining: list[int] = []
        for _ in range(2):
            for key in (await acme.create_key(), await acme.create_key()):
                async with httpx.AsyncClient(base_url=f"{url}/api/v1", headers={"X-API-Key": key}) as client:
                    remaining.append(int((await client.get("/auth/me")).headers["x-ratelimit-remaining"]))
        async with httpx.AsyncClient(base_url=f"{url}/api/v1", headers=acme.http.headers) as client:
            remaining.append(int((await client.get("/auth/me")).headers["x-ratelimit-remaining"]))
    # The hour may change once in between.
    assert remaining == [5, 4, 3, 2, 1] or (len(set(remaining)) < 5 and max(remaining) == 5), remaining


async def test_number_of_keys_per_user_is_limited(acme: TenantClient) -> None:
    async def create_key(**fields: str) -> int:
        return (await acme.http.post("/api-keys", json={"name": "n", **fields})).status_code

    first = (await acme.http.post("/api-keys", json={"name": "first"})).json()
    statuses = [await create_key() for _ in range(accounts.MAX_KEYS_PER_USER - 6)]
    assert set(statuses) == {201}
    # Concurrent requests create no more keys than sequential ones.
    assert sorted(await asyncio.gather(*(create_key() for _ in range(12)))) == [201] * 5 + [409] * 7
    refused = await acme.http.post("/api-keys", json={"name": "n"})
    assert "The user already has 100 active keys, the maximum." in refused.json()["detail"]
    assert (await acme.http.post(f"/api-keys/{first['id']}/revoke")).status_code == 200
    assert await create_key() == 201
    assert await create_key() == 409


@pytest.fixture
async def member(acme: TenantClient, system):
    """Yield a member of the tenant, with a session and a key."""
    email = generate_email()
    invite = (await acme.http.post("/users/invites", json={"email": email})).json()
    async with httpx.AsyncClient(base_url=acme.http.base_url, timeout=90) as http:
        body = {"email": email, "password": "a long password", "tenant_id": acme.tenant_id}
        account = (await http.post("/auth/register", json={**body, "invite_token": invite["invite_token"]})).json()
        http.headers["Authorization"] = f"Bearer {account['access_token']}"
        yield TenantClient(http, account, body["password"])


@contextlib.asynccontextmanager
async def read_until_disconnected(
    owner: TenantClient, run_id: str, headers: dict[str, str], query: str = ""
) -> AsyncIterator[None]:
    """Read a run's streams of both kinds; what is done meanwhile must end them, and not the run."""
    has_started = {"sse": asyncio.Event(), "ws": asyncio.Event()}

    async def read_server_sent_events() -> list[str]:
        lines: list[str] = []
        url = f"{owner.http.base_url}executions/{run_id}/events"
        async with httpx.AsyncClient(timeout=90) as client, client.stream("GET", url, headers=headers) as stream:
            async for line in stream.aiter_lines():
                lines.append(line)
                has_started["sse"].set()
        return lines

    async def read_websocket() -> int | None:
        url = f"{owner.http.base_url}execution-logs/{run_id}/stream{query}".replace("http://", "ws://")
        async with websockets.connect(url, additional_headers={} if query else headers) as socket:
            with contextlib.suppress(websockets.ConnectionClosed):
                while True:
                    await socket.recv()
                    has_started["ws"].set()
        return socket.close_code

    reading = asyncio.gather(read_server_sent_events(), read_websocket())
    try:
        async with asyncio.timeout(90):
            for started in has_started.values():
                await started.wait()
            yield
            lines, code = await reading
        assert code == 4401
        assert "event: error" in lines
        assert any('"unauthenticated"' in line for line in lines[-4:])
        assert (await owner.http.get(f"/executions/{run_id}")).json()["status"] == "running"
    finally:
        reading.cancel()
        await asyncio.gather(reading, return_exceptions=True)
        await owner.http.post(f"/executions/{run_id}/cancel")


@pytest.mark.parametrize(
    "reason", ["key revoked", "key deleted", "user shut out by key", "user shut out", "logged out"]
)
async def test_streams_end_when_their_reader_loses_access(
    acme: TenantClient, member: TenantClient, reason: str
) -> None:
    agent = await acme.deploy_agent(SLOW_AGENT, "name: slow\nentrypoint: agent:handle\ntimeout: 300\n")
    run = await acme.start_execution(agent)
    key = (await member.http.post("/api-keys", json={"name": "streams"})).json()
    token = member.account["access_token"] if reason in ("user shut out", "logged out") else key["key"]
    async with read_until_disconnected(acme, run["id"], {"Authorization": f"Bearer {token}"}, f"?access_token={token}"):
        if reason == "key revoked":
            answer = await acme.http.post(f"/api-keys/{key['id']}/revoke")
        elif reason == "key deleted":
            answer = await acme.http.delete(f"/api-keys/{key['id']}")
        elif reason == "logged out":
            answer = await member.http.post("/auth/logout")
        else:
            answer = await acme.http.patch(f"/users/{member.account['id']}", json={"is_active": False})
        assert answer.status_code in (200, 204), answer.text


async def test_look_alike_addresses_are_one_account(acme: TenantClient, system) -> None:
    email = acme.account["email"]
    async with httpx.AsyncClient(base_url=acme.http.base_url, timeout=90) as anonymous:
        for look_alike in (
            email.upper(),
            email.replace("@", "＠"),
            email.replace("e", "ｅ"),
            email.replace(".com", "．com"),
        ):
            body = {"email": look_alike, "password": "a long password"}
            answer = await anonymous.post("/auth/register", json=body)
            assert answer.status_code == 409, (look_alike, answer.text)
            assert answer.json()["errors"][0]["field"] == "email"
            login = await anonymous.post("/auth/login", json={"email": look_alike, "password": acme.password})
            assert login.status_code == 200, look_alike
        cyrillic = await anonymous.post("/auth/register", json={"email": email.replace("e", "е"), "password": "x" * 10})
        assert cyrillic.status_code == 422


async def test_registering_does_not_reveal_tenants(acme: TenantClient, system) -> None:
    """Report a taken address first, and refuse everything else in the same way."""
    free = f"free-{secrets.token_hex(4)}"
    async with httpx.AsyncClient(base_url=acme.http.base_url, timeout=90) as anonymous:
        outcomes = []
        for tenant_id in (acme.tenant_id, free, "default"):
            taken_body = {"email": acme.account["email"], "password": "a long password", "tenant_id": tenant_id}
            invited_body = {**taken_body, "email": generate_email(), "invite_token": "pdi_wrong"}
            answers = [await anonymous.post("/auth/register", json=body) for body in (taken_body, invited_body)]
            outcomes.append([(answer.status_code, answer.json()["detail"]) for answer in answers])
        assert outcomes[0] == outcomes[1] == outcomes[2]
        assert [status for status, _ in outcomes[0]] == [409, 403]
        for _, detail in outcomes[0]:
            assert acme.tenant_id not in detail
    async with register_tenant(system.url) as other_client:
        assert other_client.tenant_id != free
