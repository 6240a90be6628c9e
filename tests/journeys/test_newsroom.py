"""The crew of `examples/newsroom` on the model that comes with Paddock, as `make demo` shows it."""

from scripts.demo import expect_status, show_step
from scripts.demo_crews import read_newsroom, show_newsroom
from tests.journeys.test_kasal_crews import made
from tests.support.clients import TenantClient


async def test_the_newsroom(acme: TenantClient, capsys) -> None:
    await show_newsroom(acme.http, show_step, expect_status)
    told = capsys.readouterr().out
    assert "research → write → headline" in told
    assert "3 of 3 tasks" in told
    # Again, over what is there.
    await show_newsroom(acme.http, show_step, expect_status)


async def test_the_newsroom_s_plan_comes_to_an_end(acme: TenantClient) -> None:
    """A small model tells a plan for ever, if it may."""
    await made(acme, "/crews", name="planned", **read_newsroom(), planning=True, model="smollm2")
    body = {"inputs": {"topic": "hedges"}}
    begun = await acme.http.post("/crews/planned/execute", json=body)
    ended = await acme.wait_for_end(begun.json()["id"], 180)
    assert ended["status"] == "completed", ended
    plans = ended["results"]["planning"]["plans"]
    assert len(plans) == 3
    assert {one["task"] for one in plans} <= {"research", "write", "headline"}
    assert ended["result"]
