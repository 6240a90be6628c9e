"""Render what a step receives when it starts: its filled templates, and its agent as this run has it."""

from collections.abc import Callable, Iterable, Mapping
from datetime import UTC, datetime
from typing import Any, Final, TypeVar

import msgspec

from domain import expressions
from domain.agents import Agent, AgentSpec
from domain.expressions import BadExpression, ExpressionReferences
from domain.llms import ToolFailed
from domain.plans.engine import StepFailed
from domain.plans.schema import WHOLE_STEP, AgentWork, Plan, PlanStep, StepRun, TaskText
from domain.shared import ids
from domain.shared.errors import DomainError
from domain.shared.placeholders import create_filler, format_value
from domain.workspaces import fill_path

A = TypeVar("A", bound=Agent)
_FILLED_FIELDS: Final = ("role", "goal", "backstory", "template_text", "instructions")


class PlanScope:
    """Provide the values that a plan's expressions refer to. Implements `domain.plans.engine.StepEvaluator`.

    `outputs` holds the outputs of the completed steps that are referred to, see `find_references`. `failures` holds
    the steps whose references could not be loaded, with the reason.
    """

    def __init__(
        self,
        plan: Plan,
        inputs: Any,
        runs: Mapping[tuple[str, int], StepRun],
        references: dict[str, ExpressionReferences] | None = None,
        now: datetime | None = None,
    ) -> None:
        self._now = now or datetime.now(UTC)
        is_object = isinstance(inputs, dict)
        self._plan, self._inputs, self._runs = plan, {**plan.default_inputs, **inputs} if is_object else inputs, runs
        self._references = {} if references is None else references
        self._steps = {step.id: step for step in plan.steps}
        self.outputs: dict[str, Any] = {}
        self.failures: dict[str, StepFailed] = {}
        self._lists: dict[str, list[Any]] = {}

    def find_references(self, step: PlanStep) -> ExpressionReferences:
        """Return what a step's expressions refer to."""
        if step.id not in self._references:
            self._references[step.id] = find_step_references(step)
        return self._references[step.id]

    def list_missing_outputs(self, steps: Iterable[str]) -> list[str]:
        """Return the completed steps among `steps` whose outputs are not loaded."""
        return [step_id for step_id in steps if step_id not in self.outputs and self._is_completed(step_id)]

    def clear_outputs(self) -> None:
        """Drop the loaded outputs, to make room for others."""
        self.outputs.clear()
        self._lists.clear()

    def evaluate_condition(self, step: PlanStep) -> bool:
        """Return the value of the step's `when`. Errors: `StepFailed`."""
        if step.id in self.failures:
            raise self.failures[step.id]
        try:
            return expressions.evaluate_condition(
                step.when or "true", self._build_scope(self.find_references(step).steps)
            )
        except BadExpression as error:
            raise StepFailed("bad_expression", f"when: {error.message}") from error

    def count_items(self, step: PlanStep) -> int:
        """Return the length of the list that the step is mapped over. Errors: `StepFailed`."""
        if step.id in self.failures:
            raise self.failures[step.id]
        return len(self._evaluate_map(step))

    def render_payload(self, step: PlanStep, run: StepRun) -> dict[str, Any]:
        """Return the inputs of the step's execution. Errors: `StepFailed`."""
        if step.text is not None:
            return {"task": self._render_task(step.text)}
        scope = self._build_scope(self.find_references(step).steps)
        if run.item != WHOLE_STEP:
            scope |= {"item": self._evaluate_map(step)[run.item], "index": run.item}
        try:
            payload = dict(expressions.render_template(step.inputs, scope))
            if step.prompt is not None:
                payload["task"] = format_value(expressions.render_template(step.prompt, scope))
        except BadExpression as error:
            raise StepFailed("bad_expression", error.message) from error
        return payload

    def render_spec(self, work: AgentWork, step: PlanStep) -> AgentSpec | None:
        """Return the agent as this run has it. A crew's agent has its texts filled from the plan's inputs."""
        if work.spec is None:
            return None
        if step.text is None:
            return work.spec
        # The texts are filled again with the task when the agent starts, so escapes stay until then.
        fill = create_filler(self._input_values, "inputs", keep_escapes=True)

        def fill_texts(agent: A) -> A:
            texts = {name: fill(text) for name in _FILLED_FIELDS if (text := getattr(agent, name)) is not None}
            return msgspec.structs.replace(agent, **texts)

        try:
            team = [fill_texts(agent) for agent in work.spec.team]
            output_file = fill_path(step.output_file, self._input_values) if step.output_file is not None else None
            recall = work.spec.recall
            if recall is not None:
                scopes = [fill(scope) for scope in recall.memory_scopes]
                scope = None if recall.memory_scope is None else fill(recall.memory_scope)
                recall = msgspec.structs.replace(
                    recall, question=fill(step.text.description), memory_scopes=scopes, memory_scope=scope
                )
            rules = work.spec.rules
            if rules is not None:
                rules = msgspec.structs.replace(rules, guardrails=[fill(text) for text in rules.guardrails])
            spec = fill_texts(work.spec)
            return msgspec.structs.replace(spec, team=team, output_file=output_file, rules=rules, recall=recall)
        except ToolFailed as error:
            raise StepFailed("output_file", str(error)) from error
        except DomainError as error:
            raise StepFailed("not_startable", error.detail) from error

    def render_result(self) -> Any:
        """Return the result of the completed plan. Errors: `StepFailed`."""
        if self._plan.outputs is not None:
            try:
                return expressions.render_template(self._plan.outputs, self._build_scope(list_output_steps(self._plan)))
            except BadExpression as error:
                raise StepFailed("bad_expression", f"outputs: {error.message}") from error
        last_steps = list_last_steps(self._plan)
        outputs = [self.outputs.get(step_id) for step_id in last_steps if self._is_completed(step_id)]
        if self._plan.kind == "crew":
            return _unwrap_answer(outputs[-1]) if outputs else None
        if len(outputs) == 1:
            return outputs[0]
        return {step_id: self.outputs.get(step_id) for step_id in last_steps}

    @property
    def _input_values(self) -> dict[str, Any]:
        return self._inputs if isinstance(self._inputs, dict) else {}

    def _is_completed(self, step_id: str) -> bool:
        run = self._runs.get((step_id, WHOLE_STEP))
        return run is not None and run.status == "completed"

    def _build_scope(self, steps: Iterable[str]) -> dict[str, Any]:
        return {"inputs": self._inputs, "steps": {step_id: self._describe_step(step_id) for step_id in steps}}

    def _describe_step(self, step_id: str) -> dict[str, Any]:
        run = self._runs[step_id, WHOLE_STEP]
        return {"outputs": self.outputs.get(step_id), "status": run.status, "error": run.error_message}

    def _evaluate_map(self, step: PlanStep) -> list[Any]:
        if step.id not in self._lists:
            scope = self._build_scope(self.find_references(step).steps)
            try:
                items = (
                    expressions.evaluate_expression(step.map, scope)
                    if isinstance(step.map, str)
                    else expressions.render_template(step.map, scope)
                )
            except BadExpression as error:
                raise StepFailed("bad_expression", f"map: {error.message}") from error
            if not isinstance(items, list):
                raise StepFailed("bad_expression", f"map: must be a list, not {format_value(items)[:100]}.")
            self._lists[step.id] = items
        return self._lists[step.id]

    def _render_task(self, text: TaskText) -> str:
        try:
            return self._join_task(text, create_filler(self._input_values, "inputs"))
        except DomainError as error:
            raise StepFailed("not_startable", error.detail) from error

    def _join_task(self, text: TaskText, fill: Callable[[str], str]) -> str:
        parts = [fill(text.description)]
        if text.planned_by is not None and (plan := self._find_task_plan(text)):
            parts.append(f"This is how to go about it:\n{plan}")
        if text.expected_output:
            parts.append(f"What is expected of you: {fill(text.expected_output)}")
        if text.input_files:
            listed = "\n".join(f"- {name}: {place}" for name, place in list_input_places(text).items())
            parts.append(f"Files in your workspace, which you can read:\n{listed}")
        if text.date_format is not None:
            parts.append(f"Current date: {self._now.astimezone(UTC).strftime(text.date_format)}")
        if text.markdown:
            parts.append("Answer in Markdown.")
        answers = [(step_id, self.outputs.get(step_id)) for step_id in text.context if self._is_completed(step_id)]
        if answers:
            context = "\n\n".join(
                f"## {self._steps[step_id].name}\n{format_value(_unwrap_answer(answer))}" for step_id, answer in answers
            )
            parts.append(f"This is what you have to work with:\n\n{context}")
        return "\n\n".join(parts)

    def _find_task_plan(self, text: TaskText) -> str:
        plans = (self.outputs.get(text.planned_by or "") or {}).get("plans") or []
        step_id = next((step.id for step in self._plan.steps if step.text is text), None)
        return next((format_value(plan.get("plan")) for plan in plans if plan.get("task") == step_id), "")


