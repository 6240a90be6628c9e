"""Build the prompts of generations, and the JSON Schemas of their answers."""

from collections.abc import Mapping
from typing import Any, Final

import msgspec

from domain.generation.schema import GenerationKind
from domain.tools import McpServerTool, Tool

# The local model is small: its answer is bounded, so that it ends within its token limit.
LOCAL_ANSWER_TOKENS: Final = 2_000
LOCAL_TEMPERATURE: Final = 0.4
MAX_ANSWER_TOKENS: Final = 4_000
# Characters of a crew's documents that are read to name a run.
MAX_READ_LENGTH: Final = 20_000
LOCAL_READ_LENGTH: Final = 3_000
# Characters of each tool's description.
_TOOL_DESCRIPTION_LENGTH: Final = 80
# Equal texts from which an answer counts as a copy of the example.
_REPEATED_TEXTS: Final = 2

_EXAMPLE_AGENT: Final = {
    "name": "Travel Planner",
    "role": "Senior Travel Consultant",
    "goal": "Plan trips that fit the budget and the wishes of travellers",
    "backstory": "You are a consultant who has planned hundreds of trips and knows what can go wrong.",
}
_EXAMPLE_TASK: Final = {
    "name": "Compare Flights",
    "description": "Look up flights between the two cities on the given days and compare their prices and times.",
    "expected_output": "A table of the five best flights with prices and times",
}
_EXAMPLE_CREW: Final = {
    "name": "Travel Crew",
    "description": "Plans trips from the first idea to the booking",
    "process": "sequential",
    "agents": [_EXAMPLE_AGENT, ...],
    "tasks": [{**_EXAMPLE_TASK, "agent": _EXAMPLE_AGENT["name"]}, ...],
}


_EXAMPLE_VALUES: Final[dict[GenerationKind, Mapping[str, Any]]] = {
    "agent": _EXAMPLE_AGENT,
    "task": _EXAMPLE_TASK,
    "crew": _EXAMPLE_CREW,
}


def _encode_example(value: Any) -> str:
    return msgspec.json.encode(value, enc_hook=lambda _: msgspec.Raw(b"...")).decode()


# Small models copy much of an example, so it is short.
_ANSWER_EXAMPLES: Final[dict[GenerationKind, str]] = {
    "agent": _encode_example(_EXAMPLE_AGENT),
    "task": _encode_example(_EXAMPLE_TASK),
    "crew": _encode_example(_EXAMPLE_CREW),
    "name": '{"name":"..."}',
}
_TASK_INSTRUCTIONS: Final[dict[GenerationKind, str]] = {
    "agent": "You design AI agents. Answer with one agent as a JSON object. For example, for planning trips:",
    "task": "You design tasks for AI agents. Answer with one task as a JSON object. For example, for finding flights:",
    "crew": (
        "You design crews: AI agents that work on tasks together. Answer with one crew as a JSON object. "
        "Each task names the agent of the crew that does it. For example, for planning trips:"
    ),
    "name": "You give short names to runs of AI agents, of two to six words. Answer with a JSON object:",
}
# The local model copies an example rather than write its own answer, so its instructions have none.
_LOCAL_INSTRUCTIONS: Final[dict[GenerationKind, str]] = {
    "agent": (
        "You design AI agents. Answer with one agent as a JSON object: its name, its role, its goal and its backstory. "
        "All of them are about what the description says."
    ),
    "task": (
        "You design tasks for AI agents. Answer with one task as a JSON object: its name, its description and its "
        "expected output. All of them are about what the description says."
    ),
    "crew": (
        "You design crews: AI agents that work on tasks together. Answer with one crew as a JSON object: its name, its "
        "description, its agents, and its tasks, each with the name of the agent that does it. All of them are about "
        "what the description says."
    ),
}
_TASK_QUESTIONS: Final[dict[GenerationKind, str]] = {
    "agent": "Design the agent of this description: ",
    "task": "Design the task of this description: ",
    "crew": "Design the crew of this description: ",
    "name": "Name the run of this:\n",
}


def format_tool_reference(tool: Tool) -> str:
    """Return the reference by which the model chooses a tool."""
    return f"{tool.slug}/{tool.tool_name}" if isinstance(tool, McpServerTool) else tool.slug


