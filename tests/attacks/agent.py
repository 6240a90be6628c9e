"""The attacks, as an agent that means harm. Each returns what it got; `broke` says whether it got out.

Standard library alone: this file runs inside the fence.
"""

import contextlib
import ctypes
import errno
import fcntl
import glob
import hashlib
import json
import mmap
import os
import re
import resource
import signal
import socket
import subprocess
import sys
import time

libc = ctypes.CDLL(None, use_errno=True)
SYSCALLS = {
    "x86_64": {
        "exit": 60,
        "inotify_init1": 294,
        "syncfs": 306,
        "add_key": 248,
        "keyctl": 250,
        "memfd_create": 319,
        "bpf": 321,
        "io_uring_setup": 425,
        "userfaultfd": 323,
    },
    "aarch64": {
        "exit": 93,
        "inotify_init1": 26,
        "syncfs": 267,
        "add_key": 217,
        "keyctl": 219,
        "memfd_create": 279,
        "bpf": 280,
        "io_uring_setup": 425,
        "userfaultfd": 282,
    },
}[os.uname().machine]


def _call(name, *args):
    ctypes.set_errno(0)
    return libc.syscall(SYSCALLS[name], *args), ctypes.get_errno()


def _got(found):
    return {"broke": bool(found), "got": [str(one)[:200] for one in found][:10]}


def host_files(p):
    found = []
    for path in [p["marker"], "/etc/passwd", "/etc/shadow", "/root", "/home", "/var", p["data"]]:
        with contextlib.suppress(OSError):
            found.append((path, _listed(path) if os.path.isdir(path) else open(path).read(50)))
    # The one user that every sandbox knows is no user of the host.
    return _got([one for one in found if one[1] and not str(one[1]).startswith("agent:x:65534:")])


def host_packages(p):
    """What the host has installed for itself: found by a Python that is started, or lying in its folders."""
    found = [
        path
        for base in {sys.base_prefix, "/usr", "/usr/local"}
        for path in glob.glob(f"{base}/lib*/python*/*-packages/*")
        if os.path.basename(path) != "paddock.pth"
    ]
    # Where nothing lies in the folders that we know of, a Python may know of others. Few: each start takes its time.
    told = "import importlib.metadata as m, json; print(json.dumps([d.name for d in m.distributions()]))"
    for command in ([sys.executable], ["python3", "-I"], ["/usr/bin/python3"]):
        with contextlib.suppress(OSError, ValueError):
            ran = subprocess.run([*command, "-c", told], capture_output=True, check=False)
            found += json.loads(ran.stdout or b"[]")
        if found:
            break
    return _got(found)


def _listed(folder):
    """What lies in a folder, besides the empty way to the interpreter."""
    return [name for name in os.listdir(folder) if not sys.base_prefix.startswith(os.path.join(folder, name))]


def other_versions(p):
    """The folders beside one's own: other tenants' code."""
    beside = os.path.dirname(p["code"])
    return _got(os.listdir(beside) if os.path.isdir(beside) else [])


def write_outside(p):
    found = []
    for folder in ["/", "/agent", "/usr", "/dev", "/guest", "/proc/sys/kernel"]:
        with contextlib.suppress(OSError):
            open(f"{folder}/written", "w").write("x")
            found.append(folder)
    return _got(found)


def worker_environment(p):
    found = []
    for path in ["/proc/self/environ", *glob.glob("/proc/[0-9]*/environ")]:
        with contextlib.suppress(OSError):
            if p["secret"].encode() in open(path, "rb").read():
                found.append(path)
    if p["secret"] in repr(dict(os.environ)):
        found.append("os.environ")
    return _got(found)


def host_tcp(p):
    found = []
    for family, address in ((socket.AF_INET, "127.0.0.1"), (socket.AF_INET, p["address"])):
        with contextlib.suppress(OSError), socket.socket(family) as client:
            client.settimeout(1)
            client.connect((address, p["port"]))
            found.append(address)
    return _got(found)


def host_abstract_socket(p):
    with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX) as client:
        client.connect("\0" + p["abstract"])
        return _got(["connected"])
    return _got([])


def any_socket(p):
    found = []
    for family in range(1, 46):
        for kind in (socket.SOCK_STREAM, socket.SOCK_DGRAM, socket.SOCK_RAW):
            with contextlib.suppress(OSError):
                socket.socket(family, kind).close()
                found.append((family, int(kind)))
    with contextlib.suppress(OSError):
        socket.socketpair(socket.AF_UNIX)[0].close()
    for family in (socket.AF_INET, 40):
        with contextlib.suppress(OSError):
            socket.socketpair(family)
            found.append(("pair", family))
    return _got(found)


