"""Run an entrypoint as the first process inside the fence. Standard library alone, started with `python -I -S`.

Reads frames (a length in four bytes, then as many) from one descriptor: first what to import and
within which limits, then the payload and its context. In between it waits, stopped if need be, until
there is a payload. To the other descriptor it writes a byte per stage (`+` fenced, `=` imported, `!` the
payload has been read), messages while it runs (see `context`), then a JSON line and the result's JSON. For a value
that cannot be JSON the line says in `problem` what is wrong with it, and nothing follows; a result that is too large
is cut just past its limit. What the agent prints goes to stdout and stderr. The host trusts only the size and the
syntax of all this.
"""

# Now, while the path holds the standard library alone: a module of the agent that is
# called `resource` must not set the agent's limits.
import _sitebuiltins
import builtins
import errno
import importlib
import json
import os
import resource
import sys
import time

# The builtins that `site` adds, without the tens of milliseconds that it takes.
builtins.exit = _sitebuiltins.Quitter("exit", "Ctrl-D (i.e. EOF)")
builtins.quit = _sitebuiltins.Quitter("quit", "Ctrl-D (i.e. EOF)")
builtins.help = _sitebuiltins._Helper()
builtins.copyright = _sitebuiltins._Printer("copyright", sys.copyright)
builtins.credits = _sitebuiltins._Printer("credits", "See www.python.org for more information.")
builtins.license = _sitebuiltins._Printer("license", "See https://www.python.org/psf/license/")

MAX_MESSAGE_CHARS = 4000
MAX_STACK_CHARS = 16000
# Hints, as types or as text, that ask for no schema and no conversion.
_PLAIN_HINTS = ("dict", "Dict", "Any", "None", "dict[str, Any]", "typing.Any")
_SCALAR_TYPES = {str, int, float, bool, type(None)}
_JSON_ENCODER = json.JSONEncoder(allow_nan=False, ensure_ascii=False, separators=(",", ":"))
# The other files of this folder that most runs do not need. They are no modules that an agent could find.
PART_NAMES = ("context", "json_problems", "signature", "typed_values")
_parts: dict[str, object] = {}


def load_part(name, folder=os.path.dirname(__file__)):
    """Return another file of this folder as a module, loaded from `folder` when it is first needed."""
    if name not in _parts:
        part = type(sys)(f"paddock_{name}")
        part.__file__ = f"{os.path.dirname(__file__)}/{name}.py"
        with open(f"{folder}/{name}.py") as file:
            exec(compile(file.read(), part.__file__, "exec"), part.__dict__)
        _parts[name] = part
    return _parts[name]


def read_frame(fd):
    return _read_exactly(fd, int.from_bytes(_read_exactly(fd, 4), "big"))


def _read_exactly(fd, count):
    parts = []
    while count:
        part = os.read(fd, min(count, 1 << 20))
        if not part:
            raise EOFError
        parts.append(part)
        count -= len(part)
    return b"".join(parts)


def _apply_limits(limits):
    for name, value in limits.items():
        kind = getattr(resource, "RLIMIT_" + name)
        resource.setrlimit(kind, (value, value))


def _import_entrypoint(entrypoint):
    module_name, _, path = entrypoint.partition(":")
    target = importlib.import_module(module_name)
    for name in path.split("."):
        target = getattr(target, name)
    if not callable(target):
        raise TypeError(f"{entrypoint} is {type(target).__name__}, which cannot be called")
    return target


def _find_context_way(function):
    """Return how the entrypoint takes a context, see `context.find_context_parameter`; None for most entrypoints."""
    if type(function) is type(read_frame):
        code = function.__code__
        if code.co_argcount == 1 and not (code.co_kwonlyargcount or code.co_flags & 12 or function.__dict__):
            if code.co_flags & 0x220:  # a generator: what it will need is loaded ahead
                load_part("context")
            return None
    return load_part("context").find_context_parameter(function)


def _has_type_hints(function):
    """Return whether the hints of an entrypoint may say more than that it takes and returns JSON."""
    try:
        hints = getattr(function, "__annotations__", None)
        if type(function) is type(read_frame) and not function.__dict__:
            names = (*function.__code__.co_varnames[:1], "return")
            plain = (dict, None, *_PLAIN_HINTS)
            return any(hints[name] not in plain for name in names if name in hints)
    except Exception:
        return False  # names that exist for type checkers alone
    return True


