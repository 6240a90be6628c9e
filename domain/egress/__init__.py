"""Decide which hosts outside uploaded code may reach, by name and port."""

from domain.egress.parser import BadEgressEntry, format_entries, parse_entries, parse_policy
from domain.egress.schema import (
    DECLARED_EGRESS,
    DEFAULT_EGRESS_PORTS,
    EGRESS_NOT_ALLOWED,
    MAX_EGRESS_ENTRIES,
    EgressEntry,
    EgressPolicy,
    EgressRefusal,
)
from domain.egress.service import build_network, check_egress, describe_refusals, find_refusals

__all__ = [
    "DECLARED_EGRESS",
    "DEFAULT_EGRESS_PORTS",
    "EGRESS_NOT_ALLOWED",
    "MAX_EGRESS_ENTRIES",
    "BadEgressEntry",
    "EgressEntry",
    "EgressPolicy",
    "EgressRefusal",
    "build_network",
    "check_egress",
    "describe_refusals",
    "find_refusals",
    "format_entries",
    "parse_entries",
    "parse_policy",
]
