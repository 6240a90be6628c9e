"""Show conversations: runs of a thread see what earlier ones left, and a run that fails leaves nothing."""

import asyncio
import os
import signal
from typing import Any

import pytest

from domain.llms import ChatMessage
from infra.wiring import Resources
from scripts.system import System
from tests.support.clients import TenantClient
from tests.support.fake_provider import FakeProvider, ProviderRequest, ScriptedAnswer, build_call, split_tokens
from tests.support.model_agents import (
    create_model,
    create_model_agent,
    generate_name,
    run_execution,
    start_execution,
    stream_events,
    wait_for_status,
)

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


async def test_what_a_model_can_no_longer_read_is_summed_up_and_billed(
    shared_tenant: TenantClient, provider: FakeProvider
) -> None:
    acme = shared_tenant
    name = await create_model(acme, provider, generate_name(), price={"input": 1.0, "output": 1.0})
    agent = await create_model_agent(acme, name, instructions="Be brief.", context_tokens=256, summary=True)
    thread_id = await open_thread(acme)
    for turn in range(3):
        provider.queue_text(f"Noted {turn}.", to=name)
        task = f"Fact {turn}: " + "many words of little use " * 11
        assert (await run_execution(acme, agent["id"], task=task, thread_id=thread_id))["status"] == "completed"
    provider.queue_text("The user told facts 0 and 1.", to=name)
    provider.queue_text("I remember.", to=name)
    last = await run_execution(
        acme, agent["id"], task="What do you remember of what I have told you?", thread_id=thread_id
    )
    assert last["result"] == {"content": "I remember."}, last
    requests = [request for request in provider.requests if request.model == name]
    summing, answering = requests[-2], requests[-1]
    assert "Fact 0" in summing.get_last_text()
    assert "The user told facts 0 and 1." in answering.messages[0]["content"]
    assert all("Fact 0" not in str(message["content"]) for message in answering.messages)
    costs = (await acme.http.get(f"/costs?execution_id={last['id']}")).json()["items"]
    assert len(costs) == 2
    assert last["total_cost"] == pytest.approx(sum(cost["cost_usd"] for cost in costs))
    thread = (await acme.http.get(f"/threads/{thread_id}")).json()
    assert thread["summary"] == "The user told facts 0 and 1."
    assert 0 < thread["summarized_seq"] < thread["last_seq"] == 8
    events = await stream_events(acme, last["id"])
    assert "".join(event["content"] for event in events if event["type"] == "token") == "I remember."
    # The next run reads the summary and what came after it, and asks for no other one.
    provider.queue_text("Still.", to=name)
    await run_execution(acme, agent["id"], task="And now?", thread_id=thread_id)
    assert sum(request.model == name for request in provider.requests) == len(requests) + 1
    assert "The user told facts 0 and 1." in provider.requests[-1].messages[0]["content"]


async def test_a_context_limit_leaves_out_the_oldest_turns(
    shared_tenant: TenantClient, provider: FakeProvider, model: str
) -> None:
    acme = shared_tenant
    agent = await create_model_agent(acme, model, context_tokens=256)
    thread_id = await open_thread(acme)
    for turn in range(4):
        await run_execution(acme, agent["id"], task=f"{turn} " + "word " * 60, thread_id=thread_id)
    asked = provider.requests[-1].messages
    assert [str(message["content"])[0] for message in asked] == ["2", "2", "3"]
    child = await create_model_agent(acme, None, parent=agent["id"])
    resolved = (await acme.http.get(f"/agents/{child['id']}?resolved=true")).json()
    assert resolved["context_tokens"] == 256
    refused = await acme.http.post("/agents", json={"name": "tiny", "model": model, "context_tokens": 10})
    assert refused.json()["errors"][0]["field"] == "context_tokens"


