"""Compile a crew into a plan: the steps, the agent of each, and the steps that each waits for."""

from collections.abc import Iterator, Sequence
from typing import Any, Final, TypeVar

import msgspec

from domain import plans
from domain.agents import Agent, AgentSpec, CrewAgent, build_unlisted_agent
from domain.crews import validation
from domain.crews.roster import CrewMember, CrewRoster, CrewTask
from domain.crews.schema import PLANNING_STEP, Crew, CrewStepSummary
from domain.crews.task_rules import build_recall, build_rules, choose_date_format, choose_retries, list_knowledge
from domain.llms import ToolFailed
from domain.plans import AgentWork, Plan, PlanStep, TaskText
from domain.ports import Tx
from domain.shared import placeholders
from domain.shared.access import Caller
from domain.shared.errors import Conflict, FieldError, InvalidField, InvalidFields
from domain.workspaces import fill_path

A = TypeVar("A", bound=Agent)

# Model calls of a manager in one task, if its agent does not set a limit.
DEFAULT_MANAGER_STEPS: Final = 12
# Each step of a plan holds its agent and the agents that it may ask.
MAX_CREW_PLAN_BYTES: Final = 8 * 1024 * 1024
# Characters of the plan for one task, and the tokens for them with the JSON around them.
_TASK_PLAN_LENGTH: Final = 300
_TASK_PLAN_TOKENS: Final = 160
_AGENT_TEXT_FIELDS: Final = ("role", "goal", "backstory", "instructions", "template_text")
_PLANNER_PROMPT: Final = (
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


class TaskOrder(msgspec.Struct, frozen=True, kw_only=True):
    """Name the tasks that a task waits for, and the tasks whose answers it receives."""

    depends_on: list[str]
    context: list[str]


def order_tasks(tasks: Sequence[CrewTask]) -> dict[str, TaskOrder]:
    """Return CrewAI's order by task key.

    A task waits for the last synchronous task before it; a synchronous task also waits for all asynchronous tasks
    that began before it. Without a context of its own it receives the answers of all tasks that ended before it.
    """
    order: dict[str, TaskOrder] = {}
    ended: list[str] = []
    concurrent: list[str] = []
    for task in tasks:
        if not task.async_execution:
            ended += concurrent
        previous = concurrent if concurrent and not task.async_execution else ended[-1:]
        dependencies = {*previous, *(task.context or [])}
        order[task.key] = TaskOrder(
            depends_on=[key for key in order if key in dependencies],
            context=list(ended) if task.context is None else list(task.context),
        )
        if task.async_execution:
            concurrent.append(task.key)
        else:
            concurrent = []
            ended.append(task.key)
    return order


async def compile_crew(tx: Tx, caller: Caller, crew: Crew, model: str | None = None) -> Plan:
    """Compile a crew as it is now; `model` replaces the models of all its agents.

    Errors: `invalid_field` with everything that is wrong with the crew now, `conflict` for agents without a model.
    """
    roster = await validation.validate_crew(tx, caller, crew.settings)
    if roster.errors:
        raise InvalidFields([problem.field_error for problem in roster.errors])
    run_model = None if model is None else await validation.resolve_model_name(tx, model)
    steps = await _compile_steps(tx, roster, crew.id, run_model)
    plan = Plan(
        kind="crew",
        name=crew.name,
        crew_id=crew.id,
        max_rpm=crew.max_rpm,
        steps=steps,
        default_inputs=crew.inputs,
        knowledge=list_knowledge(roster),
    )
    size = len(msgspec.json.encode(plan))
    if size > MAX_CREW_PLAN_BYTES:
        message = (
            f"the plan of the crew has {size} bytes; at most {MAX_CREW_PLAN_BYTES} are allowed. "
            "Each task holds its agent and the agents that it may ask."
        )
        raise InvalidField("tasks_yaml", message)
    return plan


def validate_inputs(crew: Crew, plan: Plan, inputs: dict[str, Any]) -> None:
    """Check that every `{name}` in a text has a value, and that output files have valid paths.

    Errors: `invalid_field` naming each as `inputs.topic`.
    """
    inputs = {**plan.default_inputs, **inputs}
    missing = [name for name in list_plan_inputs(plan) if name not in inputs]
    if missing:
        message = f"is required: texts of the crew {crew.name!r} contain it in braces."
        raise InvalidFields([FieldError(field=f"inputs.{name}", message=message) for name in missing])
    errors: list[FieldError] = []
    for step in plan.steps:
        path_inputs = placeholders.find_placeholders(step.output_file or "")
        if step.output_file is None or not path_inputs:
            continue
        try:
            fill_path(step.output_file, inputs)
        except ToolFailed as error:
            message = f"the output_file of the task {step.name!r}, {error}"
            errors.append(FieldError(field=f"inputs.{path_inputs[0]}", message=message))
    if errors:
        raise InvalidFields(errors)


def list_plan_inputs(plan: Plan) -> list[str]:
    """Return the inputs that the texts of a crew's plan name and that have no default, in their order."""
    return [name for name in dict.fromkeys(_iterate_plan_inputs(plan)) if name not in plan.default_inputs]


def _iterate_plan_inputs(plan: Plan) -> Iterator[str]:
    for step in plan.steps:
        if step.text is not None:
            yield from _find_inputs(step.text.description, step.text.expected_output, step.output_file)
        if isinstance(step.work, AgentWork) and step.work.spec is not None:
            for agent in (step.work.spec, *step.work.spec.team):
                yield from _find_agent_inputs(agent)


def list_roster_inputs(roster: CrewRoster) -> list[str]:
    """Return the inputs that the texts of a crew name, in their order."""
    inputs: list[str] = []
    for task in roster.tasks:
        inputs += _find_inputs(task.description, task.expected_output, task.output_file)
    for member in roster.members.values():
        inputs += _find_agent_inputs(member.agent)
    return list(dict.fromkeys(inputs))


def _find_inputs(*texts: str | None) -> list[str]:
    return [name for text in texts for name in placeholders.find_placeholders(text or "")]


def _find_agent_inputs(agent: Agent) -> list[str]:
    # In the texts of an agent, `{task}` is filled when the agent starts.
    names = _find_inputs(*(getattr(agent, field) for field in _AGENT_TEXT_FIELDS))
    return [name for name in names if name != "task"]


def outline_steps(roster: CrewRoster) -> list[CrewStepSummary]:
    """Return the steps of a valid crew's plan."""
    order = order_tasks(roster.tasks)
    first = [PLANNING_STEP] if roster.settings.planning else []
    planning = [CrewStepSummary(id=step_id, name=step_id, agent="planner", depends_on=[]) for step_id in first]
    return planning + [
        CrewStepSummary(
            id=task.key,
            name=task.name,
            agent=_get_manager_key(roster) if roster.is_hierarchical else task.agent or "",
            depends_on=order[task.key].depends_on or first,
        )
        for task in roster.tasks
    ]


def _get_manager_key(roster: CrewRoster) -> str:
    return "manager" if roster.manager is None else roster.manager.key


async def _compile_steps(
    tx: Tx, roster: CrewRoster, crew_id: str, model: tuple[str, str | None] | None
) -> list[PlanStep]:
    compiler = _WorkCompiler(tx, roster, crew_id, model)
    order = order_tasks(roster.tasks)
    has_planning = roster.settings.planning
    steps = [await compiler.compile_planning()] if has_planning else []
    for task in roster.tasks:
        text = TaskText(
            description=task.description,
            expected_output=task.expected_output,
            context=order[task.key].context,
            planned_by=PLANNING_STEP if has_planning else None,
            markdown=task.markdown,
            date_format=choose_date_format(roster, task),
            input_files=task.fields.input_files if task.fields is not None else {},
        )
        step = PlanStep(
            id=task.key,
            name=task.name,
            work=_expect_json(await compiler.compile_task(task), task),
            depends_on=order[task.key].depends_on or ([PLANNING_STEP] if has_planning else []),
            text=text,
            retry=choose_retries(roster, task),
            output_file=task.output_file,
        )
        steps.append(step)
    return steps


def _expect_json(work: AgentWork, task: CrewTask) -> AgentWork:
    """Return the work of a task whose answer fits its `output_json`, if it has one."""
    if task.output_json is None:
        return work
    if work.spec is None:
        return msgspec.structs.replace(work, output_schema=task.output_json)
    spec = msgspec.structs.replace(work.spec, answer_schema=task.output_json)
    return msgspec.structs.replace(work, spec=spec)


class _WorkCompiler:
    """Compile the work of steps: agents of the roster on the models of this run."""

    def __init__(self, tx: Tx, roster: CrewRoster, crew_id: str, model: tuple[str, str | None] | None) -> None:
        self._tx, self._roster, self._crew_id, self._run_model = tx, roster, crew_id, model
        self._models: dict[str, tuple[str, str | None]] = {}

    async def compile_task(self, task: CrewTask) -> AgentWork:
        """Return the agent's work for a task. Errors: `conflict` without a model, `version_not_ready`."""
        if self._roster.is_hierarchical:
            return await self._compile_managed(task)
        member = self._roster.members[task.agent or ""]
        if member.agent.kind == "code":
            return await plans.resolve_agent_work(self._tx, member.agent.id, member.path)
        agent = await self._equip_member(member, task)
        others = [other for other in self._roster.team if other is not member] if agent.allow_delegation else []
        team = [await self._equip_member(other) for other in others]
        if not team:
            # Without a team of its own it could ask any agent of the tenant.
            agent = msgspec.structs.replace(agent, allow_delegation=False)
        return _build_work(AgentSpec.from_agent(agent, team=team, **self._build_task_fields(member, task)))

    def _build_task_fields(self, member: CrewMember | None, task: CrewTask) -> dict[str, Any]:
        return {
            "rules": build_rules(member, task),
            "recall": build_recall(self._roster, task, self._crew_id),
            "answer_schema": task.answer_schema,
        }

    async def compile_planning(self) -> PlanStep:
        """Return the step that plans each task."""
        tasks = self._roster.tasks
        agent = self._build_agent(
            "planner", role="Planner of a crew of agents", goal="Say how each task is best gone about."
        )
        agent = await self._assign_model(agent, self._roster.settings.planning_model, "The planning")
        max_tokens = _TASK_PLAN_TOKENS * len(tasks) + 200
        agent = msgspec.structs.replace(agent, max_tokens=max_tokens, max_steps=1, temperature=0.0)
        spec = AgentSpec.from_agent(agent, answer_schema=_build_planning_schema([task.key for task in tasks]))
        description = "\n\n".join([_PLANNER_PROMPT, *(self._describe_task(task) for task in tasks)])
        text = TaskText(description=description)
        return PlanStep(id=PLANNING_STEP, name=PLANNING_STEP, work=_build_work(spec), text=text)

    async def _compile_managed(self, task: CrewTask) -> AgentWork:
        roster = self._roster
        if roster.manager is None:
            agent = self._build_agent("manager", role=_MANAGER_ROLE, goal=_MANAGER_GOAL, backstory=_MANAGER_STORY)
        else:
            agent = CrewAgent.from_agent(_fold_template(roster.manager.agent), crew_options=roster.manager.options)
        agent = await self._assign_model(agent, roster.settings.manager_model, "The manager")
        suggested = roster.members.get(task.agent or "")
        if suggested is not None:
            hint = f"For this task {suggested.agent.name!r} is suggested."
            agent.instructions = f"{agent.instructions}\n\n{hint}" if agent.instructions else hint
        team = [
            await self._equip_member(member, task if suggested in (None, member) else None) for member in roster.team
        ]
        agent = msgspec.structs.replace(
            agent,
            allow_delegation=True,
            max_steps=agent.max_steps or DEFAULT_MANAGER_STEPS,
            verbose=self._is_verbose(agent),
        )
        return _build_work(
            AgentSpec.from_agent(agent, manager=True, team=team, **self._build_task_fields(roster.manager, task))
        )

    def _build_agent(self, name: str, **texts: str) -> Agent:
        """Return an agent that exists for this run only."""
        owner = next(iter(self._roster.members.values())).agent
        return build_unlisted_agent(name, owner.user_id, owner.tenant_id, owner.created_at, **texts)

    async def _equip_member(self, member: CrewMember, task: CrewTask | None = None) -> CrewAgent:
        """Return a member's agent on its model, with the tools of a task beside its own."""
        folded = CrewAgent.from_agent(_fold_template(member.agent), crew_options=member.options)
        agent = await self._assign_model(folded, None, f"The agent {member.key!r}")
        if task is not None:
            has_files = task.fields is not None and task.fields.input_files
            agent.tools = list(dict.fromkeys([*agent.tools, *task.tools, *(["filesystem_read"] if has_files else [])]))
        agent.verbose = self._is_verbose(agent)
        return agent

    async def _assign_model(self, agent: A, preferred: str | None, owner: str) -> A:
        """Return a copy on its model: the run's, else the preferred one, else the agent's, else the crew's."""
        if self._run_model is not None:
            name, provider = self._run_model
        elif preferred is not None:
            name, provider = await self._resolve_model(preferred)
        elif agent.model is not None and agent.id:
            name, provider = agent.model, agent.provider
        elif (reference := agent.model or self._roster.settings.model) is not None:
            name, provider = await self._resolve_model(reference)
        else:
            raise Conflict(f"{owner} has no model: name one there, in the crew or for the run.")
        return msgspec.structs.replace(agent, model=name, provider=provider)

    async def _resolve_model(self, reference: str) -> tuple[str, str | None]:
        if reference not in self._models:
            self._models[reference] = await validation.resolve_model_name(self._tx, reference)
        return self._models[reference]

    def _is_verbose(self, agent: Agent) -> bool:
        return self._roster.settings.verbose if agent.verbose is None else agent.verbose

    def _describe_task(self, task: CrewTask) -> str:
        member = self._roster.members.get(task.agent or "")
        agent = f", done by {member.agent.role or member.agent.name}" if member is not None else ""
        parts = [f"Task `{task.key}`{agent}:", task.description]
        if task.expected_output:
            parts.append(f"What is expected: {task.expected_output}")
        return "\n".join(parts)


def _build_planning_schema(task_keys: list[str]) -> dict[str, Any]:
    task_plan = {
        "type": "object",
        "properties": {
            "task": {"type": "string", "enum": task_keys},
            "plan": {"type": "string", "maxLength": _TASK_PLAN_LENGTH},
        },
        "required": ["task", "plan"],
        "additionalProperties": False,
    }
    task_plans = {"type": "array", "items": task_plan, "minItems": len(task_keys), "maxItems": len(task_keys)}
    return {
        "type": "object",
        "properties": {"plans": task_plans},
        "required": ["plans"],
        "additionalProperties": False,
    }


def _fold_template(agent: Agent) -> Agent:
    """Return a copy whose instructions include its template's text, so that inputs fill both."""
    texts = [text for text in (agent.template_text, agent.instructions) if text]
    return msgspec.structs.replace(
        agent, instructions="\n\n".join(texts) or None, template=None, template_id=None, template_text=None
    )


def _build_work(spec: AgentSpec) -> AgentWork:
    return AgentWork(name=spec.name, agent_id=spec.id or None, timeout=spec.timeout, spec=spec)
