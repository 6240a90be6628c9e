"""Derive from the fields of a task and its agent how the task is done: what its answer has to pass, and its retries."""

from domain.agents import DEFAULT_GUARDRAIL_RETRIES, TaskRules
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
