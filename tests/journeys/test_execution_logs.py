"""Test the field `logs` of an execution (seeds/anymind.md): the first 64 KiB of its output as text."""

from tests.support.clients import TenantClient

PRINTING_SOURCE = """
def handle(payload):
    for number in range(payload["lines"]):
        print(f"{number:06d} " + "é" * payload["width"])
    return {}
"""


async def test_execution_shows_its_log_as_text(acme: TenantClient) -> None:
    agent = await acme.deploy_agent(PRINTING_SOURCE)
    short_run = await acme.run_agent(agent, {"lines": 3, "width": 2})
    assert short_run["logs"] == "000000 éé\n000001 éé\n000002 éé"
    silent_run = await acme.run_agent(agent, {"lines": 0, "width": 0})
    assert silent_run["logs"] is None

    long_run = await acme.run_agent(agent, {"lines": 400, "width": 80})
    expected = [f"{number:06d} " + "é" * 80 for number in range(400)]
    assert long_run["logs"].split("\n")[:300] == expected[:300]
    assert len(long_run["logs"]) <= 64 * 1024

    listed = (await acme.http.get("/executions")).json()["items"]
    assert [execution["logs"] for execution in listed] == [None] * 3