def list_input_places(text: TaskText) -> dict[str, str]:
    """Return where a task's input files are in the workspace: one that was uploaded has its name as its place."""
    return {name: name if ids.decode_id("file", path) else path for name, path in text.input_files.items()}


def find_map_references(step: PlanStep) -> ExpressionReferences:
    """Return what a step's `map` refers to."""
    if isinstance(step.map, str):
        return expressions.check_expression(step.map)
    return expressions.check_template(step.map)


def find_step_references(step: PlanStep) -> ExpressionReferences:
    """Return what a step refers to: the values needed to evaluate and start it."""
    context = [*step.text.context, step.text.planned_by] if step.text is not None else []
    references = ExpressionReferences(steps=frozenset(step_id for step_id in context if step_id is not None))
    references |= expressions.check_template(step.inputs) | find_map_references(step)
    if step.when is not None:
        references |= expressions.check_expression(step.when)
    if step.prompt is not None:
        references |= expressions.check_template(step.prompt)
    return references


def list_output_steps(plan: Plan) -> list[str]:
    """Return the steps whose outputs make the plan's result."""
    return sorted(expressions.check_template(plan.outputs).steps) if plan.outputs is not None else list_last_steps(plan)


def list_last_steps(plan: Plan) -> list[str]:
    """Return the steps that no other step depends on, in the plan's order; for a crew, its last step."""
    if plan.kind == "crew":
        return [step.id for step in plan.steps[-1:]]
    dependencies = {step_id for step in plan.steps for step_id in step.depends_on}
    return [step.id for step in plan.steps if step.id not in dependencies]


def _unwrap_answer(output: Any) -> Any:
    """Return a model agent's answer without the object around it."""
    return output["content"] if isinstance(output, dict) and set(output) == {"content"} else output
