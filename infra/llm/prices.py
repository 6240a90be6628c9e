"""What calls cost, by the data inside genai-prices. They are never fetched: new prices come with a new package."""

from contextlib import suppress
from typing import Final

from domain.llms import ModelPrice, ModelTarget, ModelUsage

# Whose prices are looked up whatever the URL. Those of others are found by their URL, or else by the model's name.
_PRICED_PROVIDERS: Final = frozenset({"openai", "anthropic", "deepseek"})


class GenaiPrices:
    """Implements `domain.ports.Prices`. Loads its data, some 100 ms, when it first needs them."""

    def calculate_cost(self, target: ModelTarget, usage: ModelUsage) -> float | None:
        """See `domain.ports.Prices`."""
        if target.price is not None:
            return _apply_price(target.price, usage)
        if target.provider == "local" or (target.provider == "ollama" and not target.base_url):
            return 0.0
        from genai_prices import Usage as Used
        from genai_prices import calc_price

        # Reasoning is part of the completion, and cached tokens part of the prompt, there as here.
        used = Used(
            input_tokens=usage.prompt_tokens,
            output_tokens=usage.completion_tokens,
            cache_read_tokens=min(usage.cached_tokens, usage.prompt_tokens),
        )
        if target.base_url and target.provider not in _PRICED_PROVIDERS:
            with suppress(LookupError):
                return float(calc_price(used, target.model, provider_api_url=target.base_url).total_price)
        if target.provider == "ollama":
            return 0.0  # wherever it runs, unless the address is that of somebody who asks for money
        with suppress(LookupError):
            whose = target.provider if target.provider in _PRICED_PROVIDERS else None
            return float(calc_price(used, target.model, provider_id=whose).total_price)
        return None


def _apply_price(price: ModelPrice, usage: ModelUsage) -> float:
    cached = min(usage.cached_tokens, usage.prompt_tokens)
    dear = price.input if price.cached_input is None else price.cached_input
    prompt = (usage.prompt_tokens - cached) * price.input + cached * dear
    return (prompt + usage.completion_tokens * price.output) / 1_000_000
