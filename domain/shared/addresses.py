"""Tell public addresses from those of this host and of private networks."""

import re
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network
from typing import Final

Address = IPv4Address | IPv6Address

# Resolvers read a name as an address when its last part is a number (127.1, 0x7f.1, 0177.0.0.1, 2130706433).
NUMERIC_HOST_PATTERN: Final = re.compile(r"(?:^|\.)(?:0x[0-9a-f]*|[0-9]+)\.*$")

# IANA's registries of special-purpose addresses, without the globally reachable ones. Python's `is_global` is not used:
# its answer for several of these changed between patch versions.
_SPECIAL_IPV4: Final = tuple(
    (IPv4Network(network), words)
    for network, words in (
        ("0.0.0.0/8", "an unspecified address"),
        ("10.0.0.0/8", "a private address"),
        ("100.64.0.0/10", "an address of carrier-grade NAT"),
        ("127.0.0.0/8", "a loopback address"),
        ("168.63.129.16/32", "a link-local address"),  # Azure's metadata, under a public number
        ("169.254.0.0/16", "a link-local address"),
        ("172.16.0.0/12", "a private address"),
        ("192.0.0.0/24", "a reserved address"),
        ("192.0.2.0/24", "a reserved address"),
        ("192.88.99.0/24", "a 6to4 address"),
        ("192.168.0.0/16", "a private address"),
        ("198.18.0.0/15", "a reserved address"),
        ("198.51.100.0/24", "a reserved address"),
        ("203.0.113.0/24", "a reserved address"),
        ("224.0.0.0/4", "a multicast address"),
        ("255.255.255.255/32", "a broadcast address"),
        ("240.0.0.0/4", "a reserved address"),
    )
)
_SPECIAL_IPV6: Final = tuple(
    (IPv6Network(network), words)
    for network, words in (
        ("::/128", "an unspecified address"),
        ("::1/128", "a loopback address"),
        ("::/96", "an IPv4-compatible address"),
        ("64:ff9b:1::/48", "an address of local NAT64"),
        ("fc00::/7", "a private address"),
        ("fe80::/10", "a link-local address"),
        ("fec0::/10", "a private address"),
        ("ff00::/8", "a multicast address"),
        ("2001::/32", "a Teredo address"),
        ("2001::/23", "a reserved address"),
        ("2001:db8::/32", "a reserved address"),
        ("2002::/16", "a 6to4 address"),
        ("3fff::/20", "a reserved address"),
    )
)
_GLOBAL_V6: Final = IPv6Network("2000::/3")
_NAT64_NETWORK: Final = IPv6Network("64:ff9b::/96")


def find_address_problem(address: Address) -> str | None:
    """Return why an address must not be connected to, in words, or None for an ordinary public address."""
    if isinstance(address, IPv6Address):
        if address.scope_id is not None:
            return "an address of one interface"
        if address.ipv4_mapped is not None:
            return find_address_problem(address.ipv4_mapped)
        if address in _NAT64_NETWORK:  # a public IPv4 address on a network that has IPv6 alone
            return find_address_problem(IPv4Address(int(address) & 0xFFFFFFFF))
        problem = next((words for network, words in _SPECIAL_IPV6 if address in network), None)
        return problem or (None if address in _GLOBAL_V6 else "a reserved address")
    return next((words for network, words in _SPECIAL_IPV4 if address in network), None)