def is_example_repeated(kind: GenerationKind, answer: Mapping[str, Any]) -> bool:
    """Tell whether an answer copies at least two texts of the example."""
    example = _EXAMPLE_VALUES.get(kind, {})
    texts = {name: text for name, text in example.items() if isinstance(text, str) and name != "process"}
    copies = sum(_fold_text(answer.get(name)) == _fold_text(text) for name, text in texts.items())
    return copies >= _REPEATED_TEXTS


def _fold_text(text: Any) -> str:
    return " ".join(text.casefold().split()).rstrip(".") if isinstance(text, str) else ""


def build_instructions(kind: GenerationKind, tools: list[Tool], agents: list[str], local: bool = False) -> str:
    """Return the instructions for the model, with the tools to choose among, and the agents for a task."""
    local_text = _LOCAL_INSTRUCTIONS.get(kind) if local else None
    parts = [local_text or f"{_TASK_INSTRUCTIONS[kind]}\n{_ANSWER_EXAMPLES[kind]}"]
    if tools:
        listed = "\n".join(f"- {format_tool_reference(tool)}: {_shorten_description(tool)}" for tool in tools)
        parts.append(f"List the tools that are needed, if any, in the field `tools`. There are these:\n{listed}")
    if agents:
        parts.append(f"Say in the field `agent` which of these agents shall do it, or null: {', '.join(agents)}.")
    return "\n\n".join(parts)


def _shorten_description(tool: Tool) -> str:
    return " ".join(tool.description.split())[:_TOOL_DESCRIPTION_LENGTH]


def build_question(kind: GenerationKind, text: str) -> str:
    """Return the question for the model."""
    return _TASK_QUESTIONS[kind] + text


def build_answer_schema(kind: GenerationKind, local: bool, tools: list[Tool], agents: list[str]) -> dict[str, Any]:
    """Return the JSON Schema of the answer. For the local model, which follows it exactly, all lengths are bounded.

    OpenAI's strict mode has no lengths: texts of other models are cut afterwards.
    """

    def build_text(max_length: int, min_length: int = 1) -> dict[str, Any]:
        return {"type": "string", "minLength": min_length, "maxLength": max_length} if local else {"type": "string"}

    references = [format_tool_reference(tool) for tool in tools]
    tool_list = _build_list({"type": "string", "enum": references}, 0, 2 if local else 10)
    extra: dict[str, Any] = {"tools": tool_list} if tools else {}
    if kind == "name":
        return _build_object(kind, name=build_text(60, 12))
    if kind == "agent":
        return _build_object(
            kind, name=build_text(40), role=build_text(60), goal=build_text(160), backstory=build_text(240), **extra
        )
    if kind == "task":
        agent_field = {"agent": {"type": ["string", "null"], "enum": [*agents, None]}} if agents else {}
        fields = {"name": build_text(40), "description": build_text(300), "expected_output": build_text(160)}
        return _build_object(kind, **fields, **agent_field, **extra)
    agent = _build_object(
        None, name=build_text(40), role=build_text(60), goal=build_text(120), backstory=build_text(140), **extra
    )
    task_fields = {
        "name": build_text(40),
        "description": build_text(160),
        "expected_output": build_text(100),
        "agent": build_text(40),
    }
    task = _build_object(None, **task_fields, **extra)
    return _build_object(
        kind,
        name=build_text(40),
        description=build_text(160),
        process={"type": "string", "enum": ["sequential", "hierarchical"]},
        agents=_build_list(agent, 2, 3) if local else _build_list(agent, 1, 10),
        tasks=_build_list(task, 2, 3) if local else _build_list(task, 1, 20),
    )


def _build_object(title: str | None, **properties: Any) -> dict[str, Any]:
    title_field = {} if title is None else {"title": title}
    required = {"required": list(properties), "additionalProperties": False}
    return {**title_field, "type": "object", "properties": properties, **required}


def _build_list(items: dict[str, Any], min_items: int, max_items: int) -> dict[str, Any]:
    return {"type": "array", "items": items, "minItems": min_items, "maxItems": max_items}
