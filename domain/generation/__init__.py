"""Generate agents, tasks, crews and run names from a description, with a model of the tenant's choice.

A generation is an execution with one model call, whose answer follows a JSON Schema. It is recorded and budgeted like
any other execution. The draft that is made of the answer is always valid.
"""

from domain.generation.schema import (
    AgentDraft,
    AgentGeneration,
    CrewDraft,
    CrewGeneration,
    GenerationKind,
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
    "GenerationKind",
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
