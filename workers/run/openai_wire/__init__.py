"""OpenAI's wire as the gateway speaks it: what is asked for becomes our shapes, our parts become chunks.

From platform.openai.com/docs/api-reference/chat. What changes nothing about an answer is taken; what would change it
and is not done here is refused by name.
"""

from workers.run.openai_wire.errors import Refused, no_model, refusal
from workers.run.openai_wire.parser import asked
from workers.run.openai_wire.renderer import Writer, failed, listed
from workers.run.openai_wire.schema import Asked

__all__ = ["Asked", "Refused", "Writer", "asked", "failed", "listed", "no_model", "refusal"]
