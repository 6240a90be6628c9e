"""Manage agents. A `code` agent gets its versions from uploaded archives; an `llm` agent calls a model."""

from domain.agents.inheritance import merge_ancestors, resolve_agent
from domain.agents.resolution import find_agent, get_runnable_version, refuse_archived, resolve_spec
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
    "find_agent",
    "get_agent",
    "get_runnable_version",
    "list_agents",
    "merge_ancestors",
    "patch_agent",
    "refuse_archived",
    "resolve_agent",
    "resolve_spec",
    "show_agent",
]
