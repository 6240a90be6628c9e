"""Read runs, logs, files and artifacts as resources."""

import asyncio
import base64
import json

import pytest
from mcp.shared.exceptions import MCPError
from mcp_types import BlobResourceContents, TextResourceContents

from api.mcp.resources import MAX_RESOURCE_BYTES
from scripts.system import System
from tests.support.clients import TenantClient
from tests.support.mcp_clients import PROTOCOL_MODES, connect_client

SOURCE = f"""
import pathlib

def handle(payload):
    print("wrote everything")
    work = pathlib.Path("/work")
    (work / "a b").mkdir()
    (work / "a b/plan & più.txt").write_text("caffè")
    (work / "picture.png").write_bytes(bytes(range(256)))
    (work / "broken.txt").write_bytes(b"\\xff\\xfe\\xfd")
    (work / "large.bin").write_bytes(b"x" * {MAX_RESOURCE_BYTES + 1})
    return {{"n": 1}}
"""


@pytest.mark.parametrize("mode", PROTOCOL_MODES)
async def test_runs_and_what_they_left_are_read(system: System, acme: TenantClient, mode: str) -> None:
    agent_id = await acme.deploy_agent(SOURCE)
    execution = await acme.run_agent(agent_id)
    base = f"paddock://executions/{execution['id']}"
    async with connect_client(system.url, await acme.create_key(), mode) as client:

        async def read(uri: str) -> TextResourceContents | BlobResourceContents:
            (contents,) = (await client.read_resource(uri)).contents
            assert contents.uri == uri
            return contents

        async def read_text(uri: str) -> str:
            contents = await read(uri)
            assert isinstance(contents, TextResourceContents)
            return contents.text

        templates = {item.uri_template for item in (await client.list_resource_templates()).resource_templates}
        assert templates == {
            "paddock://executions/{execution_id}",
            "paddock://executions/{execution_id}/logs",
            "paddock://executions/{execution_id}/files",
            "paddock://executions/{execution_id}/files/{+path}",
            "paddock://artifacts/{artifact_id}",
        }
        described = json.loads(await read_text(base))
        assert (described["id"], described["status"], described["output_data"]) == (
            execution["id"],
            "completed",
            {"n": 1},
        )
        assert "wrote everything" in await read_text(f"{base}/logs")
        uris = {file["path"]: file["uri"] for file in json.loads(await read_text(f"{base}/files"))}
        assert set(uris) == {"a b/plan & più.txt", "picture.png", "broken.txt", "large.bin"}
        assert await read_text(uris["a b/plan & più.txt"]) == "caffè"
        for name, expected in (("picture.png", bytes(range(256))), ("broken.txt", b"\xff\xfe\xfd")):
            contents = await read(uris[name])
            assert isinstance(contents, BlobResourceContents)
            assert base64.b64decode(contents.blob) == expected
        with pytest.raises(MCPError, match="Download"):
            await read(uris["large.bin"])
        for missing in ("files/none.txt", "files/..%2Fx", "nothing", "files//x"):
            with pytest.raises(MCPError):
                await read(f"{base}/{missing}")
        for _ in range(300):
            listed = {resource.uri for resource in (await client.list_resources()).resources}
            if f"paddock://artifacts/{execution['id']}" in listed:
                break
            await asyncio.sleep(0.1)
        assert {base, f"paddock://artifacts/{execution['id']}"} <= listed
        artifact = json.loads(await read_text(f"paddock://artifacts/{execution['id']}"))
        assert artifact["outputs"] == {"n": 1}


async def test_newest_runs_are_listed_in_pages(system: System, acme: TenantClient) -> None:
    steps = [{"id": "files", "tool": "filesystem_list", "inputs": {}}]
    answer = await acme.http.post("/workflows", json={"name": "many", "steps": steps})
    assert answer.status_code == 201, answer.text
    started = [(await acme.http.post("/workflows/many/execute", json={})).json()["id"] for _ in range(60)]
    async with connect_client(system.url, await acme.create_key(scopes=["read:executions"])) as client:
        first = await client.list_resources()
        second = await client.list_resources(cursor=first.next_cursor)
        assert second.next_cursor is None
        uris = [resource.uri for resource in (*first.resources, *second.resources)]
        assert uris == [f"paddock://executions/{execution_id}" for execution_id in reversed(started)]
        for cursor in ("x", "-1", "1001", "٣", "1" * 300):
            with pytest.raises(MCPError, match="cursor"):
                await client.list_resources(cursor=cursor)
