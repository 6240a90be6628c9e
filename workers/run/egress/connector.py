"""Connect with a host outside, at an address that the outbound guard admits for this connection."""

import asyncio
import contextlib
import socket
from ipaddress import IPv6Address, ip_address
from typing import Final

from infra.http import NO_PUBLIC_HOST, OutboundRefused
from workers.run.egress.lookups import TenantLookups
from workers.run.egress.schema import EgressEnd

# The most that a host may have on its way to an agent that does not read, in bytes, and an agent to a host.
_RECEIVE_WINDOW_BYTES: Final = 1 << 20
_SEND_BUFFER_BYTES: Final = 1 << 20
_TCP_WINDOW_CLAMP: Final = 10  # linux/tcp.h


async def connect_host(lookups: TenantLookups, tenant_id: str, host: str, port: int, seconds: float) -> socket.socket:
    """Return a socket that is connected with a host. Errors: `EgressEnd`."""
    clock = asyncio.get_running_loop().time
    ends_at = clock() + seconds
    addresses = await _find_addresses(lookups, tenant_id, host, port, ends_at)
    end = EgressEnd("unreachable", f"{host} has no address.", 502)
    for tried, address in enumerate(addresses):
        # An address that drops packets must not use up the time of the others.
        share = (ends_at - clock()) / (len(addresses) - tried)
        try:
            async with asyncio.timeout(max(share, 0.001)):
                return await _open_connection(address, port)
        except TimeoutError:
            end = EgressEnd("unreachable", f"{host}:{port} does not answer.", 504)
        except OSError as error:
            end = EgressEnd("unreachable", f"{host}:{port} cannot be reached: {error.strerror or error}.", 502)
    raise end


async def _find_addresses(lookups: TenantLookups, tenant_id: str, host: str, port: int, ends_at: float) -> list[str]:
    # A host without an address is refused as a private one is: an agent must not learn which of them exist.
    unknown = EgressEnd("refused", str(OutboundRefused(host, None, NO_PUBLIC_HOST)), 403)
    try:
        async with asyncio.timeout_at(ends_at):
            return await lookups.find_addresses(tenant_id, host, port)
    except OutboundRefused as error:
        raise EgressEnd("refused", str(error), 403) from None
    except TimeoutError:
        raise EgressEnd("unreachable", f"{host} was not looked up in time.", 504) from None
    except socket.gaierror as error:
        if error.errno in (socket.EAI_NONAME, socket.EAI_NODATA):
            raise unknown from None
        raise EgressEnd("unreachable", f"{host} cannot be looked up now.", 502) from None
    except (OSError, ValueError):
        raise unknown from None


async def _open_connection(address: str, port: int) -> socket.socket:
    """Connect with an address. Errors: `OSError`."""
    family = socket.AF_INET6 if isinstance(ip_address(address), IPv6Address) else socket.AF_INET
    connection = socket.socket(family, socket.SOCK_STREAM)
    try:
        connection.setblocking(False)
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _SEND_BUFFER_BYTES)
        with contextlib.suppress(OSError):
            connection.setsockopt(socket.IPPROTO_TCP, _TCP_WINDOW_CLAMP, _RECEIVE_WINDOW_BYTES)
        await asyncio.get_running_loop().sock_connect(connection, (address, port))
    except BaseException:
        connection.close()
        raise
    return connection
