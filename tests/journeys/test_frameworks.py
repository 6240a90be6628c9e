"""Frameworks unchanged: each example is deployed with its wheels from the index, and runs as on its author's laptop."""

import json
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest

from scripts.demo import EXAMPLES_FOLDER
from scripts.system import System
from tests.conftest import run_system
from tests.support.certificates import write_certificate
from tests.support.clients import TenantClient, pack_archive, register_tenant
from tests.support.fake_provider import FakeProvider, ProviderRequest, ScriptedAnswer, build_call
from tests.support.framework_agents import FRAMEWORK_AGENTS, MCP_SERVER
from tests.support.model_agents import create_model, stream_events
from tests.support.named_hosts import name_hosts
from tests.support.outbound_servers import RecordingServer, ServerRequest, build_reply, run_server

MODEL = "gpt-5-mini"
PERSON = {"name": "Ada", "age": 36}
RATES_HOST = "rates.example.com"
# Installing and compiling a hundred packages takes minutes where many tests share the processors.
BUILD_WAITS = 20


@pytest.fixture(scope="module")
async def system() -> AsyncIterator[System]:
    """Yield an installation that finds the hosts of these tests by name, and builds each environment once."""
    with name_hosts(RATES_HOST):
        async with run_system(PADDOCK_LEASE_SECONDS="60") as separate_system:
            yield separate_system


@pytest.fixture(scope="module")
async def owner(system: System, provider: FakeProvider) -> AsyncIterator[TenantClient]:
    async with register_tenant(system.url) as tenant:
        for name in (MODEL, "vectors"):
            await create_model(tenant, provider, name)
        yield tenant


@pytest.fixture(autouse=True)
def fresh_script(provider: FakeProvider) -> Iterator[None]:
    """Leave no answers for the next test."""
    yield
    provider.reset_scripts()


async def deploy_files(owner: TenantClient, folder: str, **changes: str | bytes) -> str:
    """Build an example, with some of its files changed or added, and return the agent's id."""
    root = EXAMPLES_FOLDER / folder
    files: dict[str, str | bytes] = {
        str(file.relative_to(root)): file.read_bytes()
        for file in sorted(root.rglob("*"))
        if file.is_file() and "__pycache__" not in file.parts
    }
    return await deploy_archive(owner, pack_archive({**files, **changes}, None))


async def deploy_archive(owner: TenantClient, archive: bytes) -> str:
    created = await owner.create_agent()
    version = await owner.build_version(created["id"], archive)
    path = f"/agents/{created['id']}/versions/{version['id']}"
    for _ in range(BUILD_WAITS):
        if version["status"] in ("ready", "failed"):
            break
        version = (await owner.http.get(path, headers={"Prefer": "wait=60"})).json()
    assert version["status"] == "ready", version["build_log"]
    return str(created["id"])


async def run_example(owner: TenantClient, agent_id: str, payload: Any = None, **more: Any) -> dict[str, Any]:
    started = await owner.start_execution(agent_id, payload, **{"timeout": 300, **more})
    execution = await owner.wait_for_end(started["id"], patience=300)
    assert execution["status"] == "completed", (execution, await owner.list_events(started["id"]))
    return execution


def list_requests(provider: FakeProvider, since: int) -> list[ProviderRequest]:
    return [request for request in provider.requests[since:] if request.model == MODEL]


async def test_langgraph_streams_the_steps_of_a_graph_with_a_tool(owner: TenantClient, provider: FakeProvider) -> None:
    agent_id, since = await deploy_files(owner, "langgraph"), len(provider.requests)
    arguments = {"start": "Berlin", "end": "Prague"}
    provider.queue_tool_call("find_distance", arguments, to=MODEL)
    provider.queue_text("It is 350 km.", to=MODEL)
    ended = await run_example(owner, agent_id, {"question": "How far is Prague?"})
    assert ended["output_data"] == {"question": "How far is Prague?", "answer": "It is 350 km."}
    values = [event["value"] for event in await stream_events(owner, ended["id"]) if event["type"] == "output"]
    assert values == [
        {"node": "model", "text": "", "calls": [{"tool": "find_distance", "arguments": arguments}]},
        {"node": "tools", "text": "350 km", "calls": []},
        {"node": "model", "text": "It is 350 km.", "calls": []},
    ]
    first, last = list_requests(provider, since)
    assert [tool["function"]["name"] for tool in first.body["tools"]] == ["find_distance"]
    assert last.get_last_text("tool") == "350 km"


