"""Calls of a dearer tier count as the dearest there is, in reservations and bills."""

from typing import cast

import pytest

from domain.llms import ModelOptions, ModelTarget, ModelUsage
from domain.ports import Llm, Prices, Store
from infra.credentials import Keyring
from workers.model_calls.schema import PRIORITY_PRICE_FACTOR, ModelAccess, ModelRequest


class StandardPrices:
    def calculate_cost(self, target: ModelTarget, usage: ModelUsage) -> float | None:
        return None if target.model == "unknown" else usage.prompt_tokens * 0.5


ACCESS = ModelAccess(
    store=cast(Store, None), llm=cast(Llm, None), prices=cast(Prices, StandardPrices()), keyring=cast(Keyring, None)
)


@pytest.mark.parametrize(
    ("tier", "model", "cost"),
    [
        (None, "known", 2.0),
        ("default", "known", 2.0),
        ("flex", "known", 2.0),
        ("priority", "known", 2.0 * PRIORITY_PRICE_FACTOR),
        ("priority", "unknown", 0.0),
    ],
)
def test_priority_counts_as_its_highest_price(tier: str | None, model: str, cost: float) -> None:
    target = ModelTarget(provider="openai", model=model, name=model)
    request = ModelRequest(target=target, messages=(), options=ModelOptions(service_tier=tier))
    assert ACCESS.calculate_cost(request, ModelUsage(prompt_tokens=4)) == cost
