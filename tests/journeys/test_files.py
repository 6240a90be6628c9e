"""Files: uploaded, given to runs of every kind, and kept when a run leaves them."""

import json

import pytest
from websockets.asyncio.client import connect

from tests.support.clients import TenantClient

MANIFEST = "name: {name}\nentrypoint: agent:handle\n"
COPIER = """
import os, pathlib

def handle(payload):
    work = pathlib.Path(os.environ["PADDOCK_WORK"])
    text = (work / "in/data.csv").read_text()
    (work / "out").mkdir()
    (work / "out/report.txt").write_text(text.upper())
    os.symlink("/etc/passwd", work / "link")
    for number in range(payload.get("more", 0)):
        (work / f"more-{number:05}").write_bytes(b"x")
    if payload.get("fail"):
        raise RuntimeError("after writing")
    return {"cwd": os.getcwd(), "files": sorted(str(p.relative_to(work)) for p in work.rglob("*.csv"))}
"""


async def _upload(tenant: TenantClient, data: bytes, name: str = "data.csv", **query: int) -> dict:
    answer = await tenant.http.post("/files", files={"file": (name, data, "text/csv")}, params=query)
    assert answer.status_code == 201, answer.text
    return answer.json()


async def test_file_is_uploaded_listed_read_in_ranges_and_deleted(
    acme: TenantClient, other_tenant: TenantClient
) -> None:
    file = await _upload(acme, b"a,b\n1,2\n", "päth/dätä.csv")
    assert (file["name"], file["size_bytes"], file["content_type"]) == ("dätä.csv", 8, "text/csv")
    assert (await acme.http.get("/files")).json()["items"][0]["id"] == file["id"]
    whole = await acme.http.get(f"/files/{file['id']}/content")
    assert whole.content == b"a,b\n1,2\n"
    part = await acme.http.get(f"/files/{file['id']}/content", headers={"Range": "bytes=4-5"})
    assert (part.status_code, part.content, part.headers["content-range"]) == (206, b"1,", "bytes 4-5/8")
    last = await acme.http.get(f"/files/{file['id']}/content", headers={"Range": "bytes=-4"})
    assert last.content == b"1,2\n"
    reversed_range = await acme.http.get(f"/files/{file['id']}/content", headers={"Range": "bytes=5-2"})
    assert (reversed_range.status_code, "Content-Range" in reversed_range.headers) == (200, False)
    beyond = await acme.http.get(f"/files/{file['id']}/content", headers={"Range": "bytes=8-"})
    assert beyond.status_code == 416, beyond.text
    for path in (f"/files/{file['id']}", f"/files/{file['id']}/content"):
        assert (await other_tenant.http.get(path)).status_code == 404
    assert (await other_tenant.http.delete(f"/files/{file['id']}")).status_code == 404
    assert (await acme.http.delete(f"/files/{file['id']}")).status_code == 204
    assert (await acme.http.get(f"/files/{file['id']}")).status_code == 404


async def test_run_reads_its_files_and_what_it_leaves_is_kept(acme: TenantClient) -> None:
    file = await _upload(acme, b"a,b\n1,2\n")
    agent_id = await acme.deploy_agent(COPIER, MANIFEST.format(name="copier"))
    start = {"payload": {}, "files": {"in/data.csv": file["id"]}}
    ended = (await acme.http.post(f"/agents/{agent_id}/execute", json=start, headers={"Prefer": "wait=30"})).json()
    assert ended["status"] == "completed", ended
    assert ended["output_data"] == {"cwd": "/agent", "files": ["in/data.csv"]}
    assert ended["files"] == {"in/data.csv": file["id"]}
    listed = (await acme.http.get(f"/executions/{ended['id']}/files")).json()["items"]
    assert [entry["path"] for entry in listed] == ["in/data.csv", "out/report.txt"]
    report = await acme.http.get(f"/executions/{ended['id']}/files/out/report.txt")
    assert report.content == b"A,B\n1,2\n"
    assert any("'link'" in entry["message"] for entry in await acme.list_events(ended["id"]) if entry.get("message"))
    # The run keeps its files when the upload is deleted.
    await acme.http.delete(f"/files/{file['id']}")
    assert (await acme.http.get(f"/executions/{ended['id']}/files/in/data.csv")).content == b"a,b\n1,2\n"


