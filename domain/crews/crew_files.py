"""Read a crew from the files of a CrewAI project: `crew.jsonc`, and one `agents/NAME.jsonc` for each agent.

The fields are those of the YAML, and problems are named by file and line. What was read is kept as YAML.
"""

import re
from collections.abc import Mapping
from typing import Any, Final

import msgspec

from domain.crews.crewai_fields import explain_unknown_field, is_default
from domain.crews.parser import CrewDocument, CrewDocuments, list_duplicates, parse_items
from domain.crews.schema import (
    MAX_CREW_AGENTS,
    MAX_CREW_TASKS,
    MAX_CREW_YAML_LENGTH,
    CrewProblem,
    CrewSettings,
)
from domain.crews.yaml_schema import YamlAgent, YamlTask
from domain.shared import jsonc_reader, names, yaml_reader
from domain.shared.errors import DomainError
from domain.shared.field_errors import convert_field

_AGENT_FILE_PATTERN: Final = re.compile(r"agents/([^/]{1,64})\.jsonc?")
_KNOWLEDGE_FOLDER: Final = "knowledge/"
_CREW_FILE_NAMES: Final = ("crew.jsonc", "crew.json")
_SAME_NAMES: Final = (
    *("process", "verbose", "planning", "manager_agent", "max_rpm", "inputs", "memory", "knowledge_sources"),
)
# What crew.jsonc calls the settings of a crew.
_SETTING_NAMES: Final = {
    **{name: name for name in _SAME_NAMES},
    "manager_llm": "manager_model",
    "planning_llm": "planning_model",
}
_AGENT_TYPES: Final = ("agent", "Agent", "crewai.Agent", "crewai.agent.core.Agent")
_TASK_TYPES: Final = ("task", "Task", "crewai.Task", "crewai.task.Task")
_OWN_FIELDS: Final = ("name", "agents", "tasks")
CREW_FILE_FIELDS: Final = frozenset({*_OWN_FIELDS, *_SETTING_NAMES})


class CrewProject(msgspec.Struct, kw_only=True):
    """Hold what the files of a crew say. `settings` are the crew's own fields; problems are in the documents."""

    documents: CrewDocuments
    settings: dict[str, Any] = {}
    name: str | None = None
    agents_yaml: str = ""
    tasks_yaml: str = ""

    def collect_settings(self) -> dict[str, Any]:
        """Return the fields of `CrewSettings` that the files set: agents and tasks as YAML, and the crew's own."""
        return {**self.settings, "agents_yaml": self.agents_yaml or None, "tasks_yaml": self.tasks_yaml or None}


def read_project(files: Mapping[str, str]) -> CrewProject:
    """Read the files of a project, with all problems at once."""
    return _ProjectReader(files).read_project()


