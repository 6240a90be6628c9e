"""The `python` tool, as it runs inside the fence: a program, the files of its run, and what it made of them.

Standard library alone. Nothing that it answers is believed by the host but sizes and syntax.
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
# An answer has a megabyte; what files take of it is a third longer in base 64.
MAX_FILES_BYTES = 640 * 1024


class BoundedOutput(io.StringIO):
    """Keeps the beginning of what is printed, and says what it dropped."""

    dropped_chars = 0

    def write(self, text):
        room = MAX_PRINTED_CHARS - self.tell()
        self.dropped_chars += max(0, len(text) - room)
        super().write(text[:room])
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
    out, err, answer = BoundedOutput(), BoundedOutput(), {}
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            value = _evaluate_code(payload["code"])
            if value is not None:
                answer["value"] = repr(value)[:MAX_PRINTED_CHARS]
        except SystemExit as ended:
            if ended.code not in (None, 0):
                answer["error"] = f"SystemExit: {ended.code}"[:MAX_PRINTED_CHARS]
        except BaseException as error:
            told = "".join(traceback.format_exception(type(error), error, _strip_own_frames(error.__traceback__)))
            answer["error"] = told[-MAX_PRINTED_CHARS:]
    answer["stdout"], answer["stderr"] = out.get_text(), err.get_text()
    answer = {name: _escape_surrogates(text) for name, text in answer.items()}
    answer["files"], answer["left_out"] = _collect_changed_files(before)
    return answer


def _escape_surrogates(text):
    """Text without halves of surrogate pairs, which no answer can hold."""
    return text.encode("utf-8", "backslashreplace").decode()


def _evaluate_code(code):
    """Run a program; the value of its last line, if that is an expression."""
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
    """The files that are new or others than before, and those that are too large to be kept."""
    files, left_out, room = {}, [], MAX_FILES_BYTES
    for folder, _, names in os.walk(WORKSPACE_FOLDER):
        for name in sorted(names):
            full = os.path.join(folder, name)
            path = os.path.relpath(full, WORKSPACE_FOLDER)
            if os.path.islink(full) or not os.path.isfile(full):
                continue
            with open(full, "rb") as file:
                data = file.read(room + 1)
            if before.get(path) == hashlib.sha256(data).digest():
                continue
            # A name that is no UTF-8 cannot be told.
            if len(data) > room or _escape_surrogates(path) != path:
                left_out.append(_escape_surrogates(path))
                continue
            room -= len(data)
            files[path] = base64.b64encode(data).decode()
    return files, left_out
