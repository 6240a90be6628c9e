"""Compile a workflow into a plan: resolve what its steps name, and collect everything that is wrong."""

import asyncio
from typing import Any, Final

import msgspec

from domain import crews, llms, schemas
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
from domain.shared.errors import (
    Conflict,
    DomainError,
    FieldError,
    InvalidField,
    InvalidFields,
    collect_invalid_fields,
    require_found,
)
from domain.workflows import inputs
from domain.workflows.schema import WORK_FIELDS, Workflow, WorkflowStep
from domain.workflows.validation import validate_expressions
from domain.workspaces import check_path

# A plan holds every agent in full, once for each step.
MAX_WORKFLOW_PLAN_BYTES: Final = 16 * 1024 * 1024
# Errors about the reference itself; others are about the present state of what it names.
_REFERENCE_ERROR_CODES: Final = frozenset({"invalid_field", "not_found"})
# Stands for work that cannot run, in a plan that is only validated.
_NO_WORK: Final = AgentWork(name="")


async def compile_workflow(tx: Tx, caller: Caller, workflow: Workflow, model: str | None = None) -> Plan:
    """Compile a workflow as it is now, for a run; `model` replaces the models of its agents.

    Errors: `conflict` for an archived workflow or an agent without a model, `version_not_ready`, `agent_archived`,
    `invalid_field` for references that have been deleted since.
    """
    if model is not None:
        await llms.resolve_model(tx, model)
    plan, errors = await _WorkflowCompiler(tx, caller, model, for_run=True).compile_plan(workflow, [])
    if errors:
        raise InvalidFields(errors)
    if model is not None and not _has_model_agent(plan, set()):
        raise InvalidField("model", "is for model agents; no step runs one.")
    if len(msgspec.json.encode(plan)) > MAX_WORKFLOW_PLAN_BYTES:
        limit = MAX_WORKFLOW_PLAN_BYTES >> 20
        raise Conflict(f"The plan of {workflow.name!r}, with every agent in it, is larger than {limit} MiB.")
    return plan


async def validate_workflow(tx: Tx, caller: Caller, workflow: Workflow) -> list[FieldError]:
    """Return everything that is wrong with a saved workflow. Its agents need not be ready to run."""
    plan, errors = await _WorkflowCompiler(tx, caller, None, for_run=False).compile_plan(workflow, [])
    if workflow.output_schema is not None:
        with collect_invalid_fields(errors):
            schemas.parse_schema(workflow.output_schema, "output_schema")
    # Many expressions take a while; in a thread they do not delay other requests.
    plan_errors = await asyncio.to_thread(lambda: validate_plan(plan) + validate_expressions(plan, workflow.inputs))
    return inputs.validate_declarations(workflow.inputs) + errors + plan_errors


