"""Start model agents for callers who ask as they would ask a model: with options, and with tools of their own."""

import msgspec

from domain.agents import AgentSpec
from domain.executions.schema import AnswerStart
from domain.schemas import parse_schema
from domain.shared.errors import InvalidField

# The name of the tool by which an agent has others do tasks.
_DELEGATE_TOOL_NAME = "delegate"


def apply_answer_start(spec: AgentSpec, data: AnswerStart) -> AgentSpec:
    """Return a model agent as this run has it. Errors: `invalid_field`."""
    if spec.allow_delegation and any(tool.name == _DELEGATE_TOOL_NAME for tool in data.client_tools):
        raise InvalidField("tools", f"{_DELEGATE_TOOL_NAME!r} is a tool of {spec.name!r} itself. Choose another name.")
    options = data.options
    return msgspec.structs.replace(
        spec,
        answer_schema=spec.answer_schema if options.schema is None else parse_schema(options.schema, "response_format"),
        options=msgspec.structs.replace(options, schema=None),
        caller_instructions=data.instructions,
        client_tools=list(data.client_tools),
    )
