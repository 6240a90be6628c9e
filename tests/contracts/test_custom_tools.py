"""Custom HTTP tools: endpoints that a tenant configured, with secrets that nobody is shown."""

import asyncio
import json
import logging
from collections.abc import AsyncIterator
from typing import Any

import pytest

from domain.llms import ToolFailed
from domain.shared.errors import DomainError
from domain.tools import check_custom_configuration
from infra.http import Outbound
from infra.tools.custom import call_custom_tool
from tests.support.outbound_servers import RecordingServer, build_reply, run_server

SECRET = "sk-very-secret-0123456789"


@pytest.fixture
async def here() -> AsyncIterator[RecordingServer]:
    async with run_server() as one:
        yield one


ANY = {"type": "string"}


def custom(here: RecordingServer, path: str = "", **more: Any) -> dict[str, Any]:
    return check_custom_configuration({"api_endpoint": f"{here.url}{path}", **more})[0]


async def call(
    configuration: dict[str, Any], args: dict[str, Any], secrets: dict[str, str] | None = None
) -> dict[str, Any]:
    return await call_custom_tool(Outbound(("127.0.0.1",)), configuration, args, secrets or {})


async def test_a_custom_tool(here: RecordingServer):
    here.answer = lambda request: build_reply(b'{"a": [1, "b\\u0000"]}')
    told = await call(custom(here, "/v1", headers={"X-Plain": "1"}), {"q": "x", "n": [1]})
    assert told == {"status": 200, "body": {"a": [1, "b\ufffd"]}}
    [asked] = here.requests
    assert (asked.method, asked.target, asked.body) == ("POST", "/v1", b'{"q":"x","n":[1]}')
    assert (asked.headers["x-plain"], asked.headers["content-type"]) == ("1", "application/json")
    await here.wait_until_closed()


@pytest.mark.parametrize("method", ["GET", "DELETE"])
async def test_arguments_in_the_query(here: RecordingServer, method: str):
    configuration = custom(here, "/a/{id}?v=1", method=method, parameters={"id": ANY})
    await call(configuration, {"id": 7, "q": "a&b=c", "l": ["x", 2], "t": True, "n": None, "o": {"k": 1}})
    [asked] = here.requests
    assert asked.target == "/a/7?v=1&q=a%26b%3Dc&l=x&l=2&t=true&o=%7B%22k%22%3A1%7D"
    assert asked.body == b""
    await call(configuration, {"id": 7})
    assert here.requests[1].target == "/a/7?v=1"


@pytest.mark.parametrize("method", ["PUT", "PATCH", "POST"])
async def test_placeholders_and_a_body(here: RecordingServer, method: str):
    await call(
        custom(here, "/{a}/{b}?v=1", method=method, parameters={"a": ANY, "b": ANY}), {"a": "x", "b": 1.5, "c": 2}
    )
    [asked] = here.requests
    assert (asked.target, asked.body) == ("/x/1.5?v=1", b'{"c":2}')


@pytest.mark.parametrize(
    ("value", "target"),
    [
        ("a/b", "/x/a%2Fb/y"),
        ("a?b=c", "/x/a%3Fb%3Dc/y"),
        ("a#b", "/x/a%23b/y"),
        ("%2e%2e", "/x/%252e%252e/y"),
        ("%2F", "/x/%252F/y"),
        ("a@b:c", "/x/a%40b%3Ac/y"),
        ("ü ", "/x/%C3%BC%20/y"),
        ("a\r\nHost: b", "/x/a%0D%0AHost%3A%20b/y"),
        ("...", "/x/.../y"),
        ("a..b", "/x/a..b/y"),
        ("{id}", "/x/%7Bid%7D/y"),
        ("//other.test", "/x/%2F%2Fother.test/y"),
        (True, "/x/true/y"),
        (0, "/x/0/y"),
    ],
)
async def test_values_stay_in_their_part_of_the_path(here: RecordingServer, value: Any, target: str):
    await call(custom(here, "/x/{id}/y", parameters={"id": ANY}), {"id": value})
    assert here.requests[0].target == target
    assert here.requests[0].headers["host"] == f"127.0.0.1:{here.port}"


@pytest.mark.parametrize(
    "value", ["..", ".", "../admin", "a/../b", "a/..", "..\\a", "a\\..\\b", "a/./b", " ../x", "", None, [1], {}]
)
async def test_values_that_lead_elsewhere(here: RecordingServer, value: Any):
    with pytest.raises(ToolFailed, match="id: "):
        await call(custom(here, "/x/{id}/y", parameters={"id": ANY}), {"id": value})
    with pytest.raises(ToolFailed, match="id: "):
        await call(custom(here, "/x/{id}/y", parameters={"id": ANY}), {})
    assert here.connection_count == 0


