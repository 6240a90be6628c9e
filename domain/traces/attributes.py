"""Describe spans by attributes, under the names that OpenTelemetry gives them.

Semantic conventions 1.41 for generative AI (`docs/gen-ai/gen-ai-spans.md`, `gen-ai-agent-spans.md`; status
Development), continued in the repository `semantic-conventions-genai`, where the names for memory come
from. Providers keep our names for them: OpenTelemetry allows its own and others. Prompts and answers are opt-in there,
and here.
"""

from datetime import timedelta
from typing import Any, Final

from domain.traces.messages import build_answer_parts, build_text_parts, trim_text
from domain.traces.schema import DelegatedAgent, TracedModelCall, TracedPlan, TracedPlanStep, TracedRun, TracedRunStep

OPERATION_ATTRIBUTE: Final = "gen_ai.operation.name"
PROVIDER_ATTRIBUTE: Final = "gen_ai.provider.name"
INPUT_ATTRIBUTE: Final = "gen_ai.input.messages"
OUTPUT_ATTRIBUTE: Final = "gen_ai.output.messages"
ERROR_ATTRIBUTE: Final = "error.type"
ERROR_MESSAGE_ATTRIBUTE: Final = "paddock.error.message"
MAX_MESSAGE_CHARACTERS: Final = 1000


def describe_run(run: TracedRun, plan: TracedPlan | None, number: int | None) -> dict[str, Any]:
    """Return the attributes of an execution, which is try `number` of a step."""
    values = {
        **_describe_target(run, plan),
        "paddock.execution.id": run.id,
        "paddock.execution.status": run.status,
        "paddock.run_name": run.run_name,
        "paddock.attempt": run.attempt or None,
        "paddock.try": number,
        "paddock.mode": run.mode,
        "paddock.schedule.id": run.schedule_id,
        "paddock.queued_ms": None if run.started_at is None else to_milliseconds(run.started_at - run.created_at),
        **_describe_error(run.error_type, run.error_message),
    }
    if run.kind == "tool":
        values |= {
            "gen_ai.tool.call.arguments": _trim_optional(run.input),
            "gen_ai.tool.call.result": _trim_optional(run.output),
        }
    else:
        values |= _describe_messages(run.input, run.output)
    return _drop_empty(values)


def _describe_target(run: TracedRun, plan: TracedPlan | None) -> dict[str, Any]:
    if run.kind in ("crew", "workflow"):
        return {
            OPERATION_ATTRIBUTE: "invoke_workflow",
            "gen_ai.workflow.name": find_run_name(run, plan),
            "paddock.crew.id": run.crew_id,
            "paddock.workflow.id": run.workflow_id,
        }
    if run.kind == "tool":
        return {OPERATION_ATTRIBUTE: "execute_tool", "gen_ai.tool.name": find_run_name(run, plan)}
    return {
        OPERATION_ATTRIBUTE: "invoke_agent",
        "gen_ai.agent.id": run.agent_id,
        "gen_ai.agent.name": find_run_name(run, plan),
        "gen_ai.agent.version": run.agent_version_id,
        PROVIDER_ATTRIBUTE: run.provider,
        **_describe_request(run),
    }


def describe_plan_step(stage: TracedPlanStep) -> dict[str, Any]:
    """Return the attributes of a step of a plan, or of an item of one."""
    values = {
        "paddock.step.id": stage.step,
        "paddock.step.item": stage.item if stage.item >= 0 else None,
        "paddock.step.status": stage.status,
        "paddock.step.tries": stage.tries or None,
        "paddock.step.approved": stage.approved,
        "paddock.step.decided_by": stage.decided_by,
        "paddock.step.execution.id": stage.child_id,
        **_describe_error(stage.error_type, stage.error_message),
    }
    return _drop_empty(values)


def describe_memory(steps: list[str], characters: int) -> dict[str, Any]:
    """Return the attributes of the context that a task got from others."""
    return {
        OPERATION_ATTRIBUTE: "search_memory",
        "gen_ai.memory.record.count": len(steps),
        "paddock.context.steps": steps,
        "paddock.context.characters": characters,
    }


def describe_tool_call(step: TracedRunStep) -> dict[str, Any]:
    """Return the attributes of a tool call of a model agent."""
    values = {
        OPERATION_ATTRIBUTE: "execute_tool",
        "gen_ai.tool.name": step.name,
        "gen_ai.tool.call.id": step.call_id,
        "paddock.step.path": step.path,
        "paddock.step.status": step.status,
        "paddock.step.decided_by": step.decided_by,
        "paddock.attempt": step.attempt,
        ERROR_ATTRIBUTE: "rejected" if step.rejected else "tool_failed" if step.failed else None,
    }
    if step.delegate is None:
        values |= {
            "gen_ai.tool.call.arguments": _trim_optional(step.arguments),
            "gen_ai.tool.call.result": _trim_optional(step.answer),
        }
    return _drop_empty(values)


