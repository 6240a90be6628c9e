"""What a step is given when it starts: its templates filled, its agent as this run has it."""

from collections.abc import Callable, Iterable, Mapping
from typing import Any, Final, TypeVar

import msgspec

from domain import expressions
from domain.agents import Agent, AgentSpec
from domain.expressions import BadExpression, ExpressionReferences
from domain.llms.messages import ToolFailed
from domain.plans.engine import StepFailed
from domain.plans.schema import WHOLE_STEP, AgentWork, Plan, PlanStep, StepRun, TaskText
from domain.shared.errors import DomainError
from domain.shared.placeholders import create_filler, format_value
from domain.workspaces import fill_path

A = TypeVar("A", bound=Agent)
_FILLED: Final = ("role", "goal", "backstory", "template_text", "instructions")


class PlanScope:
    """What the expressions of a plan may refer to. Implements `domain.plans.engine.StepEvaluator`.

    `outputs` are of those completed steps that are referred to, see `uses`.
    """

    def __init__(
        self,
        plan: Plan,
        inputs: Any,
        runs: Mapping[tuple[str, int], StepRun],
        uses: dict[str, ExpressionReferences] | None = None,
    ) -> None:
        self._plan, self._inputs, self._runs = plan, inputs, runs
        self._uses = {} if uses is None else uses
        self._steps = {step.id: step for step in plan.steps}
        self.outputs: dict[str, Any] = {}
        # Steps of which cannot be known what they refer to, and why.
        self.failures: dict[str, StepFailed] = {}
        self._lists: dict[str, list[Any]] = {}

    def find_references(self, step: PlanStep) -> ExpressionReferences:
        """What a step's expressions refer to."""
        if step.id not in self._uses:
            self._uses[step.id] = find_step_references(step)
        return self._uses[step.id]

    def list_missing_outputs(self, steps: Iterable[str]) -> list[str]:
        """Those of the steps whose outputs are not known here yet."""
        return [one for one in steps if one not in self.outputs and self._is_completed(one)]

    def clear_outputs(self) -> None:
        """Let go of what is at hand, to make room."""
        self.outputs.clear()
        self._lists.clear()

    def evaluate_condition(self, step: PlanStep) -> bool:
        """What its `when` says. Errors: `StepFailed`."""
        if step.id in self.failures:
            raise self.failures[step.id]
        try:
            return expressions.evaluate_condition(step.when or "true", self._scope(self.find_references(step).steps))
        except BadExpression as error:
            raise StepFailed("bad_expression", f"when: {error.message}") from error

    def count_items(self, step: PlanStep) -> int:
        """How many items the step is mapped over. Errors: `StepFailed`."""
        if step.id in self.failures:
            raise self.failures[step.id]
        return len(self._list(step))

    def render_payload(self, step: PlanStep, run: StepRun) -> dict[str, Any]:
        """What the step is given. Errors: `StepFailed`."""
        if step.text is not None:
            return {"task": self._task(step.text)}
        scope = self._scope(self.find_references(step).steps)
        if run.item != WHOLE_STEP:
            scope |= {"item": self._list(step)[run.item], "index": run.item}
        try:
            given = dict(expressions.render_template(step.inputs, scope))
            if step.prompt is not None:
                given["task"] = format_value(expressions.render_template(step.prompt, scope))
        except BadExpression as error:
            raise StepFailed("bad_expression", error.message) from error
        return given

    def render_spec(self, work: AgentWork, step: PlanStep) -> AgentSpec | None:
        """The agent as this run has it. Of a crew, its texts are filled from the plan's inputs."""
        if work.spec is None:
            return None
        if step.text is None:
            return work.spec
        # The texts are filled once more when the agent is asked, with what it is asked.
        filled = self._filler(again=True)

        def with_inputs(agent: A) -> A:
            texts = {name: filled(text) for name in _FILLED if (text := getattr(agent, name)) is not None}
            return msgspec.structs.replace(agent, **texts)

        try:
            team = [with_inputs(one) for one in work.spec.team]
            output_file = fill_path(step.output_file, self._values()) if step.output_file is not None else None
            return msgspec.structs.replace(with_inputs(work.spec), team=team, output_file=output_file)
        except ToolFailed as error:
            raise StepFailed("output_file", str(error)) from error
        except DomainError as error:
            raise StepFailed("not_startable", error.detail) from error

    def render_result(self) -> Any:
        """What the completed plan came to. Errors: `StepFailed`."""
        if self._plan.outputs is not None:
            try:
                return expressions.render_template(self._plan.outputs, self._scope(list_output_steps(self._plan)))
            except BadExpression as error:
                raise StepFailed("bad_expression", f"outputs: {error.message}") from error
        last = [self.outputs.get(step_id) for step_id in list_last_steps(self._plan) if self._is_completed(step_id)]
        if self._plan.kind == "crew":
            return _answer(last[-1]) if last else None
        if len(last) == 1:
            return last[0]
        return {step_id: self.outputs.get(step_id) for step_id in list_last_steps(self._plan)}

    def _is_completed(self, step_id: str) -> bool:
        run = self._runs.get((step_id, WHOLE_STEP))
        return run is not None and run.status == "completed"

    def _scope(self, steps: Iterable[str]) -> dict[str, Any]:
        return {"inputs": self._inputs, "steps": {step_id: self._seen(step_id) for step_id in steps}}

    def _seen(self, step_id: str) -> dict[str, Any]:
        run = self._runs[step_id, WHOLE_STEP]
        return {"outputs": self.outputs.get(step_id), "status": run.status, "error": run.error_message}

    def _list(self, step: PlanStep) -> list[Any]:
        if step.id not in self._lists:
            scope = self._scope(self.find_references(step).steps)
            try:
                found = (
                    expressions.evaluate_expression(step.map, scope)
                    if isinstance(step.map, str)
                    else expressions.render_template(step.map, scope)
                )
            except BadExpression as error:
                raise StepFailed("bad_expression", f"map: {error.message}") from error
            if not isinstance(found, list):
                raise StepFailed("bad_expression", f"map: is no list but {format_value(found)[:100]}.")
            self._lists[step.id] = found
        return self._lists[step.id]

    def _values(self) -> dict[str, Any]:
        return self._inputs if isinstance(self._inputs, dict) else {}

    def _filler(self, again: bool = False) -> Callable[[str], str]:
        return create_filler(self._values(), "inputs", keep_escapes=again)

    def _task(self, text: TaskText) -> str:
        filled = self._filler()
        try:
            return self._told(text, filled)
        except DomainError as error:
            raise StepFailed("not_startable", error.detail) from error

    def _told(self, text: TaskText, filled: Callable[[str], str]) -> str:
        parts = [filled(text.description)]
        if text.planned_by is not None and (plan := self._planned(text)):
            parts.append(f"This is how to go about it:\n{plan}")
        if text.expected_output:
            parts.append(f"What is expected of you: {filled(text.expected_output)}")
        if text.markdown:
            parts.append("Answer in Markdown.")
        known = [(step_id, self.outputs.get(step_id)) for step_id in text.context if self._is_completed(step_id)]
        if known:
            told = "\n\n".join(f"## {self._steps[step_id].name}\n{_answer_text(output)}" for step_id, output in known)
            parts.append(f"This is what you have to work with:\n\n{told}")
        return "\n\n".join(parts)

    def _planned(self, text: TaskText) -> str:
        plans = (self.outputs.get(text.planned_by or "") or {}).get("plans") or []
        mine = next((step.id for step in self._plan.steps if step.text is text), None)
        return next((format_value(one.get("plan")) for one in plans if one.get("task") == mine), "")