@pytest.mark.parametrize("disabled", ["1", "0"])
async def test_agents_sdk_hands_over_and_calls_a_function(
    owner: TenantClient, provider: FakeProvider, disabled: str
) -> None:
    """With tracing on, which finds no server, the run is the same."""
    agent_id = await deploy_files(owner, "openai_agents")
    await owner.http.patch(f"/agents/{agent_id}", json={"env": {"OPENAI_AGENTS_DISABLE_TRACING": disabled}})
    provider.queue_tool_call("transfer_to_orders", {}, to=MODEL)
    provider.queue_tool_call("find_order", {"number": "A-17"}, to=MODEL)
    provider.queue_text("It left on Monday.", to=MODEL)
    since = len(provider.requests)
    ended = await run_example(owner, agent_id)
    assert ended["output_data"] == {"answer": "It left on Monday.", "answered_by": "Orders"}
    asked = list_requests(provider, since)
    assert asked[-1].get_last_text("tool") == "left the warehouse on Monday"
    # The SDK's own defaults for this model.
    assert [request.body["verbosity"] for request in asked] == ["low"] * 3


async def test_pydantic_ai_returns_typed_output(owner: TenantClient, provider: FakeProvider) -> None:
    """What does not fit goes back to the model."""
    agent_id = await deploy_files(owner, "pydantic_ai")
    ticket = {"subject": "A late parcel", "category": "delivery", "urgency": 9}
    provider.queue_tool_call("final_result", ticket, to=MODEL)
    provider.queue_tool_call("final_result", {**ticket, "urgency": 5}, to=MODEL)
    ended = await run_example(owner, agent_id)
    assert ended["output_data"] == {**ticket, "urgency": 5, "requests": 2}


def answer_by_shape(request: ProviderRequest) -> ScriptedAnswer | None:
    """Call the tool that is offered, fill a schema where one is asked for, and say what was sent otherwise."""
    if request.model != MODEL:
        return None
    tools = [tool["function"]["name"] for tool in request.body.get("tools") or []]
    if tools and request.messages[-1]["role"] != "tool":
        arguments = {"a": 2, "b": 40} if tools == ["add"] else PERSON
        return ScriptedAnswer(calls=[build_call(tools[0], arguments)])
    if "response_format" in request.body or "schema" in json.dumps(request.messages):
        return ScriptedAnswer(tokens=[json.dumps(PERSON)])
    return ScriptedAnswer(tokens=[request.get_last_text("tool" if tools else "user")])


@pytest.mark.parametrize("folder", FRAMEWORK_AGENTS)
async def test_gateway_takes_what_frameworks_send(owner: TenantClient, provider: FakeProvider, folder: str) -> None:
    """With the requirements of the examples, which are installed already."""
    requirements = (EXAMPLES_FOLDER / folder / "requirements.txt").read_text()
    manifest = f"name: asks\nentrypoint: agent:handle\nmodels: [{MODEL}, vectors]\ntimeout: 300\n"
    files = {"agent.py": FRAMEWORK_AGENTS[folder], "server.py": MCP_SERVER, "requirements.txt": requirements}
    agent_id = await deploy_archive(owner, pack_archive(files, manifest))
    provider.add_rule(answer_by_shape)
    answers = (await run_example(owner, agent_id, {"model": MODEL}))["output_data"]
    expected_answers = ["hi", "ho", "42", PERSON, {"a": 2, "b": 40}, [2.0, 0.0, 0.0]]
    assert len(answers) >= 7
    assert {name: answer for name, answer in answers.items() if answer not in expected_answers} == {}


