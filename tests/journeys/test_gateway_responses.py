"""Responses as uploaded agents meet them: the unchanged `openai` package, tools, reasoning given back, and chains."""

from tests.journeys.test_gateway_wires import run_agent
from tests.support.clients import TenantClient
from tests.support.fake_provider import FakeProvider, build_call
from tests.support.model_agents import generate_name, stream_events


async def test_responses(acme: TenantClient, provider: FakeProvider) -> None:
    """The model behind them is one that refuses calls without the reasoning that it had before them."""
    name = generate_name("gpt-5")
    model = {"name": name, "provider": "openai", "model": name, "base_url": provider.url}
    registered = await acme.http.post("/models", json={**model, "price": {"input": 1000.0, "output": 1000.0}})
    assert registered.status_code == 201, registered.text
    provider.is_strict = True
    try:
        provider.queue_text("", to=name, calls=[build_call("add", {"a": 2})], thinking="I add.", reasoning=3)
        provider.queue_text("It is 42.", to=name)
        provider.queue_text("Again 42.", to=name)
        execution = await run_agent(acme, "respond", name)
    finally:
        provider.is_strict = False
    output = execution["output_data"]
    assert output.get("kinds") == ["reasoning", "function_call"], output
    assert ("".join(output["words"]), output["chained"]) == ("It is 42.", "Again 42.")
    events = await stream_events(acme, execution["id"])
    assert [event["model"] for event in events if event["type"] == "model_call"] == [name] * 3
    assert execution["total_cost"] > 0
