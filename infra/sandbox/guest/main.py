"""Run an entrypoint as the first process inside the fence. Standard library alone, started with `python -I -S`.

Reads frames (a length in four bytes, then as many) from one descriptor: first what to import and
within which limits, then the payload. In between it waits, stopped if need be, until
there is a payload. To the other descriptor it writes a byte per stage (`+` fenced, `=` imported, `!` the
payload has been read), then a JSON line and the result's JSON. For a result that cannot be JSON the line says
in `problem` what is wrong with it, and nothing follows; one that is too large is cut just past its limit.
What the agent prints goes to stdout and stderr. The host trusts only the size and the syntax of all this.
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

# The builtins that `site` adds, without the tens of milliseconds that it takes.
builtins.exit = _sitebuiltins.Quitter("exit", "Ctrl-D (i.e. EOF)")
builtins.quit = _sitebuiltins.Quitter("quit", "Ctrl-D (i.e. EOF)")
builtins.help = _sitebuiltins._Helper()
builtins.copyright = _sitebuiltins._Printer("copyright", sys.copyright)
builtins.credits = _sitebuiltins._Printer("credits", "See www.python.org for more information.")
builtins.license = _sitebuiltins._Printer("license", "See https://www.python.org/psf/license/")

MAX_MESSAGE_CHARS = 4000
MAX_STACK_CHARS = 16000
MAX_PATH_CHARS = 300
_SCALAR_TYPES = {str, int, float, bool, type(None)}


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


def _call_entrypoint(function, payload):
    result = function(payload)
    if hasattr(result, "__await__"):
        import asyncio

        async def await_result():
            return await result

        result = asyncio.run(await_result())
    return result


def _describe_failure(error, kind=None):
    # Late, because it costs milliseconds; a module of the agent that it may find instead harms its author alone.
    import traceback

    # The agent's own frames alone: ours and the import system's do not help its author.
    frames = error.__traceback__
    while frames is not None and (
        frames.tb_frame.f_code.co_filename == __file__ or "importlib" in frames.tb_frame.f_code.co_filename
    ):
        frames = frames.tb_next
    try:
        message = str(error)
    except Exception:
        message = "(the exception cannot be shown)"
    if isinstance(error, OSError) and error.errno == errno.EROFS:
        message = f"{message[:2000]}. The agent's folder is read-only: write to a path beneath /tmp."
    stack = "".join(traceback.format_exception(type(error), error, frames))
    answer = {"error_type": kind or type(error).__name__, "error_message": message[:MAX_MESSAGE_CHARS]}
    answer["stack"] = stack[-MAX_STACK_CHARS:]
    return {name: _escape_surrogates(text) for name, text in answer.items()}


def _escape_surrogates(text):
    # Halves of surrogate pairs would make the whole answer unreadable.
    return text.encode(errors="backslashreplace").decode()


def _run_entrypoint(function, payload, context):
    try:
        result = _call_entrypoint(function, json.loads(payload))
    except SystemExit as error:
        return _describe_failure(error, "SystemExit")
    except BaseException as error:
        return _describe_failure(error)
    try:
        output = json.dumps(result, allow_nan=False, ensure_ascii=False, separators=(",", ":"))
        body = output.encode()
        problem = find_duplicate_key(result)
    except MemoryError:
        raise
    except Exception as error:
        problem = _find_problem(result) or f"{type(error).__name__}: {error}"
    if problem is None:
        return {"body": body}
    return {"problem": _escape_surrogates(f"The result is not JSON: {problem}"[:MAX_MESSAGE_CHARS])}


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


def find_duplicate_key(result):
    """Return where two keys of one dict are the same in JSON (`1` and `"1"`), or None."""
    if not _has_odd_keys(result):
        return None
    pending = [("", result)]
    while pending:
        place, value = pending.pop()
        if isinstance(value, dict):
            if any(type(key) is not str for key in value):
                names = {}
                for key in value:
                    name = _encode_key(key)
                    if name in names:
                        return (
                            f"{_quote_path(place)} has the keys {names[name]!r} and {key!r}, which are one key in JSON."
                        )
                    names[name] = key
            inner = value.items()
        else:
            inner = enumerate(value) if isinstance(value, (list, tuple)) else ()
        pending += [(_join_path(place, key), item) for key, item in inner if isinstance(item, (dict, list, tuple))]
    return None


def _find_problem(result):
    """Return the problem with the first value that JSON cannot hold; None if the search fails."""
    try:
        return find_bad_value(result)
    except Exception:
        return None  # a container class of the agent's own that cannot be searched


def find_bad_value(result):
    """Return the problem with the first value or key that JSON cannot hold; None if JSON can hold all."""
    # Depth first, with the containers around each place, to detect a cycle.
    pending = [("", result, ())]
    while pending:
        place, value, around = pending.pop()
        if isinstance(value, (dict, list, tuple)):
            if id(value) in around:
                return f"{_quote_path(place)} holds itself."
            if len(around) > 500:
                return f"{_quote_path(place)} nests too deep."
            if isinstance(value, dict):
                for key in value:
                    if not (key is None or isinstance(key, (str, int, float))):
                        key_text = f"{_shorten_text(repr(key))}, a {_get_type_name(key)}"
                        return f"{_quote_path(place)} has the key {key_text}. Use text for keys."
                    problem = _find_scalar_problem(key)
                    if problem is not None:
                        return f"a key of {_quote_path(place)} {problem}"
                inner = list(value.items())
            else:
                inner = list(enumerate(value))
            inside = (*around, id(value))
            pending += [(_join_path(place, key), item, inside) for key, item in reversed(inner)]
            continue
        problem = _find_scalar_problem(value)
        if problem is not None:
            return f"{_quote_path(place)} {problem}"
    return None


def _find_scalar_problem(value):
    if value is None or isinstance(value, bool):
        return None
    if isinstance(value, str):
        try:
            value.encode()
        except UnicodeEncodeError as error:
            return f"holds broken text: half of a surrogate pair at character {error.start}."
        return None
    if isinstance(value, int):
        try:
            int.__repr__(value)
        except ValueError:
            return "is a number of too many digits."
        return None
    if isinstance(value, float):
        if value != value or value in (float("inf"), float("-inf")):
            return f"is {float.__repr__(value)}, which JSON does not have. Return None or text in its place."
        return None
    return f"is a {_get_type_name(value)}. Return {_suggest_replacement(value)}."


def _suggest_replacement(value):
    kind = type(value)
    if hasattr(kind, "isoformat"):
        return "its .isoformat()"
    for method in ("model_dump", "tolist", "to_dict"):
        if hasattr(kind, method):
            return f"its .{method}()"
    if hasattr(kind, "__dataclass_fields__"):
        return "dataclasses.asdict() of it"
    if isinstance(value, (bytes, bytearray, memoryview)):
        return "text, for example its base64"
    names = {base.__name__ for base in kind.__mro__}
    if "Enum" in names:
        return "its .value"
    if names & {"Decimal", "UUID", "PurePath", "Fraction"}:
        return "its str()"
    if hasattr(kind, "__iter__"):
        return "its list()"
    return "text, a number, a list or a dict in its place"


def _get_type_name(value):
    module, name = type(value).__module__, type(value).__qualname__
    return name if module == "builtins" else f"{module}.{name}"


def _encode_key(key):
    return str.__str__(key) if isinstance(key, str) else json.dumps(key)


def _join_path(place, key):
    if type(key) is int:
        return f"{place}[{key}]"
    if isinstance(key, str) and key.isidentifier():
        return f"{place}.{_shorten_text(key)}" if place else _shorten_text(key)
    return f"{place}[{_shorten_text(repr(key))}]"


def _quote_path(place):
    if not place:
        return "the result"
    return (
        f"`{place}`"
        if len(place) <= MAX_PATH_CHARS
        else f"`{place[: MAX_PATH_CHARS // 2]}…{place[-MAX_PATH_CHARS // 2 :]}`"
    )


def _shorten_text(text):
    return text if len(text) <= 60 else text[:59] + "…"


def _build_answer(head, requests, answers):
    try:
        function = _import_entrypoint(head["entrypoint"])
    except BaseException as error:
        return _describe_failure(error)
    if head["mode"] == "check":
        return {"body": b"null"}
    os.write(answers, b"=")
    try:
        payload = read_frame(requests)
        context = read_frame(requests)
    except EOFError:
        os._exit(0)  # the worker no longer needs this slot
    os.write(answers, b"!")
    return _run_entrypoint(function, payload, context)


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
    sys.dont_write_bytecode = True
    sys.path[:0] = head["path"]
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
