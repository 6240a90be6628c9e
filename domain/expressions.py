"""STAND-IN until the real one lands."""

import re
from collections.abc import Mapping
from typing import Any

import msgspec


class BadExpression(Exception):
    def __init__(self, message: str, place: str = "") -> None:
        super().__init__(message)
        self.message, self.place = message, place


class Uses(msgspec.Struct, frozen=True):
    steps: frozenset[str] = frozenset()
    names: frozenset[str] = frozenset()


_IN = re.compile(r"\{\{(.*?)\}\}")


def expression(source: str) -> Uses:
    import cel

    try:
        names = set(cel.compile(source).variables())
    except Exception as error:
        raise BadExpression(str(error)) from error
    return Uses(frozenset(re.findall(r"steps\.(\w+)", source)), frozenset(names & {"inputs", "steps", "item", "index"}))


def template(value: Any) -> Uses:
    if isinstance(value, str):
        found = [expression(one) for one in _IN.findall(value)]
    elif isinstance(value, dict):
        found = [template(one) for one in value.values()]
    elif isinstance(value, list):
        found = [template(one) for one in value]
    else:
        found = []
    return Uses(frozenset().union(*(one.steps for one in found)), frozenset().union(*(one.names for one in found)))


def evaluate(source: str, scope: Mapping[str, Any]) -> Any:
    import cel

    try:
        return cel.evaluate(source, dict(scope))
    except Exception as error:
        raise BadExpression(str(error)) from error


def truth(source: str, scope: Mapping[str, Any]) -> bool:
    return bool(evaluate(source, scope))


def render(value: Any, scope: Mapping[str, Any]) -> Any:
    if isinstance(value, str):
        whole = re.fullmatch(r"\{\{(.*?)\}\}", value)
        if whole:
            return evaluate(whole[1], scope)
        return _IN.sub(lambda m: str(evaluate(m[1], scope)), value)
    if isinstance(value, dict):
        return {name: render(one, scope) for name, one in value.items()}
    if isinstance(value, list):
        return [render(one, scope) for one in value]
    return value
