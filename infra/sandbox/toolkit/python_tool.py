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

FOLDER = "/tmp/workspace"
PRINTED = 64 * 1024
# An answer has a megabyte; what files take of it is a third longer in base 64.
FILES = 640 * 1024


class Bounded(io.StringIO):
    """Keeps the beginning of what is printed, and says what it dropped."""

    dropped = 0

    def write(self, text):
        room = PRINTED - self.tell()
        self.dropped += max(0, len(text) - room)
        super().write(text[:room])
        return len(text)

    def told(self):
        return self.getvalue() + (f"\n… {self.dropped} more characters" if self.dropped else "")


def run(payload):
    os.makedirs(FOLDER, exist_ok=True)
    os.chdir(FOLDER)
    before = {}
    for path, text in payload["files"].items():
        data = base64.b64decode(text)
        before[path] = hashlib.sha256(data).digest()
        os.makedirs(os.path.dirname(path) or ".", exist_ok=True)
        with open(path, "wb") as file:
            file.write(data)
    out, err, answer = Bounded(), Bounded(), {}
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            value = _evaluated(payload["code"])
            if value is not None:
                answer["value"] = repr(value)[:PRINTED]
        except SystemExit as ended:
            if ended.code not in (None, 0):
                answer["error"] = f"SystemExit: {ended.code}"[:PRINTED]
        except BaseException as error:
            told = "".join(traceback.format_exception(type(error), error, _own(error.__traceback__)))
            answer["error"] = told[-PRINTED:]
    answer["stdout"], answer["stderr"] = out.told(), err.told()
    answer = {name: _plain(text) for name, text in answer.items()}
    answer["files"], answer["left_out"] = _changed(before)
    return answer


def _plain(text):
    """Text without halves of surrogate pairs, which no answer can hold."""
    return text.encode("utf-8", "backslashreplace").decode()


def _evaluated(code):
    """Run a program; the value of its last line, if that is an expression."""
    tree = ast.parse(code, "<program>")
    names = {"__name__": "__main__", "__builtins__": __builtins__}
    last = tree.body.pop() if tree.body and isinstance(tree.body[-1], ast.Expr) else None
    exec(compile(tree, "<program>", "exec"), names)
    return None if last is None else eval(compile(ast.Expression(last.value), "<program>", "eval"), names)


def _own(trace):
    while trace is not None and trace.tb_frame.f_code.co_filename == __file__:
        trace = trace.tb_next
    return trace


def _changed(before):
    """The files that are new or others than before, and those that are too large to be kept."""
    files, left_out, room = {}, [], FILES
    for folder, _, names in os.walk(FOLDER):
        for name in sorted(names):
            full = os.path.join(folder, name)
            path = os.path.relpath(full, FOLDER)
            if os.path.islink(full) or not os.path.isfile(full):
                continue
            with open(full, "rb") as file:
                data = file.read(room + 1)
            if before.get(path) == hashlib.sha256(data).digest():
                continue
            # A name that is no UTF-8 cannot be told.
            if len(data) > room or _plain(path) != path:
                left_out.append(_plain(path))
                continue
            room -= len(data)
            files[path] = base64.b64encode(data).decode()
    return files, left_out
