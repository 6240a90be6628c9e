"""Define what the parts of a model agent's run hand to one another."""

import asyncio
from typing import Any, Final

import msgspec

from domain.agents import Agent
from domain.evaluations import TextSimilarity
from domain.llms import ChatMessage, ToolSpec
from domain.ports import Blobs, Sandbox, SandboxOutcome, Store
from domain.tools import Tool
from infra.credentials import Keyring
from infra.http import Outbound
from workers.agent.workspaces import CommitFiles

# Characters that a model is shown of a text file, and of any result.
MAX_SHOWN_CHARACTERS: Final = 64 * 1024


class AgentParked(Exception):
    """Signal that tool calls of the run wait for a decision."""


class AgentFailed(Exception):
    """End the run with an error of its own."""

    def __init__(self, error_type: str, message: str) -> None:
        super().__init__(message)
        self.outcome = SandboxOutcome(error_type=error_type, error_message=message)


class ModelPrompt(msgspec.Struct, frozen=True, kw_only=True):
    """Hold what an agent's model is asked at one step."""

    path: str
    agent: Agent
    messages: tuple[ChatMessage, ...]
    tools: tuple[ToolSpec, ...]


class BoundTool(msgspec.Struct, frozen=True, kw_only=True):
    """Bind a tool to the name by which a model calls it. `remote_name` is an MCP server's own name for it."""

    spec: ToolSpec
    tool: Tool
    remote_name: str | None = None

    @property
    def has_effects(self) -> bool:
        """Whether repeating a call would change anything."""
        return self.tool.effects


class ToolResult(msgspec.Struct, frozen=True, kw_only=True):
    """Hold the result of a finished call, and what writes the files that it changed."""

    result: dict[str, Any]
    commit: CommitFiles | None = None


class ToolDependencies(msgspec.Struct, frozen=True, kw_only=True):
    """Hold what tools work with in one worker process. `sandbox_slots` limits the sandboxes of tools at a time.

    `quota` is what a tenant may have stored, in bytes; 0 means no limit.
    """

    store: Store
    blobs: Blobs
    sandbox: Sandbox
    outbound: Outbound
    keyring: Keyring
    sandbox_slots: asyncio.Semaphore
    similarity: TextSimilarity
    quota: int = 0
