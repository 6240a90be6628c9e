"""Call custom HTTP tools: endpoints that a tenant configured, with secrets that are never shown."""

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
async def server() -> AsyncIterator[RecordingServer]:
    async with run_server() as server:
        yield server


ANY_TEXT = {"type": "string"}


def build_configuration(server: RecordingServer, path: str = "", **more: Any) -> dict[str, Any]:
    return check_custom_configuration({"api_endpoint": f"{server.url}{path}", **more})[0]


async def call_tool(
    configuration: dict[str, Any], args: dict[str, Any], secrets: dict[str, str] | None = None
) -> dict[str, Any]:
    return await call_custom_tool(Outbound(("127.0.0.1",)), configuration, args, secrets or {})


async def test_custom_tool_posts_its_arguments(server: RecordingServer):
    server.answer = lambda request: build_reply(b'{"a": [1, "b\\u0000"]}')
    result = await call_tool(build_configuration(server, "/v1", headers={"X-Plain": "1"}), {"q": "x", "n": [1]})
    assert result == {"status": 200, "body": {"a": [1, "b\ufffd"]}}
    [request] = server.requests
    assert (request.method, request.target, request.body) == ("POST", "/v1", b'{"q":"x","n":[1]}')
    assert (request.headers["x-plain"], request.headers["content-type"]) == ("1", "application/json")
    await server.wait_until_closed()


@pytest.mark.parametrize("method", ["GET", "DELETE"])
async def test_arguments_of_get_and_delete_go_into_the_query(server: RecordingServer, method: str):
    configuration = build_configuration(server, "/a/{id}?v=1", method=method, parameters={"id": ANY_TEXT})
    await call_tool(configuration, {"id": 7, "q": "a&b=c", "l": ["x", 2], "t": True, "n": None, "o": {"k": 1}})
    [request] = server.requests
    assert request.target == "/a/7?v=1&q=a%26b%3Dc&l=x&l=2&t=true&o=%7B%22k%22%3A1%7D"
    assert request.body == b""
    await call_tool(configuration, {"id": 7})
    assert server.requests[1].target == "/a/7?v=1"


@pytest.mark.parametrize("method", ["PUT", "PATCH", "POST"])
async def test_placeholders_are_filled_and_the_rest_is_the_body(server: RecordingServer, method: str):
    await call_tool(
        build_configuration(server, "/{a}/{b}?v=1", method=method, parameters={"a": ANY_TEXT, "b": ANY_TEXT}),
        {"a": "x", "b": 1.5, "c": 2},
    )
    [request] = server.requests
    assert (request.target, request.body) == ("/x/1.5?v=1", b'{"c":2}')


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
async def test_values_stay_in_their_part_of_the_path(server: RecordingServer, value: Any, target: str):
    await call_tool(build_configuration(server, "/x/{id}/y", parameters={"id": ANY_TEXT}), {"id": value})
    assert server.requests[0].target == target
    assert server.requests[0].headers["host"] == f"127.0.0.1:{server.port}"


@pytest.mark.parametrize(
    "value", ["..", ".", "../admin", "a/../b", "a/..", "..\\a", "a\\..\\b", "a/./b", " ../x", "", None, [1], {}]
)
async def test_values_that_change_the_path_are_refused(server: RecordingServer, value: Any):
    with pytest.raises(ToolFailed, match="id: "):
        await call_tool(build_configuration(server, "/x/{id}/y", parameters={"id": ANY_TEXT}), {"id": value})
    with pytest.raises(ToolFailed, match="id: "):
        await call_tool(build_configuration(server, "/x/{id}/y", parameters={"id": ANY_TEXT}), {})
    assert server.connection_count == 0


async def test_dots_made_by_a_placeholder_are_refused(server: RecordingServer):
    with pytest.raises(ToolFailed):
        await call_tool(build_configuration(server, "/x/.{id}/y", parameters={"id": ANY_TEXT}), {"id": "."})
    assert server.connection_count == 0


async def test_whole_numbers_are_written_without_a_fraction(server: RecordingServer):
    """Write them whole in path, query and body, however a model writes them."""
    args = {"id": 5.0, "page": 2.0, "half": 0.5, "big": 1e20, "huge": 1e21, "l": [3.0], "o": {"a": [4.0]}}
    await call_tool(build_configuration(server, "/users/{id}", method="GET", parameters={"id": ANY_TEXT}), args)
    query = "page=2&half=0.5&big=100000000000000000000&huge=1e21&l=3&o=%7B%22a%22%3A%5B4%5D%7D"
    assert server.requests[0].target == f"/users/5?{query}"
    await call_tool(build_configuration(server, "/users/{id}", parameters={"id": ANY_TEXT}), args)
    body = b'{"page":2,"half":0.5,"big":100000000000000000000,"huge":1e21,"l":[3],"o":{"a":[4]}}'
    assert (server.requests[1].target, server.requests[1].body) == ("/users/5", body)
    await call_tool(build_configuration(server, "/{id}", parameters={"id": ANY_TEXT}), {"id": 1e20})
    assert server.requests[2].target == "/100000000000000000000"


