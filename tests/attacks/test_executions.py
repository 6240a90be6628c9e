"""The same attacks, uploaded, built and executed through HTTP by a real worker."""

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


async def test_every_attack_on_the_path_of_executions(shared_tenant: TenantClient, system) -> None:
    """The same agent, uploaded, built and executed through HTTP by a real worker."""
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
        ended = await shared_tenant.run_agent(agent_id, {**base, "attack": attack}, timeout=timeout)
        assert not (ended["output_data"] or {}).get("broke"), (attack, ended["output_data"])
        assert ended["error_type"] not in ("NameError", "KeyError", "sandbox_unavailable"), ended
    comms = [path.read_text().strip() for path in Path("/proc").glob("[0-9]*/comm") if path.exists()]
    assert "pdk-http" not in comms


async def test_every_attack_on_a_gateway_on_the_path_of_executions(
    acme: TenantClient, system, provider: FakeProvider
) -> None:
    """The same, with a model of a provider on this machine, whose key is what the agent looks for."""
    key, settings = f"sk-pdk-{secrets.token_hex(16)}", system.settings
    kept = await acme.http.post("/provider-keys", json={"name": "small-s", "service": "script", "key": key})
    assert kept.status_code == 201, kept.text
    for name in ("small", "large"):
        await create_model(acme, provider, name, api_key_name="small-s")
    source = (Path(__file__).parent / "agent.py").read_text()
    manifest = "name: attacks\nentrypoint: agent:handle\nmemory: 200MB\ntimeout: 25\nmodels: [small]\n"
    agent_id = await acme.deploy_agent(source, manifest)
    parts = [settings.database_url.reveal(), settings.redis_url.reveal(), settings.r2_endpoint_url, provider.url]
    base = {
        "port": system.port,
        "ports": [urlsplit(url).port for url in parts],
        "address": "127.0.0.2",
        "abstract": "none",
        "much": 400,
        "key": hashlib.sha256(key.encode()).hexdigest(),
        "kinds": ["late"],
    }
    beside = await acme.start_execution(agent_id, {**base, "attack": "gateway_wait"})
    while not (printed := [one["message"] for one in await acme.list_events(beside["id"]) if one["message"].isdigit()]):
        await asyncio.sleep(0.1)
    for attack in GATEWAY_ATTACKS:
        ended = await acme.run_agent(agent_id, {**base, "attack": attack, "other": int(printed[0])}, timeout=25)
        assert not (ended["output_data"] or {}).get("broke"), (attack, ended["output_data"])
        assert ended["error_type"] in (None, "out_of_memory"), ended
    assert provider.requests[-1].api_key == key
    assert "large" not in {one.model for one in provider.requests if one.api_key == key}
    await acme.http.post(f"/executions/{beside['id']}/cancel")


async def test_endless_output_is_kept_to_its_limit(shared_tenant: TenantClient) -> None:
    source = (Path(__file__).parent / "agent.py").read_text()
    agent_id = await shared_tenant.deploy_agent(source, "name: loud\nentrypoint: agent:handle\n")
    ended = await shared_tenant.run_agent(agent_id, {"attack": "output", "much": 200})
    assert ended["status"] == "completed"
    logs = [one for one in await shared_tenant.list_events(ended["id"]) if one["metadata"]["type"] == "log"]
    assert sum(len(one["message"]) + 1 for one in logs) <= 66 * 1024
    assert "Only the first 65536 bytes and 4000 lines of output are kept" in logs[-1]["message"]
