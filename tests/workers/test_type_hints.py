"""Describe the hints of entrypoints as JSON Schemas, and convert payloads and results of each kind of type."""

import asyncio
import dataclasses
import enum
import json
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from typing import TYPE_CHECKING, Annotated, Any, Generic, Literal, NamedTuple, NewType, NotRequired, TypedDict, TypeVar

import annotated_types
import msgspec
import pydantic
import pytest

from domain import schemas
from domain.builds import parse_signature
from infra.sandbox.guest import main as guest

if TYPE_CHECKING:
    from pathlib import Path

T = TypeVar("T")
Sku = NewType("Sku", str)
Positive = Annotated[float, annotated_types.Gt(0)]


class Color(enum.Enum):
    RED = "red"
    BLUE = "blue"


@dataclasses.dataclass
class Item:
    """One line of an order."""

    price: Positive
    sku: Sku
    color: Color = Color.RED
    count: int = 1


@dataclasses.dataclass
class Order:
    id: uuid.UUID
    items: list[Item]
    when: datetime
    note: str | None = None
    tags: set[str] = dataclasses.field(default_factory=set)
    parent: "Order | None" = None
    kind: Literal["web", "shop"] = "web"


class Place(NamedTuple):
    city: str
    country: str = "DE"


class Trip(TypedDict):
    day: date
    place: Place
    price: NotRequired[Decimal]


class Point(msgspec.Struct):
    x: Annotated[int, msgspec.Meta(ge=0)]
    next: "Point | None" = None


class Model(pydantic.BaseModel):
    name: str = pydantic.Field(min_length=2, alias="fullName")
    at: datetime | None = None


@dataclasses.dataclass
class Mixed:
    point: Point
    model: Model


@dataclasses.dataclass
class Box(Generic[T]):
    value: T


@dataclasses.dataclass
class Report:
    total: float
    lines: list[Place]
    color: Color = Color.RED
    at: datetime | None = None
    took: timedelta | None = None


def describe_entrypoint(function: Callable[..., Any]) -> dict[str, Any]:
    """Return what a build learns of a function, after the check of what the sandbox sent."""
    signature = parse_signature(guest._describe_entrypoint(function)["body"])
    return {name: getattr(signature, name) for name in ("input_schema", "output_schema", "problems")}


def run_entrypoint(function: Callable[..., Any], payload: Any) -> dict[str, Any]:
    """Run a function as the sandbox does, and return its decoded answer."""
    answer = guest._run_entrypoint(function, json.dumps(payload), converters=guest._find_converters(function))
    return {name: json.loads(value) if name == "body" else value for name, value in answer.items()}


async def is_valid(schema: dict[str, Any], value: Any) -> bool:
    return not await schemas.list_value_errors(schema, value, "value", "t")


ORDER = {
    "id": "0e8400e2-9b1d-41d4-a716-446655440000",
    "items": [{"price": 2, "sku": "a", "color": "blue"}],
    "when": "2026-11-30T08:00:00Z",
    "parent": {"id": "0e8400e2-9b1d-41d4-a716-446655440001", "items": [], "when": "2026-11-30T08:00:00Z"},
}
TRIP = {"day": "2026-11-30", "place": {"city": "Bonn"}, "price": "2.50"}


def take_order(payload: Order) -> Report:
    assert isinstance(payload, Order)
    assert isinstance(payload.parent, Order)
    assert (payload.items[0].color, payload.when.tzinfo, payload.tags) == (Color.BLUE, UTC, set())
    return Report(total=payload.items[0].price, lines=[Place("Bonn")], at=payload.when, took=timedelta(seconds=90))


def take_trip(payload: Trip) -> Place:
    assert (payload["day"], payload["place"], payload["price"]) == (date(2026, 11, 30), Place("Bonn"), Decimal("2.50"))
    return payload["place"]


def take_point(payload: Point) -> Point:
    assert isinstance(payload, Point)
    assert isinstance(payload.next, Point)
    return payload


def take_model(payload: Model) -> Model:
    assert isinstance(payload, Model)
    return payload


def take_mixed(payload: Mixed) -> dict[str, int]:
    return {"x": payload.point.x}


def take_place(payload: Place, context: Any) -> list[Place]:
    return [payload]


def take_union(payload: Item | Trip) -> str:
    return type(payload).__name__


def take_box(payload: Box[int]) -> Box[int]:
    return payload


def take_keywords(payload: dict[str, Annotated[int, annotated_types.Le(5)]]) -> tuple[int, str]:
    return payload["a"], "b"


async def take_later(payload: Place) -> Place:
    await asyncio.sleep(0)
    return payload


def take_and_stream(payload: Place) -> Iterator[int]:
    yield len(payload.city)