def describe_delegate(step: TracedRunStep) -> dict[str, Any]:
    """Return the attributes of the agent that a task was delegated to."""
    agent = step.delegate or DelegatedAgent(name="delegate")
    values = {
        OPERATION_ATTRIBUTE: "invoke_agent",
        # A member that is defined in one crew only has no id.
        "gen_ai.agent.id": agent.id or None,
        "gen_ai.agent.name": agent.name,
        PROVIDER_ATTRIBUTE: agent.provider,
        **_describe_request(agent),
        "paddock.step.path": step.path,
        **_describe_messages(step.arguments, step.answer),
    }
    return _drop_empty(values)


def describe_model_call(
    call: TracedModelCall, step: TracedRunStep | None, asker: TracedRun | DelegatedAgent
) -> dict[str, Any]:
    """Return the attributes of a call of a model, and of the step that it was made for."""
    finish = step.finish if step is not None and call.status == "ok" else None
    values = {
        OPERATION_ATTRIBUTE: "chat",
        PROVIDER_ATTRIBUTE: call.provider,
        **_describe_request(asker),
        "gen_ai.request.model": call.model,
        "gen_ai.response.finish_reasons": None if finish is None else [finish],
        "gen_ai.response.time_to_first_chunk": None if call.first_token_ms is None else call.first_token_ms / 1000,
        "gen_ai.usage.input_tokens": call.prompt_tokens,
        "gen_ai.usage.output_tokens": call.completion_tokens,
        "gen_ai.usage.cache_read.input_tokens": call.cached_tokens or None,
        "gen_ai.usage.reasoning.output_tokens": call.reasoning_tokens or None,
        "paddock.model.name": call.model_name,
        "paddock.usage.estimated": call.estimated or None,
        "paddock.step.path": None if step is None else step.path,
        ERROR_ATTRIBUTE: call.error_type or ("cancelled" if call.status == "cancelled" else None),
    }
    if step is not None and call.status == "ok":
        values |= _describe_answer(step)
    return _drop_empty(values)


def describe_sent_messages(messages: list[dict[str, Any]], omitted: int) -> dict[str, Any]:
    """Return the messages sent to a model as attributes; `omitted` counts its oldest messages that are not shown."""
    return _drop_empty({INPUT_ATTRIBUTE: messages or None, "paddock.input.omitted_messages": omitted or None})


def describe_unbilled_answer(step: TracedRunStep, asker: TracedRun | DelegatedAgent) -> dict[str, Any]:
    """Return the attributes of an answer whose cost is no longer stored."""
    values = {
        OPERATION_ATTRIBUTE: "chat",
        **_describe_request(asker),
        "gen_ai.request.model": step.name,
        "gen_ai.response.finish_reasons": None if step.finish is None else [step.finish],
        "gen_ai.usage.input_tokens": step.prompt_tokens,
        "gen_ai.usage.output_tokens": step.completion_tokens,
        "paddock.model.name": step.name,
        "paddock.step.path": step.path,
        **_describe_answer(step),
    }
    return _drop_empty(values)


def describe_decision(decided_by: str | None, reason: str | None) -> dict[str, Any]:
    """Return the attributes of a person's decision."""
    return _drop_empty({"paddock.decided_by": decided_by, "paddock.reason": reason})


def find_run_name(run: TracedRun, plan: TracedPlan | None = None) -> str:
    """Return the name of a run: that of its plan or agent, else the one of its start."""
    return (None if plan is None else plan.name) or run.agent_name or run.run_name.rpartition("-")[0] or run.run_name


def to_milliseconds(length: timedelta) -> float:
    """Return a duration in milliseconds, never below zero: clocks of two machines differ."""
    return max(0.0, round(length / timedelta(milliseconds=1), 3))


def _describe_request(asker: TracedRun | DelegatedAgent) -> dict[str, Any]:
    return {
        "gen_ai.request.model": asker.model,
        "gen_ai.request.temperature": asker.temperature,
        "gen_ai.request.max_tokens": asker.max_tokens,
    }


def _describe_error(kind: str | None, message: str | None) -> dict[str, Any]:
    return {
        ERROR_ATTRIBUTE: kind,
        ERROR_MESSAGE_ATTRIBUTE: None if kind is None or message is None else message[:MAX_MESSAGE_CHARACTERS],
    }


def _describe_answer(step: TracedRunStep) -> dict[str, Any]:
    parts = build_answer_parts(step)
    return {OUTPUT_ATTRIBUTE: None if step.answer is None else [{"role": "assistant", "parts": parts}]}


def _describe_messages(question: str | None, answer: str | None) -> dict[str, Any]:
    # As the conventions' JSON schemas of messages have them.
    return {
        INPUT_ATTRIBUTE: None if question is None else [{"role": "user", "parts": build_text_parts(question)}],
        OUTPUT_ATTRIBUTE: None if answer is None else [{"role": "assistant", "parts": build_text_parts(answer)}],
    }


def _trim_optional(text: str | None) -> str | None:
    return None if text is None else trim_text(text)


def _drop_empty(values: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in values.items() if value is not None}
