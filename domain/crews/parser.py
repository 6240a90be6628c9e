"""Reading agents and tasks as CrewAI writes them: YAML, with every mistake at once and the line of each."""

import itertools
import re
from collections.abc import Mapping
from typing import Annotated, Any, Final, Generic, TypeVar

import msgspec
from msgspec import Meta

from domain.agents.schema import MaxSteps, MaxTokens, ModelReference, Seconds, Temperature, Tools, Words
from domain.crews.crewai_fields import is_default, refuse_field
from domain.crews.duplicate_keys import apart
from domain.crews.schema import MAX_AGENTS, MAX_TASKS, Mistake, Reference, Settings
from domain.shared import names, yaml_reader
from domain.shared.errors import DomainError, misread
from domain.tasks import Context, Path

T = TypeVar("T", bound=msgspec.Struct)

_LINE: Final = re.compile(r"line (\d+): ")
Title = Annotated[str, Meta(min_length=1, max_length=128, pattern=r"^[^\x00]*$")]


class YamlAgent(msgspec.Struct, kw_only=True):
    """An agent of `agents_yaml`. `llm` and `model` are the same; `max_iter` bounds the calls of the model in a task,
    `max_execution_time` is in seconds.
    """

    role: Words | None = None
    goal: Words | None = None
    backstory: Words | None = None
    instructions: Words | None = None
    llm: ModelReference | None = None
    model: ModelReference | None = None
    fallback_model: ModelReference | None = None
    tools: Tools = []
    allow_delegation: bool | None = None
    verbose: bool | None = None
    max_iter: MaxSteps | None = None
    max_execution_time: Seconds | None = None
    temperature: Temperature | None = None
    max_tokens: MaxTokens | None = None


class YamlTask(msgspec.Struct, kw_only=True):
    """A task of `tasks_yaml`. `name` is what people call it, its key where there is none."""

    name: Title | None = None
    description: Words | None = None
    expected_output: Words | None = None
    agent: Reference | None = None
    context: Context | None = None
    tools: Tools = []
    async_execution: bool = False
    markdown: bool = False
    output_file: Path | None = None
    human_input: bool = False


class Document(msgspec.Struct, Generic[T], kw_only=True):
    """What one document holds, by key. `there` are the places of fields that have a value, in order or not.

    `unread` means that nobody can say what it holds.
    """

    field: str
    items: dict[str, T] = {}
    lines: Mapping[str, int] = {}
    there: set[str] = set()
    unread: bool = False
    mistakes: list[Mistake] = []

    def mistake(self, place: str, message: str) -> Mistake:
        """One at a place below the document: `write.agent`."""
        inner = place
        while inner and inner not in self.lines:
            inner = inner[: max(inner.rfind("."), inner.rfind("["), 0)]
        field = f"{self.field}.{place}" if place else self.field
        return Mistake(field=field, message=message, line=self.lines.get(inner))


class Reading(msgspec.Struct, kw_only=True):
    """What both documents of a crew hold."""

    agents: Document[YamlAgent]
    tasks: Document[YamlTask]

    def mistake(self, field: str, message: str) -> Mistake:
        """One at a place: `tasks_yaml.write.agent`, or at a field of the crew itself."""
        document, _, place = field.partition(".")
        for one in (self.agents, self.tasks):
            if one.field == document:
                return one.mistake(place, message)
        return Mistake(field=field, message=message)


def read(settings: Settings) -> Reading:
    """Both documents, each with its mistakes. Their parts that are in order are there all the same."""
    return Reading(
        agents=_read(settings.agents_yaml, "agents_yaml", YamlAgent, MAX_AGENTS),
        tasks=_read(settings.tasks_yaml, "tasks_yaml", YamlTask, MAX_TASKS),
    )


def _read(text: str | None, field: str, kind: type[T], most: int) -> Document[T]:
    if text is None or not text.strip():
        return Document(field=field)
    twins: list[Mistake] = []
    try:
        try:
            parsed = yaml_reader.parse(text, field)
        except DomainError:
            # One key too many hides nothing of what else is wrong.
            again, rest = apart(text)
            twins = [
                Mistake(
                    field=field, message=f"{one.key[:100]!r} is there twice, first on line {one.first}.", line=one.line
                )
                for one in again
            ]
            if not twins:
                raise
            parsed = yaml_reader.parse(rest, field)
    except DomainError as error:
        return Document(field=field, unread=True, mistakes=[*twins, *_of_parser(error)])
    found = Document[T](field=field, lines=parsed.lines, mistakes=twins)
    if parsed.value is None:
        return found
    if not isinstance(parsed.value, dict):
        found.unread = True
        found.mistakes.append(found.mistake("", "must be a mapping: a key for each, and below it what it is."))
        return found
    if len(parsed.value) > most:
        found.mistakes.append(found.mistake("", f"holds {len(parsed.value)}; {most} are allowed."))
    for key, value in itertools.islice(parsed.value.items(), most):
        _item(found, key, value, kind)
    return found


def _of_parser(error: DomainError) -> list[Mistake]:
    found: list[Mistake] = []
    for one in error.errors:
        line = _LINE.match(one.message)
        told = one.message if line is None else one.message[line.end() :]
        found.append(Mistake(field=one.field, message=told, line=None if line is None else int(line[1])))
    return found


def _item(found: Document[T], key: str, value: Any, kind: type[T]) -> None:
    place = key[:200]
    if names.KEY.fullmatch(key) is None:
        found.mistakes.append(found.mistake(place, f"a key {names.KEY_RULE}"))
    elif not isinstance(value, dict):
        found.mistakes.append(found.mistake(place, "must be a mapping of fields."))
        # Nobody is to be told besides that its fields are missing.
        found.there |= {f"{key}.{name}" for name in kind.__struct_fields__}
        found.items[key] = kind()
    else:
        found.items[key] = _fields(found, key, value, kind)


def _fields(found: Document[T], key: str, value: dict[str, Any], kind: type[T]) -> T:
    """What is in order of an item; the rest are mistakes."""
    fields = {field.name: field for field in msgspec.structs.fields(kind)}
    good: dict[str, Any] = {}
    for name, given in value.items():
        place = f"{key}.{name[:200]}"
        if name not in fields:
            if not is_default(name, given):
                found.mistakes.append(found.mistake(place, refuse_field(name, fields)))
            continue
        # Folded texts end with the line; a field without a value is none.
        given = given.strip() if isinstance(given, str) else given
        if given is None or given == "":
            continue
        found.there.add(place)
        try:
            good[name] = msgspec.convert(given, fields[name].type)
        except msgspec.ValidationError as error:
            wrong = misread(str(error), place)
            # Null means that nothing is said, so that nobody needs to hear of it.
            found.mistakes.append(found.mistake(wrong.field, wrong.message.replace(" | null`", "`")))
    return kind(**good)
