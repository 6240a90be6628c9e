"""Agents, tasks, crews and names of runs out of a description, thought up by a model of the tenant's choice.

A generation is an execution: one call of a model that answers in JSON of a schema, on record and paid for like any
other. What comes of the answer is made valid here, whatever the model said.
"""

from domain.generation.schema import (
    AgentDraft,
    AgentGeneration,
    CrewDraft,
    CrewGeneration,
    GenerationStart,
    NameGeneration,
    NameGenerationStart,
    TaskDraft,
    TaskGeneration,
)
from domain.generation.service import (
    get_agent_generation,
    get_crew_generation,
    get_name_generation,
    get_task_generation,
    start_generation,
    start_name_generation,
)

__all__ = [
    "AgentDraft",
    "AgentGeneration",
    "CrewDraft",
    "CrewGeneration",
    "GenerationStart",
    "NameGeneration",
    "NameGenerationStart",
    "TaskDraft",
    "TaskGeneration",
    "get_agent_generation",
    "get_crew_generation",
    "get_name_generation",
    "get_task_generation",
    "start_generation",
    "start_name_generation",
]