class _ProjectReader:
    """Read one project. Paths in files become places in two documents, one of all agents and one of all tasks."""

    def __init__(self, files: Mapping[str, str]) -> None:
        self._files, self._agent_values = files, dict[str, Any]()
        self._task_values = dict[str, Any]()
        self._lines: dict[str, dict[str, int]] = {"agents": {}, "tasks": {}, "settings": {}}
        self._places: dict[str, dict[str, str]] = {"agents": {}, "tasks": {}, "settings": {}}
        self._problems: list[CrewProblem] = []
        self._unreadable: set[str] = set()
        self._crew_place, self._crew_lines = "files.crew.jsonc", dict[str, int]()

    def read_project(self) -> CrewProject:
        """Return the project."""
        content, agent_files = self._read_files()
        settings = self._read_settings(content)
        agents = CrewDocument[YamlAgent](
            field="agents_yaml", lines=self._lines["agents"], places=self._places["agents"]
        )
        tasks = CrewDocument[YamlTask](field="tasks_yaml", lines=self._lines["tasks"], places=self._places["tasks"])
        self._collect_agents(content, agent_files)
        self._collect_tasks(content)
        parse_items(agents, self._agent_values, YamlAgent, MAX_CREW_AGENTS)
        parse_items(tasks, self._task_values, YamlTask, MAX_CREW_TASKS)
        # A file that cannot be read may hold what others name.
        agents.is_unreadable, tasks.is_unreadable = "agents" in self._unreadable, "tasks" in self._unreadable
        name = content.get("name")
        project = CrewProject(
            documents=CrewDocuments(
                agents=agents,
                tasks=tasks,
                settings=CrewDocument(field="crew", lines=self._lines["settings"], places=self._places["settings"]),
            ),
            settings=settings,
            name=name.strip() if isinstance(name, str) and name.strip() else None,
            agents_yaml=yaml_reader.dump_yaml(self._agent_values) if self._agent_values else "",
            tasks_yaml=yaml_reader.dump_yaml(self._task_values) if self._task_values else "",
        )
        if max(len(project.agents_yaml), len(project.tasks_yaml)) > MAX_CREW_YAML_LENGTH:
            message = f"as YAML the agents or the tasks are longer than {MAX_CREW_YAML_LENGTH} characters."
            self._problems.append(CrewProblem(field="files", message=message))
        agents.problems = [*self._problems, *agents.problems]
        agents.warnings = self._list_unused_files(agent_files)
        return project

    def _list_unused_files(self, agent_files: dict[str, str]) -> list[CrewProblem]:
        unused = [name for key, name in agent_files.items() if key not in self._agent_values]
        message = "is not read: crew.jsonc names this agent neither in agents nor as manager_agent."
        return [CrewProblem(field=f"files.{name}", message=message) for name in unused]

    # files

    def _read_files(self) -> tuple[dict[str, Any], dict[str, str]]:
        """Return the content of crew.jsonc, and the names of the agents' files by agent."""
        agent_files: dict[str, str] = {}
        for name in self._files:
            match = _AGENT_FILE_PATTERN.fullmatch(name)
            if match is None and name not in _CREW_FILE_NAMES and not name.startswith(_KNOWLEDGE_FOLDER):
                message = "is not read here; send crew.jsonc, agents/NAME.jsonc and texts in knowledge."
                self._add_problem(f"files.{name[:200]}", message)
            elif match is not None:
                # As CrewAI does, of NAME.jsonc and NAME.json the first is read.
                agent_files[match[1]] = max(name, agent_files.get(match[1], ""))
        crew_file = next((name for name in _CREW_FILE_NAMES if name in self._files), None)
        if crew_file is None:
            self._unreadable = {"agents", "tasks"}
            self._add_problem("files.crew.jsonc", "is required: it names the agents and holds the tasks.")
            return {}, agent_files
        self._crew_place = f"files.{crew_file}"
        document = self._read_file(crew_file)
        if document is None:
            self._unreadable = {"agents", "tasks"}
            return {}, agent_files
        self._crew_lines = document.lines
        return document.value, agent_files

    def _read_file(self, name: str) -> yaml_reader.YamlDocument | None:
        """Return the content of a file, None if it is no object. Problems are kept."""
        place = f"files.{name}"
        try:
            document = jsonc_reader.read_jsonc(self._files[name])
        except yaml_reader.YamlError as error:
            self._problems += list_duplicates(place, error.duplicates)
            self._problems.append(CrewProblem(field=place, message=error.message, line=error.line))
            return None
        self._problems += list_duplicates(place, document.duplicates)
        if not isinstance(document.value, dict):
            self._add_problem(place, "must be an object of fields.", 1)
            return None
        return document

    # settings

    def _read_settings(self, content: dict[str, Any]) -> dict[str, Any]:
        fields = {field.name: field for field in msgspec.structs.fields(CrewSettings)}
        settings: dict[str, Any] = {}
        for name, value in content.items():
            place, line = f"{self._crew_place}.{name[:200]}", self._crew_lines.get(name)
            setting = _SETTING_NAMES.get(name)
            if setting is None:
                if name not in _OWN_FIELDS and not is_default(name, value, "crew"):
                    read_fields = (*_OWN_FIELDS, *_SETTING_NAMES)
                    self._add_problem(place, explain_unknown_field(name, read_fields, "crew"), line)
                continue
            if value is None or value == "":
                continue
            if setting == "knowledge_sources":
                value = self._inline_texts(value)
            self._places["settings"][setting] = place
            self._lines["settings"][setting] = line or 1
            try:
                settings[setting] = convert_field(value, fields[setting].type, place)
            except DomainError as error:
                message = error.errors[0].message.replace(" | null`", "`")
                self._add_problem(error.errors[0].field, message, line)
        return settings

    # agents and tasks

    def _collect_agents(self, content: dict[str, Any], agent_files: dict[str, str]) -> None:
        listed = content.get("agents")
        if isinstance(listed, dict):
            for key, value in listed.items():
                self._add_item(
                    "agents", key, value, f"{self._crew_place}.agents.{key}", self._list_crew_lines("agents", key)
                )
            listed = []
        elif not isinstance(listed, list):
            if self._crew_lines:
                self._add_problem(f"{self._crew_place}.agents", "must be a list of names of agents.", 1)
            listed = []
        references = [(f"{self._crew_place}.agents[{number}]", name) for number, name in enumerate(listed)]
        manager = content.get("manager_agent")
        if isinstance(manager, str) and (manager in agent_files or manager in self._agent_values):
            references.append((f"{self._crew_place}.manager_agent", manager))
        for place, name in references:
            line = self._crew_lines.get(place.removeprefix(f"{self._crew_place}."))
            if not isinstance(name, str) or not name:
                self._add_problem(place, "must be the name of an agent.", line)
            elif name in self._agent_values:
                if not place.endswith("manager_agent"):
                    self._add_problem(place, f"duplicate agent {name[:100]!r}.", line)
            elif name in agent_files:
                self._add_agent_file(name, agent_files[name])
            else:
                self._unreadable.add("agents")
                self._add_problem(place, f"send agents/{name[:100]}.jsonc: there is no such file.", line)

    def _add_agent_file(self, key: str, file_name: str) -> None:
        document = self._read_file(file_name)
        if document is None:
            self._unreadable.add("agents")
            return
        self._add_item("agents", key, document.value, f"files.{file_name}", document.lines)

    def _collect_tasks(self, content: dict[str, Any]) -> None:
        listed = content.get("tasks", [])
        if not isinstance(listed, list):
            self._add_problem(f"{self._crew_place}.tasks", "must be a list of tasks.", self._crew_lines.get("tasks"))
            return
        for number, value in enumerate(listed):
            name = value.get("name") if isinstance(value, dict) else None
            is_key = isinstance(name, str) and names.KEY_PATTERN.fullmatch(name) is not None
            key = name if is_key and isinstance(name, str) else f"task_{number + 1}"
            place = f"{self._crew_place}.tasks[{number}]"
            if key in self._task_values:
                self._add_problem(f"{place}.name", f"duplicate task {key!r}.", self._crew_lines.get(f"tasks[{number}]"))
                continue
            if is_key and isinstance(value, dict):
                value = {field: item for field, item in value.items() if field != "name"}
            self._add_item("tasks", key, value, place, self._list_crew_lines(f"tasks[{number}]"))

    def _add_item(self, kind: str, key: str, value: Any, place: str, lines: Mapping[str, int]) -> None:
        """Add an agent or a task, with the lines and places of its fields, those of an agent's `settings` included."""
        places, key_lines = self._places[kind], self._lines[kind]
        places[key], key_lines[key] = place, lines.get("", 1)
        key_lines |= {f"{key}.{path}": line for path, line in lines.items() if path}
        if isinstance(value, dict):
            value = dict(value)
            settings = value.pop("settings", None) if kind == "agents" else None
            if isinstance(settings, dict):
                for name in settings:
                    places[f"{key}.{name}"] = f"{place}.settings.{name}"
                    key_lines[f"{key}.{name}"] = lines.get(f"settings.{name}", 1)
                value |= settings
            elif settings is not None:
                self._add_problem(f"{place}.settings", "must be an object of fields.", lines.get("settings"))
            if "knowledge_sources" in value:
                value["knowledge_sources"] = self._inline_texts(value["knowledge_sources"])
            if value.get("type") in (_AGENT_TYPES if kind == "agents" else _TASK_TYPES):
                del value["type"]
        (self._agent_values if kind == "agents" else self._task_values)[key] = value

    def _inline_texts(self, sources: Any) -> Any:
        """Return knowledge sources with the texts of the files that were sent, each as a source of its own."""
        if not isinstance(sources, list):
            return sources
        inlined: list[Any] = []
        for source in sources:
            paths = source.get("file_paths", source.get("file_path")) if isinstance(source, dict) else None
            names = [paths] if isinstance(paths, str) else paths
            if not isinstance(names, list) or not any(self._find_text(name) is not None for name in names):
                inlined.append(source)
                continue
            rest = {field: value for field, value in source.items() if field not in ("file_paths", "file_path")}
            for name in names:
                text = self._find_text(name)
                inlined.append(
                    {**rest, "file_paths": [name]} if text is None else {"name": name, **rest, "content": text}
                )
        return inlined

    def _find_text(self, name: Any) -> str | None:
        """Return the text of a file that was sent, by its path in the project or below `knowledge`."""
        path = name if isinstance(name, str) and name.startswith(_KNOWLEDGE_FOLDER) else f"{_KNOWLEDGE_FOLDER}{name}"
        return self._files.get(path)

    def _list_crew_lines(self, *path: str) -> dict[str, int]:
        """Return the lines of what is below a place in crew.jsonc."""
        prefix = ".".join(path)
        below = {path: line for path, line in self._crew_lines.items() if path.startswith((f"{prefix}.", f"{prefix}["))}
        lines = {path[len(prefix) :].lstrip("."): line for path, line in below.items()}
        return {**lines, "": self._crew_lines.get(prefix, 1)}

    def _add_problem(self, field: str, message: str, line: int | None = None) -> None:
        self._problems.append(CrewProblem(field=field, message=message, line=line))
