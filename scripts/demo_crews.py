"""The newsroom of `examples/newsroom` through HTTP: a crew goes up as CrewAI's YAML, is looked over, and is run."""

from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import Any, Final

import httpx

from infra.telemetry import escape_controls

NEWSROOM_FOLDER: Final = Path(__file__).resolve().parent.parent / "examples" / "newsroom"
NEWSROOM_TOPIC: Final = "horses"

Step = Callable[[str], AbstractAsyncContextManager[list[str]]]
# The body of an answer that has one of these statuses; raises for any other.
Expect = Callable[..., Any]


class DemoCrewError(Exception):
    """The crew did not do what it should. The message says what came instead."""


def read_newsroom() -> dict[str, str]:
    """What makes the crew: both documents."""
    return {f"{name}_yaml": (NEWSROOM_FOLDER / f"{name}.yaml").read_text() for name in ("agents", "tasks")}


async def show_newsroom(client: httpx.AsyncClient, step: Step, expect: Expect) -> None:
    """Look the crew over, create it, run it, show what came of it. Errors: `CrewFailed`, and those of `expect`."""
    async with step("POST /crews/debug                    is there anything wrong with it?") as said:
        found = expect(await client.post("/crews/debug", json=read_newsroom()), 200)
        if not found["valid"]:
            raise DemoCrewError(f"the crew is wrong: {found['errors']}")
        said.append(" → ".join(one["id"] for one in found["steps"]))
    async with step("POST /crews                          create newsroom from CrewAI's YAML") as said:
        answer = await client.post("/crews", json={"name": "newsroom", **read_newsroom()})
        if answer.status_code == 409:
            answer = await client.put("/crews/newsroom", json=read_newsroom())
        said.append(expect(answer, 200, 201)["id"])
    async with step("POST /crews/newsroom/execute         run it, wait for the headline") as said:
        body = {"inputs": {"topic": NEWSROOM_TOPIC}}
        ended = expect(await client.post("/crews/newsroom/execute", json=body, headers={"Prefer": "wait=60"}), 201)
        for _ in range(5):
            if ended["status"] in ("completed", "failed", "cancelled"):
                break
            path = f"/executions/{ended['id']}"
            ended = expect(await client.get(path, headers={"Prefer": "wait=60"}), 200)
        if ended["status"] != "completed":
            raise DemoCrewError(f"the crew is {ended['status']}: {ended['error_message']}")
        said.append(f"{ended['steps_completed']} of {ended['steps_total']} tasks, ${ended['total_cost']:.2f}")
    for name in ("research", "write", "headline"):
        print(f"      {name}: {escape_controls(_shorten_output(ended['results'][name]))}", flush=True)
    async with step("GET  /executions/{id}/files/article.md what the writer wrote") as said:
        article = await client.get(f"/executions/{ended['id']}/files/article.md")
        if article.status_code != 200 or not article.text:
            raise DemoCrewError(f"the article is {article.status_code} {article.text[:200]}")
        said.append(f"{len(article.text)} characters")


def _shorten_output(output: Any) -> str:
    text = output["content"] if isinstance(output, dict) and "content" in output else str(output)
    return " ".join(text.split())[:100]
