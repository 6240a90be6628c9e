"""Make the listeners of a sandbox in a network of its own, which has nothing but a loopback interface.

Trusted code does this before anything of the agent runs, and keeps no right over the network. The worker decides where
the listeners are, receives them through a pair of Unix sockets, and verifies each. The fork server imports this module
under `python -I -S`: standard library alone, and little of it.
"""

import fcntl
import os
import socket
import struct
from collections.abc import Sequence

from infra.sandbox import linux

# A name, an address of IPv4 and a port; as JSON, for the fork server.
ListenerPlace = tuple[str, str, int]

_BACKLOG_CONNECTIONS = 128
_SIOCGIFFLAGS, _SIOCSIFFLAGS, _IFF_UP = 0x8913, 0x8914, 1
# linux/rtnetlink.h and linux/if_addr.h: adding an address to an interface.
_NETLINK_ROUTE, _NEW_ADDRESS, _MESSAGE_ERROR = 0, 20, 2
_REQUEST_FLAGS = 0x605  # NLM_F_REQUEST, NLM_F_ACK, NLM_F_EXCL, NLM_F_CREATE
_ADDRESS_ATTRIBUTE, _LOCAL_ATTRIBUTE, _HOST_SCOPE = 1, 2, 254
# In a new network the loopback interface is the first.
_LOOPBACK_INDEX = 1


def create_network(as_root: bool) -> None:
    """Give this process a network of its own. An ordinary user needs a user namespace for it, which is left by an exec.

    Errors: `OSError`.
    """
    if not as_root:
        uid, gid = os.getuid(), os.getgid()
        linux.unshare(linux.CLONE_NEWUSER | linux.CLONE_NEWNET)
        linux.map_user(uid, uid, gid, gid)
    else:
        linux.unshare(linux.CLONE_NEWNET)


def send_listeners(pair: socket.socket, places: Sequence[ListenerPlace], *, is_separate: bool) -> None:
    """Open the listeners and send them through a pair of sockets, in the order of their places, in one message.

    `is_separate` tells that the network is the sandbox's own; only tests open listeners in the host's, which several
    sandboxes share then. Errors: `OSError`, which names the place.
    """
    if is_separate:
        _enable_loopback()
    listeners = []
    try:
        for _, address, port in places:
            if is_separate and not address.startswith("127."):
                _add_loopback_address(address)
            listeners.append(_open_listener(address, port, shares_port=not is_separate))
        socket.send_fds(pair, [b"listeners"], [listener.fileno() for listener in listeners])
    finally:
        for listener in listeners:
            listener.close()


def _open_listener(address: str, port: int, shares_port: bool) -> socket.socket:
    listener = socket.socket()
    try:
        if shares_port:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        listener.bind((address, port))
        listener.listen(_BACKLOG_CONNECTIONS)
    except OSError as error:
        listener.close()
        raise OSError(error.errno, f"listening on {address}:{port}: {error.strerror}") from None
    return listener


def _enable_loopback() -> None:
    """Turn the loopback interface on; the kernel gives it 127.0.0.0/8 then."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as any_socket:
        request = struct.pack("16sh14x", b"lo", 0)
        name, flags = struct.unpack("16sh14x", fcntl.ioctl(any_socket, _SIOCGIFFLAGS, request))
        try:
            fcntl.ioctl(any_socket, _SIOCSIFFLAGS, struct.pack("16sh14x", name, flags | _IFF_UP))
        except PermissionError as error:
            # An ordinary user has it in the user namespace that the network belongs to.
            problem = "the network of a sandbox cannot be made: a worker that is root needs the capability NET_ADMIN"
            raise OSError(error.errno, problem) from None


def _add_loopback_address(address: str) -> None:
    """Give the loopback interface one more address, unless it has that one. Errors: `OSError`."""
    packed = socket.inet_aton(address)
    attributes = b"".join(struct.pack("=HH4s", 8, kind, packed) for kind in (_LOCAL_ATTRIBUTE, _ADDRESS_ATTRIBUTE))
    body = struct.pack("=BBBBI", socket.AF_INET, 32, 0, _HOST_SCOPE, _LOOPBACK_INDEX) + attributes
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, _NETLINK_ROUTE) as netlink:
        netlink.sendto(struct.pack("=IHHII", 16 + len(body), _NEW_ADDRESS, _REQUEST_FLAGS, 1, 0) + body, (0, 0))
        answer = netlink.recv(4096)
    _, kind, _, _, _, error = struct.unpack_from("=IHHIIi", answer)
    # The listener of another port of this address may have added it.
    if kind == _MESSAGE_ERROR and error not in (0, -17):
        raise OSError(-error, f"adding {address} to the loopback interface: {os.strerror(-error)}")
