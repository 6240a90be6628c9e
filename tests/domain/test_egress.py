"""Egress lists: what they may name, and how policies narrow them."""

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from domain import builds, egress
from domain.egress import BadEgressEntry, EgressPolicy, parse_entries, parse_policy
from domain.shared.errors import InvalidFields
from domain.shared.variables import GATEWAY_VARIABLES, check_variables
from infra.sandbox.fence import GUEST_ENVIRONMENT
from infra.sandbox.program_network import build_hosts_file, build_network_variables, list_listener_places

BAD_ENTRIES = {
    "https://api.github.com": "without a scheme",
    "api.github.com/repos": "without a path",
    "api.github.com?x=1": "without a path",
    "user:pass@api.github.com": "without a user name",
    "api.github.com.": "must not end in a dot",
    "api.github.com:0": "1 to 65535",
    "api.github.com:65536": "1 to 65535",
    "api.github.com:": "1 to 65535",
    "api.github.com:+443": "1 to 65535",
    "api.github.com:0443": "1 to 65535",
    "api.github.com:https": "1 to 65535",
    "": "must be a host",
    " api.github.com": "without spaces",
    "api.github.com\x00": "invisible",
    "api..com": "is not a host name",
    "-api.com": "is not a host name",
    "a" * 64 + ".com": "is not a host name",
    ".".join(["a" * 60] * 5): "is not a host name",
    "*": "may stand only at the beginning",
    "*.com": "at least two labels",
    "*.*.com": "may stand only at the beginning",
    "api.*.com": "may stand only at the beginning",
    "localhost": "the sandbox itself",
    "db.localhost:5432": "the sandbox itself",
    "sandbox": "the sandbox itself",
    "127.0.0.1": "a private host that the operator offers needs a name",
    "10.0.0.7:5432": "is a private address",
    "169.254.169.254:80": "is a link-local address",
    "192.168.1.1": "is a private address",
    "127.1": "unusual notation",
    "0x7f.0.0.1": "unusual notation",
    "2130706433": "unusual notation",
    "017700000001": "unusual notation",
    "*.8.8": "at least two labels",
    "::1": "IPv6",
    "[2606:4700::1]:443": "IPv6",
    "xn--\u00e4.com:x": "1 to 65535",
}


@pytest.mark.parametrize("entry", BAD_ENTRIES)
def test_a_bad_entry_is_named_with_what_is_wrong(entry: str) -> None:
    with pytest.raises(BadEgressEntry, match=re.escape(BAD_ENTRIES[entry])) as refused:
        parse_entries(["good.example.com", entry])
    assert repr(entry[:80]) in str(refused.value)
    with pytest.raises(builds.BadArchive, match="`egress`|cannot hold U"):
        builds.parse_manifest("agent.yaml", f"name: a\nentrypoint: a:b\negress: [{_quote_entry(entry)}]", "3.11.7")


def _quote_entry(entry: str) -> str:
    return '"' + entry.replace("\x00", "\\0").replace("\u00e4", "\\xe4") + '"'


def test_good_entries_in_the_form_of_dns() -> None:
    entries = parse_entries(["API.GitHub.com", "db.example.com:5432", "*.OpenAI.com", "bücher.example", "8.8.8.8:53"])
    assert [(entry.text, entry.ports) for entry in entries] == [
        ("api.github.com", (443, 80)),
        ("db.example.com:5432", (5432,)),
        ("*.openai.com", (443, 80)),
        ("xn--bcher-kva.example", (443, 80)),
        ("8.8.8.8:53", (53,)),
    ]
    manifest = builds.parse_manifest("agent.yaml", "name: a\nentrypoint: a:b\negress: ['*.a.example:8443']", "3.11.7")
    assert manifest.egress == ["*.a.example:8443"]
    assert builds.parse_manifest("agent.yaml", "name: a\nentrypoint: a:b\negress: []", "3.11.7").egress is None


def test_duplicates_and_too_many_are_refused() -> None:
    with pytest.raises(BadEgressEntry, match=r"names api\.example\.com:443 twice"):
        parse_entries(["api.example.com", "API.example.com:443"])
    assert len(parse_entries(["api.example.com:1", "api.example.com:2"])) == 2
    with pytest.raises(BadEgressEntry, match="at most 64 entries, not 1000"):
        parse_entries([f"h{number}.example.com" for number in range(1000)])
    for value in (1, None, ["a"], {"a": 1}):
        with pytest.raises(BadEgressEntry, match="must contain text"):
            parse_entries([value])


LABELS = st.from_regex(r"[a-z][a-z0-9]{0,8}", fullmatch=True)
HOSTS = st.lists(LABELS, min_size=2, max_size=4).map(".".join).filter(lambda host: not host.endswith("localhost"))
ENTRIES = st.builds(
    lambda host, wild, port: ("*." if wild else "") + host + ("" if port is None else f":{port}"),
    HOSTS,
    st.booleans(),
    st.none() | st.integers(1, 65535),
)