async def test_dots_that_several_placeholders_make(here: RecordingServer):
    with pytest.raises(ToolFailed):
        await call(custom(here, "/x/.{id}/y", parameters={"id": ANY}), {"id": "."})
    assert here.connection_count == 0


async def test_whole_numbers_are_written_whole(here: RecordingServer):
    """In path, query and body, however a model writes them."""
    args = {"id": 5.0, "page": 2.0, "half": 0.5, "big": 1e20, "huge": 1e21, "l": [3.0], "o": {"a": [4.0]}}
    await call(custom(here, "/users/{id}", method="GET", parameters={"id": ANY}), args)
    query = "page=2&half=0.5&big=100000000000000000000&huge=1e21&l=3&o=%7B%22a%22%3A%5B4%5D%7D"
    assert here.requests[0].target == f"/users/5?{query}"
    await call(custom(here, "/users/{id}", parameters={"id": ANY}), args)
    body = b'{"page":2,"half":0.5,"big":100000000000000000000,"huge":1e21,"l":[3],"o":{"a":[4]}}'
    assert (here.requests[1].target, here.requests[1].body) == ("/users/5", body)
    await call(custom(here, "/{id}", parameters={"id": ANY}), {"id": 1e20})
    assert here.requests[2].target == "/100000000000000000000"


FORM = "application/x-www-form-urlencoded"


@pytest.mark.parametrize("kind", [FORM, FORM.upper(), f"{FORM}; charset=UTF-8"])
async def test_a_form_where_one_was_asked_for(here: RecordingServer, kind: str):
    args = {"to": "+49 170", "body": "Hello & goodbye ü", "l": ["a", 2.0], "t": True, "n": None, "o": {"k": 1}}
    await call(custom(here, headers={"content-Type": kind}), args)
    [asked] = here.requests
    assert asked.headers["content-type"] == kind
    assert asked.body == b"to=%2B49+170&body=Hello+%26+goodbye+%C3%BC&l=a&l=2&t=true&o=%7B%22k%22%3A1%7D"
    await call(custom(here, headers={"Content-Type": kind}), {})
    assert here.requests[1].body == b""


async def test_a_form_of_parts(here: RecordingServer):
    configuration = custom(here, headers={"Content-Type": "multipart/form-data; boundary=mine"})
    await call(configuration, {"to": "a\r\nb", "l": [1.0, "ü"], 'n"m': "x"})
    [asked] = here.requests
    kind, boundary = asked.headers["content-type"].split("; boundary=")
    assert (kind, boundary == "mine") == ("multipart/form-data", False)
    parts = asked.body.split(b"--" + boundary.encode())
    assert [part.strip().rsplit(b"\r\n\r\n")[-1] for part in parts[1:-1]] == [b"a\r\nb", b"1", "ü".encode(), b"x"]
    assert [part.count(b'name="l"') for part in parts] == [0, 0, 1, 1, 0, 0]
    await call(configuration, {})


@pytest.mark.parametrize("kind", ["application/json; charset=utf-8", "application/vnd.api+json", "text/json"])
async def test_json_by_other_names(here: RecordingServer, kind: str):
    await call(custom(here, headers={"Content-Type": kind}), {"a": 1})
    assert (here.requests[0].headers["content-type"], here.requests[0].body) == (kind, b'{"a":1}')


async def test_parameters_with_odd_names(here: RecordingServer):
    configuration = custom(here, method="GET", parameters={"$filter": ANY, "sort[by]": ANY})
    await call(configuration, {"$filter": "a eq 'b'", "sort[by]": "x"})
    assert here.requests[0].target == "/?%24filter=a+eq+%27b%27&sort%5Bby%5D=x"


