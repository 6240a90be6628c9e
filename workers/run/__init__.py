"""Run executions of uploaded agents: in the sandbox, and with a network to the models and hosts that they name."""

from workers.run.code_runner import CodeDependencies, CodeRunner
from workers.run.egress import open_egress
from workers.run.named_models import NamedModelCalls
from workers.run.reasoning_sealer import ReasoningSealer
from workers.run.work_files import WorkFiles
from workers.run.work_room import WorkLimits

__all__ = [
    "CodeDependencies",
    "CodeRunner",
    "NamedModelCalls",
    "ReasoningSealer",
    "WorkFiles",
    "WorkLimits",
    "open_egress",
]
