"""Schemas made to keep a worker busy or to fill its memory: each is stopped by a guard, and runs on without it."""

import asyncio
import json
import threading
from typing import Any

import pytest
import re2
from jsonschema.exceptions import ValidationError

from domain.llms import ToolFailed
from workers.agent import arguments
from workers.agent.arguments import read_arguments, validate_arguments

LOOKS = 20_000  # more of them than any guard leaves time for


class _Endless(Exception):
    """The attack would have gone on."""


def _of(**properties: Any) -> dict[str, Any]:
    return {"type": "object", "properties": properties}


def _doubled(keyword: str) -> dict[str, Any]:
    steps = {f"d{n}": {keyword: [{"$ref": f"#/$defs/d{n + 1}"}] * 4} for n in range(12)}
    return {"type": "object", "$defs": steps | {"d12": {}}, "$ref": "#/$defs/d0"}


SLOW = {
    "patterns times names": (
        {"patternProperties": {f"a.{{0,9}}b{n}$": {} for n in range(60)}},
        {"a" * 200 + str(n): n for n in range(4000)},
    ),
    "patterns times names that are none of them": (
        {"patternProperties": {f"a.{{0,9}}b{n}$": {} for n in range(60)}, "additionalProperties": False},
        {"a" * 200 + str(n): n for n in range(4000)},
    ),
    "references that double": (_doubled("allOf"), {}),
    "alternatives that double": (_doubled("oneOf"), {}),
    "a list of many alternatives": (
        _of(a={"items": {"allOf": [{"oneOf": [{"type": "integer"}]}] * 300}}),
        {"a": list(range(30_000))},
    ),
    "a tree that refers to itself": (
        {"$defs": {"n": {"allOf": [{"items": {"$ref": "#/$defs/n"}}] * 4}}, "properties": {"a": {"$ref": "#/$defs/n"}}},
        {"a": [[[[[[[[[[[[[[[[[1]]]]]]]]]]]]]]]]]},
    ),
}