async def test_a_thread_that_was_changed_meanwhile_fails_the_run(
    shared_tenant: TenantClient, provider: FakeProvider, model: str, resources: Resources
) -> None:
    acme = shared_tenant
    agent = await create_model_agent(acme, model)
    thread_id = await open_thread(acme)
    provider.queue_slow(40, 0.05, to=model)
    execution_id = await start_execution(acme, agent["id"], task="Slowly", thread_id=thread_id)
    await wait_for_status(acme, execution_id, "running")
    body = {"messages": [{"role": "user", "content": "By hand"}]}
    refused = await acme.http.post(f"/threads/{thread_id}/messages", json=body)
    assert (refused.status_code, refused.json()["error"]) == (409, "thread_busy")
    async with resources.store.tenant_transaction(acme.tenant_id) as tx:
        thread = await tx.threads.find(thread_id, True)
        assert thread is not None
        await tx.threads.add_messages(thread, [ChatMessage(role="user", content="Past the door")], None, tx.now)
        thread.last_seq += 1
        await tx.threads.save(thread)
    ended = await acme.wait_for_end(execution_id)
    assert (ended["status"], ended["error_type"], ended["result"]) == ("failed", "thread_changed", None)
    assert [message["content"] for message in await list_messages(acme, thread_id)] == ["Past the door"]
    added = await acme.http.post(f"/threads/{thread_id}/messages", json=body)
    assert (added.status_code, added.json()["last_seq"]) == (201, 2)
    # The question is in the thread: no task is needed.
    answered = await run_execution(acme, agent["id"], thread_id=thread_id)
    assert answered["status"] == "completed", answered
    assert (await list_messages(acme, thread_id))[-1]["role"] == "assistant"
    again = await acme.http.post(f"/agents/{agent['id']}/execute", json={"thread_id": thread_id})
    assert again.json()["errors"][0]["field"] == "task"


async def test_cancelling_a_run_and_deleting_its_thread_leave_nothing(
    shared_tenant: TenantClient, provider: FakeProvider, model: str
) -> None:
    acme = shared_tenant
    agent = await create_model_agent(acme, model)
    thread_id = await open_thread(acme)
    provider.queue_hang(to=model)
    execution_id = await start_execution(acme, agent["id"], task="Never", thread_id=thread_id)
    await wait_for_status(acme, execution_id, "running")
    cancelled = (await acme.http.post(f"/executions/{execution_id}/cancel")).json()
    assert cancelled["error_message"] == "Cancelled on request. The thread is as it was before this run."
    assert await list_messages(acme, thread_id) == []
    provider.queue_hang(to=model)
    execution_id = await start_execution(acme, agent["id"], task="Never", thread_id=thread_id)
    await wait_for_status(acme, execution_id, "running")
    assert (await acme.http.delete(f"/threads/{thread_id}")).status_code == 204
    ended = await acme.wait_for_end(execution_id)
    assert (ended["status"], ended["error_message"][:23]) == ("cancelled", "The thread was deleted.")


async def test_reasoning_goes_back_to_its_own_provider_alone(
    shared_tenant: TenantClient, provider: FakeProvider, model: str
) -> None:
    acme = shared_tenant
    claude = generate_name("claude")
    registration = {"name": claude, "provider": "anthropic", "model": claude, "base_url": provider.root}
    assert (await acme.http.post("/models", json=registration)).status_code == 201
    thinker, other = await create_model_agent(acme, claude), await create_model_agent(acme, model)
    provider.queue_text("Four.", thinking="Two and two.", to=claude)
    first = await run_execution(acme, thinker["id"], task="2 + 2?", thread=True)
    thread_id = first["thread_id"]
    await run_execution(acme, other["id"], task="Sure?", thread_id=thread_id)
    asked = provider.requests[-1].messages
    assert "Two and two" not in str(asked)
    provider.queue_text("Yes.", to=claude)
    await run_execution(acme, thinker["id"], task="Why?", thread_id=thread_id)
    answer = provider.requests[-1].messages[1]
    assert {"type": "thinking", "thinking": "Two and two.", "signature": "c2lnbmVk"} in answer["content"]
    assert "Two and two" not in str(await list_messages(acme, thread_id))


