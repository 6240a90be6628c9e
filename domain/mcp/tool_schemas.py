"""Describe tools to MCP clients: the schemas of their arguments and results."""

from typing import Any, Final

from domain.mcp.schema import ExposedTarget, McpDefinition, McpTool
from domain.shared import placeholders

MAX_TOOL_DESCRIPTION: Final = 4000
_TASK_SCHEMA: Final = {"type": "string", "description": "What to do, in words.", "maxLength": 100_000}
_INPUTS_SCHEMA: Final = {"type": "object", "description": "Further input, by name.", "additionalProperties": True}
# Options of a start that every tool takes, besides its own arguments.
OPTION_SCHEMAS: Final[dict[str, dict[str, Any]]] = {
    "thread_id": {
        "type": "string",
        "description": "Go on with a conversation: the id of its thread from an earlier answer, or `new` to begin one.",
        "maxLength": 64,
    }
}
# Asks for a thread of its own.
NEW_THREAD: Final = "new"
_KIND_WORDS: Final = {"agent": "the agent", "crew": "the crew", "workflow": "the workflow"}


def build_tool(name: str, target: ExposedTarget, definition: McpDefinition) -> McpTool:
    """Build a tool from what it stands for."""
    schema = _find_own_schema(target, definition)
    own_schema = schema if schema is not None else _describe_task(definition)
    properties = own_schema.get("properties") or {}
    options = {option: text for option, text in OPTION_SCHEMAS.items() if option not in properties}
    output_schema = definition.output_schema
    return McpTool(
        name=name,
        target=target,
        description=(definition.description or f"Run {_KIND_WORDS[target.kind]} {target.name!r}.")[
            :MAX_TOOL_DESCRIPTION
        ],
        input_schema={**own_schema, "type": "object", "properties": {**properties, **options}},
        # A result that is no object has no place in `structuredContent` of the protocol's older versions.
        output_schema=output_schema if output_schema is not None and output_schema.get("type") == "object" else None,
        takes_payload=schema is not None,
        options=frozenset(options),
    )


def _find_own_schema(target: ExposedTarget, definition: McpDefinition) -> dict[str, Any] | None:
    """Return the schema of a run's input, None for one that is not declared."""
    if definition.input_schema is not None:
        return definition.input_schema
    if target.kind == "workflow":
        return None if definition.inputs is None else _schema_from_inputs(definition.inputs)
    if target.kind == "crew":
        names = dict.fromkeys(name for name in placeholders.find_placeholders(definition.texts) if name != "task")
        defaults = definition.inputs or {}
        fields = {
            name: {"description": f"Stands for {{{name}}} in the texts of the crew."}
            | ({"default": defaults[name]} if name in defaults else {})
            for name in names
        }
        required = [name for name in fields if name not in defaults]
        return {"type": "object", "properties": fields, "required": required, "additionalProperties": True}
    return None


def _schema_from_inputs(inputs: dict[str, Any]) -> dict[str, Any]:
    """Return the declared inputs of a workflow as a JSON Schema."""
    properties: dict[str, Any] = {}
    for name, declaration in inputs.items():
        described_fields = {
            key: declaration[key] for key in ("type", "description") if declaration.get(key) is not None
        }
        properties[name] = {
            **described_fields,
            **({"default": declaration["default"]} if "default" in declaration else {}),
        }
    required = [name for name, declaration in inputs.items() if declaration.get("required")]
    return {"type": "object", "properties": properties, "required": required, "additionalProperties": False}


def _describe_task(definition: McpDefinition) -> dict[str, Any]:
    return {
        "type": "object",
        "properties": {"task": _TASK_SCHEMA, "inputs": _INPUTS_SCHEMA},
        "required": ["task"] if definition.runs_model else [],
        "additionalProperties": False,
    }
