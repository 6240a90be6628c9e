"""Test the three tiers of rate limits on a separate API process, with Redis and while Redis is unavailable."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import httpx
import pytest

from scripts.release import set_tenant_plan
from tests.support.clients import TenantClient, run_second_api

TIER_LIMITS = {
    "PADDOCK_RATE_LIMIT_ANONYMOUS": "4",
    "PADDOCK_RATE_LIMIT_AUTHENTICATED": "6",
    "PADDOCK_RATE_LIMIT_PREMIUM": "60",
}


@asynccontextmanager
async def _start_api(system, **environment: str) -> AsyncIterator[str]:
    async with run_second_api(system, **TIER_LIMITS, **environment) as url:
        yield f"{url}/api/v1"


async def _request_statuses(http: httpx.AsyncClient, times: int) -> list[int]:
    return [(await http.get("/agents")).status_code for _ in range(times)]


@pytest.mark.parametrize("redis", ["available", "unavailable"])
async def test_each_tier_has_its_limit(system, acme: TenantClient, redis: str) -> None:
    environment = {} if redis == "available" else {"PADDOCK_REDIS_URL": "redis://127.0.0.1:9/0"}
    async with _start_api(system, **environment) as url:
        async with httpx.AsyncClient(base_url=url, timeout=30) as anonymous:
            # At most one new hour begins during the requests.
            statuses = await _request_statuses(anonymous, 12)
            assert set(statuses) == {401, 429}
            assert statuses[:4] == [401] * 4
            refused = await anonymous.get("/agents")
            if refused.status_code == 429:
                assert refused.headers["X-RateLimit-Limit"] == "4"
                assert refused.headers["X-RateLimit-Remaining"] == "0"
            assert (await anonymous.get(url.removesuffix("/api/v1") + "/health/live")).status_code == 200
        headers = {"X-API-Key": await acme.create_key()}
        async with httpx.AsyncClient(base_url=url, headers=headers, timeout=30) as authenticated:
            statuses = await _request_statuses(authenticated, 16)
            assert set(statuses) == {200, 429}
            assert statuses[:6] == [200] * 6
            assert await set_tenant_plan(system.settings, acme.tenant_id, "premium") == 0
            answer = await authenticated.get("/agents")
            assert answer.status_code == 200
            assert answer.headers["X-RateLimit-Limit"] == "60"


async def test_setting_the_plan_of_an_unknown_tenant_fails(system) -> None:
    assert await set_tenant_plan(system.settings, "unknown-tenant", "premium") == 1
