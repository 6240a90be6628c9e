"""Addresses of callers, written in one way; and which of them are proxies that are believed."""

import re
from ipaddress import IPv4Network, IPv6Address, IPv6Network, ip_address
from typing import Final

Network = IPv4Network | IPv6Network
# As Azure's gateways write it into X-Forwarded-For, and what RFC 7239 has for IPv6.
_BRACKETS: Final = re.compile(r"\[([^\]]+)\](?::\d{1,5})?")
_WITH_PORT: Final = re.compile(r"([^:]+):\d{1,5}")


def normalize_address(text: str) -> str:
    """Return an address without port, brackets, quotes and zone, in its shortest form; IPv4 within IPv6 as IPv4.

    What is no address comes back lower-cased, as far as 64 characters.
    """
    bare = text.strip().strip('"')
    if (found := _BRACKETS.fullmatch(bare) or _WITH_PORT.fullmatch(bare)) is not None:
        bare = found[1]
    try:
        address = ip_address(bare.partition("%")[0])
    except ValueError:
        return text.strip().lower()[:64]
    mapped = address.ipv4_mapped if isinstance(address, IPv6Address) else None
    return str(mapped or address)


def counted_address(address: str) -> str:
    """Return what bounds count a normalized address by: a public one of IPv6 by its network of 64 bits.

    Whoever has one address of it has all of them, and may take another for each request.
    """
    try:
        known = ip_address(address)
    except ValueError:
        return address
    if isinstance(known, IPv6Address) and known.is_global:
        return str(IPv6Network((known, 64), strict=False))
    return address


def is_within(address: str, networks: tuple[Network, ...]) -> bool:
    """Whether a normalized address lies in one of the networks."""
    try:
        known = ip_address(address)
    except ValueError:
        return False
    return any(known in network for network in networks)


def caller_address(peer: str, forwarded: str, trusted: tuple[Network, ...]) -> str:
    """Return who is at the other end: the last hop of X-Forwarded-For that no trusted proxy stands for.

    It is believed from trusted proxies alone, from its right. What is no address, as `unknown` or `_hidden` of
    RFC 7239, is a caller by its text.
    """
    address = normalize_address(peer)
    for hop in reversed(forwarded.split(",")):
        if not hop.strip() or not is_within(address, trusted):
            break
        address = normalize_address(hop)
    return address
