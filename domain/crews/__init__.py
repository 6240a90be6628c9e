"""Manage crews: agents that do tasks, as in CrewAI. A crew is compiled into a plan when it starts."""

from domain.crews.compiler import compile_crew, list_plan_inputs, validate_inputs
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
    "PLANNING_STEP",
    "Crew",
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
    "compile_crew",
    "create_crew",
    "debug_crew",
    "delete_crew",
    "export_crew",
    "get_crew",
    "list_crews",
    "list_plan_inputs",
    "update_crew",
    "validate_inputs",
]
