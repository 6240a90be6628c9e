"""Crews: agents that do tasks, as CrewAI has them. A crew is compiled into a plan when it is run."""

from domain.crews.compiler import compile_crew, list_plan_inputs, validate_inputs
from domain.crews.schema import Crew, CrewProblem, Crews, CrewSettings, CrewValidation, CrewYaml, NewCrew, PatchCrew
from domain.crews.service import create_crew, debug_crew, delete_crew, export_crew, get_crew, list_crews, update_crew

__all__ = [
    "Crew",
    "CrewProblem",
    "CrewSettings",
    "CrewValidation",
    "CrewYaml",
    "Crews",
    "NewCrew",
    "PatchCrew",
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