async def test_an_agent_without_tools_goes_on_with_tool_calls_of_another(
    shared_tenant: TenantClient, provider: FakeProvider, model: str
) -> None:
    acme = shared_tenant
    claude = generate_name("claude")
    registration = {"name": claude, "provider": "anthropic", "model": claude, "base_url": provider.root}
    assert (await acme.http.post("/models", json=registration)).status_code == 201
    writer = await create_model_agent(acme, model, tools=["filesystem_write"])
    reader = await create_model_agent(acme, claude)
    provider.queue_tool_call("filesystem_write", {"path": "a", "content": "b"}, to=model)
    provider.queue_text("Written.", to=model)
    first = await run_execution(acme, writer["id"], task="Write", thread=True, mode="yolo")
    ended = await run_execution(acme, reader["id"], task="What did you do?", thread_id=first["thread_id"])
    assert ended["status"] == "completed", ended
    # Anthropic refuses calls of tools that it is not shown.
    assert [tool["name"] for tool in provider.requests[-1].body["tools"]] == ["filesystem_write"]


async def test_messages_without_a_thread_come_before_the_task(
    shared_tenant: TenantClient, provider: FakeProvider, model: str
) -> None:
    acme = shared_tenant
    agent = await create_model_agent(acme, model, instructions="Be brief.")
    image = {"type": "image_url", "image_url": {"url": "data:image/png;base64,aGVsbG8="}}
    sent = [
        {"role": "user", "content": [{"type": "text", "text": "Look"}, image]},
        {"role": "assistant", "content": "A letter."},
    ]
    ended = await run_execution(acme, agent["id"], task="Which?", messages=sent)
    assert (ended["status"], ended["thread_id"]) == ("completed", None), ended
    assert ended["messages"] == sent
    asked = provider.requests[-1].messages
    assert [message["role"] for message in asked] == ["system", "user", "assistant", "user"]
    assert asked[1]["content"][1]["type"] == "image_url"
    ended = await run_execution(acme, agent["id"], messages=[{"role": "user", "content": "Alone"}])
    assert ended["result"] == {"content": "Alone"}
    refused = await acme.http.post(f"/agents/{agent['id']}/execute", json={"messages": sent})
    assert refused.json()["errors"][0]["field"] == "task"


async def test_bad_input_names_its_field(shared_tenant: TenantClient, model: str) -> None:
    acme = shared_tenant
    agent = await create_model_agent(acme, model)
    path, thread_id = f"/agents/{agent['id']}/execute", await open_thread(acme)
    user = {"role": "user", "content": "Hi"}
    for body, field in (
        ({"thread": True, "thread_id": thread_id}, "thread"),
        ({"messages": []}, "messages"),
        ({"messages": [user, user, user, {"role": "robot", "content": "Hi"}]}, "messages[3].role"),
        ({"messages": [user, {**user, "mood": "good"}]}, "messages[1].mood"),
        ({"messages": [user, {"role": "tool", "tool_call_id": "c1", "content": "42"}]}, "messages[1].tool_call_id"),
        ({"messages": [user] * 2001}, "messages"),
        ({"messages": "Hi"}, "messages"),
        ({"thread": "yes"}, "thread"),
    ):
        refused = await acme.http.post(path, json={"task": "Go", **body})
        assert (refused.status_code, refused.json()["errors"][0]["field"]) == (422, field), refused.text
    for unknown in ("thread_01k3v9rt0hf7btqeqn5j8x2a4c", "mine", agent["id"], "", "\0"):
        missing = await acme.http.post(path, json={"task": "Go", "thread_id": unknown})
        assert (missing.status_code, missing.json()["error"]) == (404, "not_found"), unknown
    for body, field in (
        ({"tags": ["x"] * 40 + [str(number) for number in range(40)]}, "tags[71]"),
        ({"tags": ["x" * 65]}, "tags[0]"),
        ({"title": "x" * 201}, "title"),
        ({"metadata": {"x": "y" * 20_000}}, "metadata"),
        ({"messages": [{"role": "user"}]}, "messages[0].content"),
    ):
        refused = await acme.http.post("/threads", json=body)
        assert (refused.status_code, refused.json()["errors"][0]["field"]) == (422, field), refused.text


