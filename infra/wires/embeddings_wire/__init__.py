"""Serve OpenAI's embeddings: parse requests, and render vectors as numbers or as bytes in base64.

Source: platform.openai.com/docs/api-reference/embeddings.
"""

from infra.wires.embeddings_wire.parser import parse_request
from infra.wires.embeddings_wire.renderer import render_pieces
from infra.wires.embeddings_wire.schema import EmbeddingRequest

__all__ = ["EmbeddingRequest", "parse_request", "render_pieces"]