@given(ENTRIES)
def test_what_is_parsed_is_shown_as_it_was_written(text: str) -> None:
    (entry,) = parse_entries([text])
    assert parse_entries([entry.text]) == (entry,)
    assert EgressPolicy(entries=(entry,)).is_allowing(entry, entry.ports[0])


@given(st.text(max_size=40) | st.from_regex(r"[a-z*.:/@\[\]0-9-]{1,20}", fullmatch=True))
def test_any_text_is_an_entry_or_is_refused(text: str) -> None:
    try:
        (entry,) = parse_entries([text])
    except BadEgressEntry:
        return
    assert re.fullmatch(r"[a-z0-9_.-]{1,253}", entry.name)
    assert not entry.name.endswith(".")
    assert all(0 < port < 65536 for port in entry.ports)


@given(ENTRIES, HOSTS, st.integers(1, 65535))
def test_a_wildcard_stands_for_names_below_it_alone(text: str, host: str, port: int) -> None:
    (entry,) = parse_entries([text])
    is_below = host.endswith("." + entry.name)
    assert entry.is_matching(host, port) == (
        port in entry.ports and (is_below if entry.is_wildcard else host == entry.name)
    )


@pytest.mark.parametrize(
    ("policy", "declared", "allowed"),
    [
        ("declared", "api.github.com", True),
        ("off", "api.github.com", False),
        (["api.github.com"], "api.github.com", True),
        (["api.github.com:443"], "api.github.com:443", True),
        (["api.github.com"], "api.github.com:8443", False),
        (["*.github.com"], "api.github.com", True),
        (["*.github.com"], "github.com", False),
        (["*.github.com"], "*.github.com", True),
        (["*.github.com"], "*.api.github.com", True),
        (["*.api.github.com"], "*.github.com", False),
        (["github.com"], "*.github.com", False),
        (["api.github.com"], "evilapi.github.com", False),
        ([], "api.github.com", False),
    ],
)
def test_a_policy_narrows_what_is_declared(policy: list[str] | str, declared: str, allowed: bool) -> None:
    (entry,) = parse_entries([declared])
    assert all(parse_policy(policy).is_allowing(entry, port) for port in entry.ports) is allowed


def test_each_host_has_an_address_of_its_own() -> None:
    entries = parse_entries(["b.example", "a.example:5432", "8.8.8.8:53", "b.example:8080", "*.c.example", "c.example"])
    network = egress.build_network(entries, has_gateway=True)
    assert network is not None
    assert list_listener_places(network) == [
        ("gateway", "127.0.0.1", 4000),
        ("proxy", "127.0.0.1", 3128),
        ("8.8.8.8:53", "8.8.8.8", 53),
        ("a.example:5432", "127.77.0.2", 5432),
        ("b.example:80", "127.77.0.3", 80),
        ("b.example:443", "127.77.0.3", 443),
        ("b.example:8080", "127.77.0.3", 8080),
        ("c.example:80", "127.77.0.4", 80),
        ("c.example:443", "127.77.0.4", 443),
    ]
    assert build_hosts_file(network).splitlines() == [
        "127.0.0.1 localhost sandbox",
        "127.77.0.2 a.example",
        "127.77.0.3 b.example",
        "127.77.0.4 c.example",
    ]
    variables = build_network_variables(network)
    assert variables["HTTPS_PROXY"] == variables["https_proxy"] == "http://127.0.0.1:3128"
    # Clients read c.example as all names below it, which only the proxy reaches.
    assert variables["NO_PROXY"] == "127.0.0.1,localhost,8.8.8.8,a.example,b.example"
    assert egress.build_network((), has_gateway=False) is None


def test_variables_of_the_sandbox_are_not_the_agent_s() -> None:
    """What the sandbox sets would override a value without a word, so a manifest and a request may not have it."""
    network = egress.build_network(parse_entries(["*.cloud.example"]), has_gateway=True)
    own_variables = {**GUEST_ENVIRONMENT, **build_network_variables(network)}
    assert {"HTTPS_PROXY", "https_proxy", "NO_PROXY", "OPENAI_BASE_URL", "PADDOCK_WORK"} <= own_variables.keys()
    for name in [*own_variables, "HTTP_PROXY", "http_proxy", "All_Proxy", "PADDOCK_ANYTHING"]:
        is_gateway = name in GATEWAY_VARIABLES
        manifest = "name: a\nentrypoint: a:b\negress: ['*.cloud.example']\nmodels: [smollm2]\n"
        for field in (f"env: {{{name}: x}}", f"secrets: [{name}]"):
            with pytest.raises(builds.BadArchive, match=name):
                builds.parse_manifest("agent.yaml", f"{manifest}{field}\n", "3.11.7")
        if not is_gateway:
            with pytest.raises(InvalidFields) as refused:
                check_variables({"FINE": "x", name: "x"}, "env")
            assert [error.field for error in refused.value.errors] == [f"env.{name}"]
    # Without a gateway, these are the agent's.
    for name in GATEWAY_VARIABLES:
        builds.parse_manifest("agent.yaml", f"name: a\nentrypoint: a:b\nenv: {{{name}: x}}\n", "3.11.7")
        check_variables({name: "x"}, "env")
