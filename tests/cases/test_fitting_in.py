"""Kind H2 and the addresses of F3: browsers, spreadsheets, proxies, and what editors and shells leave behind."""

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
from tests.journeys.test_agentops import judged
from tests.journeys.test_settings_of_the_documents import MINIMAL
from tests.support.case_inputs import find_case_folder
from tests.support.clients import TenantClient, run_second_api

BROWSER = {"Accept": "text/event-stream", "Origin": "http://localhost:3000"}


# 34-eventsource-in-a-browser


async def test_an_eventsource_reads_a_stream_with_its_token_in_the_query(shared_tenant: TenantClient) -> None:
    page = (find_case_folder("34-eventsource-in-a-browser") / "page.html").read_text()
    assert "/events?access_token=" in page.replace("&", "?"), page
    run = await shared_tenant.run_agent("hello", {"name": "Ada"})
    token = shared_tenant.http.headers["Authorization"].removeprefix("Bearer ")
    path = f"/executions/{run['id']}/events"
    async with httpx.AsyncClient(base_url=shared_tenant.http.base_url, timeout=60) as browser:
        for credential in (token, await shared_tenant.create_key()):
            for headers in ({}, BROWSER):
                answer = await browser.get(path, params={"access_token": credential}, headers=headers)
                assert answer.status_code == 200, answer.text
                assert answer.headers["content-type"] == "text/event-stream; charset=utf-8"
                assert '"status":"completed"' in answer.text
        assert answer.headers["access-control-allow-origin"] == BROWSER["Origin"]
        # As it comes back: after the last event there is nothing, which it takes for the end.
        last = [line for line in answer.text.splitlines() if line.startswith("id: ")][-1].removeprefix("id: ")
        resumed = await browser.get(path, params={"access_token": token}, headers={**BROWSER, "Last-Event-ID": last})
        assert resumed.status_code == 204
        for wrong in ("", "nonsense", "pdk_nonsense"):
            assert (await browser.get(path, params={"access_token": wrong}, headers=BROWSER)).status_code == 401
        # That one route alone: tokens in addresses end up in logs.
        for other in (f"/executions/{run['id']}", "/executions", "/auth/me", f"/execution-logs/{run['id']}"):
            answer = await browser.get(other, params={"access_token": token}, headers=BROWSER)
            assert answer.status_code == 401, other
        answer = await browser.post(f"/executions/{run['id']}/cancel", params={"access_token": token})
        assert answer.status_code == 401


async def test_a_header_goes_before_the_token_in_the_query(
    shared_tenant: TenantClient, other_tenant: TenantClient
) -> None:
    run = await shared_tenant.run_agent("hello", {"name": "Ada"})
    token = shared_tenant.http.headers["Authorization"].removeprefix("Bearer ")
    answer = await other_tenant.http.get(f"/executions/{run['id']}/events", params={"access_token": token})
    assert answer.status_code == 404


# 38-csv-in-a-spreadsheet


async def test_an_export_can_be_opened_in_a_spreadsheet(acme: TenantClient) -> None:
    rows = json.loads((find_case_folder("38-csv-in-a-spreadsheet") / "rows.json").read_text())
    answer = await acme.http.post("/evaluations/batch", json=rows)
    assert answer.status_code == 201, answer.text
    sent = rows["evaluations"] if isinstance(rows, dict) else rows
    fields = ("prompt", "response", "model_name", "agent_name")
    texts = {row[field] for row in sent for field in fields}

    async def export(**options: str) -> bytes:
        answer = await acme.http.get("/evaluations/export", params={"format": "csv", **options})
        assert answer.status_code == 200, answer.text
        assert answer.headers["content-type"] == "text/csv; charset=utf-8"
        return answer.content

    def read(content: bytes) -> list[dict[str, str]]:
        return list(csv.DictReader(io.StringIO(content.decode("utf-8-sig"), newline="")))

    for evaluation_id in answer.json()["ids"]:
        await judged(acme, evaluation_id)
    plain = await export()
    assert not plain.startswith(b"\xef\xbb\xbf")
    assert {one[name] for one in read(plain) for name in fields} == texts
    marked = await export(bom="true")
    assert marked == b"\xef\xbb\xbf" + plain
    defused = read(await export(bom="true", escape_formulas="true"))
    shown = {one[name] for one in defused for name in fields}
    formulas = {text for text in texts if text.lstrip()[:1] in "=+-@"}
    assert formulas
    assert shown == {f"'{text}" if text in formulas else text for text in texts}
    for wrong in ({"format": "jsonl", "bom": "true"}, {"format": "parquet", "escape_formulas": "true"}):
        refused = await acme.http.get("/evaluations/export", params=wrong)
        assert refused.status_code == 422
        assert "applies to csv only" in refused.json()["detail"]


# 30-forwarded-for-with-a-port (its folder holds commands alone)

TRUSTED = parse_networks(("127.0.0.0/8", "10.0.0.0/8", "::1", "[fd00::1]", "::ffff:192.0.2.0/120"), "trusted_proxies")


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
        # From the right, past all that is trusted, and no further.
        ("127.0.0.1", "1.2.3.4, 203.0.113.7, 10.1.2.3:8080", "203.0.113.7"),
        ("127.0.0.1", "1.2.3.4, 203.0.113.7:1", "203.0.113.7"),
        ("127.0.0.1", "10.0.0.1,10.0.0.2", "10.0.0.1"),
        # Nobody is believed who is not trusted.
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
def test_the_caller_behind_proxies_is_one_however_its_address_is_written(
    peer: str, forwarded: str, caller: str
) -> None:
    assert find_caller_address(peer, forwarded, TRUSTED) == caller


