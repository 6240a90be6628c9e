"""Render an ended run as the result of a tool call."""

import mimetypes
from typing import Any, Final

import msgspec
from mcp_types import CallToolResult, ContentBlock, ResourceLink, TextContent

from api.mcp.addresses import format_execution_uri, format_file_uri
from domain.executions import Execution
from domain.shared.errors import DomainError
from domain.workspaces import WorkspaceFile

# The file list of the run is a resource too, and names the others.
MAX_LINKED_FILES: Final = 100


def render_result(execution: Execution, files: list[WorkspaceFile]) -> CallToolResult:
    """Return the result of a run that has ended, or that waits for a person."""
    content: list[ContentBlock] = [TextContent(text=_describe_outcome(execution))]
    if execution.thread_id is not None:
        # For the model: it does not see `_meta`.
        content.append(TextContent(text=f"thread_id: {execution.thread_id}"))
    if execution.status != "completed":
        content.append(_link_execution(execution))
    content += [link_file(execution.id, file) for file in files[:MAX_LINKED_FILES]]
    is_completed = execution.status == "completed"
    return CallToolResult(
        content=content,
        structured_content=_wrap_output(execution.output_data) if is_completed else None,
        is_error=not is_completed,
        _meta=_describe_run(execution),
    )


def render_refusal(error: DomainError) -> CallToolResult:
    """Return the result of a run that could not be started, for the model to correct itself."""
    lines = [error.detail, *(f"- {field_error.field}: {field_error.message}" for field_error in error.errors)]
    text = "\n".join(lines if len(error.errors) > 1 else lines[:1])
    return CallToolResult(content=[TextContent(text=text)], is_error=True, _meta={"paddock/error": error.code})


def link_file(execution_id: str, file: WorkspaceFile) -> ResourceLink:
    """Return the link to a file of a run."""
    return ResourceLink(
        name=file.path,
        uri=format_file_uri(execution_id, file.path),
        mime_type=mimetypes.guess_type(file.path)[0] or "application/octet-stream",
        size=file.size_bytes,
    )


def _link_execution(execution: Execution) -> ResourceLink:
    return ResourceLink(name=execution.run_name, uri=format_execution_uri(execution.id), mime_type="application/json")


def _describe_outcome(execution: Execution) -> str:
    if execution.status == "completed":
        return _write_output(execution.output_data)
    if execution.status == "waiting":
        calls = ", ".join(_name_call(call) for call in execution.waiting_for or []) or "a step"
        return (
            f"The run waits until a person approves: {calls}. Approve or reject it in Paddock (POST "
            f"/api/v1/executions/{execution.id}/approve or /reject); the result is then in the linked resource."
        )
    if execution.status == "cancelled":
        return f"The run was cancelled: {execution.error_message or 'no reason was given.'}"
    return f"The run failed ({execution.error_type}): {execution.error_message or 'no message'}"


def _write_output(output: Any) -> str:
    """Return an output as text. An answer of a model without a schema is `{content}`."""
    if isinstance(output, dict) and output.keys() == {"content"}:
        output = output["content"]
    return output if isinstance(output, str) else msgspec.json.encode(output).decode()


def _name_call(call: dict[str, Any]) -> str:
    if "tool" in call:
        return f"a call of {call['tool']}"
    return f"the step {call.get('name') or call.get('step')!r}"


def _wrap_output(output: Any) -> dict[str, Any]:
    """Return an output as an object: up to protocol 2025-11-25 structured content is no other value."""
    return output if isinstance(output, dict) else {"result": output}


def _describe_run(execution: Execution) -> dict[str, Any]:
    about: dict[str, Any] = {
        "paddock/execution_id": execution.id,
        "paddock/status": execution.status,
        "paddock/cost_usd": execution.total_cost,
    }
    if execution.thread_id is not None:
        about["paddock/thread_id"] = execution.thread_id
    return about
