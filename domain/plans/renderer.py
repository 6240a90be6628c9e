"""What a step is given when it starts: its templates filled, its agent as this run has it."""

from collections.abc import Callable, Iterable, Mapping
from typing import Any, Final, TypeVar

import msgspec

from domain import expressions
from domain.agents import Agent, Spec
from domain.expressions import BadExpression, Uses
from domain.llms.messages import ToolFailed
from domain.plans.engine import StepFailed
from domain.plans.schema import WHOLE, AgentWork, Plan, PlanStep, StepRun, TaskText
from domain.shared.errors import DomainError
from domain.shared.placeholders import filler, worded
from domain.workspaces import fill_path

A = TypeVar("A", bound=Agent)
_FILLED: Final = ("role", "goal", "backstory", "template_text", "instructions")


class Scope:
    """What the expressions of a plan may refer to. Implements `domain.plans.engine.Judge`.

    `outputs` are of those completed steps that are referred to, see `uses`.
    """

    def __init__(
        self, plan: Plan, inputs: Any, runs: Mapping[tuple[str, int], StepRun], uses: dict[str, Uses] | None = None
    ) -> None:
        self._plan, self._inputs, self._runs = plan, inputs, runs
        self._uses = {} if uses is None else uses
        self._steps = {step.id: step for step in plan.steps}
        self.outputs: dict[str, Any] = {}
        # Steps of which cannot be known what they refer to, and why.
        self.unknown: dict[str, StepFailed] = {}
        self._lists: dict[str, list[Any]] = {}

    def uses(self, step: PlanStep) -> Uses:
        """What a step's expressions refer to."""
        if step.id not in self._uses:
            self._uses[step.id] = given(step)
        return self._uses[step.id]

    def missing(self, steps: Iterable[str]) -> list[str]:
        """Those of the steps whose outputs are not known here yet."""
        return [one for one in steps if one not in self.outputs and self._is_completed(one)]

    def forget(self) -> None:
        """Let go of what is at hand, to make room."""
        self.outputs.clear()
        self._lists.clear()

    def wanted(self, step: PlanStep) -> bool:
        """What its `when` says. Errors: `StepFailed`."""
        if step.id in self.unknown:
            raise self.unknown[step.id]
        try:
            return expressions.truth(step.when or "true", self._scope(self.uses(step).steps))
        except BadExpression as error:
            raise StepFailed("bad_expression", f"when: {error.message}") from error

    def items(self, step: PlanStep) -> int:
        """How many items the step is mapped over. Errors: `StepFailed`."""
        if step.id in self.unknown:
            raise self.unknown[step.id]
        return len(self._list(step))

    def payload(self, step: PlanStep, run: StepRun) -> dict[str, Any]:
        """What the step is given. Errors: `StepFailed`."""
        if step.text is not None:
            return {"task": self._task(step.text)}
        scope = self._scope(self.uses(step).steps)
        if run.item != WHOLE:
            scope |= {"item": self._list(step)[run.item], "index": run.item}
        try:
            given = dict(expressions.render(step.inputs, scope))
            if step.prompt is not None:
                given["task"] = worded(expressions.render(step.prompt, scope))
        except BadExpression as error:
            raise StepFailed("bad_expression", error.message) from error
        return given

    def spec(self, work: AgentWork, step: PlanStep) -> Spec | None:
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

    def result(self) -> Any:
        """What the completed plan came to. Errors: `StepFailed`."""
        if self._plan.outputs is not None:
            try:
                return expressions.render(self._plan.outputs, self._scope(shown(self._plan)))
            except BadExpression as error:
                raise StepFailed("bad_expression", f"outputs: {error.message}") from error
        last = [self.outputs.get(step_id) for step_id in last_steps(self._plan) if self._is_completed(step_id)]
        if self._plan.kind == "crew":
            return _answer(last[-1]) if last else None
        if len(last) == 1:
            return last[0]
        return {step_id: self.outputs.get(step_id) for step_id in last_steps(self._plan)}

    def _is_completed(self, step_id: str) -> bool:
        run = self._runs.get((step_id, WHOLE))
        return run is not None and run.status == "completed"

    def _scope(self, steps: Iterable[str]) -> dict[str, Any]:
        return {"inputs": self._inputs, "steps": {step_id: self._seen(step_id) for step_id in steps}}

    def _seen(self, step_id: str) -> dict[str, Any]:
        run = self._runs[step_id, WHOLE]
        return {"outputs": self.outputs.get(step_id), "status": run.status, "error": run.error_message}

    def _list(self, step: PlanStep) -> list[Any]:
        if step.id not in self._lists:
            scope = self._scope(self.uses(step).steps)
            try:
                found = (
                    expressions.evaluate(step.map, scope)
                    if isinstance(step.map, str)
                    else expressions.render(step.map, scope)
                )
            except BadExpression as error:
                raise StepFailed("bad_expression", f"map: {error.message}") from error
            if not isinstance(found, list):
                raise StepFailed("bad_expression", f"map: is no list but {worded(found)[:100]}.")
            self._lists[step.id] = found
        return self._lists[step.id]

    def _values(self) -> dict[str, Any]:
        return self._inputs if isinstance(self._inputs, dict) else {}

    def _filler(self, again: bool = False) -> Callable[[str], str]:
        return filler(self._values(), "inputs", again=again)

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
        return next((worded(one.get("plan")) for one in plans if one.get("task") == mine), "")


def listed(step: PlanStep) -> Uses:
    """What must be known to tell over what a step is mapped."""
    if isinstance(step.map, str):
        return expressions.expression(step.map)
    return expressions.template(step.map)


def given(step: PlanStep) -> Uses:
    """What must be known to tell whether a step is run, and to start it."""
    context = [*step.text.context, step.text.planned_by] if step.text is not None else []
    here = Uses(steps=frozenset(one for one in context if one is not None), names=frozenset())
    found = [here, expressions.template(step.inputs), listed(step)]
    if step.when is not None:
        found.append(expressions.expression(step.when))
    if step.prompt is not None:
        found.append(expressions.template(step.prompt))
    return _all(found)


def shown(plan: Plan) -> list[str]:
    """The steps whose outputs make the plan's own."""
    return sorted(expressions.template(plan.outputs).steps) if plan.outputs is not None else last_steps(plan)


def last_steps(plan: Plan) -> list[str]:
    """The steps that no other depends on, in the plan's order; of a crew, the last one."""
    if plan.kind == "crew":
        return [step.id for step in plan.steps[-1:]]
    needed = {one for step in plan.steps for one in step.depends_on}
    return [step.id for step in plan.steps if step.id not in needed]


def _all(found: list[Uses]) -> Uses:
    return Uses(
        steps=frozenset().union(*(one.steps for one in found)), names=frozenset().union(*(one.names for one in found))
    )


def _answer(output: Any) -> Any:
    return output["content"] if isinstance(output, dict) and set(output) == {"content"} else output


def _answer_text(output: Any) -> str:
    return worded(_answer(output))