async def test_failed_run_keeps_its_files_and_surplus_is_named(acme: TenantClient) -> None:
    file = await _upload(acme, b"a,b\n")
    agent_id = await acme.deploy_agent(COPIER, MANIFEST.format(name="failing"))
    start = {"payload": {"fail": True, "more": 10_000}, "files": {"in/data.csv": file["id"]}}
    ended = (await acme.http.post(f"/agents/{agent_id}/execute", json=start, headers={"Prefer": "wait=50"})).json()
    assert (ended["status"], ended["error_type"]) == ("failed", "RuntimeError"), ended
    listed = (await acme.http.get(f"/executions/{ended['id']}/files", params={"limit": 100})).json()
    assert listed["total"] == 500
    notices = [
        entry["message"] for entry in await acme.list_events(ended["id"]) if "Not kept" in entry.get("message", "")
    ]
    assert len(notices) == 1
    assert "more (at most 500 files are kept)" in notices[0]


@pytest.mark.parametrize(
    "path", ["", "../x", "/etc/passwd", "a/../../x", "a\0b", "x" * 300, "é" * 200, "a\\b", "a\nb", "/".join("a" * 400)]
)
async def test_bad_path_is_refused_by_name(acme: TenantClient, path: str) -> None:
    file = await _upload(acme, b"x")
    agent_id = await acme.deploy_agent(COPIER, MANIFEST.format(name="paths"))
    answer = await acme.http.post(f"/agents/{agent_id}/execute", json={"files": {path: file["id"]}})
    assert answer.status_code == 422, answer.text
    assert "files" in answer.text


async def test_unknown_expired_and_foreign_files_are_refused(acme: TenantClient, other_tenant: TenantClient) -> None:
    agent_id = await acme.deploy_agent(COPIER, MANIFEST.format(name="foreign"))
    foreign = await _upload(other_tenant, b"secret")
    for file_id in (foreign["id"], "file_01k3v9rt0hf7btqeqn5j8x2a4c", "nonsense", ""):
        answer = await acme.http.post(f"/agents/{agent_id}/execute", json={"files": {"a": file_id}})
        assert answer.status_code == 422, answer.text
        assert "'a': there is no file" in answer.text
    file = await _upload(acme, b"x")
    both = {"a": file["id"], "a/b": file["id"]}
    answer = await acme.http.post(f"/agents/{agent_id}/execute", json={"files": both})
    assert answer.status_code == 422
    assert "both a file and a folder" in answer.text


RELAY = """
import os, pathlib

def handle(payload):
    work = pathlib.Path("/work")
    if payload.get("first"):
        (work / "pkg").mkdir()
        for name in ("empty", "full", "pkg/__init__.py"):
            (work / name).write_text("x" if name == "full" else "")
    return sorted(f"{path.relative_to(work)} {path.stat().st_size}" for path in work.rglob("*") if path.is_file())
"""


