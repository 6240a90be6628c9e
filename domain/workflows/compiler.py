"""From a workflow to a plan, with all that it names found; and at the same time all that is wrong with it."""

import asyncio
from typing import Any, Final

import msgspec

from domain import crews, llms
from domain.agents import MAX_TIMEOUT_SECONDS
from domain.llms import ToolFailed
from domain.plans import (
    MAX_PLAN_DEPTH,
    MAX_PLAN_STEPS,
    AgentWork,
    Plan,
    PlanStep,
    PlanWork,
    RetryPolicy,
    StepWork,
    resolve_agent_work,
    resolve_tool_work,
    validate_plan,
)
from domain.ports import Tx
from domain.shared.access import Caller
from domain.shared.errors import Conflict, DomainError, FieldError, InvalidField, InvalidFields, NotFound
from domain.workflows import inputs
from domain.workflows.schema import WORK_FIELDS, Workflow, WorkflowStep
from domain.workflows.validation import validate_expressions
from domain.workspaces import check_path as checked_path

# Bytes of a plan, which holds every agent as it is, once for each step.
MAX_WORKFLOW_PLAN_BYTES: Final = 16 * 1024 * 1024
# What is wrong with what is named, and not with the state that it happens to be in.
_WRONG: Final = frozenset({"invalid_field", "not_found"})
# Stands for what cannot be run yet, or not at all, in a plan that nobody will run.
_NOTHING: Final = AgentWork(name="")


async def compile_workflow(tx: Tx, caller: Caller, workflow: Workflow, model: str | None = None) -> Plan:
    """The plan that a workflow is now, for a run of it; `model` is what its agents call in place of their own.

    Errors: `conflict` for an archived one or an agent without a model, `version_not_ready`, `agent_archived`,
    `invalid_field` for what has gone since it was written.
    """
    if model is not None:
        await llms.resolve_model(tx, model)
    made = _Compiling(tx, caller, model, for_run=True)
    plan, found = await made.plan(workflow, [])
    if found:
        raise InvalidFields(found)
    if model is not None and not _asks_models(plan, set()):
        raise InvalidField("model", "is for model agents; no step is one.")
    if len(msgspec.json.encode(plan)) > MAX_WORKFLOW_PLAN_BYTES:
        limit = MAX_WORKFLOW_PLAN_BYTES >> 20
        raise Conflict(f"The plan of {workflow.name!r}, with every agent in it, is larger than {limit} MiB.")
    return plan


async def validate_workflow(tx: Tx, caller: Caller, workflow: Workflow) -> list[FieldError]:
    """All that is wrong with a workflow that lies in the database. An agent may have nothing to run yet."""
    plan, found = await _Compiling(tx, caller, None, for_run=False).plan(workflow, [])
    # Many expressions take a while, and others want to be answered.
    more = await asyncio.to_thread(lambda: validate_plan(plan) + validate_expressions(plan, workflow.inputs))
    return inputs.validate_declarations(workflow.inputs) + found + more


