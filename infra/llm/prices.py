"""Compute the cost of calls with the data inside genai-prices. New prices come with a new package only."""

from collections.abc import Mapping
from contextlib import suppress
from typing import Final

from domain.llms import ModelPrice, ModelTarget, ModelUsage

# The data's names of providers whose prices do not depend on the URL. Other prices are found by URL, else by the
# model's name.
_PRICED_PROVIDERS: Final[Mapping[str, str]] = {
    "openai": "openai",
    "anthropic": "anthropic",
    "deepseek": "deepseek",
    "gemini": "google",
    "bedrock": "aws",
    "azure": "azure",
    "mistral": "mistral",
    "groq": "groq",
    "openrouter": "openrouter",
}


class GenaiPrices:
    """Look up prices, as `domain.ports.Prices` asks. The first look-up loads the data, which takes some 100 ms."""

    def calculate_cost(self, target: ModelTarget, usage: ModelUsage) -> float | None:
        """Return the dollars of one call, or None if the price is unknown (see `domain.ports.Prices`)."""
        if target.price is not None:
            return _apply_price(target.price, usage)
        if target.provider == "local" or (target.provider == "ollama" and not target.base_url):
            return 0.0
        from genai_prices import Usage as Used
        from genai_prices import calc_price

        # Both sides count reasoning within the completion and cached tokens within the prompt.
        used = Used(
            input_tokens=usage.prompt_tokens,
            output_tokens=usage.completion_tokens,
            cache_read_tokens=min(usage.cached_tokens, usage.prompt_tokens),
        )
        if target.base_url and target.provider not in _PRICED_PROVIDERS:
            with suppress(LookupError):
                return float(calc_price(used, target.model, provider_api_url=target.base_url).total_price)
        if target.provider == "ollama":
            return 0.0  # free, unless the URL above belongs to a provider with prices
        model, _, variant = target.model.partition(":") if target.provider == "openrouter" else (target.model, "", "")
        if variant == "free":
            return 0.0
        with suppress(LookupError):
            whose = _PRICED_PROVIDERS.get(target.provider)
            return float(calc_price(used, model, provider_id=whose).total_price)
        return None


def _apply_price(price: ModelPrice, usage: ModelUsage) -> float:
    cached = min(usage.cached_tokens, usage.prompt_tokens)
    dear = price.input if price.cached_input is None else price.cached_input
    prompt = (usage.prompt_tokens - cached) * price.input + cached * dear
    return (prompt + usage.completion_tokens * price.output) / 1_000_000
