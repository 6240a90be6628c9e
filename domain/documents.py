"""STAND-IN until the real one lands."""

from typing import Any

import msgspec
import yaml

from domain.errors import invalid


class Document(msgspec.Struct):
    value: Any
    lines: dict[str, int]


def parse(text: str, field: str) -> Document:
    try:
        return Document(yaml.safe_load(text), {})
    except yaml.YAMLError as error:
        raise invalid(field, str(error)) from error


def dump(value: Any) -> str:
    return str(yaml.safe_dump(value, sort_keys=False))
