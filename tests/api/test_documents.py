"""The OpenAPI document, the pages that show it, and the metrics."""

import json
import re
from pathlib import Path

import httpx

SNAPSHOT = Path(__file__).parent / "openapi.json"


async def test_the_document_s_every_change_is_seen(system) -> None:
    """Written anew by: PADDOCK_SNAPSHOT=write make test ARGS=tests/api"""
    import os

    async with httpx.AsyncClient() as client:
        document = (await client.get(f"{system.url}/openapi.json")).json()
    text = json.dumps(document, indent=1, sort_keys=True) + "\n"
    if os.environ.get("PADDOCK_SNAPSHOT") == "write":
        SNAPSHOT.write_text(text)
    assert SNAPSHOT.read_text() == text
    names = [operation["operationId"] for item in document["paths"].values() for operation in item.values()]
    assert len(names) == len(set(names))


async def test_the_pages_work_without_the_internet(system) -> None:
    async with httpx.AsyncClient(base_url=system.url) as client:
        for path, wanted in (
            ("/docs", {"swagger-ui-bundle.js", "swagger-ui.css", "swagger-ui-standalone-preset.js", "docs.js"}),
            ("/redoc", {"redoc.standalone.js", "redoc.js"}),
        ):
            page = await client.get(path)
            assert page.status_code == 200
            assert page.headers["content-type"] == "text/html; charset=utf-8"
            # Nothing of another host, and nothing that the policy forbids: no script or style in the page itself.
            assert "//" not in page.text
            assert not re.search(r"<script(?! src=)|<style|\son\w+=", page.text)
            assert "script-src 'self';" in page.headers["content-security-policy"]
            found = set(re.findall(r"/docs/assets/([^\"]+)", page.text))
            assert found == {*wanted, "favicon-32x32.png"}
            for asset in found:
                answer = await client.get(f"/docs/assets/{asset}")
                assert answer.status_code == 200
                assert len(answer.content) > 50
                assert answer.headers["content-type"].count("charset") == (0 if asset.endswith("png") else 1)
        assert b'Version: "2' in (await client.get("/docs/assets/redoc.standalone.js.LICENSE.txt")).content
        assert (await client.get("/docs/assets/..%2fdocs.py")).status_code == 404
        assert (await client.get("/_litestar/openapi.json")).status_code == 404


async def test_metrics_are_prometheus_text(system) -> None:
    from prometheus_client.parser import text_string_to_metric_families

    async with httpx.AsyncClient(base_url=system.url) as client:
        text = (await client.get("/metrics")).text
    found = {family.name for family in text_string_to_metric_families(text)}
    assert {
        "paddock_requests",
        "paddock_queue_depth",
        "paddock_queue_oldest_seconds",
        "paddock_runs",
        "paddock_sandbox_slots",
        "paddock_workers",
        "paddock_ingest_lag_seconds",
    } <= found
