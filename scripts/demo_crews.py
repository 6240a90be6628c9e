"""Show the crew of `examples/newsroom` through HTTP: validate it, create it from CrewAI's YAML, run it."""

from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import Any, Final

import httpx

from infra.telemetry import escape_controls

NEWSROOM_FOLDER: Final = Path(__file__).resolve().parent.parent / "examples" / "newsroom"
NEWSROOM_TOPIC: Final = "horses"

DemoStep = Callable[[str, str], AbstractAsyncContextManager[list[str]]]
# Returns the JSON of a response that has one of the statuses, and raises an error for any other status.
ExpectStatus = Callable[..., Any]


class DemoCrewError(Exception):
    """Report that the crew did not give the expected result. The message quotes what it gave."""


def read_newsroom() -> dict[str, str]:
    """Return the two documents that define the crew, as the fields of a request."""
    return {f"{name}_yaml": (NEWSROOM_FOLDER / f"{name}.yaml").read_text() for name in ("agents", "tasks")}


async def show_newsroom(client: httpx.AsyncClient, step: DemoStep, expect: ExpectStatus) -> None:
    """Validate, create and run the crew, and print its results. Errors: `DemoCrewError`, and those of `expect`."""
    async with step("POST /crews/debug", "validate the crew") as result:
        validation = expect(await client.post("/crews/debug", json=read_newsroom()), 200)
        if not validation["valid"]:
            raise DemoCrewError(f"the crew is not valid: {validation['errors']}")
        result.append(" → ".join(task["id"] for task in validation["steps"]))
    async with step("POST /crews", "create newsroom from CrewAI's YAML") as result:
        response = await client.post("/crews", json={"name": "newsroom", **read_newsroom()})
        if response.status_code == 409:
            response = await client.put("/crews/newsroom", json=read_newsroom())
        result.append(expect(response, 200, 201)["id"])
    async with step("POST /crews/newsroom/execute", "run it, wait for the headline") as result:
        body = {"inputs": {"topic": NEWSROOM_TOPIC}}
        ended = expect(await client.post("/crews/newsroom/execute", json=body, headers={"Prefer": "wait=60"}), 201)
        for _ in range(5):
            if ended["status"] in ("completed", "failed", "cancelled"):
                break
            path = f"/executions/{ended['id']}"
            ended = expect(await client.get(path, headers={"Prefer": "wait=60"}), 200)
        if ended["status"] != "completed":
            raise DemoCrewError(f"the crew is {ended['status']}: {ended['error_message']}")
        result.append(f"{ended['steps_completed']} of {ended['steps_total']} tasks, ${ended['total_cost']:.2f}")
    for name in ("research", "write", "headline"):
        print(f"      {name}: {escape_controls(_shorten_output(ended['results'][name]))}", flush=True)
    async with step("GET  /executions/{id}/files/article.md", "read the article") as result:
        article = await client.get(f"/executions/{ended['id']}/files/article.md")
        if article.status_code != 200 or not article.text:
            raise DemoCrewError(f"the article is {article.status_code} {article.text[:200]}")
        result.append(f"{len(article.text)} characters")


def _shorten_output(output: Any) -> str:
    text = output["content"] if isinstance(output, dict) and "content" in output else str(output)
    return " ".join(text.split())[:100]
