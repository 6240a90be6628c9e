"""Give an entrypoint its context, and send what it yields and says. Loaded by `main` for entrypoints that need it.

A message goes to the answer pipe: `~`, a byte for its kind, its number and its length in four bytes each, and JSON.
The number of an output is also written to stdout and stderr, behind `OUTPUT_MARK` and before the message, so that the
host knows what was printed before it. Other messages have the number 0.
"""

import _thread
import json
import os
import sys

MAX_OUTPUT_BYTES = 256 * 1024
MAX_STATE_BYTES = 1024 * 1024
MAX_PROGRESS_CHARS = 1000
OUTPUT_MARK = b"\x00\x1bpaddock\x1b\x00"
_OTHER_PROCESS = (
    "The context works only in the process that called the entrypoint. Return to it what others have to say."
)


class ValueProblem(Exception):
    """Report a value that cannot be sent. `kind` is the error type of a run that ends with it."""

    def __init__(self, kind, text):
        super().__init__(text)
        self.kind = kind


def find_context_parameter(function):
    """Return how a function takes a context: as its second argument (`positional`), by name (`keyword`), or None."""
    try:
        outer = _list_parameters(function, follow_wrapped=False)
        way = _choose_way(outer)
        if way is None and any(kind in ("args", "kwargs") for _, kind, _ in outer):
            # What a decorator passes on, if it tells what it wraps.
            inner = _choose_way(_list_parameters(function))
            has_args = any(kind == "args" for _, kind, _ in outer)
            way = inner if inner == "keyword" or has_args else None
        if way == "keyword" and "context" in (getattr(function, "keywords", None) or {}):
            return None  # a partial that has one already
    except Exception:
        return None  # without a readable signature
    return way


def find_call_problem(function, way):
    """Return why every call of a function with its payload would fail, None if that cannot be known ahead."""
    try:
        parameters = _list_parameters(function, follow_wrapped=False)
    except Exception:
        return None  # without a readable signature
    kinds = [kind for _, kind, _ in parameters]
    count = 2 if way == "positional" else 1
    places = [item for item in parameters if item[1] in ("position", "either")]
    if len(places) < count and "args" not in kinds:
        return "takes no payload: define it as handle(payload) or handle(payload, context)"
    missing = [name for name, _, is_required in places[count:] if is_required]
    missing += [name for name, kind, is_required in parameters if kind == "name" and is_required]
    missing = [name for name in missing if way != "keyword" or name != "context"]
    if not missing:
        return None
    return f"requires {', '.join(missing)}, and is called with the payload and a context alone: give defaults"


def _choose_way(parameters):
    positional = [parameter for parameter in parameters if parameter[1] in ("position", "either")]
    if len(positional) > 1 and (positional[1][2] or positional[1][0] == "context"):
        return "positional"
    named = [kind for name, kind, _ in parameters[1:] if name == "context"]
    return "keyword" if named and named[0] in ("either", "name") else None


def _list_parameters(function, follow_wrapped=True):
    """Return the parameters of a function: name, kind, and whether it is required."""
    code = getattr(function, "__code__", None)
    if type(function) is type(_list_parameters) and not function.__dict__ and not code.co_kwonlyargcount:
        # Without `inspect`, which takes milliseconds to import.
        names, first_default = code.co_varnames, code.co_argcount - len(function.__defaults__ or ())
        kinds = ["position"] * code.co_posonlyargcount + ["either"] * (code.co_argcount - code.co_posonlyargcount)
        parameters = [(names[at], kind, at < first_default) for at, kind in enumerate(kinds)]
        parameters += [("args", "args", False)] if code.co_flags & 4 else []
        return parameters + ([("kwargs", "kwargs", False)] if code.co_flags & 8 else [])
    import inspect

    options = {}
    if sys.version_info >= (3, 14):
        import annotationlib

        # Names that exist for type checkers alone must not be looked up.
        options["annotation_format"] = annotationlib.Format.FORWARDREF
    kinds = dict(zip(inspect._ParameterKind, ("position", "either", "args", "name", "kwargs"), strict=True))
    signature = inspect.signature(function, follow_wrapped=follow_wrapped, **options)
    return [(item.name, kinds[item.kind], item.default is item.empty) for item in signature.parameters.values()]


class MessageWriter:
    """Write the messages of a run to its answer pipe, from any thread.

    `prints` are descriptors of stdout and stderr as they were at the start. `encode` is `main.encode_value`.
    """

    def __init__(self, answers, prints, encode):
        self._prints, self._encode = prints, encode
        self._pid = os.getpid()
        self._lock = _thread.RLock()
        # A whole message fits: what is left of one when a signal handler of the agent raises, goes out with the next.
        self._file = os.fdopen(answers, "wb", buffering=MAX_OUTPUT_BYTES + 4096, closefd=False)
        self._count = 0
        self._is_closed = False

    def send_output(self, value):
        """Send a value, and return its JSON. Errors: `ValueProblem`."""
        name = f"Output {self._count + 1}"
        body, problem = self._encode(value, name, ("the output", "Use"))
        if problem is not None:
            raise ValueProblem("output_not_json", problem)
        if len(body) > MAX_OUTPUT_BYTES:
            text = f"{name} is {len(body)} bytes of JSON; at most {MAX_OUTPUT_BYTES} are allowed. Send it in parts."
            raise ValueProblem("output_too_large", text)
        for stream in (sys.stdout, sys.stderr):
            try:
                stream.flush()
            except (AttributeError, OSError, ValueError):
                pass  # closed, or replaced by the agent
        with self._lock:
            self._count += 1
            number = self._count.to_bytes(4, "big")
            self._check_open()
            for fd in self._prints:
                try:
                    os.write(fd, OUTPUT_MARK + number)
                except OSError:
                    pass  # closed by the agent
            self._write(b"o", body, number)
        return body

    def send(self, kind, body):
        """Send a message that is no output."""
        with self._lock:
            self._check_open()
            self._write(kind, body)

    def close(self):
        """Wait for what other threads are sending, and send nothing more."""
        with self._lock:
            self._is_closed = True
            self._file.flush()

    def _check_open(self):
        if os.getpid() != self._pid:
            raise RuntimeError(_OTHER_PROCESS)
        if self._is_closed:
            raise RuntimeError("The run has ended, and can send nothing more.")

    def _write(self, kind, body, number=bytes(4)):
        self._file.write(b"~" + kind + number + len(body).to_bytes(4, "big") + body)
        self._file.flush()


