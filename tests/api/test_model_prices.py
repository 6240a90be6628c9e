"""Test who may register models without a price, and what else the registry of models refuses."""

from typing import Any

import pytest

from tests.support.clients import TenantClient

EXAMPLE_MODEL = {"name": "fast", "provider": "openai", "model": "gpt-4o"}
FREE_PRICE = {"input": 0, "output": 0}
PAID_PRICE = {"input": 1, "output": 2}


@pytest.mark.parametrize(
    ("price", "is_free"),
    [
        (FREE_PRICE, True),
        ({"input": 0, "output": 2}, True),
        ({"input": 1, "output": 0}, True),
        ({"input": 1, "output": 2, "cached_input": 0}, True),
        ({"input": 1e-9, "output": 1e-9}, True),
        (PAID_PRICE, False),
        (None, False),
    ],
)
async def test_free_price_requires_the_scope_write_costs(acme: TenantClient, price: Any, is_free: bool) -> None:
    without = await acme.create_key(scopes=["read:catalog", "write:catalog"])
    with_costs = await acme.create_key(scopes=["write:catalog", "write:costs"])
    async with acme.open_client(without) as http:
        answer = await http.post("/models", json={**EXAMPLE_MODEL, "price": price})
        assert answer.status_code == (403 if is_free else 201)
        if is_free:
            assert answer.json()["error"] == "missing_scope"
            assert "price" in answer.json()["detail"]
            assert "write:costs" in answer.json()["detail"]
            assert (await http.post("/models", json={**EXAMPLE_MODEL, "price": PAID_PRICE})).status_code == 201
            assert (await http.patch("/models/fast", json={"price": price})).status_code == 403
    async with acme.open_client(with_costs) as http:
        assert (await http.patch("/models/fast", json={"price": price})).status_code == 200


async def test_free_model_cannot_be_pointed_at_another_provider(acme: TenantClient) -> None:
    assert (await acme.http.post("/models", json={**EXAMPLE_MODEL, "price": FREE_PRICE})).status_code == 201
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


async def test_api_of_a_model_must_fit_its_provider(acme: TenantClient) -> None:
    created = await acme.http.post("/models", json={**EXAMPLE_MODEL, "api": "chat"})
    assert (created.status_code, created.json()["api"]) == (201, "chat")
    assert (await acme.http.patch("/models/fast", json={"api": None})).json()["api"] is None
    for body in ({"api": "both"}, {"api": "responses", "provider": "anthropic"}):
        refused = await acme.http.post("/models", json={**EXAMPLE_MODEL, "name": "b", **body})
        assert (refused.status_code, refused.json()["errors"][0]["field"]) == (422, "api")
    refused = await acme.http.patch("/models/smollm2", json={"api": "chat"})
    assert (refused.status_code, refused.json()["errors"][0]["field"]) == (422, "api")


async def test_reserved_parameters_are_refused_by_name(acme: TenantClient) -> None:
    for parameters in ({"extra_body": {"max_tokens": 100_000}}, {"extra_body": {"n": 9}}, {"extra_headers": {}}):
        refused = await acme.http.post("/models", json={**EXAMPLE_MODEL, "parameters": parameters})
        assert refused.status_code == 422
        [error] = refused.json()["errors"]
        [name] = parameters
        assert error["field"] == f"parameters.{name}"
        if name == "extra_body":
            assert repr(next(iter(parameters[name]))) in error["message"]