async def test_threads_are_found_by_tag_and_changed(shared_tenant: TenantClient) -> None:
    acme, tag = shared_tenant, generate_name("tag")
    thread_id = await open_thread(acme, tags=[tag, "b"], metadata={"customer": 7})
    await open_thread(acme, tags=["b"])
    listing = (await acme.http.get(f"/threads?tag={tag}")).json()
    assert ([thread["id"] for thread in listing["items"]], listing["total"]) == ([thread_id], 1)
    assert listing["items"][0]["metadata"] == {"customer": 7}
    changed = await acme.http.patch(f"/threads/{thread_id}", json={"title": "Named", "tags": [], "metadata": None})
    assert (changed.json()["title"], changed.json()["tags"], changed.json()["metadata"]) == ("Named", [], None)
    assert (await acme.http.get(f"/threads?tag={tag}")).json()["items"] == []


async def test_a_workflow_adds_its_input_and_its_result(
    shared_tenant: TenantClient, provider: FakeProvider, model: str
) -> None:
    acme = shared_tenant
    agent = await create_model_agent(acme, model)
    steps = [{"id": "say", "agent": agent["id"], "prompt": "Say {{ inputs.word }}."}]
    body = {"name": generate_name("flow"), "steps": steps, "outputs": {"said": "{{ steps.say.outputs.content }}"}}
    workflow = await acme.http.post("/workflows", json=body)
    assert workflow.status_code == 201, workflow.text
    path = f"/workflows/{workflow.json()['id']}/execute"
    started = (await acme.http.post(path, json={"inputs": {"word": "yes"}, "thread": True})).json()
    ended = await acme.wait_for_end(started["id"])
    assert ended["status"] == "completed", ended
    messages = await list_messages(acme, ended["thread_id"])
    assert [message["content"] for message in messages] == ['{"word":"yes"}', '{"said":"Say yes."}']
    provider.queue_failure(400, to=model)
    failed = (await acme.http.post(path, json={"inputs": {"word": "no"}, "thread_id": ended["thread_id"]})).json()
    failed = await acme.wait_for_end(failed["id"])
    assert failed["error_message"].endswith("The thread is as it was before this run.")
    assert await list_messages(acme, ended["thread_id"]) == messages


async def test_paging_goes_through_all_messages(shared_tenant: TenantClient) -> None:
    acme = shared_tenant
    thread_id = await open_thread(acme, messages=[{"role": "user", "content": str(number)} for number in range(7)])
    page = (await acme.http.get(f"/threads/{thread_id}/messages?limit=3&offset=3")).json()
    assert ([message["seq"] for message in page["items"]], page["total"], page["has_more"]) == ([4, 5, 6], 7, True)
    newest = (await acme.http.get(f"/threads/{thread_id}/messages?limit=2&order=desc")).json()
    assert [message["content"] for message in newest["items"]] == ["6", "5"]


async def test_editing_a_message_runs_on_a_fork_in_one_call(
    shared_tenant: TenantClient, provider: FakeProvider, model: str
) -> None:
    acme = shared_tenant
    agent = await create_model_agent(acme, model)
    first = await run_execution(acme, agent["id"], task="One", thread=True)
    thread_id = first["thread_id"]
    await run_execution(acme, agent["id"], task="Two", thread_id=thread_id)
    edited = await run_execution(acme, agent["id"], task="Two, in other words", thread_id=thread_id, fork_at=2)
    assert edited["status"] == "completed", edited
    contents = [message["content"] for message in await list_messages(acme, edited["thread_id"])]
    assert contents == ["One", "One", "Two, in other words", "Two, in other words"]
    fork = (await acme.http.get(f"/threads/{edited['thread_id']}")).json()
    assert (fork["forked_from"], fork["forked_seq"]) == (thread_id, 2)
    assert len(await list_messages(acme, thread_id)) == 4
    path = f"/agents/{agent['id']}/execute"
    for body in ({"thread_id": thread_id, "fork_at": 5}, {"fork_at": 1}, {"thread": True, "fork_at": 1}):
        refused = await acme.http.post(path, json={"task": "Go", **body})
        assert (refused.status_code, refused.json()["errors"][0]["field"]) == (422, "fork_at"), refused.text


