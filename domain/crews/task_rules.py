"""Derive from the fields of a task and its agent how the task is done: what its answer has to pass, and its retries."""

from domain.agents import DEFAULT_GUARDRAIL_RETRIES, KnowledgeText, TaskRecall, TaskRules
from domain.crews.knowledge import DEFAULT_MEMORY_SCOPE, KnowledgeConfig, MemoryScope, read_sources
from domain.crews.roster import CrewMember, CrewRoster, CrewTask
from domain.crews.yaml_schema import YamlAgent
from domain.plans import RetryPolicy


def build_rules(member: CrewMember | None, task: CrewTask) -> TaskRules | None:
    """Return what the answer to a task has to pass: the guardrails of its agent, then its own, then a person."""
    agent_fields, task_fields = member.fields if member is not None else None, task.fields
    guardrails = list(task_fields.rules) if task_fields is not None else []
    if agent_fields is not None and agent_fields.guardrail is not None:
        guardrails.insert(0, agent_fields.guardrail)
    human_input = task_fields is not None and task_fields.human_input
    if not guardrails and not human_input:
        return None
    limits = [
        *((task_fields.guardrail_max_retries, task_fields.max_retries) if task_fields is not None else ()),
        agent_fields.guardrail_max_retries if agent_fields is not None else None,
    ]
    retries = next((limit for limit in limits if limit is not None), DEFAULT_GUARDRAIL_RETRIES)
    return TaskRules(guardrails=guardrails, guardrail_retries=retries, human_input=human_input)


def build_recall(roster: CrewRoster, task: CrewTask, crew_id: str) -> TaskRecall | None:
    """Return what a task is given of what the crew knows and remembers, None if that is nothing."""
    fields, settings = _find_fields(roster, task), roster.settings
    key = roster.manager.key if roster.manager is not None else task.agent or ""
    knowledge = [text for text in list_knowledge(roster) if text.agent in (None, key)]
    agent_memory = fields.memory if fields is not None else None
    scopes: list[str] = []
    if settings.memory is not False and agent_memory is not False:
        scope = settings.memory.root_path if isinstance(settings.memory, MemoryScope) else DEFAULT_MEMORY_SCOPE
        scopes.append(scope)
    elif agent_memory:
        scopes.append(f"/agents/{key}")
    if not knowledge and not scopes:
        return None
    config = (fields.knowledge_config if fields is not None else None) or settings.knowledge_config or KnowledgeConfig()
    return TaskRecall(
        agent=key,
        has_knowledge=bool(knowledge),
        results=config.results_limit,
        threshold=config.score_threshold,
        crew_id=crew_id,
        memory_scope=scopes[0] if scopes else None,
        memory_scopes=scopes,
    )


def list_knowledge(roster: CrewRoster) -> list[KnowledgeText]:
    """Return all that the crew and its agents know. Errors: `invalid_field`."""
    texts = read_sources(roster.settings.knowledge_sources, "knowledge_sources")
    return texts + [text for member in roster.members.values() for text in member.knowledge]


def choose_date_format(roster: CrewRoster, task: CrewTask) -> str | None:
    """Return the format in which the prompt of a task has the date, None without one."""
    fields = _find_fields(roster, task)
    return fields.date_format if fields is not None and fields.inject_date else None


def choose_retries(roster: CrewRoster, task: CrewTask) -> RetryPolicy:
    """Return how often a task is begun again after an error, as its agent says."""
    fields = _find_fields(roster, task)
    return RetryPolicy(attempts=(fields.max_retry_limit or 0) if fields is not None else 0)


def _find_fields(roster: CrewRoster, task: CrewTask) -> YamlAgent | None:
    member = roster.manager if roster.manager is not None else roster.members.get(task.agent or "")
    return member.fields if member is not None else None
