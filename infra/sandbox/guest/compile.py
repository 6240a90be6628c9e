"""Write bytecode beside the sources under `/out`, inside the fence. Started with `python -I -S`.

Compiling does not run what it compiles, but the compiler reads untrusted text nevertheless. A file
that does not compile is reported with its line; a package may hold such files on purpose (templates,
code for another Python), so they fail a build only if the entrypoint needs them. Its arguments are the
descriptor of the answer and the folder's name inside the sandbox at run time.
"""

import json
import os
import py_compile
import resource
import signal
import sys

# Constants are folded: a few lines of source can become gigabytes of bytecode.
MAX_FILE_BYTES = 16 << 20
MAX_TOTAL_BYTES = 256 << 20


def write_bytecode():
    answers = int(sys.argv[1])
    os.write(answers, b"+")
    resource.setrlimit(resource.RLIMIT_FSIZE, (MAX_FILE_BYTES, MAX_FILE_BYTES))
    resource.setrlimit(resource.RLIMIT_DATA, (384 << 20, 384 << 20))
    # Past its size limit, a write is an error and not the end.
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    broken, total = [], 0
    for folder, subfolders, names in os.walk("/out"):
        if sys.argv[2] == "/environment":
            # A package's own tests, half of what some packages hold, are hardly ever imported.
            subfolders[:] = [name for name in subfolders if name != "tests"]
        for name in names:
            path = os.path.join(folder, name)
            if not name.endswith(".py"):
                continue
            if total > MAX_TOTAL_BYTES:
                broken.append(
                    f"{path[len('/out/') :]}: left out, the bytecode so far is larger than {MAX_TOTAL_BYTES} bytes"
                )
                continue
            name_inside = path[len("/out/") :]
            try:
                # Checked by hash and never: the files lie read-only from now on.
                bytecode = py_compile.compile(
                    path,
                    dfile=sys.argv[2] + path[len("/out") :],
                    doraise=True,
                    invalidation_mode=py_compile.PycInvalidationMode.UNCHECKED_HASH,
                )
                total += os.path.getsize(bytecode)
            except py_compile.PyCompileError as error:
                # The compiler's message on NUL characters names no file, and its message on a long line is cut.
                message = error.msg.strip()[-500:]
                broken.append(message if name_inside in message else f"{name_inside}: {message}")
            except (OSError, ValueError, RecursionError, MemoryError) as error:
                broken.append(f"{name_inside}: {type(error).__name__}: {error}"[:500])
    # A name that is no UTF-8 has halves of surrogate pairs, which no answer can hold.
    messages = [message.encode("utf-8", "backslashreplace").decode() for message in broken[:20]]
    os.write(answers, json.dumps({"broken": messages, "count": len(broken)}).encode())
    os._exit(0)


write_bytecode()
