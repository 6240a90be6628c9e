"""Parse egress lists: those of manifests, tenants and the installation have the same form."""

import re
from collections.abc import Sequence
from ipaddress import IPv4Address
from typing import Any, Final

import idna

from domain.egress.schema import (
    DECLARED_EGRESS,
    DEFAULT_EGRESS_PORTS,
    MAX_EGRESS_ENTRIES,
    EgressEntry,
    EgressPolicy,
)
from domain.shared.addresses import NUMERIC_HOST_PATTERN, find_address_problem

_MAX_NAME_CHARACTERS: Final = 253
_MAX_SHOWN_CHARACTERS: Final = 80
# Underscores are no letters of host names, but of names that DNS serves.
_NAME_PATTERN: Final = re.compile(
    r"[a-z0-9_](?:[a-z0-9_-]{0,61}[a-z0-9_])?(?:\.[a-z0-9_](?:[a-z0-9_-]{0,61}[a-z0-9_])?)*"
)
_PORT_PATTERN: Final = re.compile(r"[1-9][0-9]{0,4}")
# Names of the sandbox itself.
_OWN_NAMES: Final = ("localhost", "sandbox")
_ADDRESS_HINT: Final = "Only public addresses are allowed; a private host that the operator offers needs a name."
_ENTRY_EXAMPLES: Final = "api.github.com, db.example.com:5432 or '*.openai.com'"


class BadEgressEntry(Exception):
    """Report an entry of an egress list that cannot be used. The message names it."""


def parse_policy(words: Sequence[str] | str) -> EgressPolicy:
    """Parse a policy: `off`, `declared`, or a list of entries. Errors: `BadEgressEntry`."""
    listed = [words] if isinstance(words, str) else list(words)
    if listed == ["declared"]:
        return DECLARED_EGRESS
    return EgressPolicy(entries=() if listed == ["off"] else parse_entries(listed))


def parse_entries(values: Sequence[Any]) -> tuple[EgressEntry, ...]:
    """Parse a list of entries. Errors: `BadEgressEntry`, also for duplicates and for too many."""
    if len(values) > MAX_EGRESS_ENTRIES:
        raise BadEgressEntry(f"must have at most {MAX_EGRESS_ENTRIES} entries, not {len(values)}.")
    entries: list[EgressEntry] = []
    named_targets: set[tuple[str, int]] = set()
    for value in values:
        entry = _parse_entry(value)
        for port in entry.ports:
            if (entry.host, port) in named_targets:
                raise BadEgressEntry(f"names {entry.host}:{port} twice.")
            named_targets.add((entry.host, port))
        entries.append(entry)
    return tuple(entries)


def format_entries(entries: Sequence[EgressEntry]) -> list[str]:
    """Return entries as they are stored and shown."""
    return [entry.text for entry in entries]


def _parse_entry(value: Any) -> EgressEntry:
    if not isinstance(value, str):
        raise BadEgressEntry(f"must contain text, like {_ENTRY_EXAMPLES}; not {str(value)[:_MAX_SHOWN_CHARACTERS]!r}.")
    quoted_text = repr(value[:_MAX_SHOWN_CHARACTERS])
    problem = _find_form_problem(value)
    if problem is not None:
        raise BadEgressEntry(f"{quoted_text}: {problem}")
    host, colon, digits = value.partition(":")
    if colon and not (_PORT_PATTERN.fullmatch(digits) and int(digits) < 65536):
        raise BadEgressEntry(f"{quoted_text}: the port must be a number from 1 to 65535.")
    ports = (int(digits),) if colon else DEFAULT_EGRESS_PORTS
    is_wildcard = host.startswith("*.")
    name, problem = _normalize_name(host.removeprefix("*.") if is_wildcard else host)
    problem = problem or _find_name_problem(name, is_wildcard)
    if problem is not None:
        raise BadEgressEntry(f"{quoted_text}: {problem}")
    return EgressEntry(name=name, ports=ports, is_wildcard=is_wildcard)


def _find_form_problem(text: str) -> str | None:
    """Return why a text is more or less than a host with or without a port; None if it has that form."""
    if not text or not text.isprintable() or any(character.isspace() for character in text):
        return "must be a host, without spaces and invisible characters."
    if "://" in text:
        return "must be a host without a scheme. Remove everything up to `://`, and what follows the host."
    if any(character in text for character in "/\\?#"):
        return "must be a host without a path."
    if "@" in text:
        return "must be a host without a user name or password."
    if text.count(":") > 1 or "[" in text:
        return "addresses of IPv6 are not supported. Write the host's name, or its IPv4 address."
    return None


def _normalize_name(host: str) -> tuple[str, str | None]:
    """Return a name as DNS has it, or the problem with it."""
    if host.endswith("."):
        return host, "must not end in a dot."
    try:
        name = host.lower() if host.isascii() else idna.encode(host, uts46=True).decode()
    except (idna.IDNAError, UnicodeError):
        return host, "is not a valid international name."
    if "*" in name:
        return host, "`*` may stand only at the beginning, before a dot: '*.example.com'."
    if len(name) > _MAX_NAME_CHARACTERS or not _NAME_PATTERN.fullmatch(name):
        return host, "is not a host name. It has labels of at most 63 letters, digits, `-` and `_`, separated by dots."
    return name, None


def _find_name_problem(name: str, is_wildcard: bool) -> str | None:
    if name in _OWN_NAMES or name.endswith(".localhost"):
        return "names the sandbox itself."
    if is_wildcard and ("." not in name or NUMERIC_HOST_PATTERN.search(name)):
        return "`*.` needs a domain of at least two labels behind it: '*.example.com'."
    if not NUMERIC_HOST_PATTERN.search(name):
        return None
    try:
        address_problem = find_address_problem(IPv4Address(name))
    except ValueError:
        return "is an address in an unusual notation. Write it as four numbers."
    return None if address_problem is None else f"is {address_problem}. {_ADDRESS_HINT}"
