"""Make valid drafts of a model's answer: nothing is refused, everything is repaired."""

import itertools
import re
from collections.abc import Container, Iterable
from typing import Any, Final

from domain.crews import PLANNING_STEP
from domain.generation.schema import AgentDraft, CrewDraft, TaskDraft
from domain.shared import names, yaml_reader

MAX_NAME_LENGTH: Final = 50
MAX_RUN_NAME_LENGTH: Final = 60
MAX_RUN_NAME_WORDS: Final = 6
# Agents and tasks accept longer texts, but no answer needs more.
_MAX_TEXT_LENGTH: Final = 4_000
# Characters that do not fit in paths and names.
_NOT_IN_NAMES: Final = re.compile(r"[^\w .,&'()+-]+")
_CONTROL_CHARACTERS: Final = re.compile(r"[\x00-\x08\x0b-\x1f\x7f]+")
_FIRST_LETTER: Final = re.compile(r"[a-z]")
_WORD_CHARACTER: Final = re.compile(r"[^\W_]")
_NOT_IN_RUN_NAMES: Final = re.compile(r"[\x00-\x1f\x7f\"`{}\[\]<>]+")
# These are parts of paths.
_RESERVED_NAMES: Final = frozenset({"executions", "debug"})


def clean_text(value: Any, default: str) -> str:
    """Return a text without control characters, not too long, and not empty."""
    text = ""
    if isinstance(value, str):
        text = _CONTROL_CHARACTERS.sub(" ", value).strip()[:_MAX_TEXT_LENGTH].strip()
    return text or default


def clean_name(value: Any, default: str) -> str:
    """Return a name that can stand in a path."""
    text = _NOT_IN_NAMES.sub(" ", value.replace("_", " ")) if isinstance(value, str) else ""
    text = " ".join(text.split())[:MAX_NAME_LENGTH].strip(" .,&'+-")
    if not text:
        return default
    return text if text.lower() not in _RESERVED_NAMES else f"{text} 1"


def clean_run_name(value: Any) -> str:
    """Return two to six words, at most `MAX_RUN_NAME_LENGTH` characters."""
    parts = _NOT_IN_RUN_NAMES.sub(" ", value).split() if isinstance(value, str) else []
    # A chain of words counts as separate words.
    parts = [word for part in parts for word in (part.split("-") if part.count("-") > 1 else [part])]
    words: list[str] = []
    for word in (part[:MAX_NAME_LENGTH] for part in parts):
        longer = [*words, word]
        if _count_words(longer) > MAX_RUN_NAME_WORDS or len(" ".join(longer)) > MAX_RUN_NAME_LENGTH:
            break
        words.append(word)
    run_name = " ".join(words).strip(" -:,;.")
    return run_name if _count_words(run_name.split()) > 1 else f"{run_name if _count_words([run_name]) else 'New'} Run"


def _count_words(parts: list[str]) -> int:
    return sum(_WORD_CHARACTER.search(word) is not None for part in parts for word in part.split("-"))


def list_texts(value: Any) -> list[str]:
    """Return the texts of a list, each once."""
    return list(dict.fromkeys(text for text in value if isinstance(text, str))) if isinstance(value, list) else []


def build_agent(answer: dict[str, Any], name: str, model: str, tools: Container[str]) -> AgentDraft:
    """Return an agent with this name. `tools` are the tools that exist."""
    role = clean_text(answer.get("role"), name)
    return AgentDraft(
        name=name,
        role=role,
        goal=clean_text(answer.get("goal"), f"Do well what is asked of a {role}"),
        backstory=clean_text(answer.get("backstory"), f"You are {name}."),
        tools=[tool for tool in list_texts(answer.get("tools")) if tool in tools],
        model=model,
    )


def build_task(answer: dict[str, Any], name: str, agent: str | None, tools: Container[str]) -> TaskDraft:
    """Return a task with this name, for this agent. `tools` are the tools that exist."""
    return TaskDraft(
        name=name,
        description=clean_text(answer.get("description"), name),
        expected_output=clean_text(answer.get("expected_output"), "The result, in full"),
        agent=agent,
        tools=[tool for tool in list_texts(answer.get("tools")) if tool in tools],
    )


def match_member(reference: Any, members: list[str], position: int) -> int:
    """Return the number of the member with a name, else one with a similar name, else one by `position`."""
    folded_name = names.fold_name(reference) if isinstance(reference, str) else ""
    folded = [names.fold_name(member) for member in members]
    if folded_name in folded:
        return folded.index(folded_name)
    similar = [
        number for number, name in enumerate(folded) if folded_name and (folded_name in name or name in folded_name)
    ]
    return similar[0] if similar else position % len(members)


def build_crew(
    answer: dict[str, Any], name: str, agents: list[AgentDraft], tasks: list[TaskDraft], model: str
) -> CrewDraft:
    """Return a crew of these agents and tasks."""
    keys = _choose_keys([agent.name for agent in agents], "agent", ())
    key_by_name = dict(zip((agent.name for agent in agents), keys, strict=True))
    yaml_agents = {
        key: {"role": agent.role, "goal": agent.goal, "backstory": agent.backstory, **_build_tools(agent.tools)}
        for key, agent in zip(keys, agents, strict=True)
    }
    task_keys = _choose_keys([task.name for task in tasks], "task", (PLANNING_STEP,))
    yaml_tasks = {
        key: {
            "name": task.name,
            "description": task.description,
            "expected_output": task.expected_output,
            "agent": key_by_name[task.agent or agents[0].name],
            **_build_tools(task.tools),
        }
        for key, task in zip(task_keys, tasks, strict=True)
    }
    return CrewDraft(
        name=name,
        description=clean_text(answer.get("description"), name),
        process="hierarchical" if answer.get("process") == "hierarchical" else "sequential",
        model=model,
        agents_yaml=yaml_reader.dump_yaml(yaml_agents),
        tasks_yaml=yaml_reader.dump_yaml(yaml_tasks),
    )


def _build_tools(tools: list[str]) -> dict[str, Any]:
    return {"tools": tools} if tools else {}


def _choose_keys(draft_names: list[str], kind: str, reserved: Iterable[str]) -> list[str]:
    """Return a unique key of a YAML document for each name: its slug, if that is valid and free."""
    used_keys, keys = set(reserved), []
    for number, name in enumerate(draft_names, 1):
        key = names.make_slug(name)
        if _FIRST_LETTER.match(key) is None:
            key = f"{kind}_{key}"[:50]
        suffixes = itertools.count(number)
        while key in used_keys:
            key = f"{names.make_slug(name)[:40]}_{kind}_{next(suffixes)}".strip("_")
            key = key if _FIRST_LETTER.match(key) else f"{kind}_{key}"
        used_keys.add(key)
        keys.append(key)
    return keys
