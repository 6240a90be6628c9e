"""Define entries of an egress list, and the policies that narrow what versions declare."""

from typing import Final

import msgspec

# An entry without a port stands for HTTPS and HTTP.
DEFAULT_EGRESS_PORTS: Final = (443, 80)
MAX_EGRESS_ENTRIES: Final = 64
# The error of a version that declares hosts which a policy does not allow.
EGRESS_NOT_ALLOWED: Final = "egress_not_allowed"


class EgressEntry(msgspec.Struct, frozen=True, kw_only=True):
    """Name a host, or with `is_wildcard` all names below a domain, and TCP ports. `name` is in the form that DNS has.

    A name is a host name or an address of IPv4.
    """

    name: str
    ports: tuple[int, ...]
    is_wildcard: bool = False

    @property
    def host(self) -> str:
        """Return the entry without its ports."""
        return f"*.{self.name}" if self.is_wildcard else self.name

    @property
    def text(self) -> str:
        """Return the entry as it is written."""
        return self.host if self.ports == DEFAULT_EGRESS_PORTS else f"{self.host}:{self.ports[0]}"

    def is_matching(self, name: str, port: int) -> bool:
        """Return whether the entry stands for this name and port."""
        return port in self.ports and (name.endswith(f".{self.name}") if self.is_wildcard else name == self.name)

    def is_covering(self, other: "EgressEntry", port: int) -> bool:
        """Return whether the entry stands for everything that another one stands for on a port."""
        if other.is_wildcard and not self.is_wildcard:
            return False
        is_same_domain = other.is_wildcard and self.name == other.name
        return self.is_matching(other.name, port) or (is_same_domain and port in self.ports)


class EgressPolicy(msgspec.Struct, frozen=True, kw_only=True):
    """Narrow what versions declare: None allows all of it, no entries allow nothing."""

    entries: tuple[EgressEntry, ...] | None = None

    def is_allowing(self, declared: EgressEntry, port: int) -> bool:
        """Return whether a declared entry is allowed on one of its ports."""
        return self.entries is None or any(entry.is_covering(declared, port) for entry in self.entries)


DECLARED_EGRESS: Final = EgressPolicy()


class EgressRefusal(msgspec.Struct, frozen=True):
    """Name a declared host that a policy does not allow, with the ports concerned, and whose policy that is."""

    text: str
    policy: str
