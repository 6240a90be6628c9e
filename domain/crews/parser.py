"""Parse agents and tasks as CrewAI writes them: YAML, with all errors at once and the line of each."""

import itertools
from collections.abc import Mapping
from typing import Any, Final, Generic, TypeVar

import msgspec

from domain.crews.crewai_fields import PYTHON_REASON, CrewFieldKind, explain_unknown_field, is_default
from domain.crews.schema import MAX_CREW_AGENTS, MAX_CREW_TASKS, CrewProblem, CrewSettings
from domain.crews.yaml_schema import YamlAgent, YamlTask
from domain.shared import names, yaml_reader
from domain.shared.errors import DomainError
from domain.shared.field_errors import convert_field, find_line

T = TypeVar("T", bound=msgspec.Struct)

# Longer keys are cut in the place of an error.
_MAX_KEY_LENGTH: Final = 200
_MODEL_FIELDS: Final = ("model", "provider", "temperature", "max_tokens")


class CrewDocument(msgspec.Struct, Generic[T], kw_only=True):
    """Hold the content of one document, by key.

    `present_fields` are the paths of fields that have a value, valid or not. `items` is empty if `is_unreadable`.
    `places` names the file and the path in it of what came from files, by the path here.
    """

    field: str
    items: dict[str, T] = {}
    lines: Mapping[str, int] = {}
    present_fields: set[str] = set()
    is_unreadable: bool = False
    problems: list[CrewProblem] = []
    warnings: list[CrewProblem] = []
    places: Mapping[str, str] = {}

    @property
    def kind(self) -> CrewFieldKind:
        """What the document describes, in CrewAI's words."""
        return "agent" if self.field == "agents_yaml" else "task"

    def locate_problem(self, path: str, message: str) -> CrewProblem:
        """Return a problem at a path in the document, like `write.agent`, with its line."""
        return CrewProblem(field=self._name_place(path), message=message, line=find_line(self.lines, path))

    def _name_place(self, path: str) -> str:
        inner = path
        while inner and inner not in self.places:
            inner = inner[: max(inner.rfind("."), inner.rfind("["), 0)]
        if inner in self.places:
            return self.places[inner] + path[len(inner) :]
        return f"{self.field}.{path}" if path else self.field

    def add_problem(self, path: str, message: str) -> None:
        """Record a problem at a path in the document."""
        self.problems.append(self.locate_problem(path, message))


class CrewDocuments(msgspec.Struct, kw_only=True):
    """Hold both documents of a crew. `settings` finds the crew's own fields in its file, if they came from one."""

    agents: CrewDocument[YamlAgent]
    tasks: CrewDocument[YamlTask]
    settings: CrewDocument[YamlTask] | None = None

    def locate_problem(self, field: str, message: str) -> CrewProblem:
        """Return a problem at `tasks_yaml.write.agent`, with its line, or at a field of the crew itself."""
        document_field, _, path = field.partition(".")
        for document in (self.agents, self.tasks):
            if document.field == document_field:
                return document.locate_problem(path, message)
        if self.settings is not None and document_field.split("[")[0] in self.settings.places:
            return self.settings.locate_problem(field, message)
        return CrewProblem(field=field, message=message)


def parse_documents(settings: CrewSettings) -> CrewDocuments:
    """Parse both documents; valid parts are kept beside the problems."""
    return CrewDocuments(
        agents=_parse_document(settings.agents_yaml, "agents_yaml", YamlAgent, MAX_CREW_AGENTS),
        tasks=_parse_document(settings.tasks_yaml, "tasks_yaml", YamlTask, MAX_CREW_TASKS),
    )


def _parse_document(text: str | None, field: str, kind: type[T], limit: int) -> CrewDocument[T]:
    if text is None or not text.strip():
        return CrewDocument(field=field)
    try:
        parsed = yaml_reader.read_yaml(text)
    except yaml_reader.YamlError as error:
        problems = list_duplicates(field, error.duplicates)
        problems.append(CrewProblem(field=field, message=error.message, line=error.line))
        return CrewDocument(field=field, is_unreadable=True, problems=problems)
    problems = list_duplicates(field, parsed.duplicates)
    document = CrewDocument[T](field=field, lines=parsed.lines, problems=problems)
    if parsed.value is None:
        return document
    if not isinstance(parsed.value, dict):
        document.is_unreadable = True
        document.add_problem("", "must be a mapping of keys, each with its fields below it.")
        return document
    parse_items(document, parsed.value, kind, limit)
    return document


