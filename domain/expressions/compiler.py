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
    Path,
    Uses,
    Word,
    check,
    is_called,
    is_member,
    loops,
    pairs,
    parse_error,
    path,
    quote_members,
    shown,
    words,
)


class Leaf(msgspec.Struct, frozen=True):
    """An expression without loops: a plain `path`, or a `program` of CEL that names `paths`, each so many times.

    `adds` counts what can make values longer, `patterns` what regular expressions cost at each call.
    """

    path: Path | None
    program: Any
    paths: dict[tuple[str, ...], int]
    adds: int
    patterns: int


class Pass(msgspec.Struct, frozen=True):
    """A loop: its answer is known as `name` to what comes after."""

    name: str
    kind: str
    variable: str
    over: Leaf
    bodies: tuple[Leaf, ...]


class Parsed(msgspec.Struct, frozen=True):
    """A checked expression."""

    uses: Uses
    passes: tuple[Pass, ...]
    last: Leaf


@cache
def cel() -> Any:
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


def guarded(call: Any, *arguments: Any) -> Any:
    """Call CEL. A panic in it is no `Exception`, and is one here."""
    try:
        return call(*arguments)
    except BaseException as error:
        if type(error).__name__ == "PanicException":
            raise RuntimeError("panic") from None
        raise


@lru_cache(maxsize=512)
def parse(source: str) -> Parsed:
    """Read and check an expression. Errors: BadExpression, of which nothing is kept."""
    asked = source
    try:
        found = words(source)
        if not source.isascii():
            source = quote_members(source, found)
            found = words(source)
        matched = pairs(found)
        made = loops(found, matched)
        uses = check(found, matched, made)
        program = _compiled(source)
        named = {
            word.text
            for index, word in enumerate(found)
            if word.kind == "name" and not is_member(found, index) and not is_called(found, index)
        } - {"true", "false", "null", "in"}
        if not set(program.variables()) <= named:
            raise BadExpression("It cannot be read.")
        passes: list[Pass] = []
        left: list[Word | None] = list(found)
        for number, loop in enumerate(made):
            over = [word for word in left[loop.start : loop.dot] if word is not None]
            bodies = tuple(_leaf(found[begin:end]) for begin, end in loop.bodies)
            passes.append(Pass(f"__{number}", loop.kind, loop.variable, _leaf(over), bodies))
            left[loop.start : loop.end + 1] = [None] * (loop.end + 1 - loop.start)
            left[loop.start] = Word("name", f"__{number}", found[loop.start].at)
        return Parsed(uses, tuple(passes), _leaf([word for word in left if word is not None]))
    except BadExpression as error:
        raise BadExpression(f"{shown(asked)}: {error.message}") from None


def _compiled(source: str) -> Any:
    try:
        return guarded(cel().compile, source)
    except MemoryError:
        raise
    except Exception as error:
        raise BadExpression(parse_error(str(error))) from None


def _leaf(found: Sequence[Word]) -> Leaf:
    if found and found[0].kind == "name" and found[0].text not in ("true", "false", "null") and not is_called(found, 0):
        whole, end = path(found, 0)
        if end == len(found):
            return Leaf(whole, None, {}, 0, 0)
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
        keys, _ = path(found, index)
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
    return Leaf(None, program, used, adds, patterns)
