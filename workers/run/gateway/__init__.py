"""Serve the APIs of OpenAI and Anthropic on the listener of a sandbox, with calls of the models that its version names.

Its client is untrusted code. A request names a model and its input, and nothing else of it goes further: no header and
no key. What a client may hold of this process is limited, and ends with its run.
"""

from workers.run.gateway.schema import GatewayCalls, GatewayLimits
from workers.run.gateway.server import serve_gateway

__all__ = ["GatewayCalls", "GatewayLimits", "serve_gateway"]