# What a program with a gateway may try besides.


def gateway_host(p):
    """Anything but its own network: the host's services, whatever it routes to, the internet."""
    found = []
    for address in ("127.0.0.1", p["address"], "169.254.169.254", "10.0.0.1", "8.8.8.8"):
        for port in [p["port"], *p.get("ports", [])]:
            with socket.socket() as client:
                client.settimeout(0.5)
                error = client.connect_ex((address, port))
            if error not in (errno.ECONNREFUSED, errno.ENETUNREACH, errno.EPERM):
                found.append((address, port, error))
    return _got(found)


def gateway_sockets(p):
    """Every socket but TCP over IPv4, and what can be asked of that one besides its work."""
    found = []
    for family in range(1, 46):
        for kind in (socket.SOCK_STREAM, socket.SOCK_DGRAM, socket.SOCK_RAW, socket.SOCK_SEQPACKET):
            for protocol in (0, 1, 17, 132, 255, 262):
                if (family, kind, protocol) == (socket.AF_INET, socket.SOCK_STREAM, 0):
                    continue
                with contextlib.suppress(OSError):
                    socket.socket(family, kind, protocol).close()
                    found.append((family, int(kind), protocol))
    for kind in (socket.SOCK_DGRAM, socket.SOCK_RAW):
        with contextlib.suppress(OSError):
            socket.socketpair(socket.AF_UNIX, kind)
            found.append(("pair", int(kind)))
    with socket.socket() as tcp:
        for request in (0x8912, 0x8933, 0x8B01):  # addresses, numbers and radios of interfaces
            with contextlib.suppress(OSError):
                fcntl.ioctl(tcp, request, bytes(64))
                found.append(hex(request))
        for level, option in ((1, 26), (6, 31), (0, 64)):  # a filter program, an upper protocol, packet tables
            try:
                tcp.setsockopt(level, option, bytes(16))
                found.append((level, option))
            except OSError as error:
                if error.errno != errno.EPERM:
                    found.append((level, option, error.errno))
        with contextlib.suppress(OSError):
            tcp.bind(("127.0.0.1", 0))
            tcp.listen()
            with socket.create_connection(tcp.getsockname()), tcp.accept()[0]:
                found.append("a server of its own")
    return _got(found)


def gateway_unix(p):
    """Now that there is connect(2): sockets of the host that lie in files it sees, or have names."""
    found = []
    for kind in (socket.SOCK_STREAM, socket.SOCK_DGRAM):
        for name in (f"/agent/door-{int(kind)}", "\0" + p["abstract"] + f"-{int(kind)}"):
            for make in (lambda kind=kind: socket.socket(socket.AF_UNIX, kind), lambda kind=kind: _pair(kind)):
                with contextlib.suppress(OSError), make() as client:
                    client.connect(name)
                    found.append(("connected", name))
                with contextlib.suppress(OSError), make() as client:
                    client.sendto(b"x", name)
                    found.append(("sent", name))
    return _got(found)


def _pair(kind):
    return socket.socketpair(socket.AF_UNIX, kind)[0]


def _asked(port, body, path="/v1/chat/completions", timeout=20):
    """The status and all of the answer to a request by hand."""
    data = json.dumps(body).encode()
    head = f"POST {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: {len(data)}\r\n\r\n"
    with socket.create_connection(("127.0.0.1", port), timeout) as client:
        client.sendall(head.encode() + data)
        told = b""
        while part := client.recv(65536):
            told += part
    return int(told.split()[1]), told.decode()


def _own():
    return int(os.environ["OPENAI_BASE_URL"].split(":")[2].split("/")[0])


def _ask(model, *words):
    return {"model": model, "messages": [{"role": "user", "content": " ".join(words) or "hello"}]}


def gateway_others(p):
    """The gateway of a run beside this one, which is at the same address in a network of its own."""
    told = []
    for _ in range(20):
        with contextlib.suppress(OSError):
            told.append(_asked(p["other"], _ask("small"), timeout=2))
    assert _asked(_own(), _ask("small"))[0] == 200
    return _got([text for _, text in told if "another's" in text])


