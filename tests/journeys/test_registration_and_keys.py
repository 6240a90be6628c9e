"""Test registration, login and API keys with the paths and bodies of Kurral, AgentOps, Kasal and Paracle."""

import httpx

from scripts.system import System


async def test_accounts_as_kurral_shows_them(system: System) -> None:
    async with httpx.AsyncClient(base_url=f"{system.url}/api/v1") as web:
        body = {
            "email": "kurral@example.com",
            "password": "securepassword",
            "tenant_id": "acme-corp",
            "full_name": "John Doe",
        }
        assert (await web.post("/auth/register", json=body)).json()["tenant_id"] == "acme-corp"
        # Joining an existing tenant requires an invitation from its admin.
        other = {**body, "email": "second@example.com"}
        refused = await web.post("/auth/register", json=other)
        assert refused.status_code == 403
        assert refused.json()["error"] == "invitation_required"

        login = {"email": "kurral@example.com", "password": "securepassword"}
        tokens = (await web.post("/auth/login", json=login)).json()
        bearer = {"Authorization": f"Bearer {tokens['access_token']}"}
        refreshed = await web.post("/auth/refresh", json={"refresh_token": tokens["refresh_token"]})
        assert refreshed.status_code == 200

        created = await web.post(
            "/api-keys",
            headers=bearer,
            json={"name": "Production Key", "scopes": ["read:artifacts", "write:artifacts"]},
        )
        assert created.json()["scopes"] == ["read:artifacts", "write:artifacts"]
        key_id = created.json()["id"]
        assert (await web.get("/users/me", headers=bearer)).json()["full_name"] == "John Doe"
        changed = await web.patch("/users/me", headers=bearer, json={"full_name": "Jane Doe"})
        assert changed.json()["full_name"] == "Jane Doe"
        assert [user["email"] for user in (await web.get("/users", headers=bearer)).json()["items"]] == [
            "kurral@example.com"
        ]
        assert (await web.get(f"/api-keys/{key_id}", headers=bearer)).json()["name"] == "Production Key"
        renamed = await web.patch(f"/api-keys/{key_id}", headers=bearer, json={"name": "Old Key"})
        assert renamed.json()["name"] == "Old Key"
        revoked = await web.post(f"/api-keys/{key_id}/revoke", headers=bearer)
        assert revoked.json()["is_active"] is False
        assert (await web.delete(f"/api-keys/{key_id}", headers=bearer)).status_code == 204

        invited = await web.post("/users/invites", headers=bearer, json={"email": "second@example.com"})
        joined = await web.post("/auth/register", json={**other, "invite_token": invited.json()["invite_token"]})
        assert (joined.json()["tenant_id"], joined.json()["role"]) == ("acme-corp", "member")


async def test_accounts_as_agentops_shows_them(system: System) -> None:
    async with httpx.AsyncClient(base_url=f"{system.url}/api/v1") as web:
        body = {"email": "ops@example.com", "password": "securepassword123", "full_name": "John Doe"}
        assert (await web.post("/auth/register", json=body)).status_code == 201
        login = await web.post("/auth/login", json={"email": "ops@example.com", "password": "securepassword123"})
        assert login.json()["token_type"] == "bearer"
        assert login.json()["expires_in"] == 1800
        bearer = {"Authorization": f"Bearer {login.json()['access_token']}"}
        created = await web.post("/auth/api-keys", headers=bearer, json={"name": "My Production Key"})
        assert created.status_code == 201
        assert {"id", "name", "key", "created_at", "is_active"} <= created.json().keys()
        # With the trailing slash that the document shows.
        assert (await web.get("/agents/", headers={"X-API-Key": created.json()["key"]})).status_code == 200
        for path in ("/health", "/health/db", "/health/ready"):
            assert (await web.get(f"{system.url}{path}")).status_code == 200


async def test_bearer_keys_as_kasal_shows_them(system: System, acme) -> None:
    key = await acme.create_key()
    async with httpx.AsyncClient(base_url=acme.http.base_url) as client:
        bearer = {"Authorization": f"Bearer {key}"}
        answer = await client.get("/agents?limit=20&offset=0", headers=bearer)
        assert answer.json() == {"items": [], "total": 0, "limit": 20, "offset": 0, "has_more": False}
        listed = await client.get(f"/executions?group_id={acme.tenant_id}&status=completed", headers=bearer)
        assert listed.status_code == 200


async def test_accounts_as_paracle_shows_them(system: System) -> None:
    async with httpx.AsyncClient(base_url=system.url) as client:
        body = {"email": "paracle@example.com", "password": "secure_password"}
        assert (await client.post("/api/v1/auth/register", json=body)).status_code == 201
        login = await client.post(
            "/api/v1/auth/login", json={"username": "paracle@example.com", "password": "secure_password"}
        )
        tokens = login.json()
        assert {"access_token", "refresh_token", "token_type", "expires_in"} == tokens.keys()
        client.headers["Authorization"] = f"Bearer {tokens['access_token']}"
        listed = await client.get("/api/v1/agents")
        assert listed.status_code == 200
        assert {"x-ratelimit-limit", "x-ratelimit-remaining", "x-ratelimit-reset"} <= set(listed.headers)
        refreshed = await client.post("/api/v1/auth/refresh", json={"refresh_token": tokens["refresh_token"]})
        assert refreshed.json()["token_type"] == "bearer"
        metrics = await client.get("/metrics")
        assert 'paddock_requests_total{endpoint="/api/v1/agents",method="GET",status="200"}' in metrics.text