FORM_CONTENT_TYPE = "application/x-www-form-urlencoded"


@pytest.mark.parametrize("kind", [FORM_CONTENT_TYPE, FORM_CONTENT_TYPE.upper(), f"{FORM_CONTENT_TYPE}; charset=UTF-8"])
async def test_arguments_are_sent_as_a_form_if_configured(server: RecordingServer, kind: str):
    args = {"to": "+49 170", "body": "Hello & goodbye ü", "l": ["a", 2.0], "t": True, "n": None, "o": {"k": 1}}
    await call_tool(build_configuration(server, headers={"content-Type": kind}), args)
    [request] = server.requests
    assert request.headers["content-type"] == kind
    assert request.body == b"to=%2B49+170&body=Hello+%26+goodbye+%C3%BC&l=a&l=2&t=true&o=%7B%22k%22%3A1%7D"
    await call_tool(build_configuration(server, headers={"Content-Type": kind}), {})
    assert server.requests[1].body == b""


async def test_arguments_are_sent_as_multipart_if_configured(server: RecordingServer):
    configuration = build_configuration(server, headers={"Content-Type": "multipart/form-data; boundary=mine"})
    await call_tool(configuration, {"to": "a\r\nb", "l": [1.0, "ü"], 'n"m': "x"})
    [request] = server.requests
    kind, boundary = request.headers["content-type"].split("; boundary=")
    assert (kind, boundary == "mine") == ("multipart/form-data", False)
    parts = request.body.split(b"--" + boundary.encode())
    assert [part.strip().rsplit(b"\r\n\r\n")[-1] for part in parts[1:-1]] == [b"a\r\nb", b"1", "ü".encode(), b"x"]
    assert [part.count(b'name="l"') for part in parts] == [0, 0, 1, 1, 0, 0]
    await call_tool(configuration, {})


@pytest.mark.parametrize("kind", ["application/json; charset=utf-8", "application/vnd.api+json", "text/json"])
async def test_other_json_content_types_are_kept(server: RecordingServer, kind: str):
    await call_tool(build_configuration(server, headers={"Content-Type": kind}), {"a": 1})
    assert (server.requests[0].headers["content-type"], server.requests[0].body) == (kind, b'{"a":1}')


async def test_parameters_with_special_characters_are_encoded(server: RecordingServer):
    configuration = build_configuration(server, method="GET", parameters={"$filter": ANY_TEXT, "sort[by]": ANY_TEXT})
    await call_tool(configuration, {"$filter": "a eq 'b'", "sort[by]": "x"})
    assert server.requests[0].target == "/?%24filter=a+eq+%27b%27&sort%5Bby%5D=x"


async def test_secrets_are_sent_and_never_shown(server: RecordingServer, caplog: pytest.LogCaptureFixture):
    """Mask what an endpoint repeats: as text, in JSON values and keys, escaped, as a number, and in errors."""
    caplog.set_level(logging.DEBUG)
    secrets = {"X-Key": SECRET, "Authorization": "Bearer abcdefgh-token", "X-Number": "12345678"}
    configuration = build_configuration(server, secrets={"X-Key": "one", "Authorization": "two", "X-Number": "three"})
    escaped = "".join(f"\\u{ord(character):04x}" for character in SECRET)
    body_with_secrets = f'{{"{SECRET}": ["Bearer abcdefgh-token", "abcdefgh-token", "x{escaped}y", 12345678]}}'
    for status in (200, 404):
        for body in (body_with_secrets, f"text {SECRET} abcdefgh-token 12345678"):
            server.answer = lambda request, status=status, body=body: build_reply(body.encode(), status, x_back=SECRET)
            try:
                text = json.dumps(await call_tool(configuration, {}, secrets))
            except ToolFailed as error:
                text = f"{error} {error!r} {error.__cause__}"
            assert "***" in text
            assert not any(secret in text for secret in (SECRET, "abcdefgh-token", "12345678", escaped))
    assert server.requests[0].headers["x-key"] == SECRET
    assert server.requests[0].headers["authorization"] == "Bearer abcdefgh-token"
    assert SECRET not in caplog.text


async def test_bare_key_is_sent_as_a_bearer_token(server: RecordingServer):
    await call_tool(build_configuration(server, secrets={"Authorization": "one"}), {}, {"Authorization": SECRET})
    assert server.requests[0].headers["authorization"] == f"Bearer {SECRET}"


async def test_truncated_secret_is_not_shown(server: RecordingServer):
    for distance in range(0, 30, 3):
        server.answer = lambda request, distance=distance: build_reply(
            b"a" * (256 * 1024 - distance) + SECRET.encode() + b"b" * 90_000
        )
        result = await call_tool(build_configuration(server, secrets={"X-Key": "one"}), {}, {"X-Key": SECRET})
        assert result["truncated"]
        assert set(result["body"]) <= set("a*b")
    server.answer = lambda request: build_reply((SECRET * 20_000).encode())
    result = await call_tool(build_configuration(server, secrets={"X-Key": "one"}), {}, {"X-Key": SECRET})
    assert set(result["body"]) == {"*"}