def _find_converters(function):
    """Return what converts the payload and the result of an entrypoint, each None for what stays as it is."""
    if not _has_type_hints(function):
        return None, None
    typed_values, signature = load_part("typed_values"), load_part("signature")
    try:
        return typed_values.find_converter(function, signature), typed_values.find_result_converter(function, signature)
    except Exception:
        return None, None  # without a readable signature


def _describe_entrypoint(function):
    """Return the answer to a check: the schemas of the entrypoint's hints."""
    if not _has_type_hints(function):
        return {"body": b"null"}
    try:
        body, problem = encode_value(load_part("signature").describe_signature(function))
    except Exception as error:
        body, problem = None, f"{type(error).__name__}: {error}"
    if problem is not None:
        body = encode_value({"problems": [_escape_surrogates(problem[:MAX_MESSAGE_CHARS])]})[0]
    return {"body": body}


class EntrypointCall:
    """Call an entrypoint once. `pipes` are the descriptors of requests, answers, and copies of stdout and stderr."""

    def __init__(self, function, way, context, pipes, converters=(None, None)):
        self._function, self._way, self._values, self._pipes = function, way, context, pipes
        self._convert_payload, self._convert_result = converters
        self._writer = self._context = None

    def run(self, payload):
        """Return the result, or the JSON of the last value that it streamed in its place."""
        payload = json.loads(payload)
        if self._convert_payload is not None:
            payload = self._convert_payload(payload)
        if self._way is None:
            result = self._function(payload)
        else:
            read_state = lambda: read_frame(self._pipes[0])  # noqa: E731
            values = json.loads(self._values)
            self._context = load_part("context").RunContext(values, self._open_writer(), encode_value, read_state)
            if self._way == "positional":
                result = self._function(payload, self._context)
            else:
                result = self._function(payload, context=self._context)
        body = None
        if hasattr(result, "__await__") or hasattr(result, "__aiter__"):
            import asyncio

            result, body = asyncio.run(self._await_result(result))
        if body is None and hasattr(result, "throw"):
            result, body = load_part("context").run_generator(self._open_writer(), result)
        if body is None and self._convert_result is not None:
            result = self._convert_result(result)
        return result, body

    async def _await_result(self, result):
        if hasattr(result, "__await__"):
            result = await result
        if hasattr(result, "__aiter__"):
            return await load_part("context").run_async_iterator(self._open_writer(), result)
        return result, None

    def send_state(self):
        """Send the state that the entrypoint has changed."""
        if self._context is not None:
            self._context.send_state()

    def close(self):
        """Send nothing more."""
        if self._writer is not None:
            self._writer.close()

    def _open_writer(self):
        if self._writer is None:
            self._writer = load_part("context").MessageWriter(self._pipes[1], self._pipes[2:], encode_value)
        return self._writer


def _describe_failure(error, kind=None):
    # Late, because it costs milliseconds; a module of the agent that it may find instead harms its author alone.
    import traceback

    # The agent's own frames alone: ours and the import system's do not help its author.
    frames = error.__traceback__
    own_folder = os.path.dirname(__file__) + "/"
    while frames is not None and (
        frames.tb_frame.f_code.co_filename.startswith(own_folder) or "importlib" in frames.tb_frame.f_code.co_filename
    ):
        frames = frames.tb_next
    try:
        message = str(error)
    except Exception:
        message = "(the exception cannot be shown)"
    if isinstance(error, OSError) and error.errno == errno.EROFS and len(message) < 2000:
        message = (
            f"{message}. The agent's folder is read-only: write beneath /work, whose files are kept, or beneath /tmp."
        )
    stack = "".join(traceback.format_exception(type(error), error, frames))
    answer = {"error_type": kind or type(error).__name__, "error_message": message[:MAX_MESSAGE_CHARS]}
    answer["stack"] = stack[-MAX_STACK_CHARS:]
    return {name: _escape_surrogates(text) for name, text in answer.items()}


def _escape_surrogates(text):
    # Halves of surrogate pairs would make the whole answer unreadable.
    return text.encode(errors="backslashreplace").decode()


