"""Who belongs to a crew and what they do, found out piece by piece, with all that is wrong."""

from typing import Final

import msgspec

from domain import agents
from domain.agents import Agent, build_unlisted_agent
from domain.crews.parser import CrewDocuments, YamlAgent
from domain.crews.schema import CrewProblem, CrewSettings
from domain.ports import Tx
from domain.shared import names, placeholders
from domain.shared.access import Caller
from domain.shared.errors import DomainError

# Warnings of one kind about one text.
_MOST_TOLD: Final = 5


class CrewMember(msgspec.Struct, kw_only=True):
    """An agent of the crew with all that it inherits. `place` is where it is named, `written` whether in YAML."""

    key: str
    path: str
    agent: Agent
    is_from_yaml: bool = False


class CrewTask(msgspec.Struct, kw_only=True):
    """A task of the crew: `agent` and `context` are keys of it. `context` is None where nothing is said of it."""

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
    task_id: str | None = None
    context: list[str] | None = None


class CrewRoster(msgspec.Struct, kw_only=True):
    """A crew as it is known so far. The `manager` is a member too, and not of the `team`."""

    settings: CrewSettings
    documents: CrewDocuments
    members: dict[str, CrewMember] = {}
    manager: CrewMember | None = None
    tasks: list[CrewTask] = []
    errors: list[CrewProblem] = []
    warnings: list[CrewProblem] = []
    # By reference, also those that are none.
    members_by_reference: dict[str, CrewMember | None] = {}

    @property
    def is_hierarchical(self) -> bool:
        """Whether a manager is given the tasks."""
        return self.settings.process == "hierarchical"

    @property
    def team(self) -> list[CrewMember]:
        """The members that can be asked to do something."""
        return [one for one in self.members.values() if one is not self.manager and one.agent.kind == "llm"]

    def add_error(self, field: str, message: str) -> None:
        """Note a mistake."""
        self.errors.append(self.documents.locate_problem(field, message))

    def add_warning(self, field: str, message: str) -> None:
        """Note what is worth a second look."""
        self.warnings.append(self.documents.locate_problem(field, message))

    def warn_about_placeholders(self, field: str, text: str | None) -> None:
        """Note what looks like a place of an input in a text, and is left as it stands."""
        for one in placeholders.find_unfilled(text or "")[:_MOST_TOLD]:
            told = f"{one[:100]} is left as it stands: an input's place is {{name}}, of letters, digits, _ and -."
            self.add_warning(field, told)


async def resolve_members(tx: Tx, caller: Caller, cast: CrewRoster) -> None:
    """The agents of the crew, and its manager."""
    for key, said in cast.documents.agents.items.items():
        cast.members[key] = _written(tx, caller, cast, key, said)
    listed: dict[str, int] = {}
    for number, reference in enumerate(cast.settings.agents):
        member = await resolve_member(tx, cast, reference, f"agents[{number}]")
        if member is not None and listed.setdefault(member.key, number) != number:
            cast.add_error(f"agents[{number}]", f"{reference!r} is agents[{listed[member.key]}] too.")
    await _managed(tx, cast)


def _written(tx: Tx, caller: Caller, cast: CrewRoster, key: str, said: YamlAgent) -> CrewMember:
    place, there = f"agents_yaml.{key}", cast.documents.agents.present_fields
    if said.role is None and said.instructions is None and f"{key}.role" not in there:
        cast.add_error(f"{place}.role", "is required.")
    if said.goal is None and said.instructions is None and f"{key}.goal" not in there:
        cast.add_warning(f"{place}.goal", "is missing: nothing says what this agent works towards.")
    if said.llm is not None and said.model is not None:
        cast.add_error(f"{place}.model", "means llm; one of them is enough.")
    for name in ("role", "goal", "backstory", "instructions"):
        cast.warn_about_placeholders(f"{place}.{name}", getattr(said, name))
    agent = build_unlisted_agent(
        key,
        caller.user_id,
        caller.tenant_id,
        tx.now,
        role=said.role,
        goal=said.goal,
        backstory=said.backstory,
        instructions=said.instructions,
        model=said.llm or said.model,
        fallback_model=said.fallback_model,
        temperature=said.temperature,
        max_tokens=said.max_tokens,
        max_steps=said.max_iter,
        timeout=said.max_execution_time,
        tools=said.tools,
        allow_delegation=said.allow_delegation,
        verbose=said.verbose,
    )
    return CrewMember(key=key, path=place, agent=agent, is_from_yaml=True)


async def resolve_member(tx: Tx, cast: CrewRoster, reference: str, field: str) -> CrewMember | None:
    """The agent of the tenant that `field` names, a member from now on. None for none, which is a mistake."""
    if reference not in cast.members_by_reference:
        cast.members_by_reference[reference] = await _hire(tx, cast, reference, field)
    elif cast.members_by_reference[reference] is None:
        cast.add_error(field, f"there is no agent {reference!r} to be had.")
    return cast.members_by_reference[reference]


async def _hire(tx: Tx, cast: CrewRoster, reference: str, field: str) -> CrewMember | None:
    try:
        agent = await agents.find_agent(tx, reference, field)
        if agent.kind == "llm":
            agent = await agents.resolve_agent(tx, agent)
    except DomainError as error:
        cast.add_error(field, error.errors[0].message)
        return None
    known = next((one for one in cast.members.values() if one.agent.id == agent.id), None)
    if known is not None:
        return known
    if agent.status == "archived":
        cast.add_error(field, f"{agent.name!r} is archived.")
    if agent.kind == "code" and cast.is_hierarchical:
        cast.add_error(field, f"{agent.name!r} runs uploaded code; a manager can ask model agents alone.")
    member = CrewMember(key=_free(agent.name, cast), path=field, agent=agent)
    cast.members[member.key] = member
    return member


def _free(name: str, cast: CrewRoster) -> str:
    """A key made of a name that no member has."""
    slug = names.make_slug(name)[:56]
    base = slug if slug and not slug[0].isdigit() else f"agent_{slug}".rstrip("_")
    key, number = base, 2
    while key in cast.members:
        key, number = f"{base}_{number}", number + 1
    return key


async def _managed(tx: Tx, cast: CrewRoster) -> None:
    wanted, settings = cast.settings.manager_agent, cast.settings
    if not cast.is_hierarchical:
        for field in ("manager_agent", "manager_model"):
            if getattr(settings, field) is not None:
                cast.add_error(field, "is for hierarchical crews; this one is sequential.")
        return
    if wanted is not None and wanted in cast.members and cast.members[wanted].is_from_yaml:
        cast.manager = cast.members[wanted]
    elif wanted is not None and not cast.documents.agents.is_unreadable:
        cast.manager = await resolve_member(tx, cast, wanted, "manager_agent")
    if not cast.team and not cast.documents.agents.is_unreadable:
        cast.add_error("agents_yaml", "a hierarchical crew needs an agent besides its manager, who does the work.")
