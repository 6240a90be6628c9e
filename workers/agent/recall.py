"""Give a crew's task what the crew knows and remembers: the parts that are most similar to the task.

What it comes to is a step on record, so another attempt at the run gives the same.
"""

import asyncio
from collections.abc import Iterator
from typing import Any, Final

import msgspec

from domain import files
from domain.agents import AgentSpec, KnowledgeText, TaskRecall
from domain.crews import MAX_KNOWLEDGE_CHARACTERS, CrewMemory
from domain.llms import ModelToolCall
from domain.ports import Tx
from domain.shared.errors import OUTAGE_CODES, DomainError
from workers.agent.attempt import AgentAttempt
from workers.agent.conversation import AgentConversation
from workers.agent.messages import limit_result
from workers.agent.schema import ToolDependencies

RECALL_PATH: Final = "recall"
# Of the task, as far as it is compared.
MAX_QUESTION_CHARACTERS: Final = 4_000
MAX_FILE_BYTES: Final = 4 * 1024 * 1024


async def add_recalled_texts(
    dependencies: ToolDependencies, attempt: AgentAttempt, agent: AgentSpec, messages: AgentConversation
) -> None:
    """Add to the task of a conversation what its crew knows about it."""
    recall, turn = agent.recall, messages.turn
    if recall is None or not turn or turn[-1].role != "user":
        return
    output = attempt.find_output(RECALL_PATH)
    if output is None:
        question = recall.question[:MAX_QUESTION_CHARACTERS]
        result = limit_result(await _RecallSearch(dependencies, attempt, recall).search_texts(question))
        call = ModelToolCall(id="recall", name="recall", arguments="{}")
        output = await attempt.finish_tool_step(RECALL_PATH, call, {"result": result})
    text = _render_texts(output["result"])
    if text:
        turn[-1] = msgspec.structs.replace(turn[-1], content=f"{turn[-1].content}\n\n{text}")


class _RecallSearch:
    def __init__(self, dependencies: ToolDependencies, attempt: AgentAttempt, recall: TaskRecall) -> None:
        self._dependencies, self._attempt, self._recall = dependencies, attempt, recall

    async def search_texts(self, question: str) -> dict[str, Any]:
        """Return the best parts of the knowledge and the best memories, each with its similarity."""
        texts, memories = await self._dependencies.store.run(self._attempt.tenant_id, self._load_texts, retry=True)
        parts = [(text.name, part) for text in texts for part in _split_text(text, await self._read_text(text))]
        best_parts = await self._choose_best(question, [part for _, part in parts])
        best_memories = await self._choose_best(question, [memory.content for memory in memories])
        return {
            "knowledge": [{"source": parts[n][0], "text": parts[n][1], "similarity": score} for n, score in best_parts],
            "memories": [
                {"id": memories[n].id, "text": memories[n].content, "similarity": score} for n, score in best_memories
            ],
        }

    async def _load_texts(self, tx: Tx) -> tuple[list[KnowledgeText], list[CrewMemory]]:
        recall, plan_id = self._recall, self._attempt.execution.parent_id or ""
        plan = await tx.plans.get(plan_id) if recall.has_knowledge else None
        texts = [text for text in plan.knowledge if text.agent in (None, recall.agent)] if plan is not None else []
        if recall.crew_id is None or not recall.memory_scopes:
            return texts, []
        return texts, await tx.crew_memories.list_by_scopes(recall.crew_id, recall.memory_scopes, plan_id)

    async def _read_text(self, text: KnowledgeText) -> str:
        if text.file_id is None:
            return text.content or ""
        key = files.format_file_key(self._attempt.tenant_id, text.file_id)
        try:
            data = b""
            async for chunk in await self._dependencies.blobs.read_object(key):
                data += chunk
                if len(data) > MAX_FILE_BYTES:
                    self._attempt.warn(f"Of the file {text.file_id}, {MAX_FILE_BYTES} bytes are read as knowledge.")
                    break
        except DomainError as error:
            if error.code in OUTAGE_CODES:
                raise
            self._attempt.warn(f"The file {text.file_id} of the crew's knowledge is left out: it was deleted.")
            return ""
        return data[:MAX_FILE_BYTES].decode("utf-8", "replace").replace("\0", "\ufffd")

    async def _choose_best(self, question: str, candidates: list[str]) -> list[tuple[int, float]]:
        """Return the places and similarities of the best candidates, the best first; the newer one of equals."""
        size = 0
        for count, candidate in enumerate(candidates):
            size += len(candidate)
            if size > MAX_KNOWLEDGE_CHARACTERS:
                self._attempt.warn(f"Only {count} of {len(candidates)} parts of what the crew knows are compared.")
                candidates = candidates[:count]
                break
        if not candidates:
            return []
        similarity = self._dependencies.similarity
        scores = await asyncio.to_thread(similarity.score_nearest, candidates, [question])
        order = sorted(range(len(candidates)), key=lambda place: -scores[place])
        best = [(place, scores[place]) for place in order if scores[place] >= self._recall.threshold]
        return best[: self._recall.results]


def _split_text(text: KnowledgeText, content: str) -> Iterator[str]:
    """Yield the parts of a text."""
    step = max(text.chunk_size - text.chunk_overlap, 1)
    for start in range(0, max(len(content) - text.chunk_overlap, 1), step):
        if part := content[start : start + text.chunk_size].strip():
            yield part


def _render_texts(result: dict[str, Any]) -> str:
    sections = [f"## {entry['source']}\n{entry['text']}" for entry in result.get("knowledge", ())]
    if sections:
        sections.insert(0, "This is known about it, and may help:")
    if memories := [f"- {entry['text']}" for entry in result.get("memories", ())]:
        sections.append("In earlier runs this came out:\n" + "\n".join(memories))
    return "\n\n".join(sections)
