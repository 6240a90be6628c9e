"""The main job through HTTP, step by step: an archive goes up, is built, runs fenced in, comes back."""

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
    "The weather was fine on Tuesday. Whoever keeps agents needs a good fence around the paddock."
)


class DemoError(Exception):
    """A step did not do what it should. The message says what came instead."""


def pack_example(example: str) -> bytes:
    """An example's folder as a `.tar.gz`."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as archive:
        for file in sorted((EXAMPLES_FOLDER / example).rglob("*")):
            if "__pycache__" not in file.parts:
                archive.add(file, arcname=str(file.relative_to(EXAMPLES_FOLDER / example)), recursive=False)
    return buffer.getvalue()


@asynccontextmanager
async def show_step(told: str) -> AsyncIterator[list[str]]:
    """Print a step of the demo with the time it takes. Yields a list for words about its result."""
    began, said = time.perf_counter(), list[str]()
    yield said
    print(
        f"  {told:<52}{(time.perf_counter() - began) * 1000:>9.1f} ms   {escape_controls(' '.join(said))}", flush=True
    )


def expect_status(answer: httpx.Response, *statuses: int) -> Any:
    """Return the JSON of a response. Errors: `DemoError` for a status that is not expected."""
    if answer.status_code not in statuses:
        raise DemoError(f"{answer.request.method} {answer.request.url.path}: {answer.status_code} {answer.text}")
    return answer.json()


async def run_demo(url: str, key: str, ends: bool = False) -> bool:
    """Show the main job on a running system, which `ends` afterwards. Returns whether all of it worked."""
    print("\nThe main job, through HTTP:\n", flush=True)
    try:
        async with httpx.AsyncClient(base_url=f"{url}/api/v1", headers={"X-API-Key": key}, timeout=90) as client:
            for example, payload in (
                ("hello", {"name": "Ada"}),
                ("summarizer", {"text": SUMMARIZER_TEXT, "sentences": 2}),
            ):
                await _show_code_agent(client, example, payload)
            await _show_failure(client)
            await _show_model_agent(client)
            await _show_code_agent(client, "researcher", {"question": "What is a paddock?", "max_tokens": 60})
            print("\nA crew and a workflow, on the local model:\n", flush=True)
            await show_newsroom(client, show_step, expect_status)
            await show_code_review(client, show_step, expect_status, pack_example("code_review/checker"))
            await _show_costs(client)
            await _show_records(client)
    except (DemoError, DemoCrewError, DemoWorkflowError, httpx.HTTPError) as error:
        print(f"\n  failed: {escape_controls(str(error))}", flush=True)
        return False
    if ends:
        print(f"\n  It works. To try it yourself: {get_command_name()} up", flush=True)
        return True
    print(
        f"\n  It works. Try it yourself:\n\n    curl -s {url}/api/v1/agents/hello/execute -H 'X-API-Key: {key}' \\",
        flush=True,
    )
    print(
        "      -H 'Content-Type: application/json' -H 'Prefer: wait=10' -d '{\"payload\": {\"name\": \"you\"}}'",
        flush=True,
    )
    return True


async def _show_code_agent(client: httpx.AsyncClient, example: str, payload: dict[str, Any]) -> None:
    async with show_step(f"POST /agents                         create {example}") as said:
        answer = await client.post("/agents", json={"name": example})
        if answer.status_code != 409:
            expect_status(answer, 201)
        said.append("it is there already" if answer.status_code == 409 else answer.json()["id"])
    archive = pack_example(example)
    async with show_step(f"POST /uploads/agent/{example:<17}upload {len(archive)} bytes") as said:
        version = expect_status(
            await client.post(f"/uploads/agent/{example}", files={"file": ("agent.tar.gz", archive)}), 201
        )
        said.append(f"{version['version']} {version['status']}")
    async with show_step(f"GET  /agents/{example}/versions/{version['version']:<8} wait for the build") as said:
        built = await _follow_build(client, f"/agents/{example}/versions/{version['id']}")
        if built["status"] != "ready":
            raise DemoError(f"the build is {built['status']}: {built['build_log']}")
        said.append(built["status"])
    async with show_step(f"POST /agents/{example + '/execute':<24}run, wait for the result") as said:
        run = await client.post(f"/agents/{example}/execute", json={"payload": payload}, headers={"Prefer": "wait=60"})
        ended = expect_status(run, 201)
        if ended["status"] != "completed":
            raise DemoError(f"the run is {ended['status']}: {ended['error_message']}")
        said.append(str(ended["output_data"])[:120])
    async with show_step("GET  /execution-logs/{id}            its log") as said:
        log = expect_status(await client.get(f"/execution-logs/{ended['id']}"), 200)
        said.append(f"{log['total']} entries")
    async with show_step("POST /evaluations                    what we think of it") as said:
        thought = {"prompt": str(payload), "response": str(ended["output_data"]), "latency_sec": 0.1}
        judged = expect_status(await client.post("/evaluations", json={**thought, "execution_id": ended["id"]}), 201)
        said.append(f"metrics {judged['metrics']}")


async def _follow_build(client: httpx.AsyncClient, path: str) -> Any:
    """Print the build's log as it grows, until the build has ended. Returns the version."""
    shown = 0
    for _ in range(BUILD_SECONDS):
        version = expect_status(await client.get(path, headers={"Prefer": "wait=1"}), 200)
        lines = (version["build_log"] or "").splitlines()
        for line in lines[shown:]:
            print(f"      | {escape_controls(line)}", flush=True)
        shown = len(lines)
        if version["status"] in ("ready", "failed"):
            return version
    raise DemoError(f"the build has not ended after {BUILD_SECONDS} s; it is {version['status']}")