class _Compiling:
    """One compilation. What is named twice is looked up once."""

    def __init__(self, tx: Tx, caller: Caller, model: str | None, for_run: bool) -> None:
        self._tx, self._caller, self._model, self._for_run = tx, caller, model, for_run
        self._known: dict[tuple[str, str], StepWork | DomainError] = {}
        self._named: dict[str, Workflow | None] = {}
        self._plans: dict[str, tuple[PlanWork, list[FieldError]]] = {}
        self._sizes: dict[int, tuple[int, int]] = {}

    async def plan(self, workflow: Workflow, above: list[Workflow]) -> tuple[Plan, list[FieldError]]:
        """The plan of a workflow within others, and what is wrong with what it names, which may change.

        What it says itself was checked when it was written.
        """
        if self._for_run and workflow.status == "archived":
            raise Conflict(f"The workflow {workflow.name!r} is archived.")
        found: list[FieldError] = []
        steps: list[PlanStep] = []
        for number, step in enumerate(workflow.steps):
            at = _Place(f"steps[{number}]", found)
            _misused(step, at)
            work, more = await self._work(step, at, [*above, workflow])
            steps.append(_step(step, work, more))
        plan = Plan(kind="workflow", name=workflow.name, steps=steps, outputs=workflow.outputs, workflow_id=workflow.id)
        _fits(workflow.outputs, _Place("", found), "outputs")
        count, levels = self._size(plan)
        if count > MAX_PLAN_STEPS:
            told = f"come to {count}, with those of all crews and workflows in them; {MAX_PLAN_STEPS} are allowed."
            found.append(FieldError(field="steps", message=told))
        elif levels > MAX_PLAN_DEPTH:
            told = f"nest crews and workflows in {levels} levels; {MAX_PLAN_DEPTH} are allowed."
            found.append(FieldError(field="steps", message=told))
        return plan, found

    async def _work(self, step: WorkflowStep, at: "_Place", above: list[Workflow]) -> tuple[StepWork, dict[str, Any]]:
        """What a step runs, and what it is given besides what the step says."""
        named = step.work_fields
        if len(named) != 1:
            at.wrong(
                "", f"must name one of {', '.join(WORK_FIELDS)}" + (f", not {' and '.join(named)}." if named else ".")
            )
            return _NOTHING, {}
        kind, reference = named[0], getattr(step, named[0])
        try:
            if kind == "workflow":
                return await self._workflow(reference, step, at, above)
            work = await self._looked_up(kind, reference)
        except DomainError as error:
            if error.code in _WRONG:
                at.wrong(kind, _sentence(error, kind))
            elif self._for_run:
                raise DomainError(error.code, f"{at.place}.{kind}: {error.detail}", at.told(kind, error)) from error
            return _NOTHING, {}
        if isinstance(work, AgentWork) and work.spec is not None and step.prompt is None and not step.inputs:
            at.wrong("prompt", "is required for a model agent, or inputs.")
        if isinstance(work, PlanWork):
            given = step.inputs.keys() | ({"task"} if step.prompt is not None else set())
            missing = ", ".join(repr(name) for name in crews.list_plan_inputs(work.plan) if name not in given)
            if missing:
                at.wrong("inputs", f"lack {missing}, which texts of the crew {reference!r} name in braces.")
        if self._for_run and step.output_file and isinstance(work, AgentWork) and work.spec is None:
            # Of that name there was a model agent when this was written.
            at.wrong("output_file", "is for what a model agent answers.")
        return work, {}

    async def _looked_up(self, kind: str, reference: str) -> StepWork:
        known = self._known.get((kind, reference))
        if known is None:
            try:
                known = await self._find(kind, reference)
            except DomainError as error:
                known = error
            self._known[kind, reference] = known
        if isinstance(known, DomainError):
            raise known
        return known

    async def _find(self, kind: str, reference: str) -> StepWork:
        if kind == "agent":
            return await resolve_agent_work(self._tx, reference, kind, self._model)
        if kind == "tool":
            return await resolve_tool_work(self._tx, self._caller, reference, kind)
        crew = await crews.get_crew(self._tx, reference)
        return PlanWork(plan=await crews.compile_crew(self._tx, self._caller, crew, self._model))

    async def _workflow(
        self, reference: str, step: WorkflowStep, at: "_Place", above: list[Workflow]
    ) -> tuple[StepWork, dict[str, Any]]:
        if reference not in self._named:
            self._named[reference] = await self._tx.workflows.find(reference)
        inner = self._named[reference]
        if inner is None:
            raise NotFound("workflow", reference)
        ids, names = [one.id for one in above], [*(one.name for one in above), inner.name]
        if inner.id in ids:
            at.wrong("workflow", f"contains itself: {' → '.join(names[ids.index(inner.id) :])}.")
            return _NOTHING, {}
        if len(above) >= MAX_PLAN_DEPTH:
            at.wrong("workflow", f"nests deeper than {MAX_PLAN_DEPTH} levels: {' → '.join(names)}.")
            return _NOTHING, {}
        if inner.id not in self._plans:
            plan, wrong = await self.plan(inner, above)
            self._plans[inner.id] = PlanWork(plan=plan), wrong
        work, wrong = self._plans[inner.id]
        if wrong:
            told = "; ".join(f"{one.field}: {one.message}" for one in wrong[:3])
            at.wrong("workflow", f"{inner.name!r} cannot be run: {told}")
        sent = step.inputs | ({} if step.prompt is None else {"task": step.prompt})
        at.found += inputs.validate_inputs(inner.inputs, sent, f"{at.place}.inputs", allow_templates=True)
        return work, inputs.find_defaults(inner.inputs, sent)

    def _size(self, plan: Plan) -> tuple[int, int]:
        """How many steps a plan has with all that is in it, and in how many levels. Each plan is counted once."""
        known = self._sizes.get(id(plan))
        if known is None:
            inner = [self._size(step.work.plan) for step in plan.steps if isinstance(step.work, PlanWork)]
            count = len(plan.steps) + sum(count for count, _ in inner)
            known = self._sizes[id(plan)] = count, 1 + max((levels for _, levels in inner), default=0)
        return known


