"""Calculate the cost of calls: from prices set by hand, from those that genai-prices knows, and without a price."""

import asyncio

import pytest

from domain.llms import ModelPrice, ModelTarget, ModelUsage
from infra.llm import GenaiPrices

prices = GenaiPrices()
MILLION_TOKENS = ModelUsage(prompt_tokens=1_000_000, completion_tokens=1_000_000)


def build_target(provider: str, model: str, price: ModelPrice | None = None) -> ModelTarget:
    return ModelTarget(name="registered", provider=provider, model=model, price=price)


def test_price_set_by_hand_wins():
    for provider, model in (("openai", "gpt-4o"), ("local", "smollm2"), ("databricks", "own")):
        assert prices.calculate_cost(
            build_target(provider, model, ModelPrice(input=2.0, output=3.0)), MILLION_TOKENS
        ) == pytest.approx(5.0)
    cached = ModelUsage(prompt_tokens=1000, completion_tokens=100, cached_tokens=400, reasoning_tokens=90)
    expensive = ModelPrice(input=2.0, output=10.0)
    assert prices.calculate_cost(build_target("openai", "gpt-4o", expensive), cached) == pytest.approx(
        (1000 * 2 + 100 * 10) / 1e6
    )
    cheap = ModelPrice(input=2.0, output=10.0, cached_input=0.5)
    assert prices.calculate_cost(build_target("openai", "gpt-4o", cheap), cached) == pytest.approx(
        (600 * 2 + 400 * 0.5 + 100 * 10) / 1e6
    )


@pytest.mark.parametrize("provider", ["local", "ollama"])
def test_own_machines_are_free(provider: str):
    assert prices.calculate_cost(build_target(provider, "gpt-4o"), MILLION_TOKENS) == 0.0


def test_known_models_have_prices():
    assert prices.calculate_cost(build_target("openai", "gpt-4o"), MILLION_TOKENS) == pytest.approx(12.5)
    assert prices.calculate_cost(
        build_target("anthropic", "claude-3-5-haiku-20241022"), MILLION_TOKENS
    ) == pytest.approx(4.8)
    assert (prices.calculate_cost(build_target("deepseek", "deepseek-chat"), MILLION_TOKENS) or 0) > 0
    for provider, model, price in (
        ("gemini", "gemini-2.5-flash", 0.3 + 2.5),
        ("bedrock", "us.anthropic.claude-sonnet-4-5-20250929-v1:0", 3.3 + 16.5),
        ("bedrock", "amazon.nova-lite-v1:0", 0.06 + 0.24),
        ("azure", "gpt-4o", 2.5 + 10),
        ("mistral", "mistral-large-latest", 2 + 6),
        ("groq", "llama-3.3-70b-versatile", 0.59 + 0.79),
    ):
        assert prices.calculate_cost(build_target(provider, model), MILLION_TOKENS) == pytest.approx(price), provider
    paid = prices.calculate_cost(build_target("openrouter", "deepseek/deepseek-chat"), MILLION_TOKENS)
    assert paid is not None
    assert prices.calculate_cost(
        build_target("openrouter", "deepseek/deepseek-chat:nitro"), MILLION_TOKENS
    ) == pytest.approx(paid)
    assert prices.calculate_cost(build_target("openrouter", "deepseek/deepseek-chat:free"), MILLION_TOKENS) == 0.0
    # Served by another provider, with a model name that says who made it.
    assert prices.calculate_cost(build_target("openai_compatible", "gpt-4o"), MILLION_TOKENS) == pytest.approx(12.5)


def test_cached_tokens_are_cheaper_and_reasoning_is_paid_once():
    cached_usage = ModelUsage(prompt_tokens=1_000_000, completion_tokens=1_000_000, cached_tokens=1_000_000)
    assert prices.calculate_cost(build_target("openai", "gpt-4o"), cached_usage) == pytest.approx(11.25)
    reasoning_usage = ModelUsage(prompt_tokens=1_000_000, completion_tokens=1_000_000, reasoning_tokens=900_000)
    plain = prices.calculate_cost(build_target("openai", "o3-mini"), MILLION_TOKENS)
    assert plain is not None
    assert prices.calculate_cost(build_target("openai", "o3-mini"), reasoning_usage) == pytest.approx(plain)


def test_implausible_cached_tokens_are_ignored():
    implausible = ModelUsage(prompt_tokens=100, completion_tokens=0, cached_tokens=1000)
    assert prices.calculate_cost(build_target("openai", "gpt-4o"), implausible) == pytest.approx(100 * 1.25 / 1e6)


def test_provider_is_recognized_by_its_url():
    def calculate_at(url: str) -> float | None:
        target = ModelTarget(name="r", provider="openai_compatible", model="llama-3.3-70b-versatile", base_url=url)
        return prices.calculate_cost(target, MILLION_TOKENS)

    assert calculate_at("https://api.groq.com/openai/v1") == pytest.approx(0.59 + 0.79)
    assert calculate_at("https://gpu.example.com/v1") is None  # the weights are free, and the host is unknown


@pytest.mark.parametrize(
    ("provider", "model"), [("openai_compatible", "my-own-model"), ("databricks", "x"), ("openai", "")]
)
def test_unknown_models_have_no_price(provider: str, model: str):
    assert prices.calculate_cost(build_target(provider, model), MILLION_TOKENS) is None


def test_empty_usage_costs_nothing():
    assert prices.calculate_cost(build_target("openai", "gpt-4o"), ModelUsage()) == 0.0


async def test_prices_are_not_fetched(monkeypatch: pytest.MonkeyPatch):
    def refuse_network(*_: object, **__: object) -> None:
        raise AssertionError("the network was used")

    monkeypatch.setattr("socket.socket.connect", refuse_network)
    monkeypatch.setattr(asyncio.get_running_loop(), "getaddrinfo", refuse_network, raising=False)
    assert GenaiPrices().calculate_cost(build_target("openai", "gpt-4o"), MILLION_TOKENS) == pytest.approx(12.5)
