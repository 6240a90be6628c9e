"""Resolve the agents of a crew, with everything that is wrong with them."""

from typing import Any, Final

import msgspec

from domain import agents
from domain.agents import Agent, AgentOptions, KnowledgeText, build_unlisted_agent
from domain.crews.knowledge import read_sources
from domain.crews.parser import CrewDocuments
from domain.crews.schema import CrewProblem, CrewSettings
from domain.crews.yaml_schema import YamlAgent, YamlTask
from domain.ports import Tx
from domain.shared import names, placeholders
from domain.shared.access import Caller
from domain.shared.errors import DomainError

# For one text.
_MAX_PLACEHOLDER_WARNINGS: Final = 5


class CrewMember(msgspec.Struct, kw_only=True):
    """Hold an agent of the crew with everything it inherits. `path` is the place that names it.

    `fields` are those of its document, if it is not one of the tenant's agents.
    """

    key: str
    path: str
    agent: Agent
    fields: YamlAgent | None = None
    options: AgentOptions | None = None
    knowledge: list[KnowledgeText] = []

    @property
    def is_from_yaml(self) -> bool:
        """Whether the crew's own documents define the agent."""
        return self.fields is not None


class CrewTask(msgspec.Struct, kw_only=True):
    """Hold a task of the crew: `agent` and `context` are keys. `context` is None if the task does not set it.

    `fields` are those of its document, if it is not one of the catalogue.
    """

    key: str
    path: str
    name: str
    description: str
    expected_output: str | None
    agent: str | None
    context_references: list[str] | None
    tools: list[str]
    async_execution: bool
    markdown: bool
    output_file: str | None
    output_json: dict[str, Any] | None = None
    task_id: str | None = None
    context: list[str] | None = None
    fields: YamlTask | None = None
    answer_schema: dict[str, Any] | None = None


class CrewRoster(msgspec.Struct, kw_only=True):
    """Hold what is resolved of a crew, and its problems. The `manager` is a member, but not in the `team`.

    `members_by_reference` also holds references that were not found.
    """

    settings: CrewSettings
    documents: CrewDocuments
    members: dict[str, CrewMember] = {}
    manager: CrewMember | None = None
    tasks: list[CrewTask] = []
    errors: list[CrewProblem] = []
    warnings: list[CrewProblem] = []
    members_by_reference: dict[str, CrewMember | None] = {}

    @property
    def is_hierarchical(self) -> bool:
        """Whether a manager receives the tasks."""
        return self.settings.process == "hierarchical"

    @property
    def team(self) -> list[CrewMember]:
        """The members to which tasks can be delegated."""
        return [member for member in self.members.values() if member is not self.manager and member.agent.kind == "llm"]

    def add_error(self, field: str, message: str) -> None:
        """Add an error at a field."""
        self.errors.append(self.documents.locate_problem(field, message))

    def add_warning(self, field: str, message: str) -> None:
        """Add a warning at a field."""
        self.warnings.append(self.documents.locate_problem(field, message))

    def warn_about_placeholders(self, field: str, text: str | None) -> None:
        """Warn about what looks like a placeholder of an input, but is left as it stands."""
        for text_part in placeholders.find_unfilled(text or "")[:_MAX_PLACEHOLDER_WARNINGS]:
            message = (
                f"{text_part[:100]} is left as it stands: write an input as {{name}}, with letters, digits, _ and -."
            )
            self.add_warning(field, message)


async def resolve_members(tx: Tx, caller: Caller, roster: CrewRoster) -> None:
    """Add the agents of the crew, and its manager."""
    for key, yaml_agent in roster.documents.agents.items.items():
        roster.members[key] = _build_yaml_member(tx, caller, roster, key, yaml_agent)
    listed_numbers: dict[str, int] = {}
    for number, reference in enumerate(roster.settings.agents):
        member = await resolve_member(tx, roster, reference, f"agents[{number}]")
        if member is not None and listed_numbers.setdefault(member.key, number) != number:
            roster.add_error(
                f"agents[{number}]", f"duplicate agent {reference!r}: agents[{listed_numbers[member.key]}] is the same."
            )
    await _resolve_manager(tx, roster)