def gateway_wait(p):
    """Beside which another run looks for this one's gateway."""
    print(_own(), flush=True)
    time.sleep(20)


def gateway_models(p):
    """A model that its manifest does not name."""
    assert _asked(_own(), _ask("small"))[0] == 200
    found = [_asked(_own(), _ask(name)) for name in ("large", "SMALL", "small ", "../large", "")]
    return _got([told for told in found if told[0] == 200])


def gateway_words(p):
    """A provider's key in anything that the gateway says; the worker's errors all hold it."""
    asked = [_ask("small", "fail", kind) for kind in p["kinds"]]
    told = [_asked(_own(), {**one, **more}) for one in asked for more in ({}, {"stream": True})]
    told += [_asked(_own(), body) for body in ({}, [], {"model": "x" * 1000})]
    told += [_asked(_own(), {}, path) for path in ("/", "/v1/models", "/v1/embeddings", "/v1/../../etc/passwd")]
    return _got([text for _, text in told if _keys(text.encode(), p) or "Traceback" in text])


def gateway_key(p):
    """The same key in its environment, in its memory, in what it sees of processes."""
    assert _asked(_own(), _ask("small"))[0] == 200
    found = []
    for path in ["/proc/self/environ", *glob.glob("/proc/[0-9]*/environ"), *glob.glob("/proc/[0-9]*/cmdline")]:
        with contextlib.suppress(OSError):
            found += _keys(open(path, "rb").read(), p)
    for line in open("/proc/self/maps").read().splitlines():
        span, rights = line.split()[:2]
        if rights.startswith("r") and "[v" not in line:
            start, end = (int(one, 16) for one in span.split("-"))
            with contextlib.suppress(OSError, ValueError, OverflowError), open("/proc/self/mem", "rb", 0) as memory:
                memory.seek(start)
                found += _keys(memory.read(end - start) or b"", p)
    return _got(found)


def _keys(data, p):
    # By its hash: what this program is told is in its memory, and it looks there.
    words = re.findall(("sk-" + "pdk-[0-9a-f]{32}").encode(), data)
    return [word for word in words if hashlib.sha256(word).hexdigest() == p["key"]]


# What a program with declared hosts may try: `p["hosts"]` are these, with what their names lead to outside.


def _said(host, port, data=b"hello"):
    """What a service of the host answers, empty if nothing does."""
    with contextlib.suppress(OSError), socket.create_connection((host, port), 3) as client:
        client.sendall(data)
        client.settimeout(3)
        return client.recv(200)
    return b""


def egress_undeclared(p):
    """The service of a declared host, by every address but its own, and other ports of its own."""
    assert _said(*p["declared"]) == b"outside"
    # With a network of the host, the service is right here.
    return _got([told for address in ("127.0.0.1", "127.0.0.2") if (told := _said(address, p["service"]))])


def egress_others(p):
    """Names and services that a resolver or a router would find: no DNS, no UDP, no IPv6."""
    found = []
    for name in ("example.com", "other.example", "metadata.google.internal"):
        with contextlib.suppress(OSError):
            found.append(socket.getaddrinfo(name, 443))
    for family, kind, address in (
        (socket.AF_INET, socket.SOCK_DGRAM, ("127.0.0.1", 53)),
        (socket.AF_INET6, socket.SOCK_STREAM, ("::1", p["service"])),
        (socket.AF_INET, socket.SOCK_RAW, ("127.0.0.1", 0)),
    ):
        with contextlib.suppress(OSError):
            socket.socket(family, kind).close()
            found.append((family, kind, address))
    return _got(found)


def egress_private(p):
    """Declared names that lead to this host, to metadata, and elsewhere at their second connection."""
    return _got([(name, told) for name in p["private"] for _ in range(2) if (told := _said(name, p["service"]))])


def egress_proxy(p):
    """Hosts and ports that no wildcard stands for, through the proxy."""
    found = []
    asked = [
        f"{name}:{p['service']}"
        for name in ("other.example", "127.0.0.1", "localhost", "cloud.example", "x.cloud.example.")
    ]
    for target in [*asked, "x.cloud.example:1", f"[::1]:{p['service']}"]:
        told = _said("127.0.0.1", 3128, f"CONNECT {target} HTTP/1.1\r\n\r\n".encode())
        if not told.startswith((b"HTTP/1.1 403", b"HTTP/1.1 400")):
            found.append((target, told))
    return _got(found)


