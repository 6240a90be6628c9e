"""Decide where the listeners of a program are in its network, and how the program finds them. Pure."""

from ipaddress import IPv4Address
from typing import Final

from domain.ports import GATEWAY_LISTENER, PROXY_LISTENER, EgressHost, ProgramNetwork
from infra.sandbox.network import ListenerPlace

_LOCAL_ADDRESS: Final = "127.0.0.1"
_GATEWAY_PORT: Final = 4000
_PROXY_PORT: Final = 3128
# Hosts that a program reaches have addresses of their own from here on.
_FIRST_HOST_ADDRESS: Final = IPv4Address("127.77.0.1")
# The names of the sandbox itself.
_OWN_HOSTS_LINE: Final = f"{_LOCAL_ADDRESS} localhost sandbox\n"


def get_host_address(network: ProgramNetwork, host: EgressHost) -> str:
    """Return the address that a host has inside: one on the loopback interface, or its own if it is an address."""
    if _is_address(host.name):
        return host.name
    return str(_FIRST_HOST_ADDRESS + network.hosts.index(host))


def list_listener_places(network: ProgramNetwork) -> list[ListenerPlace]:
    """Return the name, the address and the port of every listener, in the order in which they are made."""
    places: list[ListenerPlace] = []
    if network.gateway:
        places.append((GATEWAY_LISTENER, _LOCAL_ADDRESS, _GATEWAY_PORT))
    if network.proxied_domains:
        places.append((PROXY_LISTENER, _LOCAL_ADDRESS, _PROXY_PORT))
    for host in network.hosts:
        address = get_host_address(network, host)
        places += [(f"{host.name}:{port}", address, port) for port in host.ports]
    return places


def build_hosts_file(network: ProgramNetwork) -> str:
    """Return the text of `/etc/hosts`, by which a program finds the hosts."""
    named = [host for host in network.hosts if not _is_address(host.name)]
    return _OWN_HOSTS_LINE + "".join(f"{get_host_address(network, host)} {host.name}\n" for host in named)


def build_network_variables(network: ProgramNetwork | None) -> dict[str, str]:
    """Return the environment variables by which clients find the gateway and the proxy."""
    variables: dict[str, str] = {}
    if network is not None and network.gateway:
        # Clients insist on a key, and the gateway ignores it. Anthropic's add /v1 to the URL.
        root = f"http://{_LOCAL_ADDRESS}:{_GATEWAY_PORT}"
        variables |= dict.fromkeys(("OPENAI_BASE_URL", "OPENAI_API_BASE"), f"{root}/v1")
        variables |= {"OPENAI_API_KEY": "paddock", "ANTHROPIC_BASE_URL": root, "ANTHROPIC_API_KEY": "paddock"}
    if network is not None and network.proxied_domains:
        proxy, direct = f"http://{_LOCAL_ADDRESS}:{_PROXY_PORT}", ",".join(list_direct_names(network))
        variables |= {"HTTPS_PROXY": proxy, "https_proxy": proxy, "NO_PROXY": direct, "no_proxy": direct}
    return variables


def list_direct_names(network: ProgramNetwork) -> list[str]:
    """Return the names that clients reach without the proxy.

    Clients read a name as all names below it as well, so those above a proxied domain are reached by the proxy too.
    """
    domains = network.proxied_domains
    names = [host.name for host in network.hosts]
    return [_LOCAL_ADDRESS, "localhost", *(name for name in names if not _is_above_any(name, domains))]


def _is_above_any(name: str, domains: tuple[str, ...]) -> bool:
    return any(domain == name or domain.endswith(f".{name}") for domain in domains)


def _is_address(name: str) -> bool:
    try:
        IPv4Address(name)
    except ValueError:
        return False
    return True