@pytest.mark.parametrize("secret", ["a\r\nX-B: c", "", "ü"])
async def test_invalid_header_secrets_are_refused(server: RecordingServer, secret: str):
    with pytest.raises(ToolFailed, match="X-Key") as error:
        await call_tool(build_configuration(server, secrets={"X-Key": "one"}), {}, {"X-Key": secret})
    assert not secret or secret not in str(error.value)
    with pytest.raises(ToolFailed, match="X-Key"):
        await call_tool(build_configuration(server, secrets={"X-Key": "one"}), {}, {})
    assert server.connection_count == 0


async def test_error_status_of_the_endpoint_is_reported(server: RecordingServer):
    server.answer = lambda request: build_reply(b"no such thing" + b"x" * 5000, 404)
    with pytest.raises(ToolFailed, match="404: no such thing") as error:
        await call_tool(build_configuration(server), {})
    assert len(str(error.value)) < 2100


async def test_redirects_of_the_endpoint_are_not_followed(server: RecordingServer):
    """Refuse redirects, as the secrets are for the configured endpoint only."""
    server.answer = lambda request: build_reply(status=307, location="/other")
    with pytest.raises(ToolFailed, match="307"):
        await call_tool(build_configuration(server), {})
    assert len(server.requests) == 1


async def test_custom_tool_respects_the_outbound_guard(server: RecordingServer):
    with pytest.raises(ToolFailed, match="refused"):
        await call_custom_tool(Outbound(("127.0.0.1:1",)), build_configuration(server), {}, {})
    assert server.connection_count == 0


async def test_timeout_of_a_custom_tool_is_enforced(server: RecordingServer):
    async def never_answer(writer: asyncio.StreamWriter) -> None:
        await asyncio.sleep(30)

    server.answer = lambda request: never_answer
    with pytest.raises(ToolFailed, match=r"0\.3 seconds"):
        await call_tool(build_configuration(server, timeout=0.3), {})


async def test_deeply_nested_json_is_returned_as_text(server: RecordingServer):
    server.answer = lambda request: build_reply(b"[" * 100_000 + b"]" * 100_000)
    assert (await call_tool(build_configuration(server), {}))["body"].startswith("[[")


def test_parameters_become_a_schema():
    schema = {"type": "object", "properties": {"a": ANY_TEXT}, "required": ["a"], "additionalProperties": False}
    url = {"api_endpoint": "https://a.test/x"}
    assert check_custom_configuration({**url, "parameters": schema})[1] == schema
    assert check_custom_configuration({**url, "parameters": {"properties": {"a": ANY_TEXT}}})[1]["type"] == "object"
    assert check_custom_configuration({**url, "parameters": {"a": ANY_TEXT, "type": ANY_TEXT}})[1] == {
        "type": "object", "properties": {"a": ANY_TEXT, "type": ANY_TEXT}, "required": [],
    }  # fmt: skip
    assert check_custom_configuration({**url, "parameters": {"properties": ANY_TEXT}})[1]["properties"] == {
        "properties": ANY_TEXT
    }
    assert check_custom_configuration(url) == (
        {**url, "method": "POST", "parameters": {}, "headers": {}, "secrets": {}, "timeout": 30.0},
        {"type": "object", "properties": {}, "required": []},
    )
    path = {
        "api_endpoint": "https://a.test/{b}/{a}",
        "parameters": {**schema, "properties": {"a": ANY_TEXT, "b": ANY_TEXT}},
    }
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
        ({"headers": {"Content-Type": f"{FORM_CONTENT_TYPE}; charset=latin-1"}}, "configuration.headers.Content-Type"),
        ({"headers": {"X-A": "b\r\nc"}}, "configuration.headers.X-A"),
        ({"headers": {"X-A": "b", "x-a": "c"}}, "configuration.headers.x-a"),
        ({"secrets": {"Host": "b"}}, "configuration.secrets.Host"),
        ({"headers": {"X-A": "b"}, "secrets": {"x-a": "c"}}, "configuration.secrets.x-a"),
        ({"timeout": 0}, "configuration.timeout"),
        ({"timeout": 301}, "configuration.timeout"),
        ({"verify": False}, "configuration.verify"),
    ],
)
def test_invalid_configurations_are_refused(change: dict[str, Any], field: str):
    configuration = {"api_endpoint": "https://a.test/", "parameters": {"a": ANY_TEXT}, **change}
    with pytest.raises(DomainError) as error:
        check_custom_configuration({name: value for name, value in configuration.items() if value is not None})
    assert error.value.code == "invalid_field"
    assert error.value.errors[0].field == field


def test_deeply_nested_parameters_are_refused():
    deep: dict[str, Any] = {}
    for _ in range(100):
        deep = {"a": deep}
    with pytest.raises(DomainError, match="nested"):
        check_custom_configuration({"api_endpoint": "https://a.test/", "parameters": {"a": deep}})