def gateway_memory(p):
    """Bytes that lie in TCP sockets belong to no process, and on some hosts to no group."""
    listener = socket.socket()
    listener.bind(("127.0.0.1", 0))
    listener.listen(250)
    clients, held = [], 0
    while len(clients) < 200 and held < (p["much"] << 20):
        client = socket.create_connection(listener.getsockname(), 2)
        client.setblocking(False)
        clients.append(client)
        with contextlib.suppress(BlockingIOError):
            while True:
                held += client.send(b"x" * 65536)
    time.sleep(0.5)
    return _got([held] if held > (200 << 20) else [])


def keyring(p):
    found = []
    key, _ = _call("add_key", b"user", b"paddock-attack", b"x", 1, -3)
    if key >= 0:
        found.append(("add_key", key))
    ring, _ = _call("keyctl", 0, -4, 0)
    if ring >= 0:
        found.append(("keyctl", ring))
    return _got(found)


def forbidden_calls(p):
    found = []
    for name, args in (
        ("memfd_create", (b"x", 0)),
        ("bpf", (0, 0, 0)),
        ("io_uring_setup", (1, 0)),
        ("userfaultfd", (0,)),
    ):
        result, error = _call(name, *args)
        if error != 1:  # EPERM
            found.append((name, result, error))
    return _got(found)


def nested_namespaces(p):
    found = []
    for flag in (0x10000000, 0x10000000 | 0x00020000, 0x40000000, 0x20000000):
        pid = os.fork()
        if pid == 0:
            os._exit(0 if libc.unshare(flag) == 0 else 1)
        if os.waitpid(pid, 0)[1] == 0:
            found.append(hex(flag))
    # clone(2) with CLONE_NEWUSER, without libc's help
    number = {"x86_64": 56, "aarch64": 220}[os.uname().machine]
    pid = libc.syscall(number, 0x10000000 | signal.SIGCHLD, 0, 0, 0, 0)
    if pid == 0:
        os._exit(0)
    if pid > 0:
        os.waitpid(pid, 0)
        found.append("clone")
    return _got(found)


def ptrace(p):
    pid = os.fork()
    if pid == 0:
        time.sleep(5)
        os._exit(0)
    attached = libc.ptrace(16, pid, 0, 0)
    os.kill(pid, signal.SIGKILL)
    return _got(["attached"] if attached == 0 else [])


def siblings_limits(p):
    pid = os.fork()
    if pid == 0:
        time.sleep(5)
        os._exit(0)
    found = []
    with contextlib.suppress(OSError, ValueError):
        resource.prlimit(pid, resource.RLIMIT_NOFILE, (1, 1))
        found.append(pid)
    os.kill(pid, signal.SIGKILL)
    return _got(found)


def other_processes(p):
    seen = [int(name) for name in os.listdir("/proc") if name.isdigit()]
    found = [pid for pid in seen if pid == p["runner"]]
    with contextlib.suppress(OSError):
        os.kill(p["runner"], 0)
        found.append("signal")
    return _got(found)


def capabilities(p):
    lines = dict(line.split(":\t") for line in open("/proc/self/status").read().splitlines() if ":\t" in line)
    return _got([f"{name} {lines[name]}" for name in ("CapEff", "CapPrm", "CapAmb") if int(lines[name], 16)])


def kernel_settings(p):
    found = [name for folder in ("/proc/sys",) if os.path.isdir(folder) for name in os.listdir(folder)]
    for path in ("/proc/kallsyms", "/proc/keys", "/proc/config.gz"):
        with contextlib.suppress(OSError):
            if open(path, "rb").read(10):
                found.append(path)
    return _got(found)


def shared_ipc(p):
    return _got(["same"] if os.readlink("/proc/self/ns/ipc") == p["ipc"] else [])


def shared_session(p):
    # Outside one's own process namespace, the session's leader has no number here.
    return _got(["the worker's session"] if os.getsid(0) == 0 else [])


def root_only_file(p):
    with contextlib.suppress(OSError):
        return _got([open("/agent/owner_only").read(20)])
    return _got([])


def inherited_descriptors(p):
    found = []
    for fd in os.listdir("/proc/self/fd"):
        with contextlib.suppress(OSError):
            target = os.readlink(f"/proc/self/fd/{fd}")
            if p["marker"] in target or "socket" in target:
                found.append(target)
    return _got(found)