@pytest.mark.parametrize(
    ("function", "payload", "result", "bad_payload", "bad_result"),
    [
        (
            take_order,
            ORDER,
            {
                "total": 2.0,
                "lines": [{"city": "Bonn", "country": "DE"}],
                "color": "red",
                "at": "2026-11-30T08:00:00+00:00",
                "took": "PT90S",
            },
            {**ORDER, "items": [{"price": 0, "sku": "a"}]},
            {"total": 1},
        ),
        (take_trip, TRIP, {"city": "Bonn", "country": "DE"}, {"day": "soon", "place": {"city": "B"}}, ["Bonn"]),
        (take_point, {"x": 1, "next": {"x": 2}}, {"x": 1, "next": {"x": 2, "next": None}}, {"x": -1}, {"x": "1"}),
        (take_model, {"fullName": "Ada"}, {"fullName": "Ada", "at": None}, {"fullName": "A"}, {"name": 1}),
        (take_mixed, {"point": {"x": 1}, "model": {"fullName": "Ada"}}, {"x": 1}, {"point": {"x": -1}}, {"x": "a"}),
        (take_place, {"city": "Bonn", "task": "go"}, [{"city": "Bonn", "country": "DE"}], {"country": "DE"}, [1]),
        (take_union, TRIP, "dict", {"day": 1}, 1),
        (take_box, {"value": 1}, {"value": 1}, {}, {}),
        (take_keywords, {"a": 1}, [1, "b"], {"a": 6}, [1]),
        (take_later, {"city": "Bonn"}, {"city": "Bonn", "country": "DE"}, {"city": 1}, {}),
    ],
)
async def test_hints_become_schemas_and_payloads_of_their_types(
    function: Callable[..., Any], payload: Any, result: Any, bad_payload: Any, bad_result: Any
) -> None:
    described = describe_entrypoint(function)
    assert described["problems"] == []
    given_schema, result_schema = described["input_schema"], described["output_schema"]
    assert given_schema.get("type", "object") == "object"
    assert await is_valid(given_schema, payload)
    assert not await is_valid(given_schema, bad_payload)
    assert await is_valid(result_schema, result)
    assert not await is_valid(result_schema, bad_result)
    way = guest._find_context_way(function)
    called = (lambda value: function(value, None)) if way else function
    converters = guest._find_converters(function)
    answer = await asyncio.to_thread(guest._run_entrypoint, called, json.dumps(payload), converters=converters)
    assert "body" in answer, answer
    assert json.loads(answer["body"]) == result


def test_plain_hints_ask_for_nothing() -> None:
    def take_dict(payload: dict) -> dict:
        return payload

    def take_any(payload: Mapping[str, Any], verbose: bool = False) -> Any:
        return payload

    def take_text_hint(payload: "dict[str, Any]") -> "None":
        assert type(payload) is dict

    for function in (take_dict, take_any, take_text_hint, lambda payload: payload, dict, TakesPoints().handle_plain):
        described = describe_entrypoint(function)
        assert described == {"input_schema": None, "output_schema": None, "problems": []}, function
        assert guest._find_converters(function)[0] is None
    # What runs most often loads nothing.
    assert not guest._has_type_hints(take_dict)
    assert not guest._has_type_hints(take_text_hint)


class TakesPoints:
    """Offer methods as entrypoints."""

    def handle(self, payload: Point) -> Sequence[int]:
        return [payload.x]

    def handle_plain(self, payload: dict) -> dict:
        return payload

    def __call__(self, payload: Point) -> int:
        return payload.x


def test_methods_and_callable_objects_have_hints_too() -> None:
    for function, result in ((TakesPoints().handle, [3]), (TakesPoints(), 3)):
        assert describe_entrypoint(function)["input_schema"]["required"] == ["x"]
        assert run_entrypoint(function, {"x": 3}) == {"body": result}


def test_a_decorator_gets_the_payload_as_it_was_sent() -> None:
    import functools

    def count_fields(function: Any) -> Any:
        @functools.wraps(function)
        def call(payload: Any) -> Any:
            assert type(payload) is dict
            return function(Point(**payload))

        return call

    @count_fields
    def take_wrapped(payload: Point) -> Point:
        return payload

    assert describe_entrypoint(take_wrapped)["input_schema"]["required"] == ["x"]
    assert run_entrypoint(take_wrapped, {"x": 3}) == {"body": {"x": 3, "next": None}}


@pytest.mark.parametrize(
    ("payload", "message"),
    [
        ({"city": 5}, "payload.city: must be str, not 5."),
        ({}, "payload.city: is required."),
    ],
)
def test_a_payload_that_does_not_fit_its_type_is_named(payload: Any, message: str) -> None:
    assert run_entrypoint(take_later, payload) == {"problem": message, "problem_type": "input_invalid"}


@pytest.mark.parametrize(
    ("function", "payload", "words"),
    [
        (take_model, {"fullName": "A"}, "payload.fullName: String should have at least 2 characters"),
        (take_point, {"x": -1}, "`$.x`"),
        (take_order, {**ORDER, "when": "soon"}, "payload.when: 'soon' is no datetime"),
        (take_order, {**ORDER, "items": [{"price": 1, "sku": "a", "color": "green"}]}, "payload.items[0].color"),
    ],
)
def test_places_of_mismatches_are_those_of_the_library(function: Callable[..., Any], payload: Any, words: str) -> None:
    answer = run_entrypoint(function, payload)
    assert answer["problem_type"] == "input_invalid"
    assert words in answer["problem"]


def test_hints_that_have_no_schema_are_named_and_harm_nothing() -> None:
    def take_path(payload: "Path") -> complex:
        return 1j

    def take_number(payload: int) -> bytes:
        return b""

    described = describe_entrypoint(take_path)
    assert (described["input_schema"], described["output_schema"]) == (None, None)
    assert "the hint of payload cannot be read: NameError" in described["problems"][0]
    assert "complex" in described["problems"][1]
    assert "the payload is an object, and no int" in describe_entrypoint(take_number)["problems"][0]
    streamed = describe_entrypoint(take_and_stream)
    assert streamed["output_schema"] is None
    assert streamed["input_schema"]["required"] == ["city"]


@pytest.mark.parametrize(
    "answer",
    [
        b'{"input_schema": {"$ref": "#"}}',
        b'{"input_schema": {"type": "nothing"}}',
        b'{"input_schema": 5}',
        b'{"input_schema": {"properties": ' + json.dumps({f"p{n}": {} for n in range(9000)}).encode() + b"}}",
        b"not json",
        b"[" * 5000,
    ],
)
def test_what_a_sandbox_forges_is_no_schema(answer: bytes) -> None:
    signature = parse_signature(answer)
    assert signature.input_schema is None
    assert len(signature.problems) == 1
