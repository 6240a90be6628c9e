"""Show conversations: runs of a thread see what earlier ones left, and a run that fails leaves nothing."""

from typing import Any

import pytest

from infra.wiring import Resources
from tests.support.clients import TenantClient
from tests.support.fake_provider import FakeProvider
from tests.support.model_agents import create_model, create_model_agent, generate_name, run_execution

REMEMBERING = """
def handle(payload, context):
    if payload.get("fails"):
        context.state["count"] = 100
        raise RuntimeError("on request")
    context.state["count"] = context.state.get("count", 0) + 1
    return {"thread": context.thread_id, "messages": context.messages, "count": context.state["count"]}
"""


async def open_thread(acme: TenantClient, **body: Any) -> str:
    answer = await acme.http.post("/threads", json=body)
    assert answer.status_code == 201, answer.text
    return str(answer.json()["id"])


async def list_messages(acme: TenantClient, thread_id: str, query: str = "") -> list[dict[str, Any]]:
    answer = await acme.http.get(f"/threads/{thread_id}/messages?limit=1000{query}")
    assert answer.status_code == 200, answer.text
    return list(answer.json()["items"])


@pytest.fixture
async def model(shared_tenant: TenantClient, provider: FakeProvider) -> str:
    return await create_model(shared_tenant, provider, generate_name())


async def test_a_model_agent_goes_on_with_its_conversation(
    shared_tenant: TenantClient, provider: FakeProvider, model: str
) -> None:
    acme = shared_tenant
    agent = await create_model_agent(acme, model, instructions="Be brief.", tools=["filesystem_write"])
    provider.queue_tool_call("filesystem_write", {"path": "name.txt", "content": "Ada"}, to=model)
    provider.queue_text("Hello, Ada.", to=model)
    first = await run_execution(acme, agent["id"], task="I am Ada. Write it down.", thread=True, mode="yolo")
    assert first["status"] == "completed", first
    thread_id = first["thread_id"]
    provider.queue_text("You are Ada.", to=model)
    second = await run_execution(acme, agent["id"], task="Who am I?", thread_id=thread_id)
    assert second["status"] == "completed", second
    asked = provider.requests[-1].messages
    assert [message["role"] for message in asked] == ["system", "user", "assistant", "tool", "assistant", "user"]
    assert asked[2]["tool_calls"][0]["id"] == asked[3]["tool_call_id"]
    messages = await list_messages(acme, thread_id)
    assert [message["role"] for message in messages] == [
        *("user", "assistant", "tool", "assistant"),
        "user",
        "assistant",
    ]
    assert [message["seq"] for message in messages] == [1, 2, 3, 4, 5, 6]
    assert [message["execution_id"] for message in messages] == [first["id"]] * 4 + [second["id"]] * 2
    assert messages[-1]["content"] == "You are Ada."
    thread = (await acme.http.get(f"/threads/{thread_id}")).json()
    assert (thread["title"], thread["last_seq"]) == ("I am Ada. Write it down.", 6)
    listed = (await acme.http.get(f"/executions?thread_id={thread_id}")).json()["items"]
    assert [execution["id"] for execution in listed] == [second["id"], first["id"]]


async def test_a_failed_run_leaves_the_thread_as_it_was(
    shared_tenant: TenantClient, provider: FakeProvider, model: str
) -> None:
    acme = shared_tenant
    agent = await create_model_agent(acme, model)
    thread_id = await open_thread(acme, title="Mishaps")
    provider.queue_failure(400, to=model)
    failed = await run_execution(acme, agent["id"], task="Hello", thread_id=thread_id)
    assert failed["status"] == "failed", failed
    assert failed["error_message"].endswith("The thread is as it was before this run.")
    assert await list_messages(acme, thread_id) == []
    provider.queue_text("Hello again.", to=model)
    retried = (await acme.http.post(f"/executions/{failed['id']}/retry")).json()
    assert (await acme.wait_for_end(retried["id"]))["status"] == "completed"
    assert [message["content"] for message in await list_messages(acme, thread_id)] == ["Hello", "Hello again."]


