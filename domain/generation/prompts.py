"""What a model is told, and the JSON Schema of its answer."""

from collections.abc import Mapping
from typing import Any, Final

import msgspec

from domain.generation.schema import GenerationKind
from domain.tools import McpServerTool, Tool

# The local model is small: what it may say is bounded, so that it comes to an end within its room.
LOCAL_ANSWER_TOKENS: Final = 2_000
LOCAL_TEMPERATURE: Final = 0.4
MAX_ANSWER_TOKENS: Final = 4_000
# How much of a crew's documents is read to name a run of it, in characters.
MAX_READ_LENGTH: Final = 20_000
LOCAL_READ_LENGTH: Final = 3_000
# How much is told of each tool.
_SHOWN: Final = 80
# Texts of the example that are no chance any more.
_REPEATED: Final = 2

_PLANNER: Final = {
    "name": "Travel Planner",
    "role": "Senior Travel Consultant",
    "goal": "Plan trips that fit the budget and the wishes of travellers",
    "backstory": "You are a consultant who has planned hundreds of trips and knows what can go wrong.",
}
_FLIGHTS: Final = {
    "name": "Compare Flights",
    "description": "Look up flights between the two cities on the given days and compare their prices and times.",
    "expected_output": "A table of the five best flights with prices and times",
}
_CREW: Final = {
    "name": "Travel Crew",
    "description": "Plans trips from the first idea to the booking",
    "process": "sequential",
    "agents": [_PLANNER, ...],
    "tasks": [{**_FLIGHTS, "agent": _PLANNER["name"]}, ...],
}


def _example(value: Any) -> str:
    return msgspec.json.encode(value, enc_hook=lambda _: msgspec.Raw(b"...")).decode()


# Small models take much of an example over: it is as short as it can be.
_EXAMPLES: Final[dict[GenerationKind, str]] = {
    "agent": _example(_PLANNER),
    "task": _example(_FLIGHTS),
    "crew": _example(_CREW),
    "name": '{"name":"..."}',
}
_TOLD: Final[dict[GenerationKind, str]] = {
    "agent": "You design AI agents. Answer with one agent as a JSON object. For example, for planning trips:",
    "task": "You design tasks for AI agents. Answer with one task as a JSON object. For example, for finding flights:",
    "crew": (
        "You design crews: AI agents that work on tasks together. Answer with one crew as a JSON object. "
        "Each task names the agent of the crew that does it. For example, for planning trips:"
    ),
    "name": "You give short names to runs of AI agents, of two to six words. Answer with a JSON object:",
}
# The local model says an example again rather than think of something else: it is told what to say, and shown none.
_TOLD_LOCAL: Final[dict[GenerationKind, str]] = {
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
_ASKED: Final[dict[GenerationKind, str]] = {
    "agent": "Design the agent of this description: ",
    "task": "Design the task of this description: ",
    "crew": "Design the crew of this description: ",
    "name": "Name the run of this:\n",
}


def format_tool_reference(tool: Tool) -> str:
    """What a tool is called where one is chosen."""
    return f"{tool.slug}/{tool.tool_name}" if isinstance(tool, McpServerTool) else tool.slug


def is_example_repeated(kind: GenerationKind, said: Mapping[str, Any]) -> bool:
    """Whether a model has said the example again that it was shown, in two of its texts."""
    example: dict[GenerationKind, Mapping[str, Any]] = {"agent": _PLANNER, "task": _FLIGHTS, "crew": _CREW}
    shown = {name: text for name, text in example.get(kind, {}).items() if isinstance(text, str) and name != "process"}
    if not shown:
        return False
    return sum(_folded(said.get(name)) == _folded(text) for name, text in shown.items()) >= _REPEATED


def _folded(text: Any) -> str:
    return " ".join(text.casefold().split()).rstrip(".") if isinstance(text, str) else ""


def build_instructions(kind: GenerationKind, tools: list[Tool], agents: list[str], local: bool = False) -> str:
    """What the model is told of its work, of the tools that it may choose among, and of the agents for a task."""
    told = _TOLD_LOCAL.get(kind) if local else None
    parts = [told or f"{_TOLD[kind]}\n{_EXAMPLES[kind]}"]
    if tools:
        known = "\n".join(
            f"- {format_tool_reference(tool)}: {' '.join(tool.description.split())[:_SHOWN]}" for tool in tools
        )
        parts.append(f"List the tools that are needed, if any, in the field `tools`. There are these:\n{known}")
    if agents:
        parts.append(f"Say in the field `agent` which of these agents shall do it, or null: {', '.join(agents)}.")
    return "\n\n".join(parts)


def build_question(kind: GenerationKind, text: str) -> str:
    """What the model is asked."""
    return _ASKED[kind] + text


def build_answer_schema(kind: GenerationKind, local: bool, tools: list[Tool], agents: list[str]) -> dict[str, Any]:
    """The JSON Schema of the answer. For the local model, whose answers follow it to the letter, all is bounded.

    Others are kept to what is strict for OpenAI, which knows no lengths: their texts are cut afterwards.
    """

    def text(most: int, least: int = 1) -> dict[str, Any]:
        return {"type": "string", "minLength": least, "maxLength": most} if local else {"type": "string"}

    chosen = {
        "tools": _list(
            {"type": "string", "enum": [format_tool_reference(tool) for tool in tools]}, 0, 2 if local else 10
        )
    }
    more = chosen if tools else {}
    if kind == "name":
        return _object(kind, name=text(60, 12))
    if kind == "agent":
        return _object(kind, name=text(40), role=text(60), goal=text(160), backstory=text(240), **more)
    if kind == "task":
        by = {"agent": {"type": ["string", "null"], "enum": [*agents, None]}} if agents else {}
        return _object(kind, name=text(40), description=text(300), expected_output=text(160), **by, **more)
    agent = _object(None, name=text(40), role=text(60), goal=text(120), backstory=text(140), **more)
    task = _object(None, name=text(40), description=text(160), expected_output=text(100), agent=text(40), **more)
    return _object(
        kind,
        name=text(40),
        description=text(160),
        process={"type": "string", "enum": ["sequential", "hierarchical"]},
        agents=_list(agent, 2, 3) if local else _list(agent, 1, 10),
        tasks=_list(task, 2, 3) if local else _list(task, 1, 20),
    )


def _object(title: str | None, **properties: Any) -> dict[str, Any]:
    named = {} if title is None else {"title": title}
    closed = {"required": list(properties), "additionalProperties": False}
    return {**named, "type": "object", "properties": properties, **closed}


def _list(items: dict[str, Any], least: int, most: int) -> dict[str, Any]:
    return {"type": "array", "items": items, "minItems": least, "maxItems": most}