async def test_secrets_are_sent_and_never_shown(here: RecordingServer, caplog: pytest.LogCaptureFixture):
    """An endpoint that repeats everything: as text, in JSON values and keys, escaped, as a number, and in errors."""
    caplog.set_level(logging.DEBUG)
    secrets = {"X-Key": SECRET, "Authorization": "Bearer abcdefgh-token", "X-Number": "12345678"}
    configuration = custom(here, secrets={"X-Key": "one", "Authorization": "two", "X-Number": "three"})
    escaped = "".join(f"\\u{ord(one):04x}" for one in SECRET)
    told = f'{{"{SECRET}": ["Bearer abcdefgh-token", "abcdefgh-token", "x{escaped}y", 12345678]}}'
    for status in (200, 404):
        for body in (told, f"text {SECRET} abcdefgh-token 12345678"):
            here.answer = lambda request, status=status, body=body: build_reply(body.encode(), status, x_back=SECRET)
            try:
                shown = json.dumps(await call(configuration, {}, secrets))
            except ToolFailed as error:
                shown = f"{error} {error!r} {error.__cause__}"
            assert "***" in shown
            assert not any(one in shown for one in (SECRET, "abcdefgh-token", "12345678", escaped))
    assert here.requests[0].headers["x-key"] == SECRET
    assert here.requests[0].headers["authorization"] == "Bearer abcdefgh-token"
    assert SECRET not in caplog.text


async def test_a_bare_key_is_a_bearer_token(here: RecordingServer):
    await call(custom(here, secrets={"Authorization": "one"}), {}, {"Authorization": SECRET})
    assert here.requests[0].headers["authorization"] == f"Bearer {SECRET}"


async def test_a_secret_that_is_cut_does_not_show(here: RecordingServer):
    for before in range(0, 30, 3):
        here.answer = lambda request, before=before: build_reply(
            b"a" * (256 * 1024 - before) + SECRET.encode() + b"b" * 90_000
        )
        told = await call(custom(here, secrets={"X-Key": "one"}), {}, {"X-Key": SECRET})
        assert told["truncated"]
        assert set(told["body"]) <= set("a*b")
    here.answer = lambda request: build_reply((SECRET * 20_000).encode())
    told = await call(custom(here, secrets={"X-Key": "one"}), {}, {"X-Key": SECRET})
    assert set(told["body"]) == {"*"}


@pytest.mark.parametrize("secret", ["a\r\nX-B: c", "", "ü"])
async def test_secrets_that_are_no_headers(here: RecordingServer, secret: str):
    with pytest.raises(ToolFailed, match="X-Key") as failed:
        await call(custom(here, secrets={"X-Key": "one"}), {}, {"X-Key": secret})
    assert not secret or secret not in str(failed.value)
    with pytest.raises(ToolFailed, match="X-Key"):
        await call(custom(here, secrets={"X-Key": "one"}), {}, {})
    assert here.connection_count == 0


async def test_errors_of_the_endpoint(here: RecordingServer):
    here.answer = lambda request: build_reply(b"no such thing" + b"x" * 5000, 404)
    with pytest.raises(ToolFailed, match="404: no such thing") as failed:
        await call(custom(here), {})
    assert len(str(failed.value)) < 2100


async def test_redirects_of_the_endpoint(here: RecordingServer):
    """Not followed: the secrets are for the endpoint that was configured."""
    here.answer = lambda request: build_reply(status=307, location="/other")
    with pytest.raises(ToolFailed, match="307"):
        await call(custom(here), {})
    assert len(here.requests) == 1


async def test_a_custom_tool_is_guarded(here: RecordingServer):
    with pytest.raises(ToolFailed, match="refused"):
        await call_custom_tool(Outbound(("127.0.0.1:1",)), custom(here), {}, {})
    assert here.connection_count == 0


async def test_the_timeout_of_a_custom_tool(here: RecordingServer):
    async def never(writer: asyncio.StreamWriter) -> None:
        await asyncio.sleep(30)

    here.answer = lambda request: never
    with pytest.raises(ToolFailed, match=r"0\.3 seconds"):
        await call(custom(here, timeout=0.3), {})


async def test_json_nested_without_end_is_text(here: RecordingServer):
    here.answer = lambda request: build_reply(b"[" * 100_000 + b"]" * 100_000)
    assert (await call(custom(here), {}))["body"].startswith("[[")


