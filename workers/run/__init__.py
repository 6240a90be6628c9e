"""Run executions of uploaded agents: in the sandbox, and with a gateway to the models that they name."""

from workers.run.code_runner import CodeRunner
from workers.run.named_models import NamedModelCalls
from workers.run.reasoning_sealer import ReasoningSealer

__all__ = ["CodeRunner", "NamedModelCalls", "ReasoningSealer"]