async def test_empty_files_reach_a_run_and_the_next_steps(acme: TenantClient) -> None:
    empty = await _upload(acme, b"", "zero")
    assert (empty["size_bytes"], (await acme.http.get(f"/files/{empty['id']}/content")).content) == (0, b"")
    agent_id = await acme.deploy_agent(RELAY, MANIFEST.format(name="relay"))
    start = {"files": {"zero": empty["id"], "in/zero": empty["id"]}}
    ended = await acme.run_agent(agent_id, {}, **start)
    assert ended["output_data"] == ["in/zero 0", "zero 0"]
    again = (await acme.http.post(f"/executions/{ended['id']}/retry", headers={"Prefer": "wait=30"})).json()
    assert again["output_data"] == ended["output_data"]
    steps = [
        {"id": "one", "agent": agent_id, "inputs": {"first": True}},
        {"id": "two", "agent": agent_id, "depends_on": ["one"], "inputs": {"first": False}},
    ]
    workflow = (await acme.http.post("/workflows", json={"name": "relay", "steps": steps})).json()
    started = await acme.http.post(f"/workflows/{workflow['id']}/execute", json=start)
    assert started.status_code == 201, started.text
    ended = await acme.wait_for_end(started.json()["id"])
    assert ended["results"]["two"] == ["empty 0", "full 1", "in/zero 0", "pkg/__init__.py 0", "zero 0"]


async def test_upload_without_a_file_is_refused(acme: TenantClient) -> None:
    for body in ({"file": (None, b"")}, {"file": ("", b"")}):
        answer = await acme.http.post("/files", files=body)
        assert answer.status_code == 422, answer.text
        assert answer.json()["errors"][0] == {"field": "file", "message": "is missing. Send the file in this field."}


async def test_retry_gets_the_bytes_that_the_run_has_kept(acme: TenantClient) -> None:
    source = (
        "import pathlib\n\ndef handle(payload):\n    path = pathlib.Path('/work/in.txt')\n    text = path.read_text()\n"
        "    if payload.get('change'):\n        path.write_text('changed')\n    return text\n"
    )
    agent_id = await acme.deploy_agent(source, MANIFEST.format(name="kept"))
    workflow = {"name": "kept", "steps": [{"id": "a", "agent": agent_id, "inputs": {}}]}
    workflow_id = (await acme.http.post("/workflows", json=workflow)).json()["id"]
    file = await _upload(acme, b"bytes")
    start = {"files": {"in.txt": file["id"]}}
    first = await acme.run_agent(agent_id, {}, **start)
    changing = await acme.run_agent(agent_id, {"change": True}, **start)
    started = (await acme.http.post(f"/workflows/{workflow_id}/execute", json=start)).json()
    planned = await acme.wait_for_end(started["id"])
    assert (await acme.http.delete(f"/files/{file['id']}")).status_code == 204
    # A retry of a retry as well: each has the bytes. It names no file anew, and takes no scope to read them.
    async with acme.open_client(await acme.create_key(scopes=["run:agents"])) as runner:
        for _ in range(2):
            again = await runner.post(f"/executions/{first['id']}/retry", headers={"Prefer": "wait=30"})
            assert again.status_code == 201, again.text
            first = again.json()
            assert (first["status"], first["output_data"]) == ("completed", "bytes"), first
        again = await runner.post(f"/executions/{planned['id']}/retry", headers={"Prefer": "wait=30"})
        assert again.json()["results"] == {"a": "bytes"}, again.text
    refused = await acme.http.post(f"/executions/{changing['id']}/retry")
    assert refused.status_code == 422, refused.text
    assert "'in.txt': there is no file" in refused.text
    assert "has changed its copy" in refused.text
    started_anew = await acme.http.post(f"/agents/{agent_id}/execute", json=start)
    assert started_anew.status_code == 422, "a start takes no bytes of other runs"


