"""Models whose calls nobody would have to pay for: who may make them, and what else the registry of models refuses."""

from typing import Any

import pytest

from tests.support.clients import TenantClient

MODEL = {"name": "fast", "provider": "openai", "model": "gpt-4o"}
FREE = {"input": 0, "output": 0}
DEAR = {"input": 1, "output": 2}


@pytest.mark.parametrize(
    ("price", "is_free"),
    [
        (FREE, True),
        ({"input": 0, "output": 2}, True),
        ({"input": 1, "output": 0}, True),
        ({"input": 1, "output": 2, "cached_input": 0}, True),
        ({"input": 1e-9, "output": 1e-9}, True),
        (DEAR, False),
        (None, False),
    ],
)
async def test_a_price_of_nothing_needs_the_scope_of_costs(acme: TenantClient, price: Any, is_free: bool) -> None:
    without = await acme.create_key(scopes=["read:catalog", "write:catalog"])
    with_costs = await acme.create_key(scopes=["write:catalog", "write:costs"])
    async with acme.open_client(without) as http:
        answer = await http.post("/models", json={**MODEL, "price": price})
        assert answer.status_code == (403 if is_free else 201)
        if is_free:
            assert answer.json()["error"] == "missing_scope"
            assert "price" in answer.json()["detail"]
            assert "write:costs" in answer.json()["detail"]
            assert (await http.post("/models", json={**MODEL, "price": DEAR})).status_code == 201
            assert (await http.patch("/models/fast", json={"price": price})).status_code == 403
    async with acme.open_client(with_costs) as http:
        assert (await http.patch("/models/fast", json={"price": price})).status_code == 200


async def test_a_free_model_does_not_become_another(acme: TenantClient) -> None:
    assert (await acme.http.post("/models", json={**MODEL, "price": FREE})).status_code == 201
    async with acme.open_client(await acme.create_key(scopes=["write:catalog"])) as http:
        for name, change in (
            ("smollm2", {"provider": "openai", "model": "gpt-4o"}),
            ("fast", {"model": "gpt-4.1"}),
            ("fast", {"base_url": "https://other.example.com/v1"}),
            ("fast", {"provider": "deepseek"}),
        ):
            assert (await http.patch(f"/models/{name}", json=change)).status_code == 403
        assert (await http.patch("/models/fast", json={"parameters": {"temperature": 1}})).status_code == 200
        assert (await http.patch("/models/fast", json={"model": "gpt-4.1", "price": None})).status_code == 200


async def test_which_interface_a_model_is_asked_over(acme: TenantClient) -> None:
    made = await acme.http.post("/models", json={**MODEL, "api": "chat"})
    assert (made.status_code, made.json()["api"]) == (201, "chat")
    assert (await acme.http.patch("/models/fast", json={"api": None})).json()["api"] is None
    for body in ({"api": "both"}, {"api": "responses", "provider": "anthropic"}):
        refused = await acme.http.post("/models", json={**MODEL, "name": "b", **body})
        assert (refused.status_code, refused.json()["errors"][0]["field"]) == (422, "api")
    refused = await acme.http.patch("/models/smollm2", json={"api": "chat"})
    assert (refused.status_code, refused.json()["errors"][0]["field"]) == (422, "api")


async def test_what_a_call_decides_is_refused_with_its_name(acme: TenantClient) -> None:
    for parameters in ({"extra_body": {"max_tokens": 100_000}}, {"extra_body": {"n": 9}}, {"extra_headers": {}}):
        refused = await acme.http.post("/models", json={**MODEL, "parameters": parameters})
        assert refused.status_code == 422
        [error] = refused.json()["errors"]
        [name] = parameters
        assert error["field"] == f"parameters.{name}"
        if name == "extra_body":
            assert repr(next(iter(parameters[name]))) in error["message"]