class _WorkflowCompiler:
    """Compile one workflow with the workflows in it. Each reference is resolved once."""

    def __init__(self, tx: Tx, caller: Caller, model: str | None, for_run: bool) -> None:
        self._tx, self._caller, self._model, self._for_run = tx, caller, model, for_run
        self._works: dict[tuple[str, str], StepWork | DomainError] = {}
        self._workflows: dict[str, Workflow | None] = {}
        self._plans: dict[str, tuple[PlanWork, list[FieldError]]] = {}
        self._sizes: dict[int, tuple[int, int]] = {}

    async def compile_plan(self, workflow: Workflow, parents: list[Workflow]) -> tuple[Plan, list[FieldError]]:
        """Return the plan of a workflow within its parents, and what is wrong with its references."""
        if self._for_run and workflow.status == "archived":
            raise Conflict(f"The workflow {workflow.name!r} is archived.")
        errors: list[FieldError] = []
        steps: list[PlanStep] = []
        for number, step in enumerate(workflow.steps):
            collector = _ErrorCollector(f"steps[{number}]", errors)
            _check_step(step, collector)
            work, default_inputs = await self._compile_work(step, collector, [*parents, workflow])
            steps.append(_build_plan_step(step, work, default_inputs))
        plan = Plan(
            kind="workflow",
            name=workflow.name,
            steps=steps,
            outputs=workflow.outputs,
            workflow_id=workflow.id,
            output_schema=workflow.output_schema,
        )
        _check_value(workflow.outputs, _ErrorCollector("", errors), "outputs")
        count, depth = self._measure_plan(plan)
        if count > MAX_PLAN_STEPS:
            message = f"has {count} steps, with those of crews and workflows in it; {MAX_PLAN_STEPS} are allowed."
            errors.append(FieldError(field="steps", message=message))
        elif depth > MAX_PLAN_DEPTH:
            message = f"nests crews and workflows in {depth} levels; {MAX_PLAN_DEPTH} are allowed."
            errors.append(FieldError(field="steps", message=message))
        return plan, errors

    async def _compile_work(
        self, step: WorkflowStep, collector: "_ErrorCollector", parents: list[Workflow]
    ) -> tuple[StepWork, dict[str, Any]]:
        """Return the work of a step, and defaults for inputs that the step leaves out."""
        fields = step.work_fields
        if len(fields) != 1:
            others = f", not {' and '.join(fields)}." if fields else "."
            collector.add("", f"must name one of {', '.join(WORK_FIELDS)}{others}")
            return _NO_WORK, {}
        kind, reference = fields[0], getattr(step, fields[0])
        try:
            if kind == "workflow":
                return await self._compile_inner(reference, step, collector, parents)
            work = await self._resolve_work(kind, reference)
        except DomainError as error:
            if error.code in _REFERENCE_ERROR_CODES:
                collector.add(kind, _format_error(error, kind))
            elif self._for_run:
                message = f"{collector.path}.{kind}: {error.detail}"
                raise DomainError(error.code, message, collector.relocate(kind, error)) from error
            return _NO_WORK, {}
        self._check_work(step, work, reference, collector)
        return work, {}

    def _check_work(self, step: WorkflowStep, work: StepWork, reference: str, collector: "_ErrorCollector") -> None:
        """Check the fields of a step that depend on what it runs."""
        if isinstance(work, PlanWork):
            step_inputs = step.inputs.keys() | ({"task"} if step.prompt is not None else set())
            missing = [repr(name) for name in crews.list_plan_inputs(work.plan) if name not in step_inputs]
            if missing:
                message = f"lack {', '.join(missing)}, which texts of the crew {reference!r} contain in braces."
                collector.add("inputs", message)
        if not isinstance(work, AgentWork):
            return
        if work.spec is not None and step.prompt is None and not step.inputs:
            collector.add("prompt", "is required for a model agent, or inputs.")
        if self._for_run and step.output_file and work.spec is None:
            # The name belonged to a model agent when the workflow was saved.
            collector.add("output_file", "is for answers of model agents.")

    async def _resolve_work(self, kind: str, reference: str) -> StepWork:
        work = self._works.get((kind, reference))
        if work is None:
            try:
                work = await self._load_work(kind, reference)
            except DomainError as error:
                work = error
            self._works[kind, reference] = work
        if isinstance(work, DomainError):
            raise work
        return work

    async def _load_work(self, kind: str, reference: str) -> StepWork:
        if kind == "agent":
            return await resolve_agent_work(self._tx, reference, kind, self._model)
        if kind == "tool":
            return await resolve_tool_work(self._tx, self._caller, reference, kind)
        crew = await crews.get_crew(self._tx, reference)
        return PlanWork(plan=await crews.compile_crew(self._tx, self._caller, crew, self._model))

    async def _compile_inner(
        self, reference: str, step: WorkflowStep, collector: "_ErrorCollector", parents: list[Workflow]
    ) -> tuple[StepWork, dict[str, Any]]:
        inner = await self._find_workflow(reference)
        ids, names = [parent.id for parent in parents], [*(parent.name for parent in parents), inner.name]
        if inner.id in ids:
            collector.add("workflow", f"contains itself: {' → '.join(names[ids.index(inner.id) :])}.")
            return _NO_WORK, {}
        if len(parents) >= MAX_PLAN_DEPTH:
            collector.add("workflow", f"nests deeper than {MAX_PLAN_DEPTH} levels: {' → '.join(names)}.")
            return _NO_WORK, {}
        if inner.id not in self._plans:
            plan, plan_errors = await self.compile_plan(inner, parents)
            self._plans[inner.id] = PlanWork(plan=plan), plan_errors
        work, errors = self._plans[inner.id]
        if errors:
            messages = "; ".join(f"{error.field}: {error.message}" for error in errors[:3])
            collector.add("workflow", f"{inner.name!r} cannot be run: {messages}")
        step_inputs = step.inputs | ({} if step.prompt is None else {"task": step.prompt})
        collector.errors += inputs.validate_inputs(
            inner.inputs, step_inputs, f"{collector.path}.inputs", allow_templates=True
        )
        return work, inputs.find_defaults(inner.inputs, step_inputs)

    async def _find_workflow(self, reference: str) -> Workflow:
        if reference not in self._workflows:
            self._workflows[reference] = await self._tx.workflows.find(reference)
        return require_found("workflow", reference, self._workflows[reference])

    def _measure_plan(self, plan: Plan) -> tuple[int, int]:
        """Return the number of steps in a plan with all plans in it, and its levels. Each plan is measured once."""
        size = self._sizes.get(id(plan))
        if size is None:
            inner = [self._measure_plan(step.work.plan) for step in plan.steps if isinstance(step.work, PlanWork)]
            count = len(plan.steps) + sum(count for count, _ in inner)
            size = self._sizes[id(plan)] = count, 1 + max((depth for _, depth in inner), default=0)
        return size


