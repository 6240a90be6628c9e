"""Manage workflows: named steps with dependencies, compiled into a plan when they start."""

from domain.workflows.compiler import compile_workflow
from domain.workflows.inputs import resolve_inputs
from domain.workflows.parser import YAML_MEDIA_TYPES, ParsedBody, parse_body, render_workflow
from domain.workflows.schema import (
    MAX_WORKFLOW_BODY_BYTES,
    NewWorkflow,
    PatchWorkflow,
    Workflow,
    WorkflowInput,
    Workflows,
    WorkflowStatus,
    WorkflowStep,
    WorkflowSummary,
    WorkflowYaml,
)
from domain.workflows.service import create_workflow, delete_workflow, get_workflow, list_workflows, update_workflow

__all__ = [
    "MAX_WORKFLOW_BODY_BYTES",
    "YAML_MEDIA_TYPES",
    "NewWorkflow",
    "ParsedBody",
    "PatchWorkflow",
    "Workflow",
    "WorkflowInput",
    "WorkflowStatus",
    "WorkflowStep",
    "WorkflowSummary",
    "WorkflowYaml",
    "Workflows",
    "compile_workflow",
    "create_workflow",
    "delete_workflow",
    "get_workflow",
    "list_workflows",
    "parse_body",
    "render_workflow",
    "resolve_inputs",
    "update_workflow",
]
