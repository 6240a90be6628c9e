"""Agents: what a tenant runs. A `code` agent gets its versions from uploaded archives, an `llm` agent has a model."""

from domain.agents.inheritance import merged, resolved
from domain.agents.schema import (
    MAX_OF_SLUG,
    Agent,
    AgentKind,
    Agents,
    AgentStatus,
    ConcurrencyPolicy,
    NewAgent,
    PatchAgent,
    Spec,
    unlisted,
)
from domain.agents.service import checked_name, create, delete, get, list_agents, patch, shown

__all__ = [
    "MAX_OF_SLUG",
    "Agent",
    "AgentKind",
    "AgentStatus",
    "Agents",
    "ConcurrencyPolicy",
    "NewAgent",
    "PatchAgent",
    "Spec",
    "checked_name",
    "create",
    "delete",
    "get",
    "list_agents",
    "merged",
    "patch",
    "resolved",
    "shown",
    "unlisted",
]
