"""Making a plan of a crew: the steps, who does each, and what each waits for."""

from collections.abc import Sequence
from typing import Any, Final

import msgspec

from domain import plans
from domain.agents import Agent, AgentSpec, build_unlisted_agent
from domain.crews import validation
from domain.crews.roster import CrewMember, CrewRoster, CrewTask
from domain.crews.schema import PLANNING_STEP, Crew, CrewStepSummary
from domain.llms import ToolFailed
from domain.plans import AgentWork, Plan, PlanStep, TaskText
from domain.ports import Tx
from domain.shared import placeholders
from domain.shared.access import Caller
from domain.shared.errors import Conflict, FieldError, InvalidField, InvalidFields
from domain.workspaces import fill_path

# Calls of a manager's model in one task, if its agent does not say.
DEFAULT_MANAGER_STEPS: Final = 12
# Bytes of a plan: each step holds its agent, and whom that may ask.
MAX_CREW_PLAN_BYTES: Final = 8 * 1024 * 1024
# Characters of the plan of one task, and how many tokens it is given with what stands around it.
_PLAN_LENGTH: Final = 300
_PLAN_TOKENS: Final = 160
_TEXTS: Final = ("role", "goal", "backstory", "instructions")


class TaskOrder(msgspec.Struct, frozen=True, kw_only=True):
    """What a task waits for, and the tasks whose answers come with it."""

    depends_on: list[str]
    context: list[str]


def order_tasks(duties: Sequence[CrewTask]) -> dict[str, TaskOrder]:
    """The order of CrewAI, by key: a task waits for the last one that was not asynchronous, and one that is not
    asynchronous waits for all that were begun before it.

    Where no context is named it is the answers of all that have ended when the task begins.
    """
    order: dict[str, TaskOrder] = {}
    ended: list[str] = []
    beside: list[str] = []
    for duty in duties:
        if not duty.async_execution:
            ended += beside
        needed = (beside if beside and not duty.async_execution else ended[-1:]) + (duty.context or [])
        waits = list(dict.fromkeys(needed))
        order[duty.key] = TaskOrder(
            depends_on=[one for one in order if one in waits],
            context=list(ended) if duty.context is None else list(duty.context),
        )
        if duty.async_execution:
            beside.append(duty.key)
        else:
            beside = []
            ended.append(duty.key)
    return order


async def compile_crew(tx: Tx, caller: Caller, crew: Crew, model: str | None = None) -> Plan:
    """The plan of a crew as it is now; all of it on `model`, if that is given.

    Errors: `invalid_field` with all that is wrong with the crew by now, `conflict` for agents without a model.
    """
    cast = await validation.validate_crew(tx, caller, crew.settings)
    if cast.errors:
        raise InvalidFields([one.field_error for one in cast.errors])
    steps = await _steps(tx, cast, None if model is None else await validation.resolve_model_name(tx, model))
    plan = Plan(kind="crew", name=crew.name, crew_id=crew.id, max_rpm=crew.max_rpm, steps=steps)
    size = len(msgspec.json.encode(plan))
    if size > MAX_CREW_PLAN_BYTES:
        raise InvalidField(
            "tasks_yaml",
            f"the crew comes to {size} bytes: each task holds its agent, and all whom that may ask; "
            f"{MAX_CREW_PLAN_BYTES} are allowed.",
        )
    return plan


def validate_inputs(crew: Crew, plan: Plan, given: dict[str, Any]) -> None:
    """See that a value is given for each name in braces, and that files are named by paths in the workspace.

    Errors: `invalid_field` naming each as `inputs.topic`.
    """
    missing = [name for name in list_plan_inputs(plan) if name not in given]
    if missing:
        told = f"is required: texts of the crew {crew.name!r} name it in braces."
        raise InvalidFields([FieldError(field=f"inputs.{name}", message=told) for name in missing])
    wrong: list[FieldError] = []
    for step in plan.steps:
        named = placeholders.find_placeholders(step.output_file or "")
        try:
            fill_path(step.output_file, given) if step.output_file is not None and named else None
        except ToolFailed as error:
            wrong.append(
                FieldError(field=f"inputs.{named[0]}", message=f"the output_file of the task {step.name!r}, {error}")
            )
    if wrong:
        raise InvalidFields(wrong)


def list_plan_inputs(plan: Plan) -> list[str]:
    """The inputs that the texts of a crew's plan name, in the order in which they come."""
    found: dict[str, None] = {}
    for step in plan.steps:
        if step.text is not None:
            for text in (step.text.description, step.text.expected_output, step.output_file):
                found |= dict.fromkeys(placeholders.find_placeholders(text or ""))
        if isinstance(step.work, AgentWork) and step.work.spec is not None:
            for agent in (step.work.spec, *step.work.spec.team):
                found |= dict.fromkeys(_places(agent))
    return list(found)


