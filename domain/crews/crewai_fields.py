"""Handle fields of CrewAI that are not supported: accept their defaults, and suggest what to use instead."""

from collections.abc import Iterable
from typing import Any, Final

from domain.shared.placeholders import format_value

# Unsupported fields of CrewAI that have a replacement.
_FIELD_REPLACEMENTS: Final = {
    "max_rpm": "is a setting of the whole crew: set the crew's max_rpm.",
    "planning_llm": "is a setting of the whole crew: set the crew's planning_model.",
    "human_input": "is not a field of an agent; a step of a workflow can require an approval.",
    "reasoning": "is not a field here: set the crew's planning, or say in the instructions to think first.",
    "inject_date": "is not a field here: put {date} in a text, and the date in the inputs of the run.",
    "allow_code_execution": "is not a field here: give the agent the tool `python`.",
    "memory": "is not a field here: agents receive what they need in their tasks and their context.",
    "guardrail": "is not a field here: add a task after this one that checks its answer.",
    "output_json": "is not a field here: describe the form of the answer in expected_output.",
    "output_pydantic": "is not a field here: describe the form of the answer in expected_output.",
}

# CrewAI's defaults, from its pages on agents and tasks; writing them out changes nothing. The default of the others is
# None: they hold Python, or a model for something else.
_EMPTY_VALUES: Final[tuple[Any, ...]] = (None, [], {}, "")
_DEFAULT_NONE_FIELDS: Final = (
    "allow_crewai_trigger_context apps callback callbacks config converter_cls embedder function_calling_llm guardrail "
    "guardrails knowledge knowledge_sources max_reasoning_attempts max_rpm mcps output_json output_pydantic "
    "planning_config planning_llm prompt_template response_model response_template step_callback system_template"
)
_DEFAULT_VALUES: Final[dict[str, Any]] = {
    **dict.fromkeys(_DEFAULT_NONE_FIELDS.split()),
    "allow_code_execution": False,
    "cache": True,
    "code_execution_mode": "safe",
    "create_directory": True,
    "date_format": "%Y-%m-%d",
    "guardrail_max_retries": 3,
    "human_input": False,
    "inject_date": False,
    "max_retries": 3,
    "max_retry_limit": 2,
    "memory": False,
    "multimodal": False,
    "planning": False,
    "reasoning": False,
    "respect_context_window": True,
    "use_system_prompt": True,
}


def is_default(name: str, value: Any) -> bool:
    """Tell whether an unsupported field has CrewAI's default value. `1` is not `true`."""
    if name not in _DEFAULT_VALUES:
        return False
    stripped = value.strip() if isinstance(value, str) else value
    defaults = (_DEFAULT_VALUES[name], *_EMPTY_VALUES)
    return any(type(stripped) is type(default) and stripped == default for default in defaults)


def explain_unknown_field(name: str, fields: Iterable[str]) -> str:
    """Return why a field is refused, and what to use instead."""
    if name in _FIELD_REPLACEMENTS:
        return _FIELD_REPLACEMENTS[name]
    if name in _DEFAULT_VALUES:
        return f"is not a field here: only CrewAI's default is accepted, {format_value(_DEFAULT_VALUES[name])}."
    return f"is not a field here; the fields are {', '.join(fields)}."
