"""The guest: the first process inside the fence. Standard library alone, started with `python -I -S`.

Reads frames (a length in four bytes, then as many) from one descriptor: first what to import and
within which limits, then the payload. In between it may be made to wait, for as long as it takes until
there is a payload. To the other descriptor it writes a byte per stage (`+` fenced, `=` imported, `!` the
payload has been read), then a JSON line and, for a result, the result's JSON. What the agent prints goes
to stdout and stderr. The host believes nothing of all this but its size and its syntax.
"""

# Now, while the path holds the standard library alone: a module of the agent that is
# called `resource` must not set the agent's limits.
import importlib
import json
import os
import resource
import sys


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


def _limit(limits):
    for name, value in limits.items():
        kind = getattr(resource, "RLIMIT_" + name)
        resource.setrlimit(kind, (value, value))


def _resolve(entrypoint):
    module_name, _, path = entrypoint.partition(":")
    found = importlib.import_module(module_name)
    for name in path.split("."):
        found = getattr(found, name)
    if not callable(found):
        raise TypeError(f"{entrypoint} is {type(found).__name__}, which cannot be called")
    return found


def _call(function, payload):
    result = function(payload)
    if hasattr(result, "__await__"):
        import asyncio

        async def finish():
            return await result

        result = asyncio.run(finish())
    return result


def _failure(error, kind=None):
    # Late, because it costs milliseconds; whatever module of the agent this may find harms its author alone.
    import traceback

    # The agent's own frames alone: ours and the import system's tell its author nothing.
    frames = error.__traceback__
    while frames is not None and (
        frames.tb_frame.f_code.co_filename == __file__ or "importlib" in frames.tb_frame.f_code.co_filename
    ):
        frames = frames.tb_next
    try:
        message = str(error)
    except Exception:
        message = "(the exception cannot be shown)"
    stack = "".join(traceback.format_exception(type(error), error, frames))
    answer = {"error_type": kind or type(error).__name__, "error_message": message[:4000], "stack": stack[-16000:]}
    # Broken surrogates would make the whole answer unreadable.
    return {name: text.encode(errors="backslashreplace").decode() for name, text in answer.items()}


def _run(function, payload):
    try:
        result = _call(function, json.loads(payload))
    except SystemExit as error:
        return _failure(error, "SystemExit")
    except BaseException as error:
        return _failure(error)
    try:
        return {"output": json.dumps(result, allow_nan=False, ensure_ascii=False, separators=(",", ":"))}
    except (TypeError, ValueError, RecursionError, RuntimeError) as error:
        return {
            "error_type": "result_not_json",
            "error_message": f"The entrypoint returned {type(result).__name__}, which is not JSON: {error}"[:4000],
        }


def _answer(head, requests, answers):
    try:
        function = _resolve(head["entrypoint"])
    except BaseException as error:
        return _failure(error)
    if head["mode"] == "check":
        return {"output": "null"}
    os.write(answers, b"=")
    try:
        payload = read_frame(requests)
    except EOFError:
        os._exit(0)  # nobody wants this slot any more
    os.write(answers, b"!")
    return _run(function, payload)


def _send(fd, answer, most):
    output = answer.pop("output", None)
    if output is not None:
        try:
            body = output.encode()
        except UnicodeEncodeError as error:
            answer = {"error_type": "result_not_json", "error_message": f"The result holds broken text: {error}"[:4000]}
            output = None
        else:
            if len(body) > most:
                answer = {
                    "error_type": "result_too_large",
                    "error_message": f"The result is {len(body)} bytes of JSON; {most} are allowed.",
                }
                output = None
    head = json.dumps(answer).encode("ascii")
    data = head + b"\n" + (body if output is not None else b"")
    while data:
        data = data[os.write(fd, data) :]
    os.close(fd)


def _hand_over(fd):
    """Make a listener in this sandbox's own network and give it away whole: what is asked there, others answer."""
    import socket

    with socket.socket(fileno=fd) as pair, socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen(128)
        socket.send_fds(pair, [b"listener"], [listener.fileno()])
        url = f"http://127.0.0.1:{listener.getsockname()[1]}/v1"
    # No key: clients insist on one, and nobody looks at it.
    os.environ.update(OPENAI_BASE_URL=url, OPENAI_API_BASE=url, OPENAI_API_KEY="paddock")


def serve(head, requests, answers, hand=None):
    """Be the guest that `head` asks for. Never returns."""
    for fd in (requests, answers):
        os.set_inheritable(fd, False)
    _limit(head["limits"])
    if hand is not None:
        _hand_over(hand)
    sys.dont_write_bytecode = True
    sys.path[:0] = head["path"]
    for stream in (sys.stdout, sys.stderr):
        stream.reconfigure(line_buffering=True, errors="backslashreplace")
    try:
        answer = _answer(head, requests, answers)
    except MemoryError as error:
        answer = _failure(error)
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except Exception:
            pass
    _send(answers, answer, head["most"])
    # Not sys.exit: threads and exit handlers of the agent get no say in how long this takes.
    os._exit(0)


if __name__ == "__main__":
    feed, told, *hands = map(int, sys.argv[1:])
    del sys.argv[1:]
    os.write(told, b"+")
    serve(json.loads(read_frame(feed)), feed, told, *hands)
