"""Test the crew of `examples/newsroom` on the local model, as `make demo` shows it."""

from scripts.demo import expect_status, show_step
from scripts.demo_crews import read_newsroom, show_newsroom
from tests.journeys.test_crews import create_object
from tests.support.clients import TenantClient


async def test_newsroom_demo_runs_on_the_local_model(acme: TenantClient, capsys) -> None:
    await show_newsroom(acme.http, show_step, expect_status)
    output = capsys.readouterr().out
    assert "research → write → headline" in output
    assert "3 of 3 tasks" in output
    # A second time, with the existing objects.
    await show_newsroom(acme.http, show_step, expect_status)


async def test_newsroom_planning_ends(acme: TenantClient) -> None:
    """Ensure that planning ends, as a small model would otherwise repeat itself without limit."""
    await create_object(acme, "/crews", name="planned", **read_newsroom(), planning=True, model="smollm2")
    body = {"inputs": {"topic": "hedges"}}
    started = await acme.http.post("/crews/planned/execute", json=body)
    ended = await acme.wait_for_end(started.json()["id"], 180)
    assert ended["status"] == "completed", ended
    plans = ended["results"]["planning"]["plans"]
    assert len(plans) == 3
    assert {plan["task"] for plan in plans} <= {"research", "write", "headline"}
    assert ended["result"]
