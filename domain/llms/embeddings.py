"""Describe calls of models that turn texts into vectors."""

from array import array
from collections.abc import Callable

import msgspec

from domain.llms.messages import ModelTarget, ReportedUsage


class EmbeddingCall(msgspec.Struct, frozen=True, kw_only=True):
    """Describe one call. `timeout` is in seconds, for the whole answer. `dimensions` None is the model's own number.

    `on_sent` is called once the request is sent: from then on its texts have to be paid.
    """

    target: ModelTarget
    texts: tuple[str, ...]
    dimensions: int | None = None
    timeout: float = 60.0
    on_sent: Callable[[], None] | None = None


class EmbeddingReply(msgspec.Struct, frozen=True, kw_only=True):
    """Hold a vector for each text, in order, and what the provider says that it used."""

    vectors: tuple["array[float]", ...]
    usage: ReportedUsage | None
