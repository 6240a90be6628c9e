"""Test browsers, spreadsheets, proxies and files of editors and shells (kind H2, and the addresses of F3)."""

import csv
import io
import json
from typing import Any

import httpx
import pytest

from api import middleware
from api.addresses import find_caller_address, group_address, normalize_address
from api.connections import ConnectionBounds
from infra.settings import SettingsError, parse_networks, read_settings
from tests.journeys.test_documented_settings import MINIMAL_SETTINGS
from tests.journeys.test_evaluations import wait_for_metrics
from tests.support.case_inputs import find_case_folder
from tests.support.clients import TenantClient, run_second_api

BROWSER_HEADERS = {"Accept": "text/event-stream", "Origin": "http://localhost:3000"}


# 34-eventsource-in-a-browser


async def test_eventsource_may_send_its_token_in_the_query(shared_tenant: TenantClient) -> None:
    page = (find_case_folder("34-eventsource-in-a-browser") / "page.html").read_text()
    assert "/events?access_token=" in page.replace("&", "?"), page
    run = await shared_tenant.run_agent("hello", {"name": "Ada"})
    token = shared_tenant.http.headers["Authorization"].removeprefix("Bearer ")
    path = f"/executions/{run['id']}/events"
    async with httpx.AsyncClient(base_url=shared_tenant.http.base_url, timeout=60) as browser:
        for credential in (token, await shared_tenant.create_key()):
            for headers in ({}, BROWSER_HEADERS):
                answer = await browser.get(path, params={"access_token": credential}, headers=headers)
                assert answer.status_code == 200, answer.text
                assert answer.headers["content-type"] == "text/event-stream; charset=utf-8"
                assert '"status":"completed"' in answer.text
        assert answer.headers["access-control-allow-origin"] == BROWSER_HEADERS["Origin"]
        # A reconnect after the last event gets an empty answer, which ends the EventSource.
        last_id = [line for line in answer.text.splitlines() if line.startswith("id: ")][-1].removeprefix("id: ")
        resumed = await browser.get(
            path, params={"access_token": token}, headers={**BROWSER_HEADERS, "Last-Event-ID": last_id}
        )
        assert resumed.status_code == 204
        for wrong in ("", "nonsense", "pdk_nonsense"):
            assert (await browser.get(path, params={"access_token": wrong}, headers=BROWSER_HEADERS)).status_code == 401
        # Only that route: tokens in URLs end up in logs.
        for other in (f"/executions/{run['id']}", "/executions", "/auth/me", f"/execution-logs/{run['id']}"):
            answer = await browser.get(other, params={"access_token": token}, headers=BROWSER_HEADERS)
            assert answer.status_code == 401, other
        answer = await browser.post(f"/executions/{run['id']}/cancel", params={"access_token": token})
        assert answer.status_code == 401


async def test_credential_header_wins_over_the_token_in_the_query(
    shared_tenant: TenantClient, other_tenant: TenantClient
) -> None:
    run = await shared_tenant.run_agent("hello", {"name": "Ada"})
    token = shared_tenant.http.headers["Authorization"].removeprefix("Bearer ")
    answer = await other_tenant.http.get(f"/executions/{run['id']}/events", params={"access_token": token})
    assert answer.status_code == 404


# 38-csv-in-a-spreadsheet


async def test_csv_export_is_safe_in_a_spreadsheet(acme: TenantClient) -> None:
    rows = json.loads((find_case_folder("38-csv-in-a-spreadsheet") / "rows.json").read_text())
    answer = await acme.http.post("/evaluations/batch", json=rows)
    assert answer.status_code == 201, answer.text
    sent_rows = rows["evaluations"] if isinstance(rows, dict) else rows
    fields = ("prompt", "response", "model_name", "agent_name")
    texts = {row[field] for row in sent_rows for field in fields}

    async def export(**options: str) -> bytes:
        answer = await acme.http.get("/evaluations/export", params={"format": "csv", **options})
        assert answer.status_code == 200, answer.text
        assert answer.headers["content-type"] == "text/csv; charset=utf-8"
        return answer.content

    def read_rows(content: bytes) -> list[dict[str, str]]:
        return list(csv.DictReader(io.StringIO(content.decode("utf-8-sig"), newline="")))

    for evaluation_id in answer.json()["ids"]:
        await wait_for_metrics(acme, evaluation_id)
    plain = await export()
    assert not plain.startswith(b"\xef\xbb\xbf")
    assert {row[name] for row in read_rows(plain) for name in fields} == texts
    with_mark = await export(bom="true")
    assert with_mark == b"\xef\xbb\xbf" + plain
    defused = read_rows(await export(bom="true", escape_formulas="true"))
    exported_texts = {row[name] for row in defused for name in fields}
    formulas = {text for text in texts if text.lstrip()[:1] in "=+-@"}
    assert formulas
    assert exported_texts == {f"'{text}" if text in formulas else text for text in texts}
    for options in ({"format": "jsonl", "bom": "true"}, {"format": "parquet", "escape_formulas": "true"}):
        refused = await acme.http.get("/evaluations/export", params=options)
        assert refused.status_code == 422
        assert "applies to csv only" in refused.json()["detail"]


