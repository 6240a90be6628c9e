"""Attacks on accounts: guesses behind many keys, many keys for more calls, streams of who was shut out, look-alikes."""

import asyncio
import contextlib
import secrets
from collections.abc import AsyncIterator

import httpx
import pytest
import websockets

from domain import accounts
from tests.support.clients import TenantClient, register_tenant, run_second_api

SLOW = "import time\ndef handle(p):\n    for n in range(600):\n        print(n, flush=True)\n        time.sleep(0.2)\n"


def fresh_email() -> str:
    return f"{secrets.token_hex(6)}@example.com"


async def test_guesses_count_for_the_account_whoever_s_key_comes_along(
    system, acme: TenantClient, other_tenant: TenantClient
) -> None:
    async with run_second_api(system, PADDOCK_LOGIN_FAILURES="3", PADDOCK_TRUSTED_PROXIES="127.0.0.1") as url:
        base = f"{url}/api/v1"
        address = f"203.0.113.{secrets.randbelow(250)}"
        victim = acme.account["email"]
        names = [victim, victim.upper(), victim.replace("@", "＠")]
        keys_of_rival = [await other_tenant.create_key() for _ in range(4)]

        async def guess(name: str, number: int, at: str = address, password: str = "wrong") -> httpx.Response:
            headers = {"X-API-Key": keys_of_rival[number % 4], "X-Forwarded-For": f"{at}:{4000 + number}"}
            async with httpx.AsyncClient(base_url=base, timeout=90) as client:
                return await client.post("/auth/login", json={"username": name, "password": password}, headers=headers)

        # Side by side, under three spellings and four keys.
        answers = await asyncio.gather(*(guess(names[number % 3], number) for number in range(12)))
        statuses = sorted(one.status_code for one in answers)
        assert statuses == [401] * 3 + [429] * 9, statuses
        refused = next(one for one in answers if one.status_code == 429)
        assert refused.json()["error"] == "rate_limit_exceeded"
        assert 0 < int(refused.headers["retry-after"]) <= 3600
        # The right one as well, from there; from elsewhere whoever has it gets in, and right ones never count.
        assert (await guess(victim, 0, password=acme.password)).status_code == 429
        elsewhere = f"198.51.100.{secrets.randbelow(250)}"
        for number in range(6):
            assert (await guess(victim, number, elsewhere, acme.password)).status_code == 200
        # An account that is not there is refused no sooner and no later.
        nobody = fresh_email()
        assert [(await guess(nobody, number, elsewhere)).status_code for number in range(5)] == [401] * 3 + [429] * 2
        # Many addresses together come to an end too.
        target = other_tenant.account["email"]
        spread = [(await guess(target, n, f"192.0.2.{n // 3}")).status_code for n in range(33)]
        assert spread == [401] * 30 + [429] * 3


async def test_guesses_of_the_current_password_count_too(system, acme: TenantClient) -> None:
    body = {"password": "a new password", "current_password": "wrong"}
    async with (
        run_second_api(system, PADDOCK_LOGIN_FAILURES="2") as url,
        httpx.AsyncClient(base_url=f"{url}/api/v1", headers=acme.http.headers, timeout=90) as client,
    ):
        answers = [await client.patch("/users/me", json=body) for _ in range(3)]
    assert [one.status_code for one in answers] == [422, 422, 429]


async def test_more_keys_are_not_more_calls(system, acme: TenantClient) -> None:
    async with run_second_api(system, PADDOCK_RATE_LIMIT_AUTHENTICATED="6") as url:
        left: list[int] = []
        for _ in range(2):
            for key in (await acme.create_key(), await acme.create_key()):
                async with httpx.AsyncClient(base_url=f"{url}/api/v1", headers={"X-API-Key": key}) as client:
                    left.append(int((await client.get("/auth/me")).headers["x-ratelimit-remaining"]))
        async with httpx.AsyncClient(base_url=f"{url}/api/v1", headers=acme.http.headers) as client:
            left.append(int((await client.get("/auth/me")).headers["x-ratelimit-remaining"]))
    # The hour may turn once in between.
    assert left == [5, 4, 3, 2, 1] or (len(set(left)) < 5 and max(left) == 5), left


async def test_the_keys_of_a_user_are_bounded(acme: TenantClient) -> None:
    async def make(**fields: str) -> int:
        return (await acme.http.post("/api-keys", json={"name": "n", **fields})).status_code

    first = (await acme.http.post("/api-keys", json={"name": "first"})).json()
    made = [await make() for _ in range(accounts.MAX_KEYS_PER_USER - 6)]
    assert set(made) == {201}
    # Side by side no more are let in than one after the other.
    assert sorted(await asyncio.gather(*(make() for _ in range(12)))) == [201] * 5 + [409] * 7
    refused = await acme.http.post("/api-keys", json={"name": "n"})
    assert "The user already has 100 active keys, the maximum." in refused.json()["detail"]
    assert (await acme.http.post(f"/api-keys/{first['id']}/revoke")).status_code == 200
    assert await make() == 201
    assert await make() == 409


