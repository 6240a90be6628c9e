"""Compile checked expressions into plain paths, CEL programs, and loops over their values."""

import importlib.machinery
import importlib.util
from collections.abc import Iterator, Sequence
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
    """Hold an expression without loops: a plain `path`, or a CEL `program` with the count of each path in it.

    `adds` counts operators that can make values longer, `patterns` is the cost of regular expressions per call.
    """

    path: ValuePath | None
    program: Any
    paths: dict[tuple[str, ...], int]
    adds: int
    patterns: int


class LoopPass(msgspec.Struct, frozen=True):
    """Hold a loop. Later parts refer to its value by `name`."""

    name: str
    kind: str
    variable: str
    over: LeafExpression
    bodies: tuple[LeafExpression, ...]


class CompiledExpression(msgspec.Struct, frozen=True):
    """Hold a checked expression: its loops, and the part that gives its value."""

    references: ExpressionReferences
    passes: tuple[LoopPass, ...]
    last: LeafExpression


@cache
def load_cel() -> Any:
    """Load the extension module alone: the package's `__init__` imports its command line, 30 MB that are not needed."""
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
    """Call CEL, and turn a panic, which is no `Exception`, into a `RuntimeError`."""
    try:
        return call(*arguments)
    except BaseException as error:
        if type(error).__name__ == "PanicException":
            raise RuntimeError("panic") from None
        raise


@lru_cache(maxsize=512)
def compile_expression(source: str) -> CompiledExpression:
    """Compile and check an expression. Errors: `BadExpression`, which is not cached."""
    original = source
    try:
        tokens = read_tokens(source)
        if not source.isascii():
            source = quote_members(source, tokens)
            tokens = read_tokens(source)
        brackets = match_brackets(tokens)
        loops = find_loops(tokens, brackets)
        references = find_references(tokens, brackets, loops)
        program = _compile_cel(source)
        names = {
            token.text
            for index, token in enumerate(tokens)
            if token.kind == "name" and not is_member(tokens, index) and not is_called(tokens, index)
        } - {"true", "false", "null", "in"}
        if not set(program.variables()) <= names:
            raise BadExpression("It is not a valid expression.")
        passes: list[LoopPass] = []
        remaining: list[ExpressionToken | None] = list(tokens)
        for number, loop in enumerate(loops):
            over = [token for token in remaining[loop.start : loop.dot] if token is not None]
            bodies = tuple(_compile_leaf(tokens[begin:end]) for begin, end in loop.bodies)
            passes.append(LoopPass(f"__{number}", loop.kind, loop.variable, _compile_leaf(over), bodies))
            remaining[loop.start : loop.end + 1] = [None] * (loop.end + 1 - loop.start)
            remaining[loop.start] = ExpressionToken("name", f"__{number}", tokens[loop.start].position)
        return CompiledExpression(
            references, tuple(passes), _compile_leaf([token for token in remaining if token is not None])
        )
    except BadExpression as error:
        raise BadExpression(f"{quote_source(original)}: {error.message}") from None


def _compile_cel(source: str) -> Any:
    try:
        return call_cel(load_cel().compile, source)
    except MemoryError:
        raise
    except Exception as error:
        raise BadExpression(explain_parse_error(str(error))) from None


def _compile_leaf(tokens: Sequence[ExpressionToken]) -> LeafExpression:
    literals = ("true", "false", "null")
    if tokens and tokens[0].kind == "name" and tokens[0].text not in literals and not is_called(tokens, 0):
        path, end = read_path(tokens, 0)
        if end == len(tokens):
            return LeafExpression(path, None, {}, 0, 0)
    program = _compile_cel(" ".join(token.text for token in tokens))
    paths: dict[tuple[str, ...], int] = {}
    adds = pattern_cost = 0
    for index, token in enumerate(tokens):
        if token.kind == "sign" and token.text == "+":
            adds += 1
        if token.kind != "name":
            continue
        if is_member(tokens, index):
            if token.text == "matches" and is_called(tokens, index):
                pattern_cost += _estimate_pattern(tokens[index + 2].text)
        elif not is_called(tokens, index) and token.text not in (*literals, "in"):
            keys = tuple(_take_names(read_path(tokens, index)[0]))
            paths[keys] = paths.get(keys, 0) + 1
    return LeafExpression(None, program, paths, adds, pattern_cost)


def _take_names(path: ValuePath) -> Iterator[str]:
    """Yield the keys of a path up to the first index of a list."""
    for key in path:
        if not isinstance(key, str):
            return
        yield key


def _estimate_pattern(pattern: str) -> int:
    """Return the cost of compiling a quoted regular expression, in units of work."""
    escapes = pattern.count("\\") // (1 if pattern[0] in "rR" else 2) + 1
    return 1_500 * len(pattern) + 35_000 * (escapes if "\\" in pattern else 0)