@pytest.mark.parametrize("name", SLOW)
async def test_slow_schemas(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    schema, args = SLOW[name]
    monkeypatch.setattr(arguments, "MAX_CHECK_SECONDS", 0.05)
    with pytest.raises(ToolFailed, match="could not be checked"):
        await validate_arguments(schema, args)
    looks = 0

    def look(_: Any) -> None:
        nonlocal looks
        looks += 1
        if looks > LOOKS:
            raise _Endless

    monkeypatch.setattr(arguments._CheckLimits, "check_time", look)
    assert await _goes_on(schema, args) or looks > LOOKS


async def _goes_on(schema: dict[str, Any], args: Any) -> bool:
    try:
        await validate_arguments(schema, args)
    except _Endless:
        return True
    return False


async def test_errors_do_not_fill_the_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(arguments, "MAX_CHECK_SECONDS", 60.0)
    many = (_of(a={"anyOf": [{"items": False}] * 100}), {"a": list(range(1000))})
    large = (_of(a={"anyOf": [{"items": {"not": {}}}] * 100}), {"a": ["x" * 100_000] * 20})
    for schema, args in (many, large):
        made = 0

        def count(_: Any, error: ValidationError) -> None:
            nonlocal made
            made += len(error.message)

        with pytest.raises(ToolFailed, match="could not be checked"):
            await validate_arguments(schema, args)
        with monkeypatch.context() as without:
            without.setattr(arguments._CheckLimits, "count_error", count)
            with pytest.raises(ToolFailed, match="a: "):
                await validate_arguments(schema, args)
        assert made > 2_000_000


async def test_patterns_are_few_and_small(monkeypatch: pytest.MonkeyPatch) -> None:
    """In number, each in bytes, none kept after the check, and none matched against what takes too long."""
    compiled: list[Any] = []
    true = re2.compile

    def compile_(pattern: str, options: Any) -> Any:
        found = true(pattern, options)
        compiled.append(found.programsize)
        return found

    monkeypatch.setattr(re2, "compile", compile_)
    schema = {"patternProperties": {f"^(?:[a-z]{{1,99}}){{0,9}}{n}$": {"type": "null"} for n in range(300)}}
    await validate_arguments(schema, {"a": 1})
    assert 0 < len(compiled) <= arguments.MAX_PATTERNS
    assert re2._Regexp._make.cache_info().currsize == 0
    # Too large to be compiled, and so not checked; with more room, it is.
    large = _of(a={"pattern": r"^\p{L}{300}$"})
    await validate_arguments(large, {"a": "x"})
    with monkeypatch.context() as without:
        without.setattr(arguments, "MAX_PATTERN_BYTES", 64 << 20)
        with pytest.raises(ToolFailed, match="does not match"):
            await validate_arguments(large, {"a": "x"})
    slow = _of(a={"pattern": "|".join([r"a.{0,20}b"] * 20)})
    await validate_arguments(slow, {"a": "ac" * 8192})
    with monkeypatch.context() as without:
        without.setattr(arguments, "MAX_MATCH_STEPS", 10**12)
        with pytest.raises(ToolFailed, match="does not match"):
            await validate_arguments(slow, {"a": "ac" * 8192})


async def test_one_tenants_checks_wait_for_each_other_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """However many checks a tenant begins, another one's is next; and other work of the process is not kept waiting."""
    inside, release = threading.Event(), threading.Event()
    true = arguments._find_first_error

    def slow(schema: dict[str, Any], args: Any) -> str | None:
        if "slow" in args:
            inside.set()
            assert release.wait(30)
        return true(schema, args)

    monkeypatch.setattr(arguments, "_find_first_error", slow)
    attack = [asyncio.create_task(validate_arguments({}, {"slow": n}, "rival")) for n in range(50)]
    try:
        await asyncio.to_thread(inside.wait, 30)
        await asyncio.wait_for(validate_arguments(_of(a={"type": "integer"}), {"a": 1}, "acme"), 30)
        assert not any(task.done() for task in attack)
    finally:
        release.set()
        await asyncio.gather(*attack)


@pytest.mark.parametrize(
    ("schema", "args", "wrong"),
    [
        (_of(a={"pattern": "^(a+)+$"}), {"a": "a" * 60 + "b"}, "does not match"),
        (_of(a={"pattern": "^\\u00e9$"}), {"a": "é"}, None),
        (_of(a={"pattern": "^\\w+$"}), {"a": "Ünal"}, None),
        (_of(a={"pattern": "^\\w+$"}), {"a": "a b"}, "does not match"),
        (_of(a={"pattern": "^(?!x)"}), {"a": "x"}, None),
        (_of(a={"not": {"pattern": "^[a-z]{1000}{1000}$"}}), {"a": "x"}, None),
        ({"patternProperties": {"^n": {"type": "integer"}}, "additionalProperties": False}, {"n1": "x"}, "n1: "),
        ({"patternProperties": {"^n": {}}, "additionalProperties": False}, {"x": "x"}, "'x' unexpected"),
        ({"patternProperties": {"(?=n)": {}}, "additionalProperties": False}, {"x": "x"}, None),
        (_of(a={"oneOf": [{"type": "string"}, {"type": "integer"}]}), {"a": None}, "a: "),
        (_of(a={"type": 5}), {"a": 1}, None),
        (_of(a={"$ref": "#/$defs/none"}), {"a": 1}, None),
        ({"$ref": "#"}, {"a": 1}, None),
        (_of(a={"type": "integer"}), {"a": 5.0}, None),
        ({"$defs": {"n": {"properties": {"c": {"$ref": "#/$defs/n"}}}}, "$ref": "#/$defs/n"}, {"c": {"c": 5}}, None),
    ],
)  # fmt: skip
async def test_what_is_checked(schema: dict[str, Any], args: dict[str, Any], wrong: str | None) -> None:
    if wrong is None:
        await validate_arguments(schema, args)
    else:
        with pytest.raises(ToolFailed, match=wrong):
            await validate_arguments(schema, args)


@pytest.mark.parametrize(
    ("text", "args"),
    [
        ('{"a": 5.0, "b": [1e20, 0.5, -0.0], "c": {"d": 1e21}}', {"a": 5, "b": [10**20, 0.5, 0], "c": {"d": 1e21}}),
        ('{"a": "\\ud83d", "\\ude00": "\\ud83d\\ude00"}', {"a": "\ufffd", "\ufffd": "😀"}),
        ("", {}),
        (json.dumps('{"a": 5.0}'), {"a": 5}),
        (json.dumps(' {"a": "{b}"}'), {"a": "{b}"}),
    ],
)
def test_arguments_as_models_write_them(text: str, args: dict[str, Any]) -> None:
    found = read_arguments(text)
    assert found == args
    assert repr(found).count(".0") == 0


@pytest.mark.parametrize("text", ["[]", "nothing", '"{"', '"text"', '{"a":', "5", "[" * 100_000])
def test_arguments_that_are_none(text: str) -> None:
    with pytest.raises(ToolFailed, match="the arguments "):
        read_arguments(text)
