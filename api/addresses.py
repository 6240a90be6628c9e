"""Normalize addresses of callers, and find the caller behind trusted proxies."""

import re
from ipaddress import IPv4Network, IPv6Address, IPv6Network, ip_address
from typing import Final

Network = IPv4Network | IPv6Network
# Azure's gateways write addresses with ports into X-Forwarded-For; RFC 7239 has brackets around IPv6.
_BRACKETED_ADDRESS: Final = re.compile(r"\[([^\]]+)\](?::\d{1,5})?")
_ADDRESS_WITH_PORT: Final = re.compile(r"([^:]+):\d{1,5}")


def normalize_address(text: str) -> str:
    """Return an address without port, brackets, quotes and zone, in its shortest form; IPv4 within IPv6 as IPv4.

    Any other text is returned in lower case, cut to 64 characters.
    """
    bare = text.strip().strip('"')
    if (match := _BRACKETED_ADDRESS.fullmatch(bare) or _ADDRESS_WITH_PORT.fullmatch(bare)) is not None:
        bare = match[1]
    try:
        address = ip_address(bare.partition("%")[0])
    except ValueError:
        return text.strip().lower()[:64]
    mapped = address.ipv4_mapped if isinstance(address, IPv6Address) else None
    return str(mapped or address)


def group_address(address: str) -> str:
    """Return the address or network by which limits count a normalized address.

    Public IPv6 addresses count by their network of 64 bits: a client has all of its addresses, and could use a new one
    for each request.
    """
    try:
        parsed = ip_address(address)
    except ValueError:
        return address
    if isinstance(parsed, IPv6Address) and parsed.is_global:
        return str(IPv6Network((parsed, 64), strict=False))
    return address


def is_within(address: str, networks: tuple[Network, ...]) -> bool:
    """Return whether a normalized address lies in one of the networks."""
    try:
        parsed = ip_address(address)
    except ValueError:
        return False
    return any(parsed in network for network in networks)


def find_caller_address(peer: str, forwarded: str, trusted: tuple[Network, ...]) -> str:
    """Return the caller's address: the last hop of X-Forwarded-For that is not a trusted proxy.

    The header is only used from trusted proxies, and read from its right. A hop that is not an address, for example
    `unknown` or `_hidden` of RFC 7239, identifies a caller by its text.
    """
    address = normalize_address(peer)
    for hop in reversed(forwarded.split(",")):
        if not hop.strip() or not is_within(address, trusted):
            break
        address = normalize_address(hop)
    return address
