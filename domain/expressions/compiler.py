"""A checked expression as it is run: plain paths, programs of CEL, and loops over their answers."""

import importlib.machinery
import importlib.util
from collections.abc import Sequence
from functools import cache, lru_cache
from pathlib import Path as File
from typing import Any

import msgspec

from domain.expressions.parser import (
    BadExpression,
    ExpressionReferences,
    ExpressionToken,
    ValuePath,
    explain_parse_error,
    find_loops,
    find_references,
    is_called,
    is_member,
    match_brackets,
    quote_members,
    quote_source,
    read_path,
    read_tokens,
)


class LeafExpression(msgspec.Struct, frozen=True):
    """An expression without loops: a plain `path`, or a `program` of CEL that names `paths`, each so many times.

    `adds` counts what can make values longer, `patterns` what regular expressions cost at each call.
    """

    path: ValuePath | None
    program: Any
    paths: dict[tuple[str, ...], int]
    adds: int
    patterns: int


class LoopPass(msgspec.Struct, frozen=True):
    """A loop: its answer is known as `name` to what comes after."""

    name: str
    kind: str
    variable: str
    over: LeafExpression
    bodies: tuple[LeafExpression, ...]


class CompiledExpression(msgspec.Struct, frozen=True):
    """A checked expression."""

    references: ExpressionReferences
    passes: tuple[LoopPass, ...]
    last: LeafExpression


@cache
def load_cel() -> Any:
    """The extension module alone: the package's `__init__` imports its command line, 30 MB that nobody here runs."""
    package = importlib.util.find_spec("cel")
    for folder in (package.submodule_search_locations or ()) if package is not None else ():
        for suffix in importlib.machinery.EXTENSION_SUFFIXES:
            file = File(folder, f"cel{suffix}")
            if file.exists():
                spec = importlib.util.spec_from_file_location("cel.cel", file)
                if spec is not None and spec.loader is not None:
                    module = importlib.util.module_from_spec(spec)
                    spec.loader.exec_module(module)
                    return module
    raise ImportError("the extension module of common-expression-language is missing")


def call_cel(call: Any, *arguments: Any) -> Any:
    """Call CEL. A panic in it is no `Exception`, and is one here."""
    try:
        return call(*arguments)
    except BaseException as error:
        if type(error).__name__ == "PanicException":
            raise RuntimeError("panic") from None
        raise


@lru_cache(maxsize=512)
def compile_expression(source: str) -> CompiledExpression:
    """Read and check an expression. Errors: BadExpression, of which nothing is kept."""
    asked = source
    try:
        found = read_tokens(source)
        if not source.isascii():
            source = quote_members(source, found)
            found = read_tokens(source)
        matched = match_brackets(found)
        made = find_loops(found, matched)
        uses = find_references(found, matched, made)
        program = _compiled(source)
        named = {
            word.text
            for index, word in enumerate(found)
            if word.kind == "name" and not is_member(found, index) and not is_called(found, index)
        } - {"true", "false", "null", "in"}
        if not set(program.variables()) <= named:
            raise BadExpression("It cannot be read.")
        passes: list[LoopPass] = []
        left: list[ExpressionToken | None] = list(found)
        for number, loop in enumerate(made):
            over = [word for word in left[loop.start : loop.dot] if word is not None]
            bodies = tuple(_leaf(found[begin:end]) for begin, end in loop.bodies)
            passes.append(LoopPass(f"__{number}", loop.kind, loop.variable, _leaf(over), bodies))
            left[loop.start : loop.end + 1] = [None] * (loop.end + 1 - loop.start)
            left[loop.start] = ExpressionToken("name", f"__{number}", found[loop.start].position)
        return CompiledExpression(uses, tuple(passes), _leaf([word for word in left if word is not None]))
    except BadExpression as error:
        raise BadExpression(f"{quote_source(asked)}: {error.message}") from None


def _compiled(source: str) -> Any:
    try:
        return call_cel(load_cel().compile, source)
    except MemoryError:
        raise
    except Exception as error:
        raise BadExpression(explain_parse_error(str(error))) from None


def _leaf(found: Sequence[ExpressionToken]) -> LeafExpression:
    if found and found[0].kind == "name" and found[0].text not in ("true", "false", "null") and not is_called(found, 0):
        whole, end = read_path(found, 0)
        if end == len(found):
            return LeafExpression(whole, None, {}, 0, 0)
    program = _compiled(" ".join(word.text for word in found))
    used: dict[tuple[str, ...], int] = {}
    adds = patterns = 0
    for index, word in enumerate(found):
        if word.kind == "sign" and word.text == "+":
            adds += 1
        if word.kind != "name" or is_member(found, index):
            continue
        if is_called(found, index) or word.text in ("true", "false", "null", "in"):
            continue
        keys, _ = read_path(found, index)
        names: list[str] = []
        for key in keys:
            if not isinstance(key, str):
                break
            names.append(key)
        used[tuple(names)] = used.get(tuple(names), 0) + 1
    for index, word in enumerate(found):
        if word.text == "matches" and is_member(found, index) and is_called(found, index):
            pattern = found[index + 2].text
            escapes = pattern.count("\\") // (1 if pattern[0] in "rR" else 2) + 1
            patterns += 1_500 * len(pattern) + 35_000 * (escapes if "\\" in pattern else 0)
    return LeafExpression(None, program, used, adds, patterns)
