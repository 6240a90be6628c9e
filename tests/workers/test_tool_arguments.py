"""Validate arguments against schemas made to keep a worker busy or to fill its memory: a guard stops each of them."""

import asyncio
import json
import threading
from typing import Any

import pytest
import re2
from jsonschema.exceptions import ValidationError

from domain.llms import ToolFailed
from domain.schemas import limits, validation
from workers.agent.arguments import read_arguments, validate_arguments

MAX_TIME_CHECKS = 20_000  # more than any guard leaves time for


class _EndlessCheck(Exception):
    """Report that the check would have gone on."""


def _build_object_schema(**properties: Any) -> dict[str, Any]:
    return {"type": "object", "properties": properties}


def _build_doubling_schema(keyword: str) -> dict[str, Any]:
    steps = {f"d{n}": {keyword: [{"$ref": f"#/$defs/d{n + 1}"}] * 4} for n in range(12)}
    return {"type": "object", "$defs": steps | {"d12": {}}, "$ref": "#/$defs/d0"}


SLOW_SCHEMAS = {
    "patterns times names": (
        {"patternProperties": {f"a.{{0,9}}b{n}$": {} for n in range(60)}},
        {"a" * 200 + str(n): n for n in range(4000)},
    ),
    "patterns times names that are none of them": (
        {"patternProperties": {f"a.{{0,9}}b{n}$": {} for n in range(60)}, "additionalProperties": False},
        {"a" * 200 + str(n): n for n in range(4000)},
    ),
    "references that double": (_build_doubling_schema("allOf"), {}),
    "alternatives that double": (_build_doubling_schema("oneOf"), {}),
    "a list of many alternatives": (
        _build_object_schema(a={"items": {"allOf": [{"oneOf": [{"type": "integer"}]}] * 300}}),
        {"a": list(range(30_000))},
    ),
    "a tree that refers to itself": (
        {"$defs": {"n": {"allOf": [{"items": {"$ref": "#/$defs/n"}}] * 4}}, "properties": {"a": {"$ref": "#/$defs/n"}}},
        {"a": [[[[[[[[[[[[[[[[[1]]]]]]]]]]]]]]]]]},
    ),
}


@pytest.mark.parametrize("name", SLOW_SCHEMAS)
async def test_slow_schemas_are_stopped(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    schema, args = SLOW_SCHEMAS[name]
    monkeypatch.setattr(limits, "MAX_CHECK_SECONDS", 0.05)
    with pytest.raises(ToolFailed, match="could not be checked"):
        await validate_arguments(schema, args)
    checks = 0

    def count_check(_: Any) -> None:
        nonlocal checks
        checks += 1
        if checks > MAX_TIME_CHECKS:
            raise _EndlessCheck

    monkeypatch.setattr(limits.CheckLimits, "check_time", count_check)
    assert await _is_endless(schema, args) or checks > MAX_TIME_CHECKS


async def _is_endless(schema: dict[str, Any], args: Any) -> bool:
    try:
        await validate_arguments(schema, args)
    except _EndlessCheck:
        return True
    return False


@pytest.mark.slow
async def test_errors_do_not_fill_the_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "MAX_CHECK_SECONDS", 60.0)
    many = (_build_object_schema(a={"anyOf": [{"items": False}] * 100}), {"a": list(range(1000))})
    large = (_build_object_schema(a={"anyOf": [{"items": {"not": {}}}] * 100}), {"a": ["x" * 100_000] * 20})
    for schema, args in (many, large):
        error_characters = 0

        def count_characters(_: Any, error: ValidationError) -> None:
            nonlocal error_characters
            error_characters += len(error.message)

        with pytest.raises(ToolFailed, match="could not be checked"):
            await validate_arguments(schema, args)
        with monkeypatch.context() as unguarded:
            unguarded.setattr(limits.CheckLimits, "count_error", count_characters)
            with pytest.raises(ToolFailed, match="a: "):
                await validate_arguments(schema, args)
        assert error_characters > 2_000_000


