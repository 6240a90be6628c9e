"""Reading agents and tasks as CrewAI writes them: YAML, with every mistake at once and the line of each."""

import itertools
import re
from collections.abc import Mapping
from typing import Annotated, Any, Final, Generic, TypeVar

import msgspec
from msgspec import Meta

from domain.agents.schema import (
    AgentText,
    MaxSteps,
    MaxTokens,
    ModelReference,
    Temperature,
    TimeoutSeconds,
    ToolReferences,
)
from domain.crews.crewai_fields import explain_unknown_field, is_default
from domain.crews.duplicate_keys import apart
from domain.crews.schema import MAX_CREW_AGENTS, MAX_CREW_TASKS, CrewProblem, CrewSettings, Reference
from domain.shared import names, yaml_reader
from domain.shared.errors import DomainError, field_error_from_msgspec
from domain.tasks import ContextNames, OutputPath

T = TypeVar("T", bound=msgspec.Struct)

_LINE: Final = re.compile(r"line (\d+): ")
Title = Annotated[str, Meta(min_length=1, max_length=128, pattern=r"^[^\x00]*$")]


class YamlAgent(msgspec.Struct, kw_only=True):
    """An agent of `agents_yaml`. `llm` and `model` are the same; `max_iter` bounds the calls of the model in a task,
    `max_execution_time` is in seconds.
    """

    role: AgentText | None = None
    goal: AgentText | None = None
    backstory: AgentText | None = None
    instructions: AgentText | None = None
    llm: ModelReference | None = None
    model: ModelReference | None = None
    fallback_model: ModelReference | None = None
    tools: ToolReferences = []
    allow_delegation: bool | None = None
    verbose: bool | None = None
    max_iter: MaxSteps | None = None
    max_execution_time: TimeoutSeconds | None = None
    temperature: Temperature | None = None
    max_tokens: MaxTokens | None = None


class YamlTask(msgspec.Struct, kw_only=True):
    """A task of `tasks_yaml`. `name` is what people call it, its key where there is none."""

    name: Title | None = None
    description: AgentText | None = None
    expected_output: AgentText | None = None
    agent: Reference | None = None
    context: ContextNames | None = None
    tools: ToolReferences = []
    async_execution: bool = False
    markdown: bool = False
    output_file: OutputPath | None = None
    human_input: bool = False


class CrewDocument(msgspec.Struct, Generic[T], kw_only=True):
    """What one document holds, by key. `there` are the places of fields that have a value, in order or not.

    `unread` means that nobody can say what it holds.
    """

    field: str
    items: dict[str, T] = {}
    lines: Mapping[str, int] = {}
    present_fields: set[str] = set()
    is_unreadable: bool = False
    problems: list[CrewProblem] = []

    def locate_problem(self, place: str, message: str) -> CrewProblem:
        """One at a place below the document: `write.agent`."""
        inner = place
        while inner and inner not in self.lines:
            inner = inner[: max(inner.rfind("."), inner.rfind("["), 0)]
        field = f"{self.field}.{place}" if place else self.field
        return CrewProblem(field=field, message=message, line=self.lines.get(inner))


class CrewDocuments(msgspec.Struct, kw_only=True):
    """What both documents of a crew hold."""

    agents: CrewDocument[YamlAgent]
    tasks: CrewDocument[YamlTask]

    def locate_problem(self, field: str, message: str) -> CrewProblem:
        """One at a place: `tasks_yaml.write.agent`, or at a field of the crew itself."""
        document, _, place = field.partition(".")
        for one in (self.agents, self.tasks):
            if one.field == document:
                return one.locate_problem(place, message)
        return CrewProblem(field=field, message=message)


def parse_documents(settings: CrewSettings) -> CrewDocuments:
    """Both documents, each with its mistakes. Their parts that are in order are there all the same."""
    return CrewDocuments(
        agents=_read(settings.agents_yaml, "agents_yaml", YamlAgent, MAX_CREW_AGENTS),
        tasks=_read(settings.tasks_yaml, "tasks_yaml", YamlTask, MAX_CREW_TASKS),
    )


def _read(text: str | None, field: str, kind: type[T], most: int) -> CrewDocument[T]:
    if text is None or not text.strip():
        return CrewDocument(field=field)
    twins: list[CrewProblem] = []
    try:
        try:
            parsed = yaml_reader.parse_yaml(text, field)
        except DomainError:
            # One key too many hides nothing of what else is wrong.
            again, rest = apart(text)
            twins = [
                CrewProblem(
                    field=field, message=f"{one.key[:100]!r} is there twice, first on line {one.first}.", line=one.line
                )
                for one in again
            ]
            if not twins:
                raise
            parsed = yaml_reader.parse_yaml(rest, field)
    except DomainError as error:
        return CrewDocument(field=field, is_unreadable=True, problems=[*twins, *_of_parser(error)])
    found = CrewDocument[T](field=field, lines=parsed.lines, problems=twins)
    if parsed.value is None:
        return found
    if not isinstance(parsed.value, dict):
        found.is_unreadable = True
        found.problems.append(found.locate_problem("", "must be a mapping: a key for each, and below it what it is."))
        return found
    if len(parsed.value) > most:
        found.problems.append(found.locate_problem("", f"holds {len(parsed.value)}; {most} are allowed."))
    for key, value in itertools.islice(parsed.value.items(), most):
        _item(found, key, value, kind)
    return found


def _of_parser(error: DomainError) -> list[CrewProblem]:
    found: list[CrewProblem] = []
    for one in error.errors:
        line = _LINE.match(one.message)
        told = one.message if line is None else one.message[line.end() :]
        found.append(CrewProblem(field=one.field, message=told, line=None if line is None else int(line[1])))
    return found


def _item(found: CrewDocument[T], key: str, value: Any, kind: type[T]) -> None:
    place = key[:200]
    if names.KEY_PATTERN.fullmatch(key) is None:
        found.problems.append(found.locate_problem(place, f"a key {names.KEY_RULE}"))
    elif not isinstance(value, dict):
        found.problems.append(found.locate_problem(place, "must be a mapping of fields."))
        # Nobody is to be told besides that its fields are missing.
        found.present_fields |= {f"{key}.{name}" for name in kind.__struct_fields__}
        found.items[key] = kind()
    else:
        found.items[key] = _fields(found, key, value, kind)


def _fields(found: CrewDocument[T], key: str, value: dict[str, Any], kind: type[T]) -> T:
    """What is in order of an item; the rest are mistakes."""
    fields = {field.name: field for field in msgspec.structs.fields(kind)}
    good: dict[str, Any] = {}
    for name, given in value.items():
        place = f"{key}.{name[:200]}"
        if name not in fields:
            if not is_default(name, given):
                found.problems.append(found.locate_problem(place, explain_unknown_field(name, fields)))
            continue
        # Folded texts end with the line; a field without a value is none.
        given = given.strip() if isinstance(given, str) else given
        if given is None or given == "":
            continue
        found.present_fields.add(place)
        try:
            good[name] = msgspec.convert(given, fields[name].type)
        except msgspec.ValidationError as error:
            wrong = field_error_from_msgspec(str(error), place)
            # Null means that nothing is said, so that nobody needs to hear of it.
            found.problems.append(found.locate_problem(wrong.field, wrong.message.replace(" | null`", "`")))
    return kind(**good)
