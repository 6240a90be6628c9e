"""Compare what versions declare with the policies of their tenant and of the installation."""

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Final

from domain.egress.parser import parse_entries, parse_policy
from domain.egress.schema import EGRESS_NOT_ALLOWED, EgressEntry, EgressPolicy, EgressRefusal
from domain.ports import EgressHost, ProgramNetwork, Tx
from domain.shared.errors import Conflict

if TYPE_CHECKING:
    from domain.builds import AgentVersion

_MAX_NAMED_REFUSALS: Final = 10
INSTALLATION_POLICY: Final = "PADDOCK_EGRESS of this installation"
TENANT_POLICY: Final = "the tenant's egress policy"


async def check_egress(tx: Tx, version: "AgentVersion") -> None:
    """Check that a version may reach every host that it declares. Errors: `egress_not_allowed`."""
    refusals = await find_refusals(tx, version.tenant_id, version.egress)
    if refusals:
        message = f"Version {version.version} declares hosts that it may not reach: {describe_refusals(refusals)}"
        raise Conflict(message, EGRESS_NOT_ALLOWED)


async def find_refusals(tx: Tx, tenant_id: str, declared: Sequence[str] | None) -> list[EgressRefusal]:
    """Return what is declared and not allowed, as the policies are now."""
    if not declared:
        return []
    tenant = await tx.tenants.get(tenant_id)
    tenant_policy = parse_policy("declared" if tenant is None else tenant.egress)
    policies = ((INSTALLATION_POLICY, tx.installation_egress), (TENANT_POLICY, tenant_policy))
    return [refusal for entry in parse_entries(declared) for refusal in _list_refusals(entry, policies)]


def _list_refusals(entry: EgressEntry, policies: Sequence[tuple[str, EgressPolicy]]) -> Iterator[EgressRefusal]:
    for name, policy in policies:
        refused_ports = [port for port in entry.ports if not policy.is_allowing(entry, port)]
        if len(refused_ports) == len(entry.ports):
            yield EgressRefusal(entry.text, name)
            return
        for port in refused_ports:
            yield EgressRefusal(f"{entry.host}:{port}", name)


def describe_refusals(refusals: Sequence[EgressRefusal]) -> str:
    """Return a sentence that names refused hosts, and who can allow them."""
    parts = []
    for policy in dict.fromkeys(refusal.policy for refusal in refusals):
        texts = [refusal.text for refusal in refusals if refusal.policy == policy]
        more = f" and {len(texts) - _MAX_NAMED_REFUSALS} more" if len(texts) > _MAX_NAMED_REFUSALS else ""
        parts.append(f"{', '.join(texts[:_MAX_NAMED_REFUSALS])}{more} ({policy} does not allow it)")
    return "; ".join(parts) + "."


def build_network(entries: Sequence[EgressEntry], *, has_gateway: bool) -> ProgramNetwork | None:
    """Return the network of a program that reaches these hosts, and models if it has a gateway; None for no network."""
    ports: dict[str, list[int]] = {}
    for entry in entries:
        if not entry.is_wildcard:
            ports.setdefault(entry.name, []).extend(entry.ports)
    hosts = tuple(EgressHost(name, tuple(sorted(ports[name]))) for name in sorted(ports))
    domains = tuple(sorted({entry.name for entry in entries if entry.is_wildcard}))
    if not has_gateway and not hosts and not domains:
        return None
    return ProgramNetwork(gateway=has_gateway, hosts=hosts, proxied_domains=domains)