def fork_bomb(p):
    children = []
    with contextlib.suppress(OSError):
        for _ in range(300):
            pid = os.fork()
            if pid == 0:
                time.sleep(20)
                os._exit(0)
            children.append(pid)
    for pid in children:
        os.kill(pid, signal.SIGKILL)
    return _got(children if len(children) >= 100 else [])


def thread_bomb(p):
    import threading

    stop, count = threading.Event(), 0
    with contextlib.suppress(RuntimeError):
        for _ in range(300):
            threading.Thread(target=stop.wait, daemon=True).start()
            count += 1
    stop.set()
    return _got([count] if count >= 100 else [])


def _touched(size, flags):
    block = mmap.mmap(-1, size, flags=flags)
    for offset in range(0, size, 4096):
        block[offset] = 1
    return block


def memory_of_one(p):
    held = _touched(p["much"] << 20, mmap.MAP_PRIVATE)
    time.sleep(0.5)
    return _got([len(held)])


def memory_shared(p):
    held = _touched(p["much"] << 20, mmap.MAP_SHARED)
    time.sleep(0.5)
    return _got([len(held)])


def memory_of_many(p):
    pids = []
    for _ in range(6):
        pid = os.fork()
        if pid == 0:
            held = _touched(p["much"] << 18, mmap.MAP_PRIVATE)
            time.sleep(1.0)
            os._exit(0 if held else 1)
        pids.append(pid)
    return _got([pid for pid in pids if os.waitpid(pid, 0)[1] == 0])


def memory_of_the_kernel(p):
    """Bytes that lie in sockets belong to no process."""
    pairs, held = [], 0
    with contextlib.suppress(OSError):
        while held < (p["much"] << 20):
            a, b = socket.socketpair()
            with contextlib.suppress(OSError):
                a.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 24)
            a.setblocking(False)
            pairs.append((a, b))
            with contextlib.suppress(BlockingIOError):
                while True:
                    held += a.send(b"x" * 65536)
    return _got([held] if held > (200 << 20) else [])


def memory_of_many_sockets(p):
    """The same with nothing but what the filter allows: many processes with as many small sockets as each may have."""
    pids, (ready, told) = [], os.pipe()
    for _ in range(16):
        pid = os.fork()
        if pid == 0:
            pairs, held = [], 0
            with contextlib.suppress(OSError):
                while True:
                    pairs.append(socket.socketpair())
                    for end in pairs[-1]:
                        end.setblocking(False)
                        with contextlib.suppress(BlockingIOError):
                            while True:
                                held += end.send(b"x" * 32768)
            os.write(told, held.to_bytes(8, "little"))
            time.sleep(60)
        pids.append(pid)
    os.close(told)
    held = 0
    with contextlib.suppress(OSError):
        for _ in pids:
            held += int.from_bytes(os.read(ready, 8), "little")
    for pid in pids:
        os.kill(pid, signal.SIGKILL)
    return _got([held] if held > (p["much"] << 20) else [])


def _without_the_first_thread(work):
    """Do the work in a thread, and end the one that the process began with: its files in /proc are empty from then on."""
    import threading

    # The descriptor that the guest answers through, from the frame that runs this agent.
    frame = sys._getframe()
    while "answers" not in frame.f_locals:
        frame = frame.f_back
    fd = frame.f_locals["answers"]

    def worker():
        # A line of JSON, and the result's JSON.
        os.write(fd, b"{}\n" + json.dumps(work()).encode())
        os._exit(0)

    threading.Thread(target=worker).start()
    _call("exit", 0)


def memory_of_ended_threads(p):
    """Memory of processes whose first thread has ended, each within the limit of a process."""
    import threading

    pids = []
    for _ in range(6):
        pid = os.fork()
        if pid == 0:

            def hold():
                held = _touched(p["much"] << 18, mmap.MAP_PRIVATE)
                time.sleep(1.5)
                os._exit(0 if held else 1)

            threading.Thread(target=hold).start()
            libc.pthread_exit(None)
        pids.append(pid)
    return _got([pid for pid in pids if os.waitpid(pid, 0)[1] == 0])


def inodes_of_an_ended_thread(p):
    """Files of a run whose first thread has ended."""
    _without_the_first_thread(lambda: inodes(p))


