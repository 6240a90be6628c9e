"""List the fields of CrewAI that have no effect here: their defaults, and what to use instead.

The fields that have an effect are those of `YamlAgent`, `YamlTask` and `CREW_FILE_FIELDS`. A test compares all of them
with the fields of CrewAI's own classes (`tests/domain/crewai_fields.json`).
"""

from collections.abc import Iterable
from typing import Any, Final, Literal

import msgspec

from domain.shared.placeholders import format_value

CrewFieldKind = Literal["agent", "task", "crew"]


class UnusedField(msgspec.Struct, frozen=True):
    """Describe a field of CrewAI without an effect here: values that are taken, and why others are refused.

    The first of the `defaults` is CrewAI's own. Without a `reason` the default says what happens here anyway.
    """

    defaults: tuple[Any, ...] = (None,)
    reason: str | None = None


# Nothing is written in these; the same holds in all three.
_EMPTY_VALUES: Final[tuple[Any, ...]] = (None, [], {}, "")
PYTHON_REASON: Final = "names Python code, which crews have none of; upload code as an agent of its own."
_PROCESS_REASON: Final = "belongs to a running process of CrewAI, not to a definition."
_EMBEDDER_REASON: Final = "is not a choice here: texts are compared by the model that every installation has."
_CHECKPOINT_REASON: Final = (
    "is not a field here: every finished step is kept, and a failed run goes on with ?from=failed."
)
_TEMPLATES_REASON: Final = "is not a field here: say what the prompt has to hold in instructions."
_SKILLS_REASON: Final = "is not a field here: put the text of a skill in instructions or knowledge_sources."
_FAILURES_REASON: Final = "is not a choice here: a failed tool call is logged, and the model sees its error."
_OTHER_MODEL_REASON: Final = "is not a choice here: the agent's own model also calls its tools."
_CODE_REASON: Final = "is not a field here: give the agent the tool `python`."


def _repeat(names: str, defaults: tuple[Any, ...] = (None,), reason: str | None = None) -> dict[str, UnusedField]:
    return {name: UnusedField(defaults, reason) for name in names.split()}


_UNUSED_FIELDS: Final[dict[CrewFieldKind, dict[str, UnusedField]]] = {
    "agent": {
        "cache": UnusedField((True, False)),
        "use_system_prompt": UnusedField((True,)),
        **_repeat("human_input", (False,), "is not a field of an agent; let a task ask a person."),
        **_repeat("multimodal allow_code_execution", (False,), _CODE_REASON),
        **_repeat("code_execution_mode", ("safe",), _CODE_REASON),
        **_repeat("callbacks step_callback executor_class agent_executor i18n type config", reason=PYTHON_REASON),
        **_repeat("embedder", reason=_EMBEDDER_REASON),
        **_repeat("checkpoint", (None, False), _CHECKPOINT_REASON),
        **_repeat("skills", reason=_SKILLS_REASON),
        **_repeat("tool_failure_policy", (None, "warn"), _FAILURES_REASON),
        **_repeat("function_calling_llm", reason=_OTHER_MODEL_REASON),
        **_repeat("system_template prompt_template response_template", reason=_TEMPLATES_REASON),
        "apps": UnusedField(reason="are CrewAI's own platform; add a tool or an MCP server under /tools."),
        "a2a": UnusedField(reason="is not spoken here; make the other agent a tool under /tools."),
        "from_repository": UnusedField(reason="is CrewAI's own platform; name an agent of the tenant."),
        "security_config": UnusedField(reason="is CrewAI's fingerprint; executions have ids."),
        "planning_llm": UnusedField(reason="is a setting of the whole crew: set the crew's planning_model."),
        "knowledge": UnusedField(reason="is made from knowledge_sources; send those."),
        **_repeat(
            "id entity_type crew cache_handler tools_handler tools_results knowledge_storage adapted_agent "
            "agent_knowledge_context crew_knowledge_context knowledge_search_query execution_context "
            "checkpoint_kickoff_event_id",
            reason=_PROCESS_REASON,
        ),
    },
    "task": {
        "create_directory": UnusedField((True,)),
        **_repeat("callback converter_cls condition type config", reason=PYTHON_REASON),
        **_repeat("tool_failure_policy", (None, "warn"), _FAILURES_REASON),
        "allow_crewai_trigger_context": UnusedField(
            (None, False), "is CrewAI's own platform; name the input in the description."
        ),
        "security_config": UnusedField(reason="is CrewAI's fingerprint; executions have ids."),
        **_repeat("used_tools tools_errors delegations retry_count", (0,), _PROCESS_REASON),
        **_repeat(
            "id prompt_context output processed_by_agents start_time end_time checkpoint_original_description "
            "checkpoint_original_expected_output",
            reason=_PROCESS_REASON,
        ),
    },
    "crew": {
        **_repeat("cache stream share_crew tracing", (False,)),
        **_repeat(
            "step_callback task_callback before_kickoff_callbacks after_kickoff_callbacks config", reason=PYTHON_REASON
        ),
        **_repeat("function_calling_llm", reason=_OTHER_MODEL_REASON),
        **_repeat("embedder", reason=_EMBEDDER_REASON),
        **_repeat("checkpoint", (None, False), _CHECKPOINT_REASON),
        **_repeat("skills", reason=_SKILLS_REASON),
        **_repeat("tool_failure_policy", (None, "warn"), _FAILURES_REASON),
        "chat_llm": UnusedField(reason="is for CrewAI's terminal; start the crew with a thread."),
        "prompt_file": UnusedField(reason="replaces CrewAI's own prompts; say it in instructions."),
        "trained_agents_file": UnusedField(reason="is a pickle of CrewAI's train(), which is not read."),
        "output_log_file": UnusedField((None, False), "is not a field here: read the logs of the execution."),
        "security_config": UnusedField(reason="is CrewAI's fingerprint; executions have ids."),
        "knowledge": UnusedField(reason="is made from knowledge_sources; send those."),
        **_repeat(
            "id entity_type usage_metrics task_execution_output_json_files execution_logs token_usage "
            "execution_context checkpoint_inputs checkpoint_train checkpoint_kickoff_event_id",
            reason=_PROCESS_REASON,
        ),
    },
}


def list_unused_fields(kind: CrewFieldKind) -> dict[str, UnusedField]:
    """Return CrewAI's fields of an agent, a task or a crew that have no effect here."""
    return _UNUSED_FIELDS[kind]


def is_default(name: str, value: Any, kind: CrewFieldKind) -> bool:
    """Tell whether a field without an effect has a value that changes nothing. `1` is not `true`."""
    unused = _UNUSED_FIELDS[kind].get(name)
    if unused is None:
        return False
    stripped = value.strip() if isinstance(value, str) else value
    accepted = (*unused.defaults, *_EMPTY_VALUES)
    return any(type(stripped) is type(default) and stripped == default for default in accepted)


def explain_unknown_field(name: str, fields: Iterable[str], kind: CrewFieldKind) -> str:
    """Return why a field is refused, and what to use instead."""
    unused = _UNUSED_FIELDS[kind].get(name)
    if unused is None:
        return f"is not a field here; the fields are {', '.join(fields)}."
    if unused.reason is not None:
        return unused.reason
    return f"is not a field here: only CrewAI's default is accepted, {format_value(unused.defaults[0])}."
