"""Define what a call of a model is made with and from."""

from collections.abc import Awaitable, Callable
from typing import Final

import msgspec

from domain.costs import BilledCall
from domain.llms import ChatMessage, ModelOptions, ModelReply, ModelTarget, ModelUsage, ToolSpec
from domain.ports import Llm, Prices, Store, Tx
from infra.credentials import Keyring

# The most that providers charge for the tier `priority`, as a multiple of the price of the standard tier.
PRIORITY_PRICE_FACTOR: Final = 2.0

# Writes along in the transaction that records an answered call.
WriteAnswer = Callable[[Tx, ModelReply], Awaitable[None]]


class AgentRateLimit(msgspec.Struct, frozen=True, kw_only=True):
    """Limit the model calls per minute of one agent in the plan that its run belongs to."""

    agent: str
    max_rpm: int


class ModelRequest(msgspec.Struct, frozen=True, kw_only=True):
    """Hold what one call asks of a model."""

    target: ModelTarget
    messages: tuple[ChatMessage, ...]
    tools: tuple[ToolSpec, ...] = ()
    options: ModelOptions = ModelOptions()
    rate_limit: AgentRateLimit | None = None


class ModelAccess(msgspec.Struct, frozen=True, kw_only=True):
    """Hold what it takes to call models in one worker process. `on_call` receives every call that was billed."""

    store: Store
    llm: Llm
    prices: Prices
    keyring: Keyring
    on_call: Callable[[BilledCall], None] = lambda call: None

    def calculate_cost(self, request: ModelRequest, usage: ModelUsage) -> float:
        """Return the price of what a call uses in dollars, 0 where it is not known.

        Price lists know the standard tier. A call that asks for the tier `priority` counts as the dearest there is.
        """
        price = self.prices.calculate_cost(request.target, usage) or 0.0
        return price * PRIORITY_PRICE_FACTOR if request.options.service_tier == "priority" else price
