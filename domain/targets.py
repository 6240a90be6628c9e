"""Name what can be run by one name: agents, crews and workflows, as other systems name their models."""

from datetime import datetime
from typing import Final, Literal, Protocol

import msgspec

from domain.ports import Tx
from domain.shared.errors import Conflict, NotFound

TargetKind = Literal["agent", "crew", "workflow"]

MAX_LISTED_TARGETS: Final = 10_000
TARGET_KINDS: Final[tuple[TargetKind, ...]] = ("agent", "crew", "workflow")


class RunTarget(msgspec.Struct, frozen=True, kw_only=True):
    """Describe an agent, a crew or a workflow of a tenant. `uses_model` tells a model agent from uploaded code."""

    kind: TargetKind
    id: str
    name: str
    tenant_id: str
    created_at: datetime
    description: str | None = None
    uses_model: bool = False

    @property
    def reference(self) -> str:
        """Return the name that means this target alone."""
        return f"{self.kind}:{self.name}"


class Targets(Protocol):
    """Find what a tenant can run."""

    async def list_targets(self, limit: int) -> list[RunTarget]:
        """Return agents that are ready, crews and workflows: the newest ones, those of each kind together."""
        ...

    async def find_targets(self, reference: str, kinds: tuple[TargetKind, ...]) -> list[RunTarget]:
        """Return what has an id or a name, in the order of `TARGET_KINDS`."""
        ...


async def list_targets(tx: Tx) -> list[RunTarget]:
    """Return what a tenant can run."""
    return await tx.targets.list_targets(MAX_LISTED_TARGETS)


async def resolve_target(tx: Tx, reference: str) -> RunTarget:
    """Return what `agent:NAME`, `crew:NAME`, `workflow:NAME`, an id or a bare name means; a bare name first an agent.

    Errors: `not_found`, `conflict` for the name of a crew and of a workflow.
    """
    matches = await tx.targets.find_targets(reference, TARGET_KINDS)
    prefix, colon, name = reference.partition(":")
    if colon and prefix in TARGET_KINDS:
        # The name of an agent may hold a colon; what the prefix means comes first.
        matches = await tx.targets.find_targets(name, (prefix,)) or matches
    if not matches:
        raise NotFound("agent, crew or workflow", reference)
    if len(matches) > 1 and matches[0].kind != "agent":
        listed = " or ".join(repr(match.reference) for match in matches)
        raise Conflict(f"{reference!r} is ambiguous: send {listed}.")
    return matches[0]
