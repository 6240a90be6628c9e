"""Write many Structs in one statement: a parameter per column, holding the values of all rows."""

from collections.abc import Callable, Sequence
from typing import Any, Generic, TypeVar

import msgspec
from sqlalchemy import BigInteger, Boolean, DateTime, Float, Integer, LargeBinary, Text
from sqlalchemy.dialects.postgresql import ARRAY, JSON
from sqlalchemy.types import TypeEngine

from domain.shared import ids
from infra.postgres.db import Base, Id

T = TypeVar("T")

_SQL_TYPES: dict[type[TypeEngine[Any]], str] = {
    Text: "text",
    Boolean: "boolean",
    BigInteger: "bigint",
    Integer: "integer",
    Float: "double precision",
    DateTime: "timestamptz",
    LargeBinary: "bytea",
}


class BulkColumns(Generic[T]):
    """Turn Structs into rows of a table. `names` are the columns, each an attribute of the Struct."""

    def __init__(self, row_class: type[Base], names: Sequence[str]) -> None:
        columns = row_class.__table__.columns
        kinds = [_describe_type(columns[name].type) for name in names]
        self.names = ", ".join(names)
        self.values = ", ".join(back.format(f"given.{name}") for name, (_, back, _) in zip(names, kinds, strict=True))
        self.arrays = ", ".join(f"${number}::{kind}[]" for number, (kind, _, _) in enumerate(kinds, 1))
        self.source = f"unnest({self.arrays}) AS given({self.names})"
        self.width = len(names)
        self._writers = [(name, write) for name, (_, _, write) in zip(names, kinds, strict=True)]

    def collect_parameters(self, rows: Sequence[T]) -> list[list[Any]]:
        """Return the parameters of a statement: for each column, the values of all rows."""
        return [_encode_column([getattr(row, name) for row in rows], write) for name, write in self._writers]


def _encode_column(values: list[Any], write: Callable[[Any], Any] | None) -> list[Any]:
    if values.count(None) == len(values):
        # `unnest` fills up the shorter arrays with nulls.
        return []
    return values if write is None else [write(value) for value in values]


def _describe_type(kind: TypeEngine[Any]) -> tuple[str, str, Callable[[Any], Any] | None]:
    """Return the type of a parameter's elements, what turns one into the column, and what turns a value into one."""
    if isinstance(kind, Id):
        prefix = kind.prefix
        return "uuid", "{}", lambda value: None if value is None else ids.decode_id(prefix, value)
    if isinstance(kind, JSON):
        return "text", "{}::json", lambda value: None if value is None else msgspec.json.encode(value).decode()
    if isinstance(kind, ARRAY):
        # An array of arrays would be taken apart to its last element.
        back = "ARRAY(SELECT json_array_elements_text({}::json))"
        return "text", back, lambda value: msgspec.json.encode(value).decode()
    return next(name for row_id, name in _SQL_TYPES.items() if isinstance(kind, row_id)), "{}", None
