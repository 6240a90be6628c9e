"""Call models on behalf of runs."""

from workers.model_calls.call import ModelCallTry
from workers.model_calls.schema import AgentRateLimit, ModelAccess, ModelRequest, WriteAnswer
from workers.model_calls.service import ModelCalls, choose_retry_pause
from workers.model_calls.usage import UsageMeter, clean_part, clean_text

__all__ = [
    "AgentRateLimit",
    "ModelAccess",
    "ModelCallTry",
    "ModelCalls",
    "ModelRequest",
    "UsageMeter",
    "WriteAnswer",
    "choose_retry_pause",
    "clean_part",
    "clean_text",
]