async def test_patterns_are_limited_in_number_and_size(monkeypatch: pytest.MonkeyPatch) -> None:
    """Limit how many there are and their bytes, keep none after the check, and stop a match that takes too long."""
    compiled: list[Any] = []
    compile_pattern = re2.compile

    def compile_and_measure(pattern: str, options: Any) -> Any:
        program = compile_pattern(pattern, options)
        compiled.append(program.programsize)
        return program

    monkeypatch.setattr(re2, "compile", compile_and_measure)
    schema = {"patternProperties": {f"^(?:[a-z]{{1,99}}){{0,9}}{n}$": {"type": "null"} for n in range(300)}}
    await validate_arguments(schema, {"a": 1})
    assert 0 < len(compiled) <= limits.MAX_PATTERNS
    assert re2._Regexp._make.cache_info().currsize == 0
    # Too large to be compiled, and so not checked; with more room, it is.
    large = _build_object_schema(a={"pattern": r"^\p{L}{300}$"})
    await validate_arguments(large, {"a": "x"})
    with monkeypatch.context() as unguarded:
        unguarded.setattr(limits, "MAX_PATTERN_BYTES", 64 << 20)
        with pytest.raises(ToolFailed, match="does not match"):
            await validate_arguments(large, {"a": "x"})
    slow = _build_object_schema(a={"pattern": "|".join([r"a.{0,20}b"] * 20)})
    await validate_arguments(slow, {"a": "ac" * 8192})
    with monkeypatch.context() as unguarded:
        unguarded.setattr(limits, "MAX_MATCH_STEPS", 10**12)
        with pytest.raises(ToolFailed, match="does not match"):
            await validate_arguments(slow, {"a": "ac" * 8192})


async def test_slow_checks_of_one_tenant_do_not_delay_another(monkeypatch: pytest.MonkeyPatch) -> None:
    """Take turns by tenant however many checks one of them begins, and leave the process's event loop free."""
    inside, release = threading.Event(), threading.Event()
    find_problem = validation._find_argument_problem

    def find_slowly(schema: dict[str, Any], args: Any) -> str | None:
        if "slow" in args:
            inside.set()
            assert release.wait(30)
        return find_problem(schema, args)

    monkeypatch.setattr(validation, "_find_argument_problem", find_slowly)
    slow_checks = [asyncio.create_task(validate_arguments({}, {"slow": n}, "rival")) for n in range(50)]
    try:
        await asyncio.to_thread(inside.wait, 30)
        await asyncio.wait_for(validate_arguments(_build_object_schema(a={"type": "integer"}), {"a": 1}, "acme"), 30)
        assert not any(task.done() for task in slow_checks)
    finally:
        release.set()
        await asyncio.gather(*slow_checks)


@pytest.mark.parametrize(
    ("schema", "args", "error"),
    [
        (_build_object_schema(a={"pattern": "^(a+)+$"}), {"a": "a" * 60 + "b"}, "does not match"),
        (_build_object_schema(a={"pattern": "^\\u00e9$"}), {"a": "é"}, None),
        (_build_object_schema(a={"pattern": "^\\w+$"}), {"a": "Ünal"}, None),
        (_build_object_schema(a={"pattern": "^\\w+$"}), {"a": "a b"}, "does not match"),
        (_build_object_schema(a={"pattern": "^(?!x)"}), {"a": "x"}, None),
        (_build_object_schema(a={"not": {"pattern": "^[a-z]{1000}{1000}$"}}), {"a": "x"}, None),
        ({"patternProperties": {"^n": {"type": "integer"}}, "additionalProperties": False}, {"n1": "x"}, "n1: "),
        ({"patternProperties": {"^n": {}}, "additionalProperties": False}, {"x": "x"}, "'x' unexpected"),
        ({"patternProperties": {"(?=n)": {}}, "additionalProperties": False}, {"x": "x"}, None),
        (_build_object_schema(a={"oneOf": [{"type": "string"}, {"type": "integer"}]}), {"a": None}, "a: "),
        (_build_object_schema(a={"type": 5}), {"a": 1}, None),
        (_build_object_schema(a={"$ref": "#/$defs/none"}), {"a": 1}, None),
        ({"$ref": "#"}, {"a": 1}, None),
        (_build_object_schema(a={"type": "integer"}), {"a": 5.0}, None),
        ({"$defs": {"n": {"properties": {"c": {"$ref": "#/$defs/n"}}}}, "$ref": "#/$defs/n"}, {"c": {"c": 5}}, None),
    ],
)  # fmt: skip
async def test_arguments_are_checked_against_their_schema(
    schema: dict[str, Any], args: dict[str, Any], error: str | None
) -> None:
    if error is None:
        await validate_arguments(schema, args)
    else:
        with pytest.raises(ToolFailed, match=error):
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
def test_arguments_are_read_as_models_write_them(text: str, args: dict[str, Any]) -> None:
    parsed = read_arguments(text)
    assert parsed == args
    assert repr(parsed).count(".0") == 0


@pytest.mark.parametrize("text", ["[]", "nothing", '"{"', '"text"', '{"a":', "5", "[" * 100_000])
def test_arguments_that_are_no_object_are_refused(text: str) -> None:
    with pytest.raises(ToolFailed, match="the arguments "):
        read_arguments(text)
