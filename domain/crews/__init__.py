"""Crews: agents that do tasks, as CrewAI has them. A crew is compiled into a plan when it is run."""

from domain.crews.compiler import check_inputs, planned, wanted
from domain.crews.schema import Crew, Crews, Findings, Mistake, NewCrew, PatchCrew, Settings, Written
from domain.crews.service import create, debug, delete, get, list_crews, patch, written

__all__ = [
    "Crew",
    "Crews",
    "Findings",
    "Mistake",
    "NewCrew",
    "PatchCrew",
    "Settings",
    "Written",
    "check_inputs",
    "create",
    "debug",
    "delete",
    "get",
    "list_crews",
    "patch",
    "planned",
    "wanted",
    "written",
]
