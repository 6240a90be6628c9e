"""Fields of CrewAI that there are not here: what may be written out all the same, and what to do instead."""

from collections.abc import Iterable
from typing import Any, Final

from domain.shared.placeholders import format_value

# What CrewAI knows and this does not, where something else can be done instead.
_INSTEAD: Final = {
    "max_rpm": "is for the whole crew here: set the crew's max_rpm.",
    "planning_llm": "is for the whole crew here: set the crew's planning_model.",
    "human_input": "is no field of an agent; a step of a workflow can ask for an approval.",
    "reasoning": "is not a field here: set the crew's planning, or say in the instructions to think first.",
    "inject_date": "is not a field here: put {date} into a text, and the date into the inputs of the run.",
    "allow_code_execution": "is not a field here: give the agent the tool `python`.",
    "memory": "is not a field here: what agents know is in their tasks and their context.",
    "guardrail": "is not a field here: put a task behind this one that checks its answer.",
    "output_json": "is not a field here: say in expected_output what the answer shall look like.",
    "output_pydantic": "is not a field here: say in expected_output what the answer shall look like.",
}

# CrewAI's defaults, from its pages on agents and tasks: whoever writes them out says nothing new. Of the others the
# default is None: they hold Python, or a model for something else.
_NOTHING: Final[tuple[Any, ...]] = (None, [], {}, "")
_NONE_BY_DEFAULT: Final = (
    "allow_crewai_trigger_context apps callback callbacks config converter_cls embedder function_calling_llm guardrail "
    "guardrails knowledge knowledge_sources max_reasoning_attempts max_rpm mcps output_json output_pydantic "
    "planning_config planning_llm prompt_template response_model response_template step_callback system_template"
)
_DEFAULTS: Final[dict[str, Any]] = {
    **dict.fromkeys(_NONE_BY_DEFAULT.split()),
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


def is_default(name: str, given: Any) -> bool:
    """Whether a field that there is not here says what CrewAI does anyway. `1` is not `true`."""
    if name not in _DEFAULTS:
        return False
    given = given.strip() if isinstance(given, str) else given
    return any(type(given) is type(one) and given == one for one in (_DEFAULTS[name], *_NOTHING))


def explain_unknown_field(name: str, fields: Iterable[str]) -> str:
    """Say why a field is not taken, and what to do instead."""
    if name in _INSTEAD:
        return _INSTEAD[name]
    if name in _DEFAULTS:
        told = format_value(_DEFAULTS[name])
        return f"is not a field here: only what CrewAI does by default, {told}, may be written out."
    return f"is not a field here; there are {', '.join(fields)}."
