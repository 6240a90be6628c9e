"""Run the demo through the HTTP API, step by step: upload agents, build them, run them in the sandbox, show results."""

import asyncio
import io
import tarfile
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Final

import httpx

from infra.telemetry import escape_controls
from scripts.demo_crews import DemoCrewError, show_newsroom
from scripts.demo_workflows import DemoWorkflowError, show_code_review
from scripts.installation import get_command_name

BUILD_SECONDS: Final = 300
EXAMPLES_FOLDER: Final = Path(__file__).resolve().parent.parent / "examples"
SUMMARIZER_TEXT: Final = (
    "A paddock is a small field where horses are kept. A fence stands around every paddock. "
    "Agents are kept in a paddock too. The fence keeps what is outside safe from the agents. "
    "The weather was fine on Tuesday. People who keep agents need a good fence around the paddock."
)


class DemoError(Exception):
    """Report a step that did not give the expected result. The message quotes what it gave."""


def pack_example(example: str) -> bytes:
    """Pack the folder of an example as a `.tar.gz`."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as archive:
        for file in sorted((EXAMPLES_FOLDER / example).rglob("*")):
            if "__pycache__" not in file.parts:
                archive.add(file, arcname=str(file.relative_to(EXAMPLES_FOLDER / example)), recursive=False)
    return buffer.getvalue()


@asynccontextmanager
async def show_step(request: str, purpose: str) -> AsyncIterator[list[str]]:
    """Print a request with its purpose and the time it takes. The caller adds words of the result to the list."""
    started_at, result = time.perf_counter(), list[str]()
    yield result
    milliseconds = (time.perf_counter() - started_at) * 1000
    step = f"  {request:<40}{purpose:<34}{milliseconds:>9.1f} ms"
    print(f"{step}   {escape_controls(' '.join(result))}", flush=True)


def expect_status(response: httpx.Response, *statuses: int) -> Any:
    """Return the JSON of a response. Errors: `DemoError` for a status that is not in `statuses`."""
    if response.status_code not in statuses:
        request = response.request
        raise DemoError(f"{request.method} {request.url.path}: {response.status_code} {response.text}")
    return response.json()


async def run_demo(url: str, key: str, ends: bool = False) -> bool:
    """Run the demo on a running installation. Returns True if every step succeeded.

    `ends` tells that the installation stops after the demo, and leaves out the commands to try on it.
    """
    print("\nUpload, build and run agents through the HTTP API:\n", flush=True)
    try:
        async with httpx.AsyncClient(base_url=f"{url}/api/v1", headers={"X-API-Key": key}, timeout=90) as client:
            await _show_code_agent(client, "hello", {"name": "Ada"})
            await _show_code_agent(client, "summarizer", {"text": SUMMARIZER_TEXT, "sentences": 2})
            await _show_failure(client)
            await _show_model_agent(client)
            await _show_code_agent(client, "researcher", {"question": "What is a paddock?", "max_tokens": 60})
            print("\nRun a crew and a workflow on the local model:\n", flush=True)
            await show_newsroom(client, show_step, expect_status)
            await show_code_review(client, show_step, expect_status, pack_example("code_review/checker"))
            await _show_costs(client)
            await _show_records(client)
    except (DemoError, DemoCrewError, DemoWorkflowError, httpx.HTTPError) as error:
        print(f"\n  The demo failed: {escape_controls(str(error))}", flush=True)
        return False
    if ends:
        print(f"\n  It works. To try it yourself: {get_command_name()} up", flush=True)
        return True
    print("\n  It works. Try it yourself:\n", flush=True)
    print(f"    curl -s {url}/api/v1/agents/hello/execute -H 'X-API-Key: {key}' \\", flush=True)
    print(
        "      -H 'Content-Type: application/json' -H 'Prefer: wait=10' -d '{\"payload\": {\"name\": \"you\"}}'",
        flush=True,
    )
    return True


async def _show_code_agent(client: httpx.AsyncClient, example: str, payload: dict[str, Any]) -> None:
    async with show_step("POST /agents", f"create {example}") as result:
        response = await client.post("/agents", json={"name": example})
        if response.status_code != 409:
            expect_status(response, 201)
        result.append("exists already" if response.status_code == 409 else response.json()["id"])
    archive = pack_example(example)
    async with show_step(f"POST /uploads/agent/{example}", f"upload {len(archive)} bytes") as result:
        files = {"file": ("agent.tar.gz", archive)}
        version = expect_status(await client.post(f"/uploads/agent/{example}", files=files), 201)
        result.append(f"{version['version']} {version['status']}")
    path = f"/agents/{example}/versions/"
    async with show_step(f"GET  {path}{version['version']}", "follow the build") as result:
        built = await _follow_build(client, path + version["id"])
        if built["status"] != "ready":
            raise DemoError(f"the build is {built['status']}: {built['build_log']}")
        result.append(built["status"])
    async with show_step(f"POST /agents/{example}/execute", "run, wait for the result") as result:
        response = await client.post(
            f"/agents/{example}/execute", json={"payload": payload}, headers={"Prefer": "wait=60"}
        )
        ended = expect_status(response, 201)
        if ended["status"] != "completed":
            raise DemoError(f"the run is {ended['status']}: {ended['error_message']}")
        result.append(str(ended["output_data"])[:120])
    async with show_step("GET  /execution-logs/{id}", "read the log") as result:
        log = expect_status(await client.get(f"/execution-logs/{ended['id']}"), 200)
        result.append(f"{log['total']} entries")
    async with show_step("POST /evaluations", "record an evaluation") as result:
        evaluation = {
            "prompt": str(payload),
            "response": str(ended["output_data"]),
            "latency_sec": 0.1,
            "execution_id": ended["id"],
        }
        recorded = expect_status(await client.post("/evaluations", json=evaluation), 201)
        result.append(f"metrics {recorded['metrics']}")


async def _follow_build(client: httpx.AsyncClient, path: str) -> Any:
    """Print the log of a build as it grows, until the build ends. Returns the version."""
    printed_lines = 0
    for _ in range(BUILD_SECONDS):
        version = expect_status(await client.get(path, headers={"Prefer": "wait=1"}), 200)
        lines = (version["build_log"] or "").splitlines()
        for line in lines[printed_lines:]:
            print(f"      | {escape_controls(line)}", flush=True)
        printed_lines = len(lines)
        if version["status"] in ("ready", "failed"):
            return version
    raise DemoError(f"the build has not ended after {BUILD_SECONDS} s; it is {version['status']}")


async def _show_failure(client: httpx.AsyncClient) -> None:
    async with show_step("POST /agents/summarizer/execute", "run without a text, which fails") as result:
        headers = {"Prefer": "wait=30"}
        response = await client.post("/agents/summarizer/execute", json={"payload": {}}, headers=headers)
        ended = expect_status(response, 201)
        if ended["status"] != "failed" or ended["error_type"] != "NothingToSummarize":
            raise DemoError(f"expected a failure that gives its reason, not {ended}")
        result.append(f"{ended['error_type']}: {ended['error_message']}")


async def _show_model_agent(client: httpx.AsyncClient) -> None:
    guide = {"name": "guide", "model": "smollm2", "instructions": "Answer in one short sentence.", "max_tokens": 60}
    async with show_step("POST /agents", "create guide, a model agent") as result:
        response = await client.post("/agents", json=guide)
        if response.status_code != 409:
            expect_status(response, 201)
        result.append("on the local model, which needs no key")
    async with show_step("POST /agents/guide/execute", "ask, wait for the answer") as result:
        task = {"task": "What is a paddock?", "cost_limit": 0.01}
        response = await client.post("/agents/guide/execute", json=task, headers={"Prefer": "wait=60"})
        ended = expect_status(response, 201)
        if ended["status"] != "completed":
            raise DemoError(f"the run is {ended['status']}: {ended['error_message']}")
        result.append(" ".join(ended["result"]["content"].split())[:80])
    async with show_step("GET  /executions/{id}/events", "read its events") as result:
        events = (await client.get(f"/executions/{ended['id']}/events")).text
        result.append(f"{events.count('event: token')} token events")


async def _show_costs(client: httpx.AsyncClient) -> None:
    async with show_step("GET  /costs/summary", "sum up the model calls") as result:
        costs = expect_status(await client.get("/costs/summary?period=day"), 200)
        result.append(f"{costs['calls']} calls, {costs['total_tokens']} tokens, ${costs['total_cost']:.2f}")


async def _show_records(client: httpx.AsyncClient) -> None:
    async with show_step("GET  /evaluations/stats", "count the evaluations") as result:
        statistics = expect_status(await client.get("/evaluations/stats?days=1"), 200)
        result.append(f"{statistics['total_evaluations']} evaluations")
    async with show_step("GET  /stats", "count the recorded runs") as result:
        for _ in range(100):
            statistics = expect_status(await client.get("/stats?tag=agent:summarizer"), 200)
            if statistics["by_status"].get("error"):
                break
            await asyncio.sleep(0.05)
        result.append(f"{statistics['total_artifacts']} of summarizer, {statistics['error_rate']:.0f} % failed")