# 30-forwarded-for-with-a-port (its folder contains commands only)

TRUSTED_NETWORKS = parse_networks(
    ("127.0.0.0/8", "10.0.0.0/8", "::1", "[fd00::1]", "::ffff:192.0.2.0/120"), "trusted_proxies"
)


@pytest.mark.parametrize(
    ("peer", "forwarded", "caller"),
    [
        ("127.0.0.1", "203.0.113.7", "203.0.113.7"),
        ("127.0.0.1", "203.0.113.7:51234", "203.0.113.7"),
        ("127.0.0.1", " 203.0.113.7:51234 ", "203.0.113.7"),
        ("127.0.0.1", "[2001:db8::1]:4711", "2001:db8::1"),
        ("127.0.0.1", '"[2001:db8::1]:4711"', "2001:db8::1"),
        ("127.0.0.1", "[2001:db8::1]", "2001:db8::1"),
        ("127.0.0.1", "2001:DB8:0::1", "2001:db8::1"),
        ("127.0.0.1", "2001:db8::1%eth0", "2001:db8::1"),
        ("127.0.0.1", "::ffff:203.0.113.9", "203.0.113.9"),
        ("127.0.0.1", "[::ffff:203.0.113.9]:80", "203.0.113.9"),
        ("::ffff:127.0.0.1", "203.0.113.7", "203.0.113.7"),
        ("::1", "203.0.113.7", "203.0.113.7"),
        ("fd00::1", "203.0.113.7", "203.0.113.7"),
        ("192.0.2.5", "203.0.113.7", "203.0.113.7"),
        # From the right, past all trusted proxies, and no further.
        ("127.0.0.1", "1.2.3.4, 203.0.113.7, 10.1.2.3:8080", "203.0.113.7"),
        ("127.0.0.1", "1.2.3.4, 203.0.113.7:1", "203.0.113.7"),
        ("127.0.0.1", "10.0.0.1,10.0.0.2", "10.0.0.1"),
        # Headers of untrusted peers are ignored.
        ("203.0.113.1", "1.2.3.4", "203.0.113.1"),
        ("fd00::2", "1.2.3.4", "fd00::2"),
        ("127.0.0.1", "", "127.0.0.1"),
        ("127.0.0.1", " , ", "127.0.0.1"),
        ("127.0.0.1", "unknown", "unknown"),
        ("127.0.0.1", "_Hidden", "_hidden"),
        ("127.0.0.1", "1.2.3.4, not an address", "not an address"),
        ("127.0.0.1", "x" * 1000, "x" * 64),
    ],
)
def test_caller_address_behind_proxies_is_normalized(peer: str, forwarded: str, caller: str) -> None:
    assert find_caller_address(peer, forwarded, TRUSTED_NETWORKS) == caller


@pytest.mark.parametrize(
    ("address", "group"),
    [
        ("2a00:1450:4001:81b::200e", "2a00:1450:4001:81b::/64"),
        ("2a00:1450:4001:81b:ffff::1", "2a00:1450:4001:81b::/64"),
        ("2a00:1450:4001:81c::1", "2a00:1450:4001:81c::/64"),
        # Addresses of private networks are counted separately.
        *((address, address) for address in ("fd00::1", "fe80::1", "::1", "8.8.8.8", "unknown", "_hidden")),
    ],
)
def test_public_ipv6_addresses_are_grouped_by_network(address: str, group: str) -> None:
    assert group_address(address) == group
    assert group_address(group) == group