@pytest.mark.parametrize(
    ("address", "counted"),
    [
        ("2a00:1450:4001:81b::200e", "2a00:1450:4001:81b::/64"),
        ("2a00:1450:4001:81b:ffff::1", "2a00:1450:4001:81b::/64"),
        ("2a00:1450:4001:81c::1", "2a00:1450:4001:81c::/64"),
        # A network of one's own is full of others.
        *((own, own) for own in ("fd00::1", "fe80::1", "::1", "8.8.8.8", "unknown", "_hidden")),
    ],
)
def test_all_addresses_of_a_public_network_count_as_one(address: str, counted: str) -> None:
    assert group_address(address) == counted
    assert group_address(counted) == counted


def test_the_limits_of_an_address_hold_for_its_network() -> None:
    settings = read_settings({**MINIMAL, "PADDOCK_CONNECTIONS_PER_ADDRESS": "2"})
    bounds = ConnectionBounds(settings, ())
    opened = [bounds.open_connection((f"2a00:1450:4001:81b::{number}", 1, 0, 0)) for number in range(3)]
    assert opened[2] is None
    bounds.close_connection(opened[0] or "")
    assert bounds.open_connection(("2a00:1450:4001:81b::9", 1, 0, 0)) is not None
    scope: Any = {"client": ("2a00:1450:4001:81b::7", 1), "headers": []}
    assert middleware._find_address(scope, ()) == opened[1]


def test_an_address_has_one_form() -> None:
    for same in ("2001:db8::2", "2001:DB8:0::2", "[2001:db8:0:0:0:0:0:2]:443", "2001:db8::0.0.0.2"):
        assert normalize_address(same) == "2001:db8::2"
    for same in ("203.0.113.9", "203.0.113.9:1", "::ffff:203.0.113.9", "::FFFF:CB00:7109"):
        assert normalize_address(same) == "203.0.113.9"


@pytest.mark.parametrize(
    "entry", ["not-an-address", "proxy.local", "10.0.0.7:8080", "10.0.0.1/8", "10.0.0.0/33", "*", "[fd00::1", "10.0.0"]
)
def test_nonsense_among_the_proxies_fails_at_start(entry: str) -> None:
    with pytest.raises(SettingsError, match="PADDOCK_TRUSTED_PROXIES takes addresses and networks"):
        parse_networks(("127.0.0.1", entry), "trusted_proxies")


@pytest.mark.parametrize("entry", ["foo bar:x", "ollama:0", "10.0.0.0/33", "http://ollama:11434"])
def test_nonsense_among_the_private_hosts_fails_at_start(entry: str) -> None:
    with pytest.raises(SettingsError, match="PADDOCK_PRIVATE_HOSTS: "):
        read_settings({**MINIMAL, "PADDOCK_PRIVATE_HOSTS": f"ollama:11434,{entry}"})


async def test_the_limit_bites_behind_a_proxy_that_writes_ports(system) -> None:
    settings = {"PADDOCK_TRUSTED_PROXIES": "127.0.0.0/8", "PADDOCK_RATE_LIMIT_ANONYMOUS": "5"}
    async with run_second_api(system, **settings) as url, httpx.AsyncClient(base_url=url) as client:
        for first, host in ((51000, "203.0.113.77:{}"), (4000, "[2001:db8::77]:{}")):
            answers = [
                await client.get("/api/v1/auth/me", headers={"X-Forwarded-For": host.format(first + number)})
                for number in range(6)
            ]
            assert [one.headers["x-ratelimit-remaining"] for one in answers] == ["4", "3", "2", "1", "0", "0"]
            assert [one.status_code for one in answers] == [401] * 5 + [429]


# What editors and shells leave behind


async def test_an_empty_key_beside_a_good_token_is_none(acme: TenantClient) -> None:
    for name in ("X-API-Key", "KURRAL"):
        assert (await acme.http.get("/auth/me", headers={name: ""})).status_code == 200
    async with httpx.AsyncClient(base_url=acme.http.base_url) as nobody:
        refused = await nobody.get("/auth/me", headers={"X-API-Key": ""})
        assert refused.status_code == 401
        assert "Send an API key" in refused.json()["detail"]
        wrong = await acme.http.get("/auth/me", headers={"X-API-Key": "pdk_wrong"})
        assert wrong.status_code == 401


async def test_a_body_may_begin_with_a_mark_of_its_byte_order(shared_tenant: TenantClient) -> None:
    mark = b"\xef\xbb\xbf"
    flow = {"name": "marked", "steps": [{"id": "a", "agent": "hello"}]}
    for path, body in (
        ("/agents", {"name": "marked"}),
        ("/evaluations", {"prompt": "p", "response": "r"}),
        ("/evaluations/batch", [{"prompt": "p", "response": "r"}]),
        ("/artifacts/upload", {"inputs": {}, "outputs": {}}),
        ("/workflows", flow),
        ("/agents/hello/execute", {"payload": {"name": "x"}}),
    ):
        content = mark + json.dumps(body).encode()
        answer = await shared_tenant.http.post(path, content=content, headers={"Content-Type": "application/json"})
        assert answer.status_code == 201, (path, answer.text)
    large = mark + json.dumps({"payload": {"name": "x", "text": "y" * 100_000}}).encode()
    assert (await shared_tenant.http.post("/agents/hello/execute", content=large)).status_code == 201
    twice = await shared_tenant.http.post("/agents/hello/execute", content=mark + mark + b"{}")
    assert twice.status_code == 400
