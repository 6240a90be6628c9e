"""Manage crews: agents that do tasks, as in CrewAI. A crew is compiled into a plan when it starts."""

from domain.crews.compiler import compile_crew, list_plan_inputs, validate_inputs
from domain.crews.input_files import collect_run_files
from domain.crews.knowledge import MAX_KNOWLEDGE_CHARACTERS
from domain.crews.memory import (
    CrewMemories,
    CrewMemory,
    clear_memories,
    delete_memory,
    list_memories,
    save_task_memory,
)
from domain.crews.schema import (
    PLANNING_STEP,
    Crew,
    CrewProblem,
    Crews,
    CrewSettings,
    CrewSource,
    CrewValidation,
    CrewYaml,
    NewCrew,
    PatchCrew,
    Process,
    YamlText,
)
from domain.crews.service import create_crew, debug_crew, delete_crew, export_crew, get_crew, list_crews, update_crew

__all__ = [
    "MAX_KNOWLEDGE_CHARACTERS",
    "PLANNING_STEP",
    "Crew",
    "CrewMemories",
    "CrewMemory",
    "CrewProblem",
    "CrewSettings",
    "CrewSource",
    "CrewValidation",
    "CrewYaml",
    "Crews",
    "NewCrew",
    "PatchCrew",
    "Process",
    "YamlText",
    "clear_memories",
    "collect_run_files",
    "compile_crew",
    "create_crew",
    "debug_crew",
    "delete_crew",
    "delete_memory",
    "export_crew",
    "get_crew",
    "list_crews",
    "list_memories",
    "list_plan_inputs",
    "save_task_memory",
    "update_crew",
    "validate_inputs",
]
