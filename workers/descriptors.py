"""Give a worker process as many open files as its slots may need, or say what to change."""

from typing import Final

import structlog

from domain.egress import DEFAULT_EGRESS_PORTS, MAX_EGRESS_ENTRIES
from infra.descriptors import BASE_DESCRIPTORS, explain_low_limit, raise_descriptor_limit
from infra.settings import Settings
from workers.run.egress import EgressLimits
from workers.run.gateway import GatewayLimits

# A run has listeners, connections to hosts with an end inside and one outside, connections of its gateway, and pipes.
_LISTENERS_PER_RUN: Final = MAX_EGRESS_ENTRIES * len(DEFAULT_EGRESS_PORTS) + 2
_CONNECTIONS_PER_RUN: Final = 2 * EgressLimits().max_open + GatewayLimits().max_connections
_PIPES_PER_RUN: Final = 16
# Sandboxes that wait, with the few listeners that most of them have.
_IDLE_SLOTS: Final = 64 * 24

_log = structlog.get_logger("paddock.workers")


def prepare_descriptors(process: str, settings: Settings) -> None:
    """Raise the limit of open files of a worker process, and log if it is too low for its slots."""
    limit, needed = raise_descriptor_limit(), BASE_DESCRIPTORS
    if process == "run":
        needed += settings.run_slots * (_LISTENERS_PER_RUN + _CONNECTIONS_PER_RUN + _PIPES_PER_RUN) + _IDLE_SLOTS
    elif process == "llm":
        needed += settings.llm_slots
    problem = explain_low_limit(limit, needed)
    if problem is not None:
        _log.warning("the limit of open files is low", problem=problem)