def _build_yaml_member(tx: Tx, caller: Caller, roster: CrewRoster, key: str, yaml_agent: YamlAgent) -> CrewMember:
    path, present_fields = f"agents_yaml.{key}", roster.documents.agents.present_fields
    if yaml_agent.role is None and yaml_agent.instructions is None and f"{key}.role" not in present_fields:
        roster.add_error(f"{path}.role", "is required.")
    if yaml_agent.goal is None and yaml_agent.instructions is None and f"{key}.goal" not in present_fields:
        roster.add_warning(f"{path}.goal", "is missing: describe what this agent works towards.")
    if yaml_agent.llm is not None and yaml_agent.model is not None:
        roster.add_error(f"{path}.model", "means the same as llm; send one of them.")
    for name in ("role", "goal", "backstory", "instructions"):
        roster.warn_about_placeholders(f"{path}.{name}", getattr(yaml_agent, name))
    agent = build_unlisted_agent(
        key,
        caller.user_id,
        caller.tenant_id,
        tx.now,
        role=yaml_agent.role,
        goal=yaml_agent.goal,
        backstory=yaml_agent.backstory,
        instructions=yaml_agent.instructions,
        model=yaml_agent.llm or yaml_agent.model,
        fallback_model=yaml_agent.fallback_model,
        temperature=yaml_agent.temperature,
        max_tokens=yaml_agent.max_tokens,
        max_steps=yaml_agent.max_iter,
        timeout=yaml_agent.max_execution_time,
        tools=yaml_agent.named_tools,
        allow_delegation=yaml_agent.allow_delegation,
        verbose=yaml_agent.verbose,
    )
    member = CrewMember(key=key, path=path, agent=agent, fields=yaml_agent)
    try:
        member.options = yaml_agent.options
        member.knowledge = read_sources(yaml_agent.knowledge_sources, "knowledge_sources", key)
    except DomainError as error:
        roster.add_error(f"{path}.{error.errors[0].field}", error.errors[0].message)
    return member


async def resolve_member(tx: Tx, roster: CrewRoster, reference: str, field: str) -> CrewMember | None:
    """Return the tenant's agent that `field` names, as a member. Add an error and return None for an unknown one."""
    if reference not in roster.members_by_reference:
        roster.members_by_reference[reference] = await _add_member(tx, roster, reference, field)
    elif roster.members_by_reference[reference] is None:
        roster.add_error(field, f"the agent {reference!r} cannot be used; see the error of its first use.")
    return roster.members_by_reference[reference]


async def _add_member(tx: Tx, roster: CrewRoster, reference: str, field: str) -> CrewMember | None:
    try:
        agent = await agents.find_agent(tx, reference, field)
        if agent.kind == "llm":
            agent = await agents.resolve_agent(tx, agent)
    except DomainError as error:
        roster.add_error(field, error.errors[0].message)
        return None
    existing = next((member for member in roster.members.values() if member.agent.id == agent.id), None)
    if existing is not None:
        return existing
    if agent.status == "archived":
        roster.add_error(field, f"{agent.name!r} is archived.")
    if agent.kind == "code" and roster.is_hierarchical:
        roster.add_error(field, f"{agent.name!r} runs uploaded code; a manager can delegate to model agents only.")
    member = CrewMember(key=_choose_key(agent.name, roster), path=field, agent=agent)
    roster.members[member.key] = member
    return member


def _choose_key(name: str, roster: CrewRoster) -> str:
    """Return a key made of a name that no member has."""
    slug = names.make_slug(name)[:56]
    base = slug if slug and not slug[0].isdigit() else f"agent_{slug}".rstrip("_")
    key, number = base, 2
    while key in roster.members:
        key, number = f"{base}_{number}", number + 1
    return key


async def _resolve_manager(tx: Tx, roster: CrewRoster) -> None:
    reference, settings = roster.settings.manager_agent, roster.settings
    if not roster.is_hierarchical:
        for field in ("manager_agent", "manager_model"):
            if getattr(settings, field) is not None:
                roster.add_error(field, "is for hierarchical crews; this crew is sequential.")
        return
    if reference is not None and reference in roster.members and roster.members[reference].is_from_yaml:
        roster.manager = roster.members[reference]
    elif reference is not None and not roster.documents.agents.is_unreadable:
        roster.manager = await resolve_member(tx, roster, reference, "manager_agent")
    if not roster.team and not roster.documents.agents.is_unreadable:
        roster.add_error("agents_yaml", "a hierarchical crew needs at least one agent besides its manager.")