def test_parameters():
    whole = {"type": "object", "properties": {"a": ANY}, "required": ["a"], "additionalProperties": False}
    url = {"api_endpoint": "https://a.test/x"}
    assert check_custom_configuration({**url, "parameters": whole})[1] == whole
    assert check_custom_configuration({**url, "parameters": {"properties": {"a": ANY}}})[1]["type"] == "object"
    assert check_custom_configuration({**url, "parameters": {"a": ANY, "type": ANY}})[1] == {
        "type": "object", "properties": {"a": ANY, "type": ANY}, "required": [],
    }  # fmt: skip
    assert check_custom_configuration({**url, "parameters": {"properties": ANY}})[1]["properties"] == {
        "properties": ANY
    }
    assert check_custom_configuration(url) == (
        {**url, "method": "POST", "parameters": {}, "headers": {}, "secrets": {}, "timeout": 30.0},
        {"type": "object", "properties": {}, "required": []},
    )
    path = {"api_endpoint": "https://a.test/{b}/{a}", "parameters": {**whole, "properties": {"a": ANY, "b": ANY}}}
    assert check_custom_configuration(path)[1]["required"] == ["a", "b"]
    assert path["parameters"]["required"] == ["a"]


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"api_endpoint": None}, "configuration.api_endpoint"),
        ({"api_endpoint": "ftp://a.test"}, "configuration.api_endpoint"),
        ({"api_endpoint": "https://me:you@a.test"}, "configuration.api_endpoint"),
        ({"api_endpoint": "https://a.test/#b"}, "configuration.api_endpoint"),
        ({"api_endpoint": "https://a.test:99999/"}, "configuration.api_endpoint"),
        ({"api_endpoint": "https://{a}.test/"}, "configuration.api_endpoint"),
        ({"api_endpoint": "https://a.test:{a}/"}, "configuration.api_endpoint"),
        ({"api_endpoint": "{a}://a.test/"}, "configuration.api_endpoint"),
        ({"api_endpoint": "https://a.test/?b={a}"}, "configuration.api_endpoint"),
        ({"api_endpoint": "https://a.test/{a"}, "configuration.api_endpoint"),
        ({"api_endpoint": "https://a.test/a}"}, "configuration.api_endpoint"),
        ({"api_endpoint": "https://a.test/{}"}, "configuration.api_endpoint"),
        ({"api_endpoint": "https://a.test/{a.b}"}, "configuration.api_endpoint"),
        ({"api_endpoint": "https://a.test/{other}"}, "configuration.api_endpoint"),
        ({"api_endpoint": "https://a.test/{l}", "parameters": {"l": {"type": "array"}}}, "configuration.parameters.l"),
        ({"api_endpoint": "https://a.test/?a=1", "method": "GET"}, "configuration.api_endpoint"),
        ({"method": "HEAD"}, "configuration.method"),
        ({"parameters": {"type": "array"}}, "configuration.parameters.type"),
        ({"parameters": {"type": "object", "properties": []}}, "configuration.parameters.properties"),
        ({"parameters": {"a": "string"}}, "configuration.parameters.a"),
        ({"parameters": {"type": "object", "properties": {}, "required": ["a"]}}, "configuration.parameters.required"),
        ({"parameters": {"a": {"$ref": "http://127.0.0.1/x"}}}, "configuration.parameters"),
        ({"parameters": {"a": {"anyOf": [{"$ref": "file:///etc/passwd"}]}}}, "configuration.parameters"),
        ({"parameters": {"a": {"description": "x" * 70_000}}}, "configuration.parameters"),
        ({"headers": {"Host": "b"}}, "configuration.headers.Host"),
        ({"headers": {"Content-Type": "application/xml"}}, "configuration.headers.Content-Type"),
        ({"headers": {"content-type": "text/plain"}}, "configuration.headers.content-type"),
        ({"headers": {"Content-Type": "application/octet-stream"}}, "configuration.headers.Content-Type"),
        ({"headers": {"Content-Type": f"{FORM}; charset=latin-1"}}, "configuration.headers.Content-Type"),
        ({"headers": {"X-A": "b\r\nc"}}, "configuration.headers.X-A"),
        ({"headers": {"X-A": "b", "x-a": "c"}}, "configuration.headers.x-a"),
        ({"secrets": {"Host": "b"}}, "configuration.secrets.Host"),
        ({"headers": {"X-A": "b"}, "secrets": {"x-a": "c"}}, "configuration.secrets.x-a"),
        ({"timeout": 0}, "configuration.timeout"),
        ({"timeout": 301}, "configuration.timeout"),
        ({"verify": False}, "configuration.verify"),
    ],
)
def test_bad_configurations_of_custom_tools(change: dict[str, Any], field: str):
    sent = {"api_endpoint": "https://a.test/", "parameters": {"a": ANY}, **change}
    with pytest.raises(DomainError) as error:
        check_custom_configuration({name: value for name, value in sent.items() if value is not None})
    assert error.value.code == "invalid_field"
    assert error.value.errors[0].field == field


def test_nesting_without_end_is_refused():
    deep: dict[str, Any] = {}
    for _ in range(100):
        deep = {"a": deep}
    with pytest.raises(DomainError, match="nested"):
        check_custom_configuration({"api_endpoint": "https://a.test/", "parameters": {"a": deep}})