def _has_model_agent(plan: Plan, visited: set[int]) -> bool:
    if id(plan) in visited:
        return False
    visited.add(id(plan))
    return any(
        _has_model_agent(work.plan, visited)
        if isinstance(work, PlanWork)
        else isinstance(work, AgentWork) and work.spec is not None
        for work in (step.work for step in plan.steps)
    )


class _ErrorCollector:
    """Collect errors at a place in a workflow."""

    def __init__(self, path: str, errors: list[FieldError]) -> None:
        self.path, self.errors = path, errors

    def add(self, field: str, message: str) -> None:
        """Add an error of a field at this place."""
        self.errors.append(FieldError(field=".".join(filter(None, (self.path, field))), message=message))

    def relocate(self, field: str, error: DomainError) -> list[FieldError]:
        """Return an error as one of a field at this place."""
        return [FieldError(field=f"{self.path}.{field}", message=_format_error(error, field))]


def _format_error(error: DomainError, field: str) -> str:
    """Return an error's message to put after a field's name."""
    messages = [
        field_error.message if field_error.field == field else f"{field_error.field}: {field_error.message}"
        for field_error in error.errors
    ]
    return "; ".join(messages) or error.detail


def _check_step(step: WorkflowStep, collector: _ErrorCollector) -> None:
    """Add errors for fields that have no effect in this step or an invalid value."""
    if step.tool is not None and step.prompt is not None:
        collector.add("prompt", "has no effect on a tool; send its arguments as inputs.")
    if step.prompt is not None and "task" in step.inputs:
        collector.add("prompt", "is passed on as the input task, which inputs hold already; send one of them.")
    if step.map is None and step.max_parallel is not None:
        collector.add("max_parallel", "is for a step with map.")
    if step.timeout is not None and step.timeout > MAX_TIMEOUT_SECONDS and (step.agent or step.tool):
        collector.add("timeout", f"must be at most {MAX_TIMEOUT_SECONDS} seconds for an agent or a tool.")
    _check_value(step.inputs, collector, "inputs")
    _check_value(step.map, collector, "map")
    if step.output_file is not None:
        try:
            check_path(step.output_file)
        except ToolFailed as error:
            collector.add("output_file", str(error))


def _check_value(value: Any, collector: _ErrorCollector, field: str) -> None:
    message = inputs.explain_unstorable(value)
    if message is not None:
        collector.add(field, message)


def _build_plan_step(step: WorkflowStep, work: StepWork, default_inputs: dict[str, Any]) -> PlanStep:
    options: dict[str, Any] = {} if step.max_parallel is None else {"max_parallel": step.max_parallel}
    return PlanStep(
        id=step.id,
        name=step.name or step.id,
        work=work,
        depends_on=list(dict.fromkeys(step.depends_on)),
        prompt=step.prompt,
        inputs=step.inputs | default_inputs,
        when=_strip_braces(step.when),
        map=_strip_braces(step.map),
        retry=RetryPolicy(attempts=step.retry) if isinstance(step.retry, int) else step.retry,
        timeout=step.timeout,
        requires_approval=step.requires_approval,
        continue_on_failure=step.continue_on_failure,
        output_file=step.output_file,
        **options,
    )


def _strip_braces(expression: Any) -> Any:
    """Return an expression without the braces that a template puts around it."""
    if not isinstance(expression, str):
        return expression
    text = expression.strip()
    inner = text[2:-2]
    return inner.strip() if text.startswith("{{") and text.endswith("}}") and "{{" not in inner else text
