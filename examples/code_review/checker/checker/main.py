"""Checks the code of one file: `{"file": "api.py", "code": "…"}` → what was found, line by line."""

import ast

from checker import rules


def handle(payload: dict) -> dict:
    file, code = payload.get("file") or "<code>", payload["code"]
    try:
        tree = ast.parse(code, file)
    except SyntaxError as error:
        problems = [{"line": error.lineno or 1, "rule": "syntax", "message": f"cannot be read: {error.msg}."}]
        return _told(file, code, problems, 0)
    found = sorted(one for rule in rules.ALL for one in rule(tree))
    problems = [{"line": line, "rule": rule, "message": message} for line, rule, message in found]
    functions = sum(isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) for node in ast.walk(tree))
    return _told(file, code, problems, functions)


def _told(file: str, code: str, problems: list[dict], functions: int) -> dict:
    lines = [f"{file}:{one['line']}: {one['rule']}: {one['message']}" for one in problems]
    print(f"{file}: {len(problems)} found")
    return {
        "problems": problems,
        "summary": "\n".join(lines) or "Nothing was found.",
        "lines": len(code.splitlines()),
        "functions": functions,
    }
