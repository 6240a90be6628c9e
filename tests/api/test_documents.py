"""The OpenAPI document, the pages that show it, and the metrics."""

import json
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
        page = await client.get("/docs")
        assert page.status_code == 200
        assert "//" not in page.text.split("spec:")[0].replace("<!DOCTYPE", "")
        for asset in ("swagger-ui-bundle.js", "swagger-ui.css", "swagger-ui-standalone-preset.js"):
            assert f"/docs/assets/{asset}" in page.text
            assert len((await client.get(f"/docs/assets/{asset}")).content) > 1000
        assert (await client.get("/redoc")).status_code == 200
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