def find_map_references(step: PlanStep) -> ExpressionReferences:
    """What must be known to tell over what a step is mapped."""
    if isinstance(step.map, str):
        return expressions.check_expression(step.map)
    return expressions.check_template(step.map)


def find_step_references(step: PlanStep) -> ExpressionReferences:
    """What must be known to tell whether a step is run, and to start it."""
    context = [*step.text.context, step.text.planned_by] if step.text is not None else []
    here = ExpressionReferences(steps=frozenset(one for one in context if one is not None), names=frozenset())
    found = [here, expressions.check_template(step.inputs), find_map_references(step)]
    if step.when is not None:
        found.append(expressions.check_expression(step.when))
    if step.prompt is not None:
        found.append(expressions.check_template(step.prompt))
    return _all(found)


def list_output_steps(plan: Plan) -> list[str]:
    """The steps whose outputs make the plan's own."""
    return sorted(expressions.check_template(plan.outputs).steps) if plan.outputs is not None else list_last_steps(plan)


def list_last_steps(plan: Plan) -> list[str]:
    """The steps that no other depends on, in the plan's order; of a crew, the last one."""
    if plan.kind == "crew":
        return [step.id for step in plan.steps[-1:]]
    needed = {one for step in plan.steps for one in step.depends_on}
    return [step.id for step in plan.steps if step.id not in needed]


def _all(found: list[ExpressionReferences]) -> ExpressionReferences:
    return ExpressionReferences(
        steps=frozenset().union(*(one.steps for one in found)), names=frozenset().union(*(one.names for one in found))
    )


def _answer(output: Any) -> Any:
    return output["content"] if isinstance(output, dict) and set(output) == {"content"} else output


def _answer_text(output: Any) -> str:
    return format_value(_answer(output))
