"""Check the formats of text that schemas of inputs and outputs may name. Other formats are notes for the reader."""

import ipaddress
import re
from collections.abc import Callable
from datetime import date
from typing import Final

_DATE_PATTERN: Final = re.compile(r"\d{4}-\d{2}-\d{2}")
_TIME_PATTERN: Final = re.compile(r"\d{2}:\d{2}:\d{2}(\.\d{1,9})?([Zz]|[+-]\d{2}:\d{2})")
_UUID_PATTERN: Final = re.compile(r"[0-9A-Fa-f]{8}(-[0-9A-Fa-f]{4}){3}-[0-9A-Fa-f]{12}")
_EMAIL_PATTERN: Final = re.compile(
    r"[^\s@\"(),:;<>\[\]\\]{1,64}@[A-Za-z0-9](?:[A-Za-z0-9.-]{0,252}[A-Za-z0-9])?", re.ASCII
)
_HOST_LABEL_PATTERN: Final = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9-]{0,61}[A-Za-z0-9])?", re.ASCII)
# Every URI begins with a scheme, and holds no spaces, quotes or broken escapes (RFC 3986).
_URI_PATTERN: Final = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*:(?:[!#$&-;=?-Z\[\]_a-z~]|%[0-9A-Fa-f]{2})*", re.ASCII)
_DURATION_PATTERN: Final = re.compile(
    r"P(?:\d+W|(?=\d|T\d)(?:\d+Y)?(?:\d+M)?(?:\d+D)?(?:T(?=\d)(?:\d+H)?(?:\d+M)?(?:\d+(?:\.\d+)?S)?)?)", re.ASCII
)


def has_format(text: str, name: str) -> bool:
    """Return whether a text has a format; true for formats that are not checked."""
    check = _FORMAT_CHECKS.get(name)
    return check is None or check(text)


def _is_date(text: str) -> bool:
    if not _DATE_PATTERN.fullmatch(text):
        return False
    try:
        date.fromisoformat(text)
    except ValueError:
        return False
    return True


def _is_time(text: str) -> bool:
    if not (match := _TIME_PATTERN.fullmatch(text)):
        return False
    hours, minutes, seconds = (int(text[at : at + 2]) for at in (0, 3, 6))
    zone = match[2]
    # Leap seconds are the seconds 60.
    is_zone = len(zone) == 1 or (int(zone[1:3]) < 24 and int(zone[4:6]) < 60)
    return hours < 24 and minutes < 60 and seconds < 61 and is_zone


def _is_date_time(text: str) -> bool:
    return len(text) > 10 and text[10] in "Tt " and _is_date(text[:10]) and _is_time(text[11:])


def _is_hostname(text: str) -> bool:
    labels = text.removesuffix(".").split(".")
    return len(text) <= 254 and all(_HOST_LABEL_PATTERN.fullmatch(label) for label in labels)


def _is_email(text: str) -> bool:
    return len(text) <= 320 and _EMAIL_PATTERN.fullmatch(text) is not None and _is_hostname(text.rpartition("@")[2])


def _is_address(kind: type[ipaddress.IPv4Address] | type[ipaddress.IPv6Address]) -> Callable[[str], bool]:
    def is_address(text: str) -> bool:
        try:
            kind(text)
        except ValueError:
            return False
        return True

    return is_address


_FORMAT_CHECKS: Final[dict[str, Callable[[str], bool]]] = {
    "date": _is_date,
    "time": _is_time,
    "date-time": _is_date_time,
    "duration": lambda text: _DURATION_PATTERN.fullmatch(text) is not None,
    "email": _is_email,
    "hostname": _is_hostname,
    "ipv4": _is_address(ipaddress.IPv4Address),
    "ipv6": _is_address(ipaddress.IPv6Address),
    "uri": lambda text: _URI_PATTERN.fullmatch(text) is not None,
    "uuid": lambda text: _UUID_PATTERN.fullmatch(text) is not None,
}
CHECKED_FORMATS: Final = tuple(_FORMAT_CHECKS)
