"""Run plans: what crews and workflows are compiled into when they start."""

from domain.plans.approvals import decide_approval
from domain.plans.coordinator import PlanCache, PlanLocked, advance_plan, fail_plan
from domain.plans.resolution import resolve_agent_work, resolve_tool_work
from domain.plans.schema import (
    MAX_PLAN_DEPTH,
    MAX_PLAN_STEPS,
    PLAN_TIMEOUT_SECONDS,
    WHOLE_STEP,
    AgentWork,
    DuePlan,
    LockedPlan,
    Plan,
    Plans,
    PlanStep,
    PlanWork,
    RetryPolicy,
    StepHistory,
    StepProgress,
    StepRun,
    StepStatus,
    StepWork,
    TaskText,
    ToolWork,
)
from domain.plans.service import retry_plan, start_plan
from domain.plans.validation import validate_plan

__all__ = [
    "MAX_PLAN_DEPTH",
    "MAX_PLAN_STEPS",
    "PLAN_TIMEOUT_SECONDS",
    "WHOLE_STEP",
    "AgentWork",
    "DuePlan",
    "LockedPlan",
    "Plan",
    "PlanCache",
    "PlanLocked",
    "PlanStep",
    "PlanWork",
    "Plans",
    "RetryPolicy",
    "StepHistory",
    "StepProgress",
    "StepRun",
    "StepStatus",
    "StepWork",
    "TaskText",
    "ToolWork",
    "advance_plan",
    "decide_approval",
    "fail_plan",
    "resolve_agent_work",
    "resolve_tool_work",
    "retry_plan",
    "start_plan",
    "validate_plan",
]
