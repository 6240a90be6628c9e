"""Connect uploaded code with the hosts that it declares, from outside its sandbox, and record each connection.

A sandbox's network has listeners of the worker and nothing else. Each connection is resolved and checked here, anew,
and its bytes are copied both ways; what is in them stays between the agent and the host.
"""

from workers.run.egress.access import open_egress
from workers.run.egress.lookups import TenantLookups
from workers.run.egress.record import EgressRecord
from workers.run.egress.schema import EgressAccess, EgressConnection, EgressLimits, EgressOutcome
from workers.run.egress.server import serve_egress

__all__ = [
    "EgressAccess",
    "EgressConnection",
    "EgressLimits",
    "EgressOutcome",
    "EgressRecord",
    "TenantLookups",
    "open_egress",
    "serve_egress",
]
