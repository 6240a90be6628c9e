"""Describe and check what runs take and leave, by JSON Schema."""

from domain.schemas.formats import CHECKED_FORMATS
from domain.schemas.limits import MAX_CHECK_SECONDS
from domain.schemas.parser import MAX_ENUM_VALUES, MAX_SCHEMA_BYTES, MAX_SCHEMA_NODES, JsonSchema, parse_schema
from domain.schemas.renderer import show_value
from domain.schemas.validation import (
    check_value,
    describe_errors,
    find_argument_problem,
    find_output_problem,
    list_value_errors,
)

__all__ = [
    "CHECKED_FORMATS",
    "MAX_CHECK_SECONDS",
    "MAX_ENUM_VALUES",
    "MAX_SCHEMA_BYTES",
    "MAX_SCHEMA_NODES",
    "JsonSchema",
    "check_value",
    "describe_errors",
    "find_argument_problem",
    "find_output_problem",
    "list_value_errors",
    "parse_schema",
    "show_value",
]
