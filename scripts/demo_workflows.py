"""Show the workflow of `examples/code_review` through HTTP: create it from YAML, run it, approve it."""

import asyncio
from pathlib import Path
from typing import Any, Final

import httpx

from infra.telemetry import escape_controls
from scripts.demo_crews import DemoStep, ExpectStatus

CODE_REVIEW_FOLDER: Final = Path(__file__).resolve().parent.parent / "examples" / "code_review"
REVIEWED_CODE: Final = """import os


def total(prices, seen=[]):
    for price in prices:
        if price == None:
            continue
        seen.append(price)
    return sum(seen)
"""
REVIEWED_TESTS: Final = "assert total([1, 2]) == 3\nassert total([4]) == 4, 'the second call remembers the first'\n"
_REVIEWER_AGENT: Final = {
    "name": "reviewer",
    "model": "smollm2",
    "instructions": "You review code. Answer in two short sentences.",
    "max_tokens": 80,
}
_YAML_HEADERS: Final = {"Content-Type": "application/yaml"}


class DemoWorkflowError(Exception):
    """Report that the workflow did not give the expected result. The message quotes what it gave."""


async def show_code_review(client: httpx.AsyncClient, step: DemoStep, expect: ExpectStatus, checker: bytes) -> None:
    """Deploy the workflow and its agents, run it, approve it, and print its results.

    `checker` is the packed folder `code_review/checker`. Errors: `WorkflowFailed`, and those of `expect`.
    """
    await _deploy_agents(client, step, expect, checker)
    async with step("POST /workflows", "create code-review from YAML") as result:
        text = (CODE_REVIEW_FOLDER / "workflow.yaml").read_text()
        response = await client.post("/workflows", content=text, headers=_YAML_HEADERS)
        if response.status_code == 409:
            response = await client.put("/workflows/code-review", content=text, headers=_YAML_HEADERS)
        result.append(f"{expect(response, 200, 201)['steps_total']} steps")
    async with step("POST /workflows/code-review/execute", "run it until it waits for approval") as result:
        inputs = {"file": "prices.py", "code": REVIEWED_CODE, "tests": REVIEWED_TESTS}
        run = expect(await client.post("/workflows/code-review/execute", json={"inputs": inputs}), 201)
        waiting = await _wait_for_approval(client, expect, run["execution_id"])
        result.append(f"{waiting['steps_completed']} of {waiting['steps_total']} steps done")
    path = f"/executions/{run['execution_id']}"
    results = waiting["results"]
    for line in results["analyze"]["summary"].splitlines():
        print(f"      {escape_controls(line)}", flush=True)
    print(f"      tests: {escape_controls(results['test']['error'].strip().splitlines()[-1])}", flush=True)
    async with step("POST /executions/{id}/approve", "approve it, wait for its end") as result:
        expect(await client.post(f"{path}/approve", json={"reason": "Well said."}), 200)
        ended = expect(await client.get(path, headers={"Prefer": "wait=60"}), 200)
        if ended["status"] != "completed":
            raise DemoWorkflowError(f"the workflow is {ended['status']}: {ended['error_message']}")
        result.append(f"{ended['result']['report']}, {len(ended['result']['problems'])} problems")
    async with step("GET  /executions/{id}/files/report.md", "read the report") as result:
        report = await client.get(f"{path}/files/{ended['result']['report']}")
        if report.status_code != 200 or not report.text.startswith("# Review of prices.py"):
            raise DemoWorkflowError(f"the report is {report.status_code} {report.text[:200]}")
        result.append(f"{len(report.text)} characters")


async def _deploy_agents(client: httpx.AsyncClient, step: DemoStep, expect: ExpectStatus, checker: bytes) -> None:
    async with step("POST /agents, /uploads/agent/checker", "create both agents") as result:
        for agent in ({"name": "checker"}, _REVIEWER_AGENT):
            response = await client.post("/agents", json=agent)
            if response.status_code != 409:
                expect(response, 201)
        upload = await client.post("/uploads/agent/checker", files={"file": ("agent.tar.gz", checker)})
        version = expect(upload, 201)
        built = expect(
            await client.get(f"/agents/checker/versions/{version['id']}", headers={"Prefer": "wait=60"}), 200
        )
        if built["status"] != "ready":
            raise DemoWorkflowError(f"the build is {built['status']}: {built['build_log']}")
        result.append("checker, reviewer")


async def _wait_for_approval(client: httpx.AsyncClient, expect: ExpectStatus, execution_id: str) -> dict[str, Any]:
    for _ in range(1200):
        run: dict[str, Any] = expect(await client.get(f"/workflows/executions/{execution_id}"), 200)
        if run["status"] == "waiting":
            return run
        if run["status"] in ("completed", "failed", "cancelled"):
            break
        await asyncio.sleep(0.1)
    raise DemoWorkflowError(f"the workflow is {run['status']}: {run['error_message']}")
