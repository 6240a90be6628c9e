"""Run the same attacks in executions: uploaded, built and started through HTTP on a real worker."""

import asyncio
import hashlib
import os
import secrets
from pathlib import Path
from urllib.parse import urlsplit

from tests.attacks.catalog import ATTACKS, GATEWAY_ATTACKS, NEEDS_GROUPS, ROOT_ONLY
from tests.attacks.runner_process import ROOT
from tests.support.clients import TenantClient
from tests.support.fake_provider import FakeProvider
from tests.support.model_agents import create_model


async def test_attacks_fail_in_executions(shared_tenant: TenantClient, system) -> None:
    """Upload the agent, build it and run each attack through HTTP on a real worker."""
    source = (Path(__file__).parent / "agent.py").read_text()
    agent_id = await shared_tenant.deploy_agent(
        source, "name: attacks\nentrypoint: agent:handle\nmemory: 200MB\ntimeout: 25\n"
    )
    base = {
        "marker": str(ROOT / "pyproject.toml"),
        "data": str(system.data),
        "code": str(system.data / "cache" / "bundles" / "x"),
        "secret": system.environment["PADDOCK_SECRET_KEY"],
        "port": system.port,
        "address": "127.0.0.2",
        "abstract": "none",
        "runner": os.getpid(),
        "ipc": os.readlink("/proc/self/ns/ipc"),
        "name": "pdk-http",
        "much": 400,
        "processor": min(os.sched_getaffinity(0)),
    }
    for attack in ATTACKS:
        if attack in ROOT_ONLY or (attack in NEEDS_GROUPS and os.geteuid() != 0):
            continue
        timeout = 3 if attack == "stubborn" else 25
        execution = await shared_tenant.run_agent(agent_id, {**base, "attack": attack}, timeout=timeout)
        assert not (execution["output_data"] or {}).get("broke"), (attack, execution["output_data"])
        assert execution["error_type"] not in ("NameError", "KeyError", "sandbox_unavailable"), execution
    comms = [path.read_text().strip() for path in Path("/proc").glob("[0-9]*/comm") if path.exists()]
    assert "pdk-http" not in comms


async def test_attacks_on_a_gateway_fail_in_executions(acme: TenantClient, system, provider: FakeProvider) -> None:
    """Give the agent a model of the provider on this machine, whose key it looks for."""
    key, settings = f"sk-pdk-{secrets.token_hex(16)}", system.settings
    answer = await acme.http.post("/provider-keys", json={"name": "small-s", "service": "script", "key": key})
    assert answer.status_code == 201, answer.text
    for name in ("small", "large"):
        await create_model(acme, provider, name, api_key_name="small-s")
    source = (Path(__file__).parent / "agent.py").read_text()
    manifest = "name: attacks\nentrypoint: agent:handle\nmemory: 200MB\ntimeout: 25\nmodels: [small]\n"
    agent_id = await acme.deploy_agent(source, manifest)
    urls = [settings.database_url.reveal(), settings.redis_url.reveal(), settings.r2_endpoint_url, provider.url]
    base = {
        "port": system.port,
        "ports": [urlsplit(url).port for url in urls],
        "address": "127.0.0.2",
        "abstract": "none",
        "much": 400,
        "key": hashlib.sha256(key.encode()).hexdigest(),
        "kinds": ["late"],
    }
    waiting_execution = await acme.start_execution(agent_id, {**base, "attack": "gateway_wait"})
    while not (
        printed := [
            event["message"] for event in await acme.list_events(waiting_execution["id"]) if event["message"].isdigit()
        ]
    ):
        await asyncio.sleep(0.1)
    for attack in GATEWAY_ATTACKS:
        execution = await acme.run_agent(agent_id, {**base, "attack": attack, "other": int(printed[0])}, timeout=25)
        assert not (execution["output_data"] or {}).get("broke"), (attack, execution["output_data"])
        assert execution["error_type"] in (None, "out_of_memory"), execution
    assert provider.requests[-1].api_key == key
    assert "large" not in {request.model for request in provider.requests if request.api_key == key}
    await acme.http.post(f"/executions/{waiting_execution['id']}/cancel")


async def test_endless_output_is_truncated(shared_tenant: TenantClient) -> None:
    source = (Path(__file__).parent / "agent.py").read_text()
    agent_id = await shared_tenant.deploy_agent(source, "name: loud\nentrypoint: agent:handle\n")
    execution = await shared_tenant.run_agent(agent_id, {"attack": "output", "much": 200})
    assert execution["status"] == "completed"
    logs = [event for event in await shared_tenant.list_events(execution["id"]) if event["metadata"]["type"] == "log"]
    assert sum(len(log["message"]) + 1 for log in logs) <= 66 * 1024
    assert "Only the first 65536 bytes and 4000 lines of output are kept" in logs[-1]["message"]