async def test_naming_files_takes_the_scope_to_read_them(system, acme: TenantClient) -> None:
    agent_id = await acme.deploy_agent(COPIER, MANIFEST.format(name="scoped"))
    steps = [{"id": "a", "agent": agent_id, "inputs": {}}]
    workflow_id = (await acme.http.post("/workflows", json={"name": "scoped", "steps": steps})).json()["id"]
    crew = {
        "name": "scoped",
        "agents_yaml": "a: {role: R, goal: G, llm: smollm2}\n",
        "tasks_yaml": "t: {description: D, expected_output: E, agent: a}\n",
    }
    crew_id = (await acme.http.post("/crews", json=crew)).json()["id"]
    file = await _upload(acme, b"secret")
    start = {"files": {"in/data.csv": file["id"]}}
    plan = {"cron_expression": "@yearly", "agent_id": agent_id}
    schedule = await acme.http.post("/scheduler/schedules", json={"name": "with", **plan, **start, "enabled": False})
    assert schedule.status_code == 201, schedule.text
    path = f"/scheduler/schedules/{schedule.json()['id']}"
    async with acme.open_client(await acme.create_key(scopes=["run:agents", "write:schedules"])) as runner:
        bare = await runner.post("/scheduler/schedules", json={"name": "bare", **plan})
        assert bare.status_code == 201, "without files the scope is not asked for"
        answers = [
            await runner.post(f"/agents/{agent_id}/execute", json=start),
            await runner.post(f"/workflows/{workflow_id}/execute", json=start),
            await runner.post(f"/crews/{crew_id}/execute", json=start),
            *[
                await runner.post("/executions", json={field: target, **start})
                for field, target in (("agent_id", agent_id), ("crew_id", crew_id), ("workflow_id", workflow_id))
            ],
            await runner.post("/scheduler/schedules", json={"name": "other", **plan, **start}),
            await runner.patch(f"/scheduler/schedules/{bare.json()['id']}", json=start),
            await runner.patch(path, json={"catch_up": 2}),
            await runner.patch(f"{path}/toggle"),
            await runner.post(f"{path}/run"),
        ]
        for answer in answers:
            assert (answer.status_code, answer.json()["error"]) == (403, "missing_scope"), answer.text
            assert "read:files" in answer.json()["detail"]
        assert (await runner.patch(path, json={"files": None})).status_code == 200
        url = f"ws://127.0.0.1:{system.port}/api/v1/agents/{agent_id}/stream"
        async with connect(url, additional_headers={"X-API-Key": runner.headers["X-API-Key"]}) as socket:
            await socket.send(json.dumps(start))
            assert json.loads(await socket.recv())["error"] == "missing_scope"
    assert (await acme.http.get("/executions", params={"agent_id": agent_id})).json()["items"] == []


async def test_folders_of_a_start_are_as_deep_as_those_that_are_kept(acme: TenantClient) -> None:
    file = await _upload(acme, b"a,b\n")
    agent_id = await acme.deploy_agent(COPIER, MANIFEST.format(name="deep"))
    too_deep = "d/" * 33 + "x"
    answer = await acme.http.post(f"/agents/{agent_id}/execute", json={"files": {too_deep: file["id"]}})
    assert answer.status_code == 422, answer.text
    assert f"'{too_deep}' lies 33 folders deep; at most 32 are allowed." in answer.text
    start = {"files": {"in/data.csv": file["id"], "d/" * 32 + "x": file["id"]}}
    ended = await acme.run_agent(agent_id, {}, **start)
    messages = [entry.get("message", "") for entry in await acme.list_events(ended["id"])]
    assert [text for text in messages if "d/d/" in text] == []


async def test_file_of_a_run_is_read_in_ranges(acme: TenantClient) -> None:
    file = await _upload(acme, b"a,b\n1,2\n")
    agent_id = await acme.deploy_agent(COPIER, MANIFEST.format(name="ranges"))
    ended = await acme.run_agent(agent_id, {}, files={"in/data.csv": file["id"]})
    path = f"/executions/{ended['id']}/files/out/report.txt"
    whole = await acme.http.get(path)
    assert (whole.status_code, whole.content, whole.headers["accept-ranges"]) == (200, b"A,B\n1,2\n", "bytes")
    part = await acme.http.get(path, headers={"Range": "bytes=4-5"})
    assert (part.status_code, part.content, part.headers["content-range"]) == (206, b"1,", "bytes 4-5/8")
    assert (await acme.http.get(path, headers={"Range": "bytes=8-"})).status_code == 416