def _run_entrypoint(function, payload, context="{}", way=None, pipes=(), converters=(None, None)):
    call = EntrypointCall(function, way, context, pipes, converters)
    try:
        result, body = call.run(payload)
        problem = None
        if body is None:
            body, problem = encode_value(result)
        if problem is not None:
            return {"problem": problem}
        call.send_state()
    except SystemExit as error:
        return _describe_failure(error, "SystemExit")
    except BaseException as error:
        if (kind := getattr(error, "kind", None)) and _is_own_problem(error):
            return {"problem": _escape_surrogates(str(error)[:MAX_MESSAGE_CHARS]), "problem_type": kind}
        return _describe_failure(error)
    finally:
        call.close()
    return {"body": body}


def _is_own_problem(error):
    return isinstance(error, (load_part("context").ValueProblem, load_part("typed_values").InputMismatch))


def encode_value(value, name="The result", subject=None):
    """Return the JSON of a value and None, or None and what is wrong with it. See `json_problems` for `subject`."""
    try:
        body = _JSON_ENCODER.encode(value).encode()
        problem = load_part("json_problems").find_duplicate_key(value) if _has_odd_keys(value) else None
    except MemoryError:
        raise
    except Exception as error:
        problems = load_part("json_problems")
        problem = problems.find_problem(value, subject or problems.RESULT_SUBJECT)
        if problem is None and subject is not None and not isinstance(error, (TypeError, ValueError, RecursionError)):
            raise  # of a signal handler of the agent
        problem = problem or f"{type(error).__name__}: {error}"
    if problem is None:
        return body, None
    return None, _escape_surrogates(f"{name} is not JSON: {problem}"[:MAX_MESSAGE_CHARS])


def _has_odd_keys(result):
    # Every result is checked for these, by types, as quickly as possible.
    pending = [result] if isinstance(result, (dict, list, tuple)) else []
    while pending:
        value = pending.pop()
        if isinstance(value, dict):
            if value and set(map(type, value)) != {str}:
                return True
            value = value.values()
        if not set(map(type, value)) <= _SCALAR_TYPES:
            pending += [item for item in value if isinstance(item, (dict, list, tuple))]
    return False


def _build_answer(head, requests, answers):
    # Before an import can turn the agent's own output elsewhere.
    pipes = requests, answers, os.dup(1), os.dup(2)
    try:
        function = _import_entrypoint(head["entrypoint"])
    except BaseException as error:
        return _describe_failure(error)
    way = _find_context_way(function)
    if head["mode"] == "check":
        problem = load_part("context").find_call_problem(function, way)
        if problem is not None:
            return _describe_failure(TypeError(f"the function {problem}."))
        return _describe_entrypoint(function)
    converters = _find_converters(function)
    os.write(answers, b"=")
    try:
        payload = read_frame(requests)
        context = read_frame(requests)
    except EOFError:
        os._exit(0)  # the worker no longer needs this slot
    os.write(answers, b"!")
    return _run_entrypoint(function, payload, context, way, pipes, converters)


def _send_answer(fd, answer, most):
    # Without a body there is no JSON behind the line, and with one past its limit the host sees as much itself.
    body = answer.pop("body", b"")
    if len(body) > most:
        answer["size"], body = len(body), body[: most + 1]
    data = json.dumps(answer).encode("ascii") + b"\n" + body
    while data:
        data = data[os.write(fd, data) :]
    os.close(fd)


def serve_run(head, requests, answers):
    """Run what `head` asks for. Never returns."""
    for fd in (requests, answers):
        os.set_inheritable(fd, False)
    _apply_limits(head["limits"])
    os.environ.update(head["variables"])
    if "TZ" in head["variables"]:
        time.tzset()
    sys.dont_write_bytecode = True
    sys.path[:0] = head["path"]
    # Types for agents, behind all that they bring.
    sys.path.append("/guest/packages")
    for stream in (sys.stdout, sys.stderr):
        stream.reconfigure(line_buffering=True, errors="backslashreplace")
    try:
        answer = _build_answer(head, requests, answers)
    except MemoryError as error:
        answer = _describe_failure(error)
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except Exception:
            pass
    _send_answer(answers, answer, head["most"])
    # Not sys.exit: threads and exit handlers of the agent get no say in how long this takes.
    os._exit(0)


if __name__ == "__main__":
    feed, answer = map(int, sys.argv[1:])
    del sys.argv[1:]
    os.write(answer, b"+")
    serve_run(json.loads(read_frame(feed)), feed, answer)