@pytest.fixture
async def member(acme: TenantClient, system):
    """A member of acme's, with a session and a key."""
    email = fresh_email()
    invited = (await acme.http.post("/users/invites", json={"email": email})).json()
    async with httpx.AsyncClient(base_url=acme.http.base_url, timeout=90) as http:
        body = {"email": email, "password": "a long password", "tenant_id": acme.tenant_id}
        account = (await http.post("/auth/register", json={**body, "invite_token": invited["invite_token"]})).json()
        http.headers["Authorization"] = f"Bearer {account['access_token']}"
        yield TenantClient(http, account, body["password"])


@contextlib.asynccontextmanager
async def read_until_shut_out(
    owner: TenantClient, run_id: str, headers: dict[str, str], query: str = ""
) -> AsyncIterator[None]:
    """Read a run's streams of both kinds; what is done meanwhile must end them, and not the run."""
    began = {"sse": asyncio.Event(), "ws": asyncio.Event()}

    async def server_sent() -> list[str]:
        lines: list[str] = []
        url = f"{owner.http.base_url}executions/{run_id}/events"
        async with httpx.AsyncClient(timeout=90) as client, client.stream("GET", url, headers=headers) as stream:
            async for line in stream.aiter_lines():
                lines.append(line)
                began["sse"].set()
        return lines

    async def over_websocket() -> int | None:
        url = f"{owner.http.base_url}execution-logs/{run_id}/stream{query}".replace("http://", "ws://")
        async with websockets.connect(url, additional_headers={} if query else headers) as socket:
            with contextlib.suppress(websockets.ConnectionClosed):
                while True:
                    await socket.recv()
                    began["ws"].set()
        return socket.close_code

    reading = asyncio.gather(server_sent(), over_websocket())
    try:
        async with asyncio.timeout(90):
            for one in began.values():
                await one.wait()
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


@pytest.mark.parametrize("how", ["key revoked", "key deleted", "user shut out by key", "user shut out", "logged out"])
async def test_streams_end_when_who_reads_them_is_shut_out(acme: TenantClient, member: TenantClient, how: str) -> None:
    agent = await acme.deploy_agent(SLOW, "name: slow\nentrypoint: agent:handle\ntimeout: 300\n")
    run = await acme.start_execution(agent)
    made = (await member.http.post("/api-keys", json={"name": "streams"})).json()
    token = member.account["access_token"] if how in ("user shut out", "logged out") else made["key"]
    async with read_until_shut_out(acme, run["id"], {"Authorization": f"Bearer {token}"}, f"?access_token={token}"):
        if how == "key revoked":
            answer = await acme.http.post(f"/api-keys/{made['id']}/revoke")
        elif how == "key deleted":
            answer = await acme.http.delete(f"/api-keys/{made['id']}")
        elif how == "logged out":
            answer = await member.http.post("/auth/logout")
        else:
            answer = await acme.http.patch(f"/users/{member.account['id']}", json={"is_active": False})
        assert answer.status_code in (200, 204), answer.text


async def test_look_alike_addresses_are_one_account(acme: TenantClient, system) -> None:
    email = acme.account["email"]
    async with httpx.AsyncClient(base_url=acme.http.base_url, timeout=90) as nobody:
        for alike in (
            email.upper(),
            email.replace("@", "＠"),
            email.replace("e", "ｅ"),
            email.replace(".com", "．com"),
        ):
            body = {"email": alike, "password": "a long password"}
            answer = await nobody.post("/auth/register", json=body)
            assert answer.status_code == 409, (alike, answer.text)
            assert answer.json()["errors"][0]["field"] == "email"
            login = await nobody.post("/auth/login", json={"email": alike, "password": acme.password})
            assert login.status_code == 200, alike
        cyrillic = await nobody.post("/auth/register", json={"email": email.replace("e", "е"), "password": "x" * 10})
        assert cyrillic.status_code == 422


async def test_registering_does_not_tell_which_tenants_there_are(acme: TenantClient, system) -> None:
    """What is taken anyway is said first, and what can be refused is refused alike."""
    free = f"free-{secrets.token_hex(4)}"
    async with httpx.AsyncClient(base_url=acme.http.base_url, timeout=90) as nobody:
        told = []
        for tenant_id in (acme.tenant_id, free, "default"):
            taken = {"email": acme.account["email"], "password": "a long password", "tenant_id": tenant_id}
            invited = {**taken, "email": fresh_email(), "invite_token": "pdi_wrong"}
            answers = [await nobody.post("/auth/register", json=body) for body in (taken, invited)]
            told.append([(one.status_code, one.json()["detail"]) for one in answers])
        assert told[0] == told[1] == told[2]
        assert [status for status, _ in told[0]] == [409, 403]
        for _, detail in told[0]:
            assert acme.tenant_id not in detail
    async with register_tenant(system.url) as other:
        assert other.tenant_id != free
