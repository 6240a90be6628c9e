"""Secrets and variables of agents at the API: what is accepted, what is refused with its reason, and what is shown."""

from typing import Any

import pytest

from tests.support.clients import TenantClient

VALUE = "ghp_x7Rk29vLmQ04TzWb61"


async def create_secret(tenant: TenantClient, name: str = "GITHUB_TOKEN", **more: Any) -> dict[str, Any]:
    answer = await tenant.http.post("/secrets", json={"name": name, "value": VALUE, **more})
    assert answer.status_code == 201, answer.text
    return dict(answer.json())


async def test_a_secret_is_stored_listed_changed_and_deleted_but_never_shown(acme: TenantClient) -> None:
    agent = await acme.create_agent("greeter")
    created = await create_secret(acme, agents=["greeter"])
    assert created["agents"] == [agent["id"]]
    assert created["needed_by"] == []
    other = await create_secret(acme, "OTHER")
    responses = [
        await acme.http.get(path) for path in ("/secrets", "/secrets/GITHUB_TOKEN", f"/secrets/{created['id']}")
    ]
    assert responses[0].json()["items"] == [other, created]
    assert responses[1].json() == responses[2].json() == created
    assert (await acme.http.get("/secrets?limit=1&offset=5")).json()["total"] == 2
    changed = await acme.http.patch("/secrets/GITHUB_TOKEN", json={"value": "another-value", "agents": None})
    assert changed.json()["agents"] is None
    emptied = await acme.http.put("/secrets/GITHUB_TOKEN", json={"agents": []})
    assert emptied.json()["agents"] == []
    for answer in (*responses, changed, emptied):
        assert VALUE not in answer.text
        assert "another-value" not in answer.text
    assert (await acme.http.delete("/secrets/GITHUB_TOKEN")).status_code == 204
    assert (await acme.http.get("/secrets/GITHUB_TOKEN")).status_code == 404
    again = await create_secret(acme)
    assert again["id"] != created["id"]


async def test_a_repeated_request_gets_the_first_answer(acme: TenantClient, resources) -> None:
    body, headers = {"name": "ONCE", "value": VALUE}, {"Idempotency-Key": "once"}
    first = await acme.http.post("/secrets", json=body, headers=headers)
    second = await acme.http.post("/secrets", json=body, headers=headers)
    assert second.json() == first.json()
    assert second.headers["Idempotency-Replayed"] == "true"
    other = await acme.http.post("/secrets", json={**body, "value": "another-value"}, headers=headers)
    assert other.json()["error"] == "idempotency_conflict"
    assert (await acme.http.post("/secrets", json=body)).status_code == 409


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("", "length"),
        ("1TOKEN", "without a digit at its beginning"),
        ("MY-TOKEN", "letters A to Z"),
        ("GRÜN", "letters A to Z"),
        ("A" * 257, "length"),
        ("PATH", "is reserved: the sandbox sets it."),
        ("HOME", "is reserved"),
        ("PADDOCK_SECRET_KEY", "is reserved: Paddock sets"),
        ("https_proxy", "is reserved: the sandbox sets the proxy"),
        ("LD_PRELOAD", "is reserved"),
        ("PYTHONPATH", "is reserved"),
        ("secret_01h455vb4pex5vsknk084sn02q", "must not look like an id"),
    ],
)
async def test_names_that_are_refused(acme: TenantClient, name: str, message: str) -> None:
    answer = await acme.http.post("/secrets", json={"name": name, "value": VALUE})
    assert answer.status_code == 422
    assert [error["field"] for error in answer.json()["errors"]] == ["name"]
    assert message in answer.json()["errors"][0]["message"]
    assert VALUE not in answer.text


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("abc", "length"),
        ("  abc  ", "cannot be masked"),
        ("x" * (64 * 1024 + 1), "length"),
        ("ü" * (32 * 1024 + 1), "has 65538 bytes; at most 65536 are allowed"),
        ("abcd\0efgh", "U+0000"),
        (12345678, "Expected `str`"),
        (None, "Expected `str`"),
    ],
)
async def test_values_that_are_refused(acme: TenantClient, value: Any, message: str) -> None:
    answer = await acme.http.post("/secrets", json={"name": "TOKEN", "value": value})
    assert answer.status_code == 422, answer.text
    assert [error["field"] for error in answer.json()["errors"]] == ["value"]
    assert message in answer.json()["errors"][0]["message"]
    assert not value or str(value).strip() not in answer.text


async def test_the_largest_value_is_accepted(acme: TenantClient) -> None:
    answer = await acme.http.post("/secrets", json={"name": "LARGE", "value": "x" * 64 * 1024})
    assert answer.status_code == 201


async def test_agents_that_are_refused(acme: TenantClient, other_tenant: TenantClient) -> None:
    theirs = await other_tenant.create_agent()
    model = (await acme.http.post("/agents", json={"name": "poet", "model": "smollm2"})).json()
    body = {"name": "TOKEN", "value": VALUE, "agents": [theirs["id"], theirs["name"], "unknown", model["id"]]}
    answer = await acme.http.post("/secrets", json=body)
    assert [error["field"] for error in answer.json()["errors"]] == [f"agents[{number}]" for number in range(4)]
    assert "only uploaded agents have secrets" in answer.json()["errors"][3]["message"]
    assert (await acme.http.post("/secrets", json={**body, "agents": ["x"] * 101})).status_code == 422
    await create_secret(other_tenant)
    for answer in (
        await acme.http.get("/secrets/GITHUB_TOKEN"),
        await acme.http.patch("/secrets/GITHUB_TOKEN", json={"value": VALUE}),
        await acme.http.delete("/secrets/GITHUB_TOKEN?force=true"),
    ):
        assert answer.status_code == 404
    assert (await acme.http.get("/secrets")).json()["items"] == []


async def test_a_deleted_agent_may_have_a_secret_no_more(acme: TenantClient) -> None:
    agent = await acme.create_agent()
    secret = await create_secret(acme, agents=[agent["id"]])
    assert (await acme.http.delete(f"/agents/{agent['id']}")).status_code == 204
    # No agent may have it now, rather than every agent.
    assert (await acme.http.get(f"/secrets/{secret['id']}")).json()["agents"] == []


async def test_scopes_of_secrets(acme: TenantClient) -> None:
    await create_secret(acme)
    async with acme.open_client(await acme.create_key(scopes=["read:secrets"])) as reader:
        assert (await reader.get("/secrets")).json()["total"] == 1
        assert (await reader.patch("/secrets/GITHUB_TOKEN", json={"value": VALUE})).status_code == 403
    async with acme.open_client(await acme.create_key(scopes=["write:secrets"])) as writer:
        assert (await writer.patch("/secrets/GITHUB_TOKEN", json={"value": VALUE})).status_code == 200
        assert (await writer.get("/secrets")).status_code == 403
    async with acme.open_client(await acme.create_key(scopes=["read:catalog", "write:catalog"])) as other:
        assert (await other.get("/secrets")).status_code == 403