def memory_of_hoppers(p):
    """Processes that fork and leave again and again, so that none of them is where it was looked for."""
    ready, told = os.pipe()
    # Whoever leaves is not waited for, and must not count among the processes that a run may have.
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    for _ in range(6):
        if os.fork() == 0:
            held = _touched(p["much"] << 18, mmap.MAP_PRIVATE)
            until = time.monotonic() + 1.5
            while time.monotonic() < until:
                if os.fork():
                    os._exit(0)
                time.sleep(0.002)
            os.write(told, b"." if held else b"")
            os._exit(0)
    os.close(told)
    done = b""
    while part := os.read(ready, 6):
        done += part
    return _got([len(done)] if len(done) > 3 else [])


def memory_not_to_be_dumped(p):
    """Processes whose files in /proc are root's."""
    pids = []
    for _ in range(6):
        pid = os.fork()
        if pid == 0:
            libc.prctl(4, 0, 0, 0, 0)
            held = _touched(p["much"] << 18, mmap.MAP_PRIVATE)
            time.sleep(1.0)
            os._exit(0 if held else 1)
        pids.append(pid)
    return _got([pid for pid in pids if os.waitpid(pid, 0)[1] == 0])


def terminals(p):
    """Pseudo terminals, of which the whole host has a few thousand."""
    found = []
    for path in ("/dev/ptmx", "/dev/pts/ptmx"):
        with contextlib.suppress(OSError):
            found.append(os.ttyname(os.open(path, os.O_RDWR | os.O_NOCTTY)) or path)
    with contextlib.suppress(OSError):
        found.append(os.openpty())
    return _got(found)


def calls_for_the_whole_host(p):
    """What takes from all users or file systems of the host."""
    found = []
    for name, arguments in (("inotify_init1", (0,)), ("syncfs", (os.open("/usr", os.O_RDONLY),))):
        result, error = _call(name, *arguments)
        if error not in (errno.EPERM, errno.ENOSYS):
            found.append((name, result, error))
    return _got(found)


def processors(p):
    """A session per process: where processors are shared by session, each counts as much as the API."""
    os.sched_setaffinity(0, {p["processor"]})
    until, pids = time.monotonic() + 3, []
    for _ in range(30):
        pid = os.fork()
        if pid == 0:
            os.setsid()
            while time.monotonic() < until:
                pass
            os._exit(0)
        pids.append(pid)
    for pid in pids:
        os.waitpid(pid, 0)
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    # Whether that was too much is for the one beside to say (`runner.py`).
    return {"broke": False, "got": [], "used": used.ru_utime + used.ru_stime}


def limits_of_its_own(p):
    """A module of the agent's in place of the one that sets the limits lies beside this file."""
    if (
        int(open("/proc/self/limits").read().split("Max processes")[1].split()[0].replace("unlimited", "9999999"))
        > 1000
    ):
        return _got(["unlimited"])
    return _got([])


def disk(p):
    written = 0
    with contextlib.suppress(OSError):
        for number in range(10):
            with open(f"/tmp/{number}", "wb") as file:
                for _ in range(20):
                    written += file.write(b"x" * (1 << 20))
    return _got([written] if written > (100 << 20) else [])


def inodes(p):
    for number in range(60_000):
        open(f"/tmp/{number}", "w").close()
    time.sleep(0.2)
    return _got([60_000])


def daemon(p):
    """Leaves processes behind that ignore every signal they can, in sessions of their own."""
    for _ in range(2):
        if os.fork() == 0:
            os.setsid()
            if os.fork() == 0:
                libc.prctl(15, p["name"].encode())
                for number in range(1, 65):
                    with contextlib.suppress(OSError, ValueError):
                        signal.signal(number, signal.SIG_IGN)
                for fd in range(3):
                    os.close(fd)
                time.sleep(30)
            os._exit(0)
    time.sleep(0.3)
    return {"broke": False, "got": []}


def stubborn(p):
    """Never ends by itself."""
    libc.prctl(15, p["name"].encode())
    for number in range(1, 65):
        with contextlib.suppress(OSError, ValueError):
            signal.signal(number, signal.SIG_IGN)
    while True:
        time.sleep(1)


def outlive(p):
    """Goes on when whoever started it is gone."""
    libc.prctl(15, p["name"].encode())
    libc.prctl(1, 0)
    sys.stdout.write("here\n")
    sys.stdout.flush()
    time.sleep(60)


def output(p):
    block = "x" * 1023 + "\n"
    for _ in range(p["much"] << 10):
        sys.stdout.write(block)
    return _got([])


def nothing(p):
    return _got([])


def handle(p):
    """What executions call: the attack that the payload names."""
    return globals()[p["attack"]](p)