def list_roster_inputs(cast: CrewRoster) -> list[str]:
    """The inputs that the texts of a crew name."""
    found: dict[str, None] = {}
    for duty in cast.tasks:
        for text in (duty.description, duty.expected_output, duty.output_file):
            found |= dict.fromkeys(placeholders.find_placeholders(text or ""))
    for member in cast.members.values():
        found |= dict.fromkeys(_places(member.agent))
    return list(found)


def _places(agent: Agent) -> list[str]:
    texts = [getattr(agent, name) or "" for name in (*_TEXTS, "template_text")]
    # In the texts of an agent, that is what it is asked.
    return [name for text in texts for name in placeholders.find_placeholders(text) if name != "task"]


def outline_steps(cast: CrewRoster) -> list[CrewStepSummary]:
    """The steps that a crew without mistakes is run in."""
    order = order_tasks(cast.tasks)
    first = (
        [CrewStepSummary(id=PLANNING_STEP, name=PLANNING_STEP, agent="planner", depends_on=[])]
        if cast.settings.planning
        else []
    )
    before = [PLANNING_STEP] if cast.settings.planning else []
    return first + [
        CrewStepSummary(
            id=duty.key,
            name=duty.name,
            agent=_manager_key(cast) if cast.is_hierarchical else duty.agent or "",
            depends_on=order[duty.key].depends_on or before,
        )
        for duty in cast.tasks
    ]


def _manager_key(cast: CrewRoster) -> str:
    return "manager" if cast.manager is None else cast.manager.key


async def _steps(tx: Tx, cast: CrewRoster, model: tuple[str, str | None] | None) -> list[PlanStep]:
    makes = _Makes(tx, cast, model)
    order = order_tasks(cast.tasks)
    planning = cast.settings.planning
    steps = [await makes.planning()] if planning else []
    for duty in cast.tasks:
        steps.append(
            PlanStep(
                id=duty.key,
                name=duty.name,
                work=await makes.work(duty),
                depends_on=order[duty.key].depends_on or ([PLANNING_STEP] if planning else []),
                text=TaskText(
                    description=duty.description,
                    expected_output=duty.expected_output,
                    context=order[duty.key].context,
                    planned_by=PLANNING_STEP if planning else None,
                    markdown=duty.markdown,
                ),
                output_file=duty.output_file,
            )
        )
    return steps


