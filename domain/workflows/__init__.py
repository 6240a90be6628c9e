"""Workflows: steps with dependencies, kept under a name and compiled into a plan when they are started."""

from domain.workflows.compiler import planned
from domain.workflows.inputs import given
from domain.workflows.parser import YAML, Sent, read, written
from domain.workflows.schema import (
    MAX_BODY,
    Input,
    NewWorkflow,
    PatchWorkflow,
    Step,
    Workflow,
    WorkflowItem,
    Workflows,
    WorkflowStatus,
    YamlWorkflow,
)
from domain.workflows.service import create, delete, get, list_workflows, patch

__all__ = [
    "MAX_BODY",
    "YAML",
    "Input",
    "NewWorkflow",
    "PatchWorkflow",
    "Sent",
    "Step",
    "Workflow",
    "WorkflowItem",
    "WorkflowStatus",
    "Workflows",
    "YamlWorkflow",
    "create",
    "delete",
    "get",
    "given",
    "list_workflows",
    "patch",
    "planned",
    "read",
    "written",
]