def parse_items(document: CrewDocument[T], items: dict[str, Any], kind: type[T], limit: int) -> None:
    """Parse the agents or tasks of a document into it, up to a limit."""
    if len(items) > limit:
        document.add_problem("", f"holds {len(items)} entries; at most {limit} are allowed.")
    for key, value in itertools.islice(items.items(), limit):
        _parse_item(document, key, value, kind)


def list_duplicates(field: str, duplicates: list[yaml_reader.DuplicateKey]) -> list[CrewProblem]:
    """Return a problem for each duplicate key of a text."""
    return [CrewProblem(field=field, message=duplicate.message, line=duplicate.line) for duplicate in duplicates]


def _parse_item(document: CrewDocument[T], key: str, value: Any, kind: type[T]) -> None:
    path = key[:_MAX_KEY_LENGTH]
    if names.KEY_PATTERN.fullmatch(key) is None:
        document.add_problem(path, f"a key {names.KEY_RULE}")
    elif not isinstance(value, dict):
        document.add_problem(path, "must be a mapping of fields.")
        # Do not report its fields as missing as well.
        document.present_fields |= {f"{key}.{name}" for name in kind.__struct_fields__}
        document.items[key] = kind()
    else:
        document.items[key] = _parse_fields(document, key, value, kind)


def _parse_fields(document: CrewDocument[T], key: str, value: dict[str, Any], kind: type[T]) -> T:
    """Return an item with its valid fields; record the others as problems."""
    fields = {field.name: field for field in msgspec.structs.fields(kind)}
    valid_fields: dict[str, Any] = {}
    for name, field_value in _unpack_model(document, key, value).items():
        path = f"{key}.{name[:_MAX_KEY_LENGTH]}"
        if name not in fields:
            if not is_default(name, field_value, document.kind):
                document.add_problem(path, explain_unknown_field(name, fields, document.kind))
            continue
        # Folded texts end with a line break; a field without a value is left out.
        stripped = field_value.strip() if isinstance(field_value, str) else field_value
        if stripped is None or stripped == "":
            continue
        document.present_fields.add(path)
        if isinstance(stripped, dict) and set(stripped) == {"python"}:
            document.add_problem(path, PYTHON_REASON)
            continue
        try:
            valid_fields[name] = convert_field(stripped, fields[name].type, path)
        except DomainError as error:
            # Null leaves a field out, so the message need not offer it.
            message = error.errors[0].message.replace(" | null`", "`")
            document.add_problem(error.errors[0].field, message)
    return kind(**valid_fields)


def _unpack_model(document: CrewDocument[T], key: str, value: dict[str, Any]) -> dict[str, Any]:
    """Return an agent whose `llm` is an object with its parts as fields of the agent, as they are here."""
    model = value.get("llm")
    if document.kind != "agent" or not isinstance(model, dict):
        return value
    for name in model:
        if name not in _MODEL_FIELDS and model[name] is not None:
            message = (
                f"is not read here; register the model with it under /models. Here are {', '.join(_MODEL_FIELDS)}."
            )
            document.add_problem(f"{key}.llm.{str(name)[:_MAX_KEY_LENGTH]}", message)
    reference, provider = model.get("model"), model.get("provider")
    if isinstance(reference, str) and isinstance(provider, str):
        reference = f"{provider}/{reference}"
    if not isinstance(reference, str):
        document.add_problem(f"{key}.llm.model", "is required: the name of the model.")
        document.present_fields.add(f"{key}.llm")
    parts = {name: model[name] for name in ("temperature", "max_tokens") if model.get(name) is not None}
    return {**{name: item for name, item in value.items() if name != "llm"}, "llm": reference, **parts}
