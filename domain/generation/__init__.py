"""Agents, tasks, crews and names of runs out of a description, thought up by a model of the tenant's choice.

A generation is an execution: one call of a model that answers in JSON of a schema, on record and paid for like any
other. What comes of the answer is made valid here, whatever the model said.
"""

from domain.generation.schema import (
    AgentAnswer,
    AgentDraft,
    CrewAnswer,
    CrewDraft,
    Generate,
    GenerateName,
    NameAnswer,
    TaskAnswer,
    TaskDraft,
)
from domain.generation.service import agent_of, crew_of, name_of, start, start_name, task_of

__all__ = [
    "AgentAnswer",
    "AgentDraft",
    "CrewAnswer",
    "CrewDraft",
    "Generate",
    "GenerateName",
    "NameAnswer",
    "TaskAnswer",
    "TaskDraft",
    "agent_of",
    "crew_of",
    "name_of",
    "start",
    "start_name",
    "task_of",
]
