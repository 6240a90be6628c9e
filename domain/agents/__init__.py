"""Agents: what a tenant runs. A `code` agent gets its versions from uploaded archives, an `llm` agent has a model."""

from domain.agents.inheritance import merge_ancestors, resolve_agent
from domain.agents.schema import (
    MAX_SLUG_MATCHES,
    Agent,
    AgentKind,
    Agents,
    AgentSpec,
    AgentStatus,
    ConcurrencyPolicy,
    NewAgent,
    PatchAgent,
    build_unlisted_agent,
)
from domain.agents.service import (
    check_agent_name,
    create_agent,
    delete_agent,
    get_agent,
    list_agents,
    patch_agent,
    show_agent,
)

__all__ = [
    "MAX_SLUG_MATCHES",
    "Agent",
    "AgentKind",
    "AgentSpec",
    "AgentStatus",
    "Agents",
    "ConcurrencyPolicy",
    "NewAgent",
    "PatchAgent",
    "build_unlisted_agent",
    "check_agent_name",
    "create_agent",
    "delete_agent",
    "get_agent",
    "list_agents",
    "merge_ancestors",
    "patch_agent",
    "resolve_agent",
    "show_agent",
]
