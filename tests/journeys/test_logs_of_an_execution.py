"""`logs` of an execution (seeds/anymind.md): the first 64 KiB of what it wrote, as text."""

from tests.support.clients import TenantClient

PRINTS = """
def handle(payload):
    for number in range(payload["lines"]):
        print(f"{number:06d} " + "é" * payload["width"])
    return {}
"""


async def test_the_log_of_an_execution_is_there_as_text(acme: TenantClient) -> None:
    agent = await acme.deploy_agent(PRINTS)
    few = await acme.run_agent(agent, {"lines": 3, "width": 2})
    assert few["logs"] == "000000 éé\n000001 éé\n000002 éé"
    none = await acme.run_agent(agent, {"lines": 0, "width": 0})
    assert none["logs"] is None

    many = await acme.run_agent(agent, {"lines": 400, "width": 80})
    expected = [f"{number:06d} " + "é" * 80 for number in range(400)]
    assert many["logs"].split("\n")[:300] == expected[:300]
    assert len(many["logs"]) <= 64 * 1024

    listed = (await acme.http.get("/executions")).json()["items"]
    assert [one["logs"] for one in listed] == [None] * 3