def _asks_models(plan: Plan, seen: set[int]) -> bool:
    if id(plan) in seen:
        return False
    seen.add(id(plan))
    return any(
        _asks_models(work.plan, seen)
        if isinstance(work, PlanWork)
        else isinstance(work, AgentWork) and work.spec is not None
        for work in (step.work for step in plan.steps)
    )


class _Place:
    """Where in a workflow something is, and what is wrong so far."""

    def __init__(self, place: str, found: list[FieldError]) -> None:
        self.place, self.found = place, found

    def wrong(self, field: str, message: str) -> None:
        """Note what is wrong with a field here."""
        self.found.append(FieldError(field=".".join(filter(None, (self.place, field))), message=message))

    def told(self, field: str, error: DomainError) -> list[FieldError]:
        """An error as that of a field here."""
        return [FieldError(field=f"{self.place}.{field}", message=_sentence(error, field))]


def _sentence(error: DomainError, field: str) -> str:
    """What an error says, to stand behind a field's name."""
    told = [one.message if one.field == field else f"{one.field}: {one.message}" for one in error.errors]
    return "; ".join(told) or error.detail


def _misused(step: WorkflowStep, at: _Place) -> None:
    """What does nothing in this step, or cannot be what it is."""
    if step.tool is not None and step.prompt is not None:
        at.wrong("prompt", "means nothing to a tool; its arguments are inputs.")
    if step.prompt is not None and "task" in step.inputs:
        at.wrong("prompt", "is what a step is given as task, which is in its inputs already.")
    if step.map is None and step.max_parallel is not None:
        at.wrong("max_parallel", "is for a step that is mapped over a list.")
    if step.timeout is not None and step.timeout > MAX_TIMEOUT_SECONDS and (step.agent or step.tool):
        at.wrong("timeout", f"must be at most {MAX_TIMEOUT_SECONDS} seconds for an agent or a tool.")
    _fits(step.inputs, at, "inputs")
    _fits(step.map, at, "map")
    if step.output_file is not None:
        try:
            checked_path(step.output_file)
        except ToolFailed as error:
            at.wrong("output_file", str(error))


def _fits(value: Any, at: _Place, field: str) -> None:
    wrong = inputs.explain_unstorable(value)
    if wrong is not None:
        at.wrong(field, wrong)


def _step(step: WorkflowStep, work: StepWork, more: dict[str, Any]) -> PlanStep:
    given: dict[str, Any] = {} if step.max_parallel is None else {"max_parallel": step.max_parallel}
    return PlanStep(
        id=step.id,
        name=step.name or step.id,
        work=work,
        depends_on=list(dict.fromkeys(step.depends_on)),
        prompt=step.prompt,
        inputs=step.inputs | more,
        when=_bare(step.when),
        map=_bare(step.map),
        retry=RetryPolicy(attempts=step.retry) if isinstance(step.retry, int) else step.retry,
        timeout=step.timeout,
        requires_approval=step.requires_approval,
        continue_on_failure=step.continue_on_failure,
        output_file=step.output_file,
        **given,
    )


def _bare(expression: Any) -> Any:
    """An expression without the braces that it would have in a template."""
    if not isinstance(expression, str):
        return expression
    text = expression.strip()
    inner = text[2:-2]
    return inner.strip() if text.startswith("{{") and text.endswith("}}") and "{{" not in inner else text