async def test_twenty_turns_with_tools_survive_two_killed_workers(
    system: System, shared_tenant: TenantClient, provider: FakeProvider, model: str
) -> None:
    acme = shared_tenant
    agent = await create_model_agent(acme, model, tools=["filesystem_write"])
    thread_id = await open_thread(acme)
    silent_turns = {6, 13}

    def answer_question(asked: ProviderRequest) -> ScriptedAnswer | None:
        if asked.model != model:
            return None
        turn = int(asked.get_last_text().split()[-1])
        if turn % 3 == 0 and asked.messages[-1]["role"] != "tool":
            return ScriptedAnswer(calls=(build_call("filesystem_write", {"path": "n.txt", "content": str(turn)}),))
        if turn in silent_turns:
            return ScriptedAnswer(ending="hang")
        return ScriptedAnswer(tokens=split_tokens(f"answer {turn}"))

    provider.add_rule(answer_question)
    expected_roles: list[str] = []
    for turn in range(20):
        before = sum(request.model == model for request in provider.requests)
        body = {"task": f"question {turn}", "thread_id": thread_id, "mode": "yolo"}
        execution_id = await start_execution(acme, agent["id"], **body)
        is_killed = turn in silent_turns
        if is_killed:
            await wait_for_calls(provider, model, before + (2 if turn % 3 == 0 else 1))
            silent_turns.discard(turn)
            kill_worker(system, "llm")
        ended = await acme.wait_for_end(execution_id)
        assert ended["status"] == "completed", ended
        assert ended["attempt"] > is_killed
        expected_roles += ["user", *(["assistant", "tool"] if turn % 3 == 0 else []), "assistant"]
        asked = [request for request in provider.requests if request.model == model][-1].messages
        assert [message["role"] for message in asked] == expected_roles[:-1]
    messages = await list_messages(acme, thread_id)
    assert [message["role"] for message in messages] == expected_roles
    questions = [message["content"] for message in messages if message["role"] == "user"]
    answers = [message["content"] for message in messages if str(message["content"]).startswith("answer")]
    assert questions == [f"question {turn}" for turn in range(20)]
    assert answers == [f"answer {turn}" for turn in range(20)]


async def wait_for_calls(provider: FakeProvider, model: str, count: int) -> None:
    async with asyncio.timeout(60):
        while sum(request.model == model for request in provider.requests) < count:
            await asyncio.sleep(0.05)


def kill_worker(system: System, lane: str) -> None:
    (process,) = [process for process in system.processes if process.name == lane]
    assert process.pid is not None
    os.kill(process.pid, signal.SIGKILL)


async def test_twenty_turns_with_the_local_model(shared_tenant: TenantClient) -> None:
    acme = shared_tenant
    instructions = "Answer in one short sentence."
    agent = await create_model_agent(acme, "smollm2", instructions=instructions, max_tokens=12, context_tokens=256)
    thread_id = await open_thread(acme)
    for turn in range(20):
        body = {"task": f"Number {turn}. " + "Horses eat oats. " * 4, "thread_id": thread_id, "timeout": 120}
        ended = await acme.wait_for_end(await start_execution(acme, agent["id"], **body), 120)
        assert ended["status"] == "completed", ended
    messages = await list_messages(acme, thread_id)
    assert [message["role"] for message in messages] == ["user", "assistant"] * 20
    assert sum(message["tokens"] for message in messages) > 256
    assert all(message["content"] for message in messages)


async def test_a_long_conversation_fits_the_local_model_by_default(shared_tenant: TenantClient) -> None:
    acme = shared_tenant
    long_text = "The horses sleep in the barn and eat oats in the morning. " * 40
    thread_id = await open_thread(acme, messages=[{"role": "user", "content": long_text}] * 20)
    agent = await create_model_agent(acme, "smollm2", max_tokens=8)
    execution_id = await start_execution(acme, agent["id"], task="Hello", thread_id=thread_id, timeout=200)
    ended = await acme.wait_for_end(execution_id, 200)
    assert ended["status"] == "completed", ended
