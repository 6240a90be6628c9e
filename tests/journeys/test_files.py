"""Files: uploaded, given to runs of every kind, and kept when a run leaves them."""

import pytest

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
    again = await acme.http.post(f"/executions/{ended['id']}/retry")
    assert again.status_code == 422, again.text
    assert "in/data.csv" in again.text


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