async def test_crewai_runs_a_crew_of_two_with_a_tool(owner: TenantClient, provider: FakeProvider) -> None:
    agent_id = await deploy_files(owner, "crewai")
    provider.queue_tool_call("find_fact", {"subject": "honey"}, to=MODEL)
    provider.queue_text("Bees visit two million flowers.", to=MODEL)
    provider.queue_text("Honey takes work. Bees visit two million flowers.", to=MODEL)
    since = len(provider.requests)
    ended = await run_example(owner, agent_id, {"subject": "honey"})
    article = "Honey takes work. Bees visit two million flowers."
    assert (ended["output_data"]["article"], ended["output_data"]["tasks"]) == (article, 2)
    assert "two million flowers for a pound" in list_requests(provider, since)[1].get_last_text("tool")
    stored_file = await owner.http.get(f"/executions/{ended['id']}/files/article.md")
    assert stored_file.text == article


@pytest.fixture
async def rates_server(tmp_path: Path) -> AsyncIterator[RecordingServer]:
    """Serve exchange rates over TLS, with a certificate for the host's own name in `ca.pem` of the folder."""

    def answer(request: ServerRequest) -> bytes:
        if request.headers.get("authorization") != "Bearer token-of-rates":
            return build_reply(b"who are you?", status=401)
        return build_reply(b'{"rates": {"EUR": 1, "USD": 1.1, "GBP": 0.85}}', content_type="application/json")

    async with run_server(answer, write_certificate(tmp_path, [RATES_HOST])) as server:
        yield server


async def test_report_reads_a_file_calls_an_api_and_leaves_a_chart(
    owner: TenantClient, rates_server: RecordingServer, tmp_path: Path
) -> None:
    """The host listens on a port of its own here, and has an authority of its own; the code is the example's."""
    address = f"{RATES_HOST}:{rates_server.port}"
    manifest = (EXAMPLES_FOLDER / "sales_report/agent.yaml").read_text()
    changed = manifest.replace(f"egress: [{RATES_HOST}]", f"egress: [{address!r}]")
    assert changed != manifest
    added = {"agent.yaml": changed, "ca.pem": (tmp_path / "ca.pem").read_text()}
    agent_id = await deploy_files(owner, "sales_report", **added)
    secret = {"name": "RATES_TOKEN", "value": "token-of-rates", "agents": [agent_id]}
    assert (await owner.http.post("/secrets", json=secret)).status_code == 201
    env = {"RATES_URL": f"https://{address}", "REQUESTS_CA_BUNDLE": "/agent/ca.pem"}
    await owner.http.patch(f"/agents/{agent_id}", json={"env": env})
    sales = (EXAMPLES_FOLDER / "sales_report/sales.csv").read_bytes()
    uploaded = await owner.http.post("/files", files={"file": ("sales.csv", sales, "text/csv")})
    ended = await run_example(owner, agent_id, {"base": "EUR"}, files={"sales.csv": uploaded.json()["id"]})
    months = {"2025-01": 320.0, "2025-02": 140.0, "2025-03": 250.0}
    assert ended["output_data"] == {"months": months, "total": 710.0}
    chart = await owner.http.get(f"/executions/{ended['id']}/files/sales.png")
    assert chart.content.startswith(b"\x89PNG")
    by_month = await owner.http.get(f"/executions/{ended['id']}/files/sales-by-month.csv")
    assert by_month.text == "date,value\n2025-01,320.0\n2025-02,140.0\n2025-03,250.0\n"
    events = await stream_events(owner, ended["id"])
    (connection,) = [event for event in events if event["type"] == "egress"]
    assert (connection["host"], connection["port"], connection["outcome"]) == (RATES_HOST, rates_server.port, "closed")
    assert rates_server.server_names == [RATES_HOST]
