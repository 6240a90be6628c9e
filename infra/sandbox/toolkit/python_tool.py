"""Run a program for the `python` tool inside the fence, with the files of its run, and return the changed files.

Standard library alone. The host trusts only the sizes and the syntax of the answer.
"""

import ast
import base64
import contextlib
import hashlib
import io
import os
import traceback

WORKSPACE_FOLDER = "/tmp/workspace"
MAX_PRINTED_CHARS = 64 * 1024
# An answer has a megabyte, and files are a third longer in base 64.
MAX_FILES_BYTES = 640 * 1024


class BoundedOutput(io.StringIO):
    """Keep the beginning of what is printed, and count what is dropped."""

    dropped_chars = 0

    def write(self, text):
        space = MAX_PRINTED_CHARS - self.tell()
        self.dropped_chars += max(0, len(text) - space)
        super().write(text[:space])
        return len(text)

    def get_text(self):
        return self.getvalue() + (f"\n… {self.dropped_chars} more characters" if self.dropped_chars else "")


def run(payload):
    os.makedirs(WORKSPACE_FOLDER, exist_ok=True)
    os.chdir(WORKSPACE_FOLDER)
    before = {}
    for path, text in payload["files"].items():
        data = base64.b64decode(text)
        before[path] = hashlib.sha256(data).digest()
        os.makedirs(os.path.dirname(path) or ".", exist_ok=True)
        with open(path, "wb") as file:
            file.write(data)
    stdout, stderr, answer = BoundedOutput(), BoundedOutput(), {}
    with contextlib.redirect_stdout(stdout), contextlib.redirect_stderr(stderr):
        try:
            value = _evaluate_code(payload["code"])
            if value is not None:
                answer["value"] = repr(value)[:MAX_PRINTED_CHARS]
        except SystemExit as ended:
            if ended.code not in (None, 0):
                answer["error"] = f"SystemExit: {ended.code}"[:MAX_PRINTED_CHARS]
        except BaseException as error:
            trace = "".join(traceback.format_exception(type(error), error, _strip_own_frames(error.__traceback__)))
            answer["error"] = trace[-MAX_PRINTED_CHARS:]
    answer["stdout"], answer["stderr"] = stdout.get_text(), stderr.get_text()
    answer = {name: _escape_surrogates(text) for name, text in answer.items()}
    answer["files"], answer["left_out"] = _collect_changed_files(before)
    return answer


def _escape_surrogates(text):
    """Return text without halves of surrogate pairs, which no answer can hold."""
    return text.encode("utf-8", "backslashreplace").decode()


def _evaluate_code(code):
    """Run a program, and return the value of its last line if that is an expression."""
    tree = ast.parse(code, "<program>")
    names = {"__name__": "__main__", "__builtins__": __builtins__}
    last = tree.body.pop() if tree.body and isinstance(tree.body[-1], ast.Expr) else None
    exec(compile(tree, "<program>", "exec"), names)
    return None if last is None else eval(compile(ast.Expression(last.value), "<program>", "eval"), names)


def _strip_own_frames(trace):
    while trace is not None and trace.tb_frame.f_code.co_filename == __file__:
        trace = trace.tb_next
    return trace


def _collect_changed_files(before):
    """Return the files that are new or changed, and the names of those too large to keep."""
    files, left_out, space = {}, [], MAX_FILES_BYTES
    for folder, _, names in os.walk(WORKSPACE_FOLDER):
        for name in sorted(names):
            full = os.path.join(folder, name)
            path = os.path.relpath(full, WORKSPACE_FOLDER)
            if os.path.islink(full) or not os.path.isfile(full):
                continue
            with open(full, "rb") as file:
                data = file.read(space + 1)
            if before.get(path) == hashlib.sha256(data).digest():
                continue
            # An answer cannot hold a name that is not UTF-8.
            if len(data) > space or _escape_surrogates(path) != path:
                left_out.append(_escape_surrogates(path))
                continue
            space -= len(data)
            files[path] = base64.b64encode(data).decode()
    return files, left_out