async def _show_model_agent(client: httpx.AsyncClient) -> None:
    guide = {"name": "guide", "model": "smollm2", "instructions": "Answer in one short sentence.", "max_tokens": 60}
    async with show_step("POST /agents                         create guide") as said:
        answer = await client.post("/agents", json=guide)
        if answer.status_code != 409:
            expect_status(answer, 201)
        said.append("on the local model, which needs no key")
    async with show_step("POST /agents/guide/execute           ask, wait for the answer") as said:
        task = {"task": "What is a paddock?", "cost_limit": 0.01}
        ended = expect_status(await client.post("/agents/guide/execute", json=task, headers={"Prefer": "wait=60"}), 201)
        if ended["status"] != "completed":
            raise DemoError(f"the run is {ended['status']}: {ended['error_message']}")
        said.append(" ".join(ended["result"]["content"].split())[:80])
    async with show_step("GET  /executions/{id}/events         how it came, word by word") as said:
        told = (await client.get(f"/executions/{ended['id']}/events")).text
        said.append(f"{told.count('event: token')} events of tokens")


async def _show_costs(client: httpx.AsyncClient) -> None:
    async with show_step("GET  /costs/summary                  what the models took") as said:
        figures = expect_status(await client.get("/costs/summary?period=day"), 200)
        said.append(f"{figures['calls']} calls, {figures['total_tokens']} tokens, ${figures['total_cost']:.2f}")


async def _show_records(client: httpx.AsyncClient) -> None:
    async with show_step("GET  /evaluations/stats              counted at once") as said:
        figures = expect_status(await client.get("/evaluations/stats?days=1"), 200)
        said.append(f"{figures['total_evaluations']} evaluations")
    async with show_step("GET  /stats                          runs on record") as said:
        for _ in range(100):
            figures = expect_status(await client.get("/stats?tag=agent:summarizer"), 200)
            if figures["by_status"].get("error"):
                break
            await asyncio.sleep(0.05)
        said.append(f"{figures['total_artifacts']} of summarizer, {figures['error_rate']:.0f} % failed")


async def _show_failure(client: httpx.AsyncClient) -> None:
    async with show_step(f"POST /agents/{'summarizer/execute':<24}run without a text") as said:
        answer = await client.post("/agents/summarizer/execute", json={"payload": {}}, headers={"Prefer": "wait=30"})
        failed = expect_status(answer, 201)
        if failed["status"] != "failed" or failed["error_type"] != "NothingToSummarize":
            raise DemoError(f"expected a failure that names its reason, not {failed}")
        said.append(f"{failed['error_type']}: {failed['error_message']}")
