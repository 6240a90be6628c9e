"""Test the OpenAPI document, the pages that show it, and the metrics."""

import json
import re
from pathlib import Path

import httpx

SNAPSHOT_FILE = Path(__file__).parent / "openapi.json"


async def test_openapi_document_matches_its_snapshot(system) -> None:
    """Compare the document with its snapshot. Update it by: PADDOCK_SNAPSHOT=write make test ARGS=tests/api"""
    import os

    async with httpx.AsyncClient() as client:
        document = (await client.get(f"{system.url}/openapi.json")).json()
    text = json.dumps(document, indent=1, sort_keys=True) + "\n"
    if os.environ.get("PADDOCK_SNAPSHOT") == "write":
        SNAPSHOT_FILE.write_text(text)
    assert SNAPSHOT_FILE.read_text() == text
    names = [operation["operationId"] for item in document["paths"].values() for operation in item.values()]
    assert len(names) == len(set(names))


async def test_documentation_pages_load_only_local_assets(system) -> None:
    async with httpx.AsyncClient(base_url=system.url) as client:
        for path, expected_assets in (
            ("/docs", {"swagger-ui-bundle.js", "swagger-ui.css", "swagger-ui-standalone-preset.js", "docs.js"}),
            ("/redoc", {"redoc.standalone.js", "redoc.js"}),
        ):
            page = await client.get(path)
            assert page.status_code == 200
            assert page.headers["content-type"] == "text/html; charset=utf-8"
            # No assets of other hosts, and no inline script or style, which the policy forbids.
            assert "//" not in page.text
            assert not re.search(r"<script(?! src=)|<style|\son\w+=", page.text)
            assert "script-src 'self';" in page.headers["content-security-policy"]
            assets = set(re.findall(r"/docs/assets/([^\"]+)", page.text))
            assert assets == {*expected_assets, "favicon-32x32.png"}
            for asset in assets:
                answer = await client.get(f"/docs/assets/{asset}")
                assert answer.status_code == 200
                assert len(answer.content) > 50
                assert answer.headers["content-type"].count("charset") == (0 if asset.endswith("png") else 1)
        assert b'Version: "2' in (await client.get("/docs/assets/redoc.standalone.js.LICENSE.txt")).content
        assert (await client.get("/docs/assets/..%2fdocs.py")).status_code == 404
        start = await client.get("/")
        assert (start.status_code, start.headers["location"]) == (302, "/docs")
        assert "/openapi.json" in (await client.get("/api/v1/agent")).json()["detail"]
        assert (await client.get("/_litestar/openapi.json")).status_code == 404


async def test_metrics_are_prometheus_text(system) -> None:
    from prometheus_client.parser import text_string_to_metric_families

    async with httpx.AsyncClient(base_url=system.url) as client:
        text = (await client.get("/metrics")).text
    families = {family.name for family in text_string_to_metric_families(text)}
    assert {
        "paddock_requests",
        "paddock_queue_depth",
        "paddock_queue_oldest_seconds",
        "paddock_runs",
        "paddock_sandbox_slots",
        "paddock_workers",
        "paddock_ingest_lag_seconds",
    } <= families
