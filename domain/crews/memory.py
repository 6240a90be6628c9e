"""Keep what a crew's earlier runs came to: a short text for each task that was done, by scope."""

from datetime import datetime
from typing import Any, Final, Protocol

import msgspec

from domain.agents import TaskRecall
from domain.executions import Execution
from domain.ports import Tx
from domain.shared import ids
from domain.shared.errors import NotFound
from domain.shared.pages import Listing, Page
from domain.shared.placeholders import format_value

# Of one scope; the oldest go first.
MAX_SCOPE_MEMORIES: Final = 500
MAX_TASK_CHARACTERS: Final = 300
MAX_ANSWER_CHARACTERS: Final = 1_200


class CrewMemory(msgspec.Struct, kw_only=True):
    """Show what a crew remembers of a task. `run_id` is the execution of the crew in which it was done."""

    id: str
    crew_id: str
    scope: str
    content: str
    run_id: str
    execution_id: str
    created_at: datetime


class CrewMemories(Protocol):
    """Store what the bound tenant's crews remember. It is deleted with the crew."""

    async def add(self, memory: CrewMemory, limit: int) -> None:
        """Add a memory, and delete the oldest of its scope over the limit. Nothing is added to a deleted crew."""
        ...

    async def list_by_scopes(self, crew_id: str, scopes: list[str], without_run: str) -> list[CrewMemory]:
        """Return the memories of scopes, the newest first, without those of one run."""
        ...

    async def list_page(self, crew_id: str, scope: str | None, page: Page) -> Listing[CrewMemory]: ...
    async def delete(self, crew_id: str, memory_id: str) -> bool: ...
    async def clear_scope(self, crew_id: str, scope: str | None) -> None:
        """Delete the memories of one scope, of all scopes for None."""
        ...


async def list_memories(tx: Tx, crew_id: str, scope: str | None, page: Page) -> Listing[CrewMemory]:
    """Return what a crew remembers, newest first."""
    return await tx.crew_memories.list_page(crew_id, scope, page)


async def clear_memories(tx: Tx, crew_id: str, scope: str | None) -> None:
    """Delete the memories of one scope of a crew, of all scopes for None."""
    await tx.crew_memories.clear_scope(crew_id, scope)


async def delete_memory(tx: Tx, crew_id: str, memory_id: str) -> None:
    """Delete one memory of a crew. Errors: `not_found`."""
    if not await tx.crew_memories.delete(crew_id, memory_id):
        raise NotFound("memory", memory_id)


async def save_task_memory(tx: Tx, execution: Execution, recall: TaskRecall, output: Any) -> None:
    """Keep the answer to a crew's task, cut to a short text, in the transaction that settles its run."""
    if recall.crew_id is None or recall.memory_scope is None or execution.parent_id is None:
        return
    answer = output["content"] if isinstance(output, dict) and set(output) == {"content"} else output
    parts = [_cut_text(recall.question, MAX_TASK_CHARACTERS), _cut_text(format_value(answer), MAX_ANSWER_CHARACTERS)]
    memory = CrewMemory(
        id=ids.generate_id("mem"),
        crew_id=recall.crew_id,
        scope=recall.memory_scope,
        content="\n".join(parts).replace("\0", "\ufffd"),
        run_id=execution.parent_id,
        execution_id=execution.id,
        created_at=tx.now,
    )
    await tx.crew_memories.add(memory, MAX_SCOPE_MEMORIES)


def _cut_text(text: str, limit: int) -> str:
    cleaned = text.strip().encode("utf-8", "replace").decode()
    return cleaned if len(cleaned) <= limit else cleaned[:limit].rstrip() + " …"