async def test_uploaded_code_reads_messages_and_the_state_of_the_thread(shared_tenant: TenantClient) -> None:
    acme = shared_tenant
    agent_id = await acme.deploy_agent(REMEMBERING)
    thread_id = await open_thread(acme, messages=[{"role": "user", "content": "Before."}])
    first = await acme.run_agent(agent_id, {"task": "One"}, thread_id=thread_id)
    assert first["result"] == {"thread": thread_id, "messages": [{"role": "user", "content": "Before."}], "count": 1}
    failed = await acme.run_agent(agent_id, {"fails": True}, thread_id=thread_id)
    assert failed["error_message"].endswith("The thread is as it was before this run.")
    sent = [{"role": "user", "content": "Brought"}, {"role": "assistant", "content": "along"}]
    second = await acme.run_agent(agent_id, {"n": 2}, thread_id=thread_id, messages=sent)
    assert second["result"]["count"] == 2
    roles = [message["role"] for message in second["result"]["messages"]]
    assert roles == ["user", "user", "assistant", "user", "assistant"]
    assert second["result"]["messages"][1] == {"role": "user", "content": "One"}
    contents = [message["content"] for message in await list_messages(acme, thread_id)]
    assert [contents[1], contents[3], contents[4], contents[5]] == ["One", "Brought", "along", '{"n":2}']
    assert (await acme.run_agent(agent_id))["result"]["count"] == 1
    refused = await acme.http.post(f"/agents/{agent_id}/execute", json={"thread_id": thread_id, "state": "mine"})
    assert refused.json()["errors"][0]["field"] == "state"


async def test_deleting_a_thread_deletes_messages_and_states(shared_tenant: TenantClient, resources: Resources) -> None:
    acme = shared_tenant
    agent_id = await acme.deploy_agent(REMEMBERING)
    thread_id = await open_thread(acme)
    run = await acme.run_agent(agent_id, {"task": "One"}, thread_id=thread_id)
    names = [state["name"] for state in (await acme.http.get(f"/agents/{agent_id}/states")).json()["items"]]
    assert names == [thread_id]
    assert (await acme.http.delete(f"/threads/{thread_id}")).status_code == 204
    assert (await acme.http.get(f"/threads/{thread_id}")).status_code == 404
    assert (await acme.http.get(f"/threads/{thread_id}/messages")).status_code == 404
    assert (await acme.http.get(f"/agents/{agent_id}/states")).json()["items"] == []
    async with resources.store.tenant_transaction(acme.tenant_id) as tx:
        assert await tx.threads.find(thread_id) is None
        assert await tx.threads.list_newest(thread_id, 0, 1_000_000) == []
        assert await tx.states.find(agent_id, thread_id) is None
    execution = (await acme.http.get(f"/executions/{run['id']}")).json()
    assert (execution["status"], execution["thread_id"], execution["result"]["count"]) == ("completed", thread_id, 1)
    retried = await acme.http.post(f"/executions/{run['id']}/retry")
    assert retried.status_code == 409, retried.text


async def test_a_fork_keeps_the_messages_up_to_a_number(
    shared_tenant: TenantClient, provider: FakeProvider, model: str
) -> None:
    acme = shared_tenant
    agent = await create_model_agent(acme, model)
    first = await run_execution(acme, agent["id"], task="One", thread=True)
    await run_execution(acme, agent["id"], task="Two", thread_id=first["thread_id"])
    fork = (await acme.http.post(f"/threads/{first['thread_id']}/fork", json={"at": 2})).json()
    assert (fork["forked_from"], fork["forked_seq"], fork["last_seq"]) == (first["thread_id"], 2, 2)
    again = await run_execution(acme, agent["id"], task="Three", thread_id=fork["id"])
    assert again["status"] == "completed", again
    asked = [message["content"] for message in provider.requests[-1].messages]
    assert asked == ["One", "One", "Three"]
    assert len(await list_messages(acme, first["thread_id"])) == 4
    refused = await acme.http.post(f"/threads/{first['thread_id']}/fork", json={"at": 5})
    assert (refused.status_code, refused.json()["errors"][0]["field"]) == (422, "at")
