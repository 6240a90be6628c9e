"""What calls cost: prices set by hand, those that genai-prices knows, and none."""

import asyncio

import pytest

from domain.llms import ModelPrice, ModelTarget, ModelUsage
from infra.llm import GenaiPrices

prices = GenaiPrices()
MILLION = ModelUsage(prompt_tokens=1_000_000, completion_tokens=1_000_000)


def of(provider: str, model: str, price: ModelPrice | None = None) -> ModelTarget:
    return ModelTarget(name="registered", provider=provider, model=model, price=price)


def test_a_price_set_by_hand_wins_even_over_what_is_free_or_known():
    for provider, model in (("openai", "gpt-4o"), ("local", "smollm2"), ("databricks", "own")):
        assert prices.calculate_cost(of(provider, model, ModelPrice(input=2.0, output=3.0)), MILLION) == pytest.approx(
            5.0
        )
    cached = ModelUsage(prompt_tokens=1000, completion_tokens=100, cached_tokens=400, reasoning_tokens=90)
    dear = ModelPrice(input=2.0, output=10.0)
    assert prices.calculate_cost(of("openai", "gpt-4o", dear), cached) == pytest.approx((1000 * 2 + 100 * 10) / 1e6)
    cheap = ModelPrice(input=2.0, output=10.0, cached_input=0.5)
    assert prices.calculate_cost(of("openai", "gpt-4o", cheap), cached) == pytest.approx(
        (600 * 2 + 400 * 0.5 + 100 * 10) / 1e6
    )


@pytest.mark.parametrize("provider", ["local", "ollama"])
def test_ones_own_machines_are_free(provider: str):
    assert prices.calculate_cost(of(provider, "gpt-4o"), MILLION) == 0.0


def test_known_models():
    assert prices.calculate_cost(of("openai", "gpt-4o"), MILLION) == pytest.approx(12.5)
    assert prices.calculate_cost(of("anthropic", "claude-3-5-haiku-20241022"), MILLION) == pytest.approx(4.8)
    assert (prices.calculate_cost(of("deepseek", "deepseek-chat"), MILLION) or 0) > 0
    # Served by somebody else, but of a name that says whose it is.
    assert prices.calculate_cost(of("openai_compatible", "gpt-4o"), MILLION) == pytest.approx(12.5)


def test_cached_tokens_are_cheaper_and_thoughts_are_paid_once():
    used = ModelUsage(prompt_tokens=1_000_000, completion_tokens=1_000_000, cached_tokens=1_000_000)
    assert prices.calculate_cost(of("openai", "gpt-4o"), used) == pytest.approx(11.25)
    thought = ModelUsage(prompt_tokens=1_000_000, completion_tokens=1_000_000, reasoning_tokens=900_000)
    plain = prices.calculate_cost(of("openai", "o3-mini"), MILLION)
    assert plain is not None
    assert prices.calculate_cost(of("openai", "o3-mini"), thought) == pytest.approx(plain)


def test_more_cached_than_sent_is_not_believed():
    odd = ModelUsage(prompt_tokens=100, completion_tokens=0, cached_tokens=1000)
    assert prices.calculate_cost(of("openai", "gpt-4o"), odd) == pytest.approx(100 * 1.25 / 1e6)


def test_a_known_provider_behind_a_url():
    def at(url: str) -> float | None:
        target = ModelTarget(name="r", provider="openai_compatible", model="llama-3.3-70b-versatile", base_url=url)
        return prices.calculate_cost(target, MILLION)

    assert at("https://api.groq.com/openai/v1") == pytest.approx(0.59 + 0.79)
    assert at("https://gpu.example.com/v1") is None  # the weights are free, and whose machine it is nobody told


@pytest.mark.parametrize(
    ("provider", "model"), [("openai_compatible", "my-own-model"), ("databricks", "x"), ("openai", "")]
)
def test_unknown_is_none(provider: str, model: str):
    assert prices.calculate_cost(of(provider, model), MILLION) is None


def test_nothing_costs_nothing():
    assert prices.calculate_cost(of("openai", "gpt-4o"), ModelUsage()) == 0.0


async def test_prices_are_not_fetched(monkeypatch: pytest.MonkeyPatch):
    def no(*_: object, **__: object) -> None:
        raise AssertionError("somebody wants out")

    monkeypatch.setattr("socket.socket.connect", no)
    monkeypatch.setattr(asyncio.get_running_loop(), "getaddrinfo", no, raising=False)
    assert GenaiPrices().calculate_cost(of("openai", "gpt-4o"), MILLION) == pytest.approx(12.5)