class RunContext:
    """Tell an entrypoint about its run, and take what it has to say while it works."""

    __slots__ = (
        *("attempt", "execution_id", "files", "messages", "thread_id"),
        *("_before", "_deadline", "_encode", "_has_asked", "_has_state", "_lock", "_read_state", "_state", "_writer"),
    )

    def __init__(self, values, writer, encode, read_state):
        self.execution_id, self.attempt = values["execution_id"], values["attempt"]
        self.thread_id, self.files = values.get("thread_id"), dict(values.get("files") or {})
        self.messages = list(values.get("messages") or [])
        self._deadline, self._writer, self._encode, self._read_state = values["deadline"], writer, encode, read_state
        self._lock = _thread.RLock()
        self._state = self._before = None
        self._has_state = self._has_asked = False

    def __repr__(self):
        return f"<context of {self.execution_id}, attempt {self.attempt}>"

    @property
    def deadline(self):
        """The time at which the run is ended, an aware datetime."""
        import datetime

        return datetime.datetime.fromisoformat(self._deadline)

    @property
    def state(self):
        """The state that earlier runs left; it is read when it is first used. At first it is an empty dict."""
        self._load_state()
        return self._state

    @state.setter
    def state(self, value):
        self._load_state()
        self._state = value

    def emit(self, data):
        """Send a value to those who follow the run, as a yield does. Errors: `ValueError`, if it is no JSON."""
        try:
            self._writer.send_output(data)
        except ValueProblem as problem:
            raise ValueError(str(problem)) from None

    def progress(self, fraction=None, message=None):
        """Tell how far the run has come: a fraction from 0 to 1 if it is known, and what is being done."""
        body = {"fraction": _check_fraction(fraction), "message": _check_message(message)}
        self._writer.send(b"p", json.dumps(body).encode())

    def _load_state(self):
        with self._lock:
            if self._has_state:
                return
            if self._has_asked:
                raise RuntimeError("The state could not be read: an exception interrupted it.")
            self._has_asked = True
            self._writer.send(b"r", b"null")
            self._state = json.loads(self._read_state() or b"{}")
            self._before = self._encode(self._state)[0]
            self._has_state = True

    def send_state(self):
        """Send the state, if the run has changed it. Errors: `ValueProblem`."""
        if not self._has_state:
            return
        body, problem = self._encode(self._state, "The state", ("the state", "Use"))
        if problem is not None:
            raise ValueProblem("state_not_json", problem)
        if body == self._before:
            return
        if len(body) > MAX_STATE_BYTES:
            text = f"The state is {len(body)} bytes of JSON; at most {MAX_STATE_BYTES} are allowed."
            raise ValueProblem("state_too_large", text)
        self._writer.send(b"s", body)


def _check_fraction(fraction):
    if fraction is None:
        return None
    try:
        # Any number: also those of numpy, Decimal and Fraction, but no text.
        number = float(fraction) if hasattr(type(fraction), "__float__") else None
    except (ArithmeticError, TypeError, ValueError):
        number = None
    # Sums of fractions may pass 1 by a rounding error.
    if number is None or not -1e-9 <= number <= 1 + 1e-9:
        raise ValueError(f"fraction must be a number from 0 to 1, or None; it is {str(fraction)[:60]!r}.")
    return min(1.0, max(0.0, number))


def _check_message(message):
    if message is None:
        return None
    if not isinstance(message, str):
        raise TypeError(f"message must be text or None; it is a {type(message).__name__}.")
    text = message if len(message) <= MAX_PROGRESS_CHARS else message[: MAX_PROGRESS_CHARS - 1] + "…"
    return text.encode(errors="backslashreplace").decode()


def run_generator(writer, generator):
    """Send each yield. Return the generator's return value and None, or None and the JSON of its last yield."""
    body = None
    while True:
        try:
            value = next(generator)
        except StopIteration as end:
            return (end.value, None) if end.value is not None else (None, body)
        try:
            body = writer.send_output(value)
        except ValueProblem:
            try:
                generator.close()
            except Exception:
                pass
            raise


async def run_async_iterator(writer, iterator):
    """Send each item. Return None and the JSON of the last one."""
    body = None
    try:
        async for value in iterator:
            body = writer.send_output(value)
    except ValueProblem:
        try:
            await iterator.aclose()
        except Exception:
            pass
        raise
    return None, body
