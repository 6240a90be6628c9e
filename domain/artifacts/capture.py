"""Record ended executions as artifacts: their input, output, prompt, tokens and tool calls."""

from typing import Any

import msgspec

from domain.agents import Agent, build_messages
from domain.artifacts.record import ArtifactRecord, build_record
from domain.artifacts.service import ExecutionTokens, PackedArtifact, UnrecordedExecution
from domain.executions import Execution, RunStep
from domain.ports import Tx
from domain.shared.jobs import Job


def record_from_execution(ended: UnrecordedExecution, environment: str) -> ArtifactRecord:
    """Build the artifact of an ended execution, under its own id.

    `environment` is the name of the installation's environment.
    """
    run = ended.execution
    end = run.completed_at or run.updated_at
    artifact: dict[str, Any] = {
        "kurral_id": run.id,
        "run_id": run.run_name,
        "environment": environment,
        "created_at": run.created_at,
        "created_by": run.user_id,
        "inputs": run.input_data,
        "outputs": run.output_data,
        "tool_calls": [],
        "tags": [f"agent:{ended.agent_name}"] if ended.agent_name else [],
        "metadata": {
            "execution_id": run.id,
            "agent_id": run.agent_id,
            "agent_version_id": run.agent_version_id,
            "status": run.status,
            "attempt": run.attempt,
            "started_at": run.started_at,
            "completed_at": run.completed_at,
        },
    }
    if ended.tokens is not None:
        artifact["token_usage"] = msgspec.to_builtins(ended.tokens) | {
            "total": ended.tokens.prompt + ended.tokens.completion
        }
        del artifact["token_usage"]["provider"]
        artifact["cost_usd"] = run.total_cost
    if ended.spec is not None:
        artifact |= _describe_model(run, ended.spec, ended.tokens)
    artifact["tool_calls"] = [_describe_call(run, step) for step in ended.calls]
    if run.started_at is not None:
        artifact["duration_ms"] = max(0, round((end - run.started_at).total_seconds() * 1000))
    if run.error_type is not None:
        artifact["error"] = {"type": run.error_type, "message": run.error_message, "stack": ended.stack}
    return build_record(
        msgspec.json.encode(artifact), tenant_id=run.tenant_id, user_id=run.user_id, now=end, execution_id=run.id
    )


def _describe_model(run: Execution, spec: Agent, tokens: ExecutionTokens | None) -> dict[str, Any]:
    """Return the model and the prompt of a model agent's run, as artifacts have them."""
    prompt = build_messages(spec, run.input_data)
    parameters = {"temperature": spec.temperature, "max_tokens": spec.max_tokens}
    return {
        "llm_config": {
            "model_name": spec.model,
            "provider": spec.provider if tokens is None else tokens.provider,
            "parameters": {name: value for name, value in parameters.items() if value is not None},
        },
        "resolved_prompt": {
            "template": spec.instructions,
            "variables": run.input_data,
            "final_text": prompt[-1].content,
            "system_prompt": prompt[0].content if prompt[0].role == "system" else None,
            "messages": [{"role": message.role, "content": message.content} for message in prompt],
        },
    }


def _describe_call(run: Execution, step: RunStep) -> dict[str, Any]:
    """Return a tool call as artifacts have them; one of a delegated task lies below the call that delegated it."""
    failed = isinstance(step.output, dict) and "error" in step.output
    above, slash, _ = step.path.rpartition("/")
    return {
        "id": step.path,
        "parent_id": above if slash else None,
        "tool_name": step.name,
        "agent_id": run.agent_id,
        "start_time": step.started_at,
        "end_time": step.finished_at,
        "input": step.input,
        "output": None if failed else step.output,
        "status": "error" if failed or step.finished_at is None else "ok",
        "error_text": str(step.output["error"])[:4000] if failed else None,
        "metadata": {"call_id": step.call_id, "decided_by": step.decided_by, "status": step.status},
    }


async def store_captured(tx: Tx, artifacts: list[PackedArtifact], executions: list[str]) -> None:
    """Store the artifacts of ended executions of the bound tenant, and mark the executions as recorded.

    One that was deleted since gets no artifact.
    """
    recorded_ids = await tx.artifacts.mark_recorded(executions)
    artifacts = [artifact for artifact in artifacts if artifact.record.metadata.execution_id in recorded_ids]
    if artifacts:
        await tx.artifacts.add(artifacts)
        tx.ring_job(Job(lane="record", row_id=artifacts[0].record.metadata.id, tenant_id="", attempt=0))