class _Makes:
    """Writes down who does a step: the agents of a cast on the models that they have in this run."""

    def __init__(self, tx: Tx, cast: CrewRoster, model: tuple[str, str | None] | None) -> None:
        self._tx, self._cast, self._model = tx, cast, model
        self._named: dict[str, tuple[str, str | None]] = {}

    async def work(self, duty: CrewTask) -> AgentWork:
        """Who does a task. Errors: `conflict` without a model, `version_not_ready`."""
        if self._cast.is_hierarchical:
            return await self._managed(duty)
        member = self._cast.members[duty.agent or ""]
        if member.agent.kind == "code":
            return await plans.resolve_agent_work(self._tx, member.agent.id, member.path)
        agent = await self._equipped(member, duty)
        team = [await self._equipped(one) for one in self._others(member)] if agent.allow_delegation else []
        return _work(AgentSpec.from_agent(_alone(agent) if not team else agent, team=team))

    async def planning(self) -> PlanStep:
        """The step that says how to go about each task."""
        cast = self._cast
        agent = await self._on_model(
            _nobody(cast, "planner", "Planner of a crew of agents", "Say how each task is best gone about."),
            cast.settings.planning_model,
            "The planning",
        )
        count = len(cast.tasks)
        agent = msgspec.structs.replace(agent, max_tokens=_PLAN_TOKENS * count + 200, max_steps=1, temperature=0.0)
        one = {
            "type": "object",
            "properties": {
                "task": {"type": "string", "enum": [duty.key for duty in cast.tasks]},
                "plan": {"type": "string", "maxLength": _PLAN_LENGTH},
            },
            "required": ["task", "plan"],
            "additionalProperties": False,
        }
        plans = {"type": "array", "items": one, "minItems": count, "maxItems": count}
        schema = {
            "type": "object",
            "properties": {"plans": plans},
            "required": ["plans"],
            "additionalProperties": False,
        }
        told = "\n\n".join([_TO_PLAN, *(self._described(duty) for duty in cast.tasks)])
        return PlanStep(
            id=PLANNING_STEP,
            name=PLANNING_STEP,
            work=_work(AgentSpec.from_agent(agent, answer_schema=schema)),
            text=TaskText(description=told),
        )

    async def _managed(self, duty: CrewTask) -> AgentWork:
        cast, settings = self._cast, self._cast.settings
        if cast.manager is None:
            agent = _nobody(cast, "manager", _MANAGER_ROLE, _MANAGER_GOAL, _MANAGER_STORY)
        else:
            agent = self._folded(cast.manager.agent)
        agent = await self._on_model(agent, settings.manager_model, "The manager")
        suggested = cast.members.get(duty.agent or "")
        if suggested is not None:
            hint = f"For this task {suggested.agent.name!r} is suggested."
            agent.instructions = f"{agent.instructions}\n\n{hint}" if agent.instructions else hint
        team = [await self._equipped(one, duty if suggested in (None, one) else None) for one in cast.team]
        agent = msgspec.structs.replace(
            agent,
            allow_delegation=True,
            max_steps=agent.max_steps or DEFAULT_MANAGER_STEPS,
            verbose=self._verbose(agent),
        )
        return _work(AgentSpec.from_agent(agent, manager=True, team=team))

    async def _equipped(self, member: CrewMember, duty: CrewTask | None = None) -> Agent:
        """A member on its model, with the tools of a task besides its own."""
        agent = await self._on_model(self._folded(member.agent), None, f"The agent {member.key!r}")
        agent.tools = list(dict.fromkeys([*agent.tools, *(duty.tools if duty is not None else ())]))
        agent.verbose = self._verbose(agent)
        return agent

    def _folded(self, agent: Agent) -> Agent:
        """A copy in which what its template says is part of its instructions, which the inputs are put into."""
        texts = [text for text in (agent.template_text, agent.instructions) if text]
        return msgspec.structs.replace(
            agent, instructions="\n\n".join(texts) or None, template=None, template_id=None, template_text=None
        )

    async def _on_model(self, agent: Agent, wanted: str | None, whose: str) -> Agent:
        """A copy on its model in this run: the run's own, else what is wanted, else its own, else the crew's."""
        if self._model is not None:
            name, provider = self._model
        elif wanted is not None:
            name, provider = await self._resolved(wanted)
        elif agent.model is not None and agent.id:
            name, provider = agent.model, agent.provider
        elif (named := agent.model or self._cast.settings.model) is not None:
            name, provider = await self._resolved(named)
        else:
            raise Conflict(f"{whose} has no model: name one there, in the crew or for the run.")
        return msgspec.structs.replace(agent, model=name, provider=provider)

    async def _resolved(self, reference: str) -> tuple[str, str | None]:
        if reference not in self._named:
            self._named[reference] = await validation.resolve_model_name(self._tx, reference)
        return self._named[reference]

    def _verbose(self, agent: Agent) -> bool:
        return self._cast.settings.verbose if agent.verbose is None else agent.verbose

    def _others(self, member: CrewMember) -> list[CrewMember]:
        return [one for one in self._cast.team if one is not member]

    def _described(self, duty: CrewTask) -> str:
        member = self._cast.members.get(duty.agent or "")
        who = f", done by {member.agent.role or member.agent.name}" if member is not None else ""
        parts = [f"Task `{duty.key}`{who}:", duty.description]
        if duty.expected_output:
            parts.append(f"What is expected: {duty.expected_output}")
        return "\n".join(parts)


_TO_PLAN: Final = (
    "Several agents will do these tasks one after the other. For each task say in a few short steps how its agent "
    "should go about it. Name the task by what stands in backquotes."
)
_MANAGER_ROLE: Final = "Manager of a crew of agents"
_MANAGER_GOAL: Final = "Have the crew do the task in the best way possible."
_MANAGER_STORY: Final = (
    "You are a seasoned manager with a knack for getting the best out of your team. You delegate work to the right "
    "people and ask them the right questions. Even if you do not do tasks yourself, you know how good work looks, and "
    "answer with what the team has come to."
)


def _nobody(cast: CrewRoster, name: str, role: str, goal: str, backstory: str | None = None) -> Agent:
    """An agent that is made for the run."""
    one = next(iter(cast.members.values())).agent
    return build_unlisted_agent(
        name, one.user_id, one.tenant_id, one.created_at, role=role, goal=goal, backstory=backstory
    )


def _alone(agent: Agent) -> Agent:
    """Without a team of its own it would ask whomever the tenant has."""
    return msgspec.structs.replace(agent, allow_delegation=False)


def _work(spec: AgentSpec) -> AgentWork:
    return AgentWork(name=spec.name, agent_id=spec.id or None, timeout=spec.timeout, spec=spec)
