"""From what a model said to what can be created: nothing that it says is refused, all of it is put right."""

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
# Texts may be as long as agents and tasks take them; nobody means to say more than this.
_WORDS: Final = 4_000
# What cannot stand in a path, and what has no place in a name.
_UNNAMEABLE: Final = re.compile(r"[^\w .,&'()+-]+")
_CONTROL: Final = re.compile(r"[\x00-\x08\x0b-\x1f\x7f]+")
_LETTER: Final = re.compile(r"[a-z]")
_WORD: Final = re.compile(r"[^\W_]")
_QUOTES: Final = re.compile(r"[\x00-\x1f\x7f\"`{}\[\]<>]+")
# Words of paths.
_RESERVED: Final = frozenset({"executions", "debug"})


def clean_text(value: Any, otherwise: str) -> str:
    """A text without control characters, not too long, and not empty."""
    said = _CONTROL.sub(" ", value).strip()[:_WORDS].strip() if isinstance(value, str) else ""
    return said or otherwise


def clean_name(value: Any, otherwise: str) -> str:
    """A name that can stand in a path."""
    said = _UNNAMEABLE.sub(" ", value.replace("_", " ")) if isinstance(value, str) else ""
    said = " ".join(said.split())[:MAX_NAME_LENGTH].strip(" .,&'+-")
    if not said:
        return otherwise
    return said if said.lower() not in _RESERVED else f"{said} 1"


def clean_run_name(value: Any) -> str:
    """Two to six words, at most `RUN_NAME` characters."""
    said = _QUOTES.sub(" ", value).split() if isinstance(value, str) else []
    # A chain of words is as many words.
    said = [word for part in said for word in (part.split("-") if part.count("-") > 1 else [part])]
    kept: list[str] = []
    for part in (one[:MAX_NAME_LENGTH] for one in said):
        if _words([*kept, part]) > MAX_RUN_NAME_WORDS or len(" ".join([*kept, part])) > MAX_RUN_NAME_LENGTH:
            break
        kept.append(part)
    told = " ".join(kept).strip(" -:,;.")
    return told if _words(told.split()) > 1 else f"{told if _words([told]) else 'New'} Run"


def _words(parts: list[str]) -> int:
    return sum(_WORD.search(word) is not None for part in parts for word in part.split("-"))


def list_texts(value: Any) -> list[str]:
    """The texts of a list, each once."""
    return list(dict.fromkeys(one for one in value if isinstance(one, str))) if isinstance(value, list) else []


def build_agent(said: dict[str, Any], called: str, model: str, known: Container[str]) -> AgentDraft:
    """An agent under this name. `known` are the tools that there are."""
    role = clean_text(said.get("role"), called)
    return AgentDraft(
        name=called,
        role=role,
        goal=clean_text(said.get("goal"), f"Do well what is asked of a {role}"),
        backstory=clean_text(said.get("backstory"), f"You are {called}."),
        tools=[one for one in list_texts(said.get("tools")) if one in known],
        model=model,
    )


def build_task(said: dict[str, Any], called: str, by: str | None, known: Container[str]) -> TaskDraft:
    """A task under this name, for this agent. `known` are the tools that there are."""
    return TaskDraft(
        name=called,
        description=clean_text(said.get("description"), called),
        expected_output=clean_text(said.get("expected_output"), "The result, in full"),
        agent=by,
        tools=[one for one in list_texts(said.get("tools")) if one in known],
    )


def match_member(said: Any, members: list[str], place: int) -> int:
    """Which of the members somebody means by a name: that one, or one that is much like it, or else by turns."""
    wanted = names.fold_name(said) if isinstance(said, str) else ""
    folded = [names.fold_name(member) for member in members]
    if wanted in folded:
        return folded.index(wanted)
    near = [number for number, one in enumerate(folded) if wanted and (wanted in one or one in wanted)]
    return near[0] if near else place % len(members)


def build_crew(
    said: dict[str, Any], called: str, agents: list[AgentDraft], tasks: list[TaskDraft], model: str
) -> CrewDraft:
    """A crew of these, whose tasks name its agents."""
    keys = _keys([one.name for one in agents], "agent", ())
    key_of = dict(zip((one.name for one in agents), keys, strict=True))
    team = {
        key: {"role": one.role, "goal": one.goal, "backstory": one.backstory, **_tools(one.tools)}
        for key, one in zip(keys, agents, strict=True)
    }
    work = {
        key: {
            "name": one.name,
            "description": one.description,
            "expected_output": one.expected_output,
            "agent": key_of[one.agent or agents[0].name],
            **_tools(one.tools),
        }
        for key, one in zip(_keys([one.name for one in tasks], "task", (PLANNING_STEP,)), tasks, strict=True)
    }
    return CrewDraft(
        name=called,
        description=clean_text(said.get("description"), called),
        process="hierarchical" if said.get("process") == "hierarchical" else "sequential",
        model=model,
        agents_yaml=yaml_reader.dump_yaml(team),
        tasks_yaml=yaml_reader.dump_yaml(work),
    )


def _tools(given: list[str]) -> dict[str, Any]:
    return {"tools": given} if given else {}


def _keys(called: list[str], kind: str, reserved: Iterable[str]) -> list[str]:
    """A key of a document for each name: its slug, if that is one and nobody has it."""
    taken, made = set(reserved), []
    for number, one in enumerate(called, 1):
        key = names.make_slug(one)
        if _LETTER.match(key) is None:
            key = f"{kind}_{key}"[:50]
        tries = itertools.count(number)
        while key in taken:
            key = f"{names.make_slug(one)[:40]}_{kind}_{next(tries)}".strip("_")
            key = key if _LETTER.match(key) else f"{kind}_{key}"
        taken.add(key)
        made.append(key)
    return made
