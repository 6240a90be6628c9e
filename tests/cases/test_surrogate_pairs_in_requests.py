"""Test that halves of surrogate pairs in requests are replaced on every route."""

import json
from typing import Any

import pytest
from websockets.asyncio.client import connect

from scripts.system import System
from tests.support.case_inputs import find_case_folder
from tests.support.clients import TenantClient

CASE_FOLDER = find_case_folder("15-half-an-emoji")
JSON_HEADERS = {"Content-Type": "application/json"}
BROKEN_TEXT = "cut \ud83d"
REPAIRED_TEXT = "cut \ufffd"


async def post_body(tenant: TenantClient, path: str, body: Any, ascii_only: bool = True) -> dict[str, Any]:
    sent = body if isinstance(body, bytes) else json.dumps(body, ensure_ascii=ascii_only).encode(errors="surrogatepass")
    answer = await tenant.http.post(path, content=sent, headers=JSON_HEADERS)
    assert answer.status_code == 201, answer.text
    return dict(answer.json())


async def test_bodies_of_the_case_are_repaired(acme: TenantClient) -> None:
    agent = await post_body(acme, "/agents", (CASE_FOLDER / "agent.json").read_bytes())
    assert agent["instructions"] == "Be brief \ufffd"
    template = await post_body(acme, "/templates", (CASE_FOLDER / "template.json").read_bytes())
    assert (template["template"], template["variables"]) == ("cut \ufffd here {name}", ["name"])


@pytest.mark.parametrize("ascii_only", [True, False], ids=["escapes", "bytes"])
@pytest.mark.parametrize(
    ("path", "body", "field"),
    [
        ("/agents", {"name": "half", "model": "smollm2", "goal": BROKEN_TEXT}, "goal"),
        ("/agents", {"name": BROKEN_TEXT, "model": "smollm2"}, "name"),
        ("/tasks", {"name": "half", "description": BROKEN_TEXT}, "description"),
        ("/templates", {"name": "half", "template": "x", "description": BROKEN_TEXT}, "description"),
        (
            "/workflows",
            {"name": "half", "description": BROKEN_TEXT, "steps": [{"id": "a", "tool": "python"}]},
            "description",
        ),
        ("/evaluations", {"prompt": BROKEN_TEXT, "response": "r"}, "prompt"),
        ("/api-keys", {"name": BROKEN_TEXT}, "name"),
    ],
)
async def test_texts_of_every_route_are_repaired(
    acme: TenantClient, path: str, body: dict[str, Any], field: str, ascii_only: bool
) -> None:
    assert (await post_body(acme, path, body, ascii_only))[field] == REPAIRED_TEXT


async def test_whole_pairs_and_escaped_backslashes_are_unchanged(acme: TenantClient) -> None:
    source = rb'{"name":"whole","template":"\ud83d\ude00 \\ud83d \ude00\ud83d \uD83D\uDE00"}'
    assert (await post_body(acme, "/templates", source))["template"] == "😀 \\ud83d \ufffd\ufffd 😀"


async def test_artifacts_and_payloads_are_repaired(shared_tenant: TenantClient) -> None:
    artifact = {
        "run_id": BROKEN_TEXT,
        "inputs": {BROKEN_TEXT: [BROKEN_TEXT]},
        "outputs": {"x": BROKEN_TEXT},
        "environment": "production",
    }
    large = {**artifact, "metadata": {"much": "x" * 2_000_000, "half": BROKEN_TEXT}}
    for body in (artifact, large):
        created = await post_body(shared_tenant, "/artifacts/upload", body)
        artifact_read = (await shared_tenant.http.get(f"/artifacts/{created['kurral_id']}")).json()
        assert (artifact_read["run_id"], artifact_read["inputs"], artifact_read["outputs"]) == (
            REPAIRED_TEXT,
            {REPAIRED_TEXT: [REPAIRED_TEXT]},
            {"x": REPAIRED_TEXT},
        )
    run = await shared_tenant.wait_for_end(
        (await post_body(shared_tenant, "/agents/hello/execute", {"payload": {"name": BROKEN_TEXT}}))["id"]
    )
    assert (run["status"], run["input_data"]) == ("completed", {"name": REPAIRED_TEXT}), run


async def test_broken_queries_paths_and_uploads_never_fail_the_server(acme: TenantClient) -> None:
    # %ED%A0%BD is half an emoji in WTF-8.
    for path in ("/artifacts?run_id=%ED%A0%BD", "/agents/%ED%A0%BD", "/executions?search=%ED%A0%BD"):
        answer = await acme.http.get(path)
        assert answer.status_code in (200, 404, 422), (path, answer.status_code, answer.text)
    agent = await acme.create_agent()
    for name in ("file\ud83d", "\ud83d"):
        form = f'--b\r\nContent-Disposition: form-data; name="{name}"; filename="a"\r\n\r\nx\r\n--b--\r\n'
        answer = await acme.http.post(
            f"/uploads/agent/{agent['id']}",
            content=form.encode(errors="surrogatepass"),
            headers={"Content-Type": "multipart/form-data; boundary=b"},
        )
        assert answer.status_code in (400, 422), answer.text


async def test_websocket_messages_are_repaired(shared_tenant: TenantClient, system: System) -> None:
    token = shared_tenant.http.headers["Authorization"].removeprefix("Bearer ")
    url = f"{system.url.replace('http', 'ws')}/api/v1/agents/hello/stream?access_token={token}"
    async with connect(url) as socket:
        await socket.send(json.dumps({"payload": {"name": BROKEN_TEXT}}))
        while (event := json.loads(await socket.recv()))["type"] not in ("complete", "error"):
            pass
    assert event["type"] == "complete", event
    assert REPAIRED_TEXT in json.dumps(event["result"], ensure_ascii=False)
