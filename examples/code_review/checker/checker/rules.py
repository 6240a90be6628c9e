"""What is looked for. Each rule walks the syntax tree once and yields (line, code, message)."""

import ast
import builtins
from collections.abc import Iterator
from itertools import pairwise

Found = Iterator[tuple[int, str, str]]

COMPLEX = 10
_FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef)
_BRANCHES = (ast.If, ast.For, ast.AsyncFor, ast.While, ast.ExceptHandler, ast.IfExp, ast.Assert, ast.comprehension)
_BUILTINS = frozenset(name for name in dir(builtins) if not name.startswith("_"))


def unused_imports(tree: ast.Module) -> Found:
    imported = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            imported |= {(one.asname or one.name).split(".")[0]: node.lineno for one in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module != "__future__":
            imported |= {one.asname or one.name: node.lineno for one in node.names if one.name != "*"}
    used = {node.id for node in ast.walk(tree) if isinstance(node, ast.Name)}
    # Names in __all__ are there for others.
    used |= {node.value for node in ast.walk(tree) if isinstance(node, ast.Constant) and isinstance(node.value, str)}
    for name, line in imported.items():
        if name not in used:
            yield line, "unused-import", f"{name!r} is imported and never used."


def broad_excepts(tree: ast.Module) -> Found:
    for node in ast.walk(tree):
        if isinstance(node, ast.ExceptHandler):
            if node.type is None:
                yield node.lineno, "bare-except", "catches everything, KeyboardInterrupt too."
            elif all(isinstance(one, ast.Pass) for one in node.body):
                yield node.lineno, "silent-except", "an error is caught, and nobody will know."


def mutable_defaults(tree: ast.Module) -> Found:
    for node in ast.walk(tree):
        if isinstance(node, _FUNCTIONS):
            for default in [*node.args.defaults, *filter(None, node.args.kw_defaults)]:
                if isinstance(default, ast.List | ast.Dict | ast.Set):
                    yield default.lineno, "mutable-default", f"{node.name}() shares this default among its calls."


def comparisons(tree: ast.Module) -> Found:
    for node in ast.walk(tree):
        if isinstance(node, ast.Compare):
            for operator, right in zip(node.ops, node.comparators, strict=True):
                if isinstance(operator, ast.Eq | ast.NotEq) and isinstance(right, ast.Constant) and right.value is None:
                    yield node.lineno, "none-equality", "None is compared with `is`."
                if isinstance(operator, ast.Is | ast.IsNot) and _is_literal(right):
                    yield node.lineno, "literal-identity", "`is` of a literal is true by chance."


def _is_literal(node: ast.expr) -> bool:
    value = node.value if isinstance(node, ast.Constant) else None
    return isinstance(value, str | bytes | int) and not isinstance(value, bool)


def dangerous_calls(tree: ast.Module) -> Found:
    for node in ast.walk(tree):
        if not isinstance(node, ast.Call):
            continue
        if isinstance(node.func, ast.Name) and node.func.id in ("eval", "exec"):
            yield node.lineno, "eval", f"{node.func.id}() runs whatever it is given."
        for keyword in node.keywords:
            if keyword.arg == "shell" and isinstance(keyword.value, ast.Constant) and keyword.value.value is True:
                yield node.lineno, "shell", "shell=True lets its arguments be commands."


def shadowed_builtins(tree: ast.Module) -> Found:
    for node in ast.walk(tree):
        if isinstance(node, _FUNCTIONS):
            for argument in [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs]:
                if argument.arg in _BUILTINS:
                    yield argument.lineno, "shadowed-builtin", f"{argument.arg!r} hides the builtin of that name."


def unreachable_code(tree: ast.Module) -> Found:
    for node in ast.walk(tree):
        for field in ("body", "orelse", "finalbody"):
            lines = getattr(node, field, None)
            if not isinstance(lines, list):
                continue
            for one, following in pairwise(lines):
                if isinstance(one, ast.Return | ast.Raise | ast.Continue | ast.Break):
                    yield following.lineno, "unreachable", "nothing gets here."


def complex_functions(tree: ast.Module) -> Found:
    for node in ast.walk(tree):
        if isinstance(node, _FUNCTIONS) and complexity(node) > COMPLEX:
            told = f"{node.name}() has {complexity(node)} ways through it; {COMPLEX} are enough."
            yield node.lineno, "complex", told


def complexity(function: ast.AST) -> int:
    """McCabe's number: ways through a function."""
    found = 1
    for node in ast.walk(function):
        found += isinstance(node, _BRANCHES)
        found += len(node.values) - 1 if isinstance(node, ast.BoolOp) else 0
        found += len(node.cases) if isinstance(node, ast.Match) else 0
    return found


ALL = (
    unused_imports,
    broad_excepts,
    mutable_defaults,
    comparisons,
    dangerous_calls,
    shadowed_builtins,
    unreachable_code,
    complex_functions,
)
