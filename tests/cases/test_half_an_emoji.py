"""Half an emoji in what callers send: mended at the door, whatever the body is for."""

import json
from typing import Any

import pytest
from websockets.asyncio.client import connect

from scripts.system import System
from tests.support.case_inputs import find_case_folder
from tests.support.clients import TenantClient

BODIES = find_case_folder("15-half-an-emoji")
JSON = {"Content-Type": "application/json"}
HALF = "cut \ud83d"
MENDED = "cut \ufffd"


async def post(tenant: TenantClient, path: str, body: Any, ascii_only: bool = True) -> dict[str, Any]:
    sent = body if isinstance(body, bytes) else json.dumps(body, ensure_ascii=ascii_only).encode(errors="surrogatepass")
    answer = await tenant.http.post(path, content=sent, headers=JSON)
    assert answer.status_code == 201, answer.text
    return dict(answer.json())


async def test_the_bodies_of_the_case(acme: TenantClient) -> None:
    agent = await post(acme, "/agents", (BODIES / "agent.json").read_bytes())
    assert agent["instructions"] == "Be brief \ufffd"
    template = await post(acme, "/templates", (BODIES / "template.json").read_bytes())
    assert (template["template"], template["variables"]) == ("cut \ufffd here {name}", ["name"])


@pytest.mark.parametrize("ascii_only", [True, False], ids=["escapes", "bytes"])
@pytest.mark.parametrize(
    ("path", "body", "field"),
    [
        ("/agents", {"name": "half", "model": "smollm2", "goal": HALF}, "goal"),
        ("/agents", {"name": HALF, "model": "smollm2"}, "name"),
        ("/tasks", {"name": "half", "description": HALF}, "description"),
        ("/templates", {"name": "half", "template": "x", "description": HALF}, "description"),
        ("/workflows", {"name": "half", "description": HALF, "steps": [{"id": "a", "tool": "python"}]}, "description"),
        ("/evaluations", {"prompt": HALF, "response": "r"}, "prompt"),
        ("/api-keys", {"name": HALF}, "name"),
    ],
)
async def test_texts_of_every_kind(
    acme: TenantClient, path: str, body: dict[str, Any], field: str, ascii_only: bool
) -> None:
    assert (await post(acme, path, body, ascii_only))[field] == MENDED


async def test_halves_that_meet_stay_together_and_escaped_backslashes_stay(acme: TenantClient) -> None:
    source = rb'{"name":"whole","template":"\ud83d\ude00 \\ud83d \ude00\ud83d \uD83D\uDE00"}'
    assert (await post(acme, "/templates", source))["template"] == "😀 \\ud83d \ufffd\ufffd 😀"


async def test_records_and_payloads(shared_tenant: TenantClient) -> None:
    artifact = {"run_id": HALF, "inputs": {HALF: [HALF]}, "outputs": {"x": HALF}, "environment": "production"}
    large = {**artifact, "metadata": {"much": "x" * 2_000_000, "half": HALF}}
    for body in (artifact, large):
        made = await post(shared_tenant, "/artifacts/upload", body)
        got = (await shared_tenant.http.get(f"/artifacts/{made['kurral_id']}")).json()
        assert (got["run_id"], got["inputs"], got["outputs"]) == (MENDED, {MENDED: [MENDED]}, {"x": MENDED})
    run = await shared_tenant.wait_for_end(
        (await post(shared_tenant, "/agents/hello/execute", {"payload": {"name": HALF}}))["id"]
    )
    assert (run["status"], run["input_data"]) == ("completed", {"name": MENDED}), run


async def test_queries_paths_and_uploads(acme: TenantClient) -> None:
    # %ED%A0%BD is half an emoji as WTF-8 has it.
    for path in ("/artifacts?run_id=%ED%A0%BD", "/agents/%ED%A0%BD", "/executions?search=%ED%A0%BD"):
        answer = await acme.http.get(path)
        assert answer.status_code in (200, 404, 422), (path, answer.status_code, answer.text)
    agent = await acme.create_agent()
    for name in ("file\ud83d", "\ud83d"):
        head = f'--b\r\nContent-Disposition: form-data; name="{name}"; filename="a"\r\n\r\nx\r\n--b--\r\n'
        answer = await acme.http.post(
            f"/uploads/agent/{agent['id']}",
            content=head.encode(errors="surrogatepass"),
            headers={"Content-Type": "multipart/form-data; boundary=b"},
        )
        assert answer.status_code in (400, 422), answer.text


async def test_messages_of_a_websocket(shared_tenant: TenantClient, system: System) -> None:
    token = shared_tenant.http.headers["Authorization"].removeprefix("Bearer ")
    url = f"{system.url.replace('http', 'ws')}/api/v1/agents/hello/stream?access_token={token}"
    async with connect(url) as socket:
        await socket.send(json.dumps({"payload": {"name": HALF}}))
        while (event := json.loads(await socket.recv()))["type"] not in ("complete", "error"):
            pass
    assert event["type"] == "complete", event
    assert MENDED in json.dumps(event["result"], ensure_ascii=False)