def test_connection_limit_of_an_address_covers_its_network() -> None:
    settings = read_settings({**MINIMAL_SETTINGS, "PADDOCK_CONNECTIONS_PER_ADDRESS": "2"})
    bounds = ConnectionBounds(settings, ())
    opened = [bounds.open_connection((f"2a00:1450:4001:81b::{number}", 1, 0, 0)) for number in range(3)]
    assert opened[2] is None
    bounds.close_connection(opened[0] or "")
    assert bounds.open_connection(("2a00:1450:4001:81b::9", 1, 0, 0)) is not None
    scope: Any = {"client": ("2a00:1450:4001:81b::7", 1), "headers": []}
    assert middleware._find_address(scope, ()) == opened[1]


def test_spellings_of_an_address_are_normalized() -> None:
    for spelling in ("2001:db8::2", "2001:DB8:0::2", "[2001:db8:0:0:0:0:0:2]:443", "2001:db8::0.0.0.2"):
        assert normalize_address(spelling) == "2001:db8::2"
    for spelling in ("203.0.113.9", "203.0.113.9:1", "::ffff:203.0.113.9", "::FFFF:CB00:7109"):
        assert normalize_address(spelling) == "203.0.113.9"


@pytest.mark.parametrize(
    "entry", ["not-an-address", "proxy.local", "10.0.0.7:8080", "10.0.0.1/8", "10.0.0.0/33", "*", "[fd00::1", "10.0.0"]
)
def test_invalid_trusted_proxies_are_refused_at_start(entry: str) -> None:
    with pytest.raises(SettingsError, match="PADDOCK_TRUSTED_PROXIES takes addresses and networks"):
        parse_networks(("127.0.0.1", entry), "trusted_proxies")


@pytest.mark.parametrize("entry", ["foo bar:x", "ollama:0", "10.0.0.0/33", "http://ollama:11434"])
def test_invalid_private_hosts_are_refused_at_start(entry: str) -> None:
    with pytest.raises(SettingsError, match="PADDOCK_PRIVATE_HOSTS: "):
        read_settings({**MINIMAL_SETTINGS, "PADDOCK_PRIVATE_HOSTS": f"ollama:11434,{entry}"})


async def test_rate_limit_works_behind_a_proxy_that_writes_ports(system) -> None:
    settings = {"PADDOCK_TRUSTED_PROXIES": "127.0.0.0/8", "PADDOCK_RATE_LIMIT_ANONYMOUS": "5"}
    async with run_second_api(system, **settings) as url, httpx.AsyncClient(base_url=url) as client:
        for first, host in ((51000, "203.0.113.77:{}"), (4000, "[2001:db8::77]:{}")):
            answers = [
                await client.get("/api/v1/auth/me", headers={"X-Forwarded-For": host.format(first + number)})
                for number in range(6)
            ]
            assert [answer.headers["x-ratelimit-remaining"] for answer in answers] == ["4", "3", "2", "1", "0", "0"]
            assert [answer.status_code for answer in answers] == [401] * 5 + [429]


# Files of editors and shells


async def test_empty_key_header_is_ignored(acme: TenantClient) -> None:
    for name in ("X-API-Key", "KURRAL"):
        assert (await acme.http.get("/auth/me", headers={name: ""})).status_code == 200
    async with httpx.AsyncClient(base_url=acme.http.base_url) as anonymous:
        refused = await anonymous.get("/auth/me", headers={"X-API-Key": ""})
        assert refused.status_code == 401
        assert "Send an API key" in refused.json()["detail"]
        wrong = await acme.http.get("/auth/me", headers={"X-API-Key": "pdk_wrong"})
        assert wrong.status_code == 401


async def test_body_may_begin_with_a_byte_order_mark(shared_tenant: TenantClient) -> None:
    mark = b"\xef\xbb\xbf"
    workflow = {"name": "marked", "steps": [{"id": "a", "agent": "hello"}]}
    for path, body in (
        ("/agents", {"name": "marked"}),
        ("/evaluations", {"prompt": "p", "response": "r"}),
        ("/evaluations/batch", [{"prompt": "p", "response": "r"}]),
        ("/artifacts/upload", {"inputs": {}, "outputs": {}}),
        ("/workflows", workflow),
        ("/agents/hello/execute", {"payload": {"name": "x"}}),
    ):
        content = mark + json.dumps(body).encode()
        answer = await shared_tenant.http.post(path, content=content, headers={"Content-Type": "application/json"})
        assert answer.status_code == 201, (path, answer.text)
    large = mark + json.dumps({"payload": {"name": "x", "text": "y" * 100_000}}).encode()
    assert (await shared_tenant.http.post("/agents/hello/execute", content=large)).status_code == 201
    twice = await shared_tenant.http.post("/agents/hello/execute", content=mark + mark + b"{}")
    assert twice.status_code == 400
