"""Secrets and variables of uploaded agents: given to the runs that may have them, and found nowhere afterwards."""

import asyncio
import base64
import json
import secrets
from typing import Any
from urllib.parse import quote

import asyncpg
import pytest
import zstandard

from infra.wiring import Resources
from scripts.system import System
from tests.support.clients import DEFAULT_MANIFEST, TenantClient, pack_archive

LEAKY = """
import base64, json, os, sys, urllib.parse
AT_IMPORT = os.environ["TOKEN"]
print("imported with", AT_IMPORT)

def handle(p):
    token = os.environ["TOKEN"]
    assert token == AT_IMPORT
    print("plain", token)
    print("basic", base64.b64encode(b"user:" + token.encode()).decode())
    print("url", urllib.parse.quote(token, safe=""), file=sys.stderr)
    print({"json": json.dumps({"token": token})})
    for character in token:
        sys.stdout.write(character)
        sys.stdout.flush()
    print()
    if p.get("fail") == "long":
        raise ValueError("x" * 3990 + token)
    if p.get("fail"):
        raise type(token, (ValueError,), {})(f"refused {token}")
    return {"token": token, token: [token], "length": len(token), "level": os.environ.get("LOG_LEVEL")}
"""
MANIFEST = "name: leaky\nentrypoint: agent:handle\nsecrets: [TOKEN]\nenv: {LOG_LEVEL: info, RETRIES: 3}\n"
SHOW = """
import os
def handle(p):
    return {name: os.environ.get(name) for name in p["names"]}
"""


def generate_value() -> str:
    return f"tok/{secrets.token_urlsafe(24)}+'\"{secrets.token_hex(4)}"


async def create_secret(tenant: TenantClient, name: str, value: str, **more: Any) -> dict[str, Any]:
    answer = await tenant.http.post("/secrets", json={"name": name, "value": value, **more})
    assert answer.status_code == 201, answer.text
    assert value not in answer.text
    return dict(answer.json())


def list_leaks(value: str) -> list[str]:
    """Return texts that would give a value away."""
    leaks = [value, quote(value, safe=""), json.dumps(value)[1:-1], json.dumps(json.dumps(value)[1:-1])[1:-1]]
    for before in range(3):
        encoded = base64.b64encode(bytes(before) + value.encode()).decode()
        leaks.append(encoded[4:-4])
    return leaks


async def find_leaks(system: System, resources: Resources, value: str) -> list[str]:
    """Return the tables and objects that hold a value: everything that is stored is read."""
    places = []
    owner = await asyncpg.connect(system.settings.database_owner_url.reveal())
    try:
        await owner.execute("SET paddock.every_tenant = 'on'")
        tables = await owner.fetch(
            "SELECT relname FROM pg_class WHERE relkind IN ('r', 'p') AND relnamespace = 'public'::regnamespace"
        )
        assert {"executions", "execution_events", "secrets"} <= {record["relname"] for record in tables}
        for record in tables:
            for leak in list_leaks(value):
                query = (
                    f'SELECT count(*) FROM "{record["relname"]}" AS r WHERE position($1 IN row_to_json(r)::text) > 0'
                )
                if await owner.fetchval(query, leak):
                    places.append(record["relname"])
        bodies = await owner.fetch("SELECT packed FROM artifact_bodies")
    finally:
        await owner.close()
    contents = [bytes(record["packed"]) for record in bodies]
    async for blob in resources.blobs.list_objects(""):
        contents.append(b"".join([chunk async for chunk in await resources.blobs.read_object(blob.key)]))
    assert contents
    for content in contents:
        text = content
        if content.startswith(b"\x28\xb5\x2f\xfd"):
            text = zstandard.ZstdDecompressor().decompressobj().decompress(content)
        places += ["object" for leak in list_leaks(value) if leak.encode() in text or leak.encode() in content]
    return places


async def test_a_secret_reaches_its_run_and_is_found_nowhere_else(
    acme: TenantClient, system: System, resources: Resources
) -> None:
    value = generate_value()
    await create_secret(acme, "TOKEN", value)
    agent_id = await acme.deploy_agent(LEAKY, MANIFEST)
    ended = await acme.run_agent(agent_id)
    assert ended["status"] == "completed", ended
    assert ended["output_data"] == {"token": "***", "***": ["***"], "length": len(value), "level": "info"}
    messages = [entry["message"] for entry in await acme.list_events(ended["id"])]
    assert {"imported with ***", "plain ***", "url ***", "***"} <= set(messages)
    failed = await acme.run_agent(agent_id, {"fail": True})
    assert (failed["error_type"], failed["error_message"]) == ("Exception", "refused ***")
    long = await acme.run_agent(agent_id, {"fail": "long"})
    assert long["error_message"] == "x" * 3990 + "***"
    traces = [await acme.http.get(f"/execution-trace/{run['id']}?content=true") for run in (ended, failed, long)]
    for _ in range(100):
        artifacts = [await acme.http.get(f"/artifacts/{run['id']}") for run in (ended, failed, long)]
        if all(artifact.status_code == 200 for artifact in artifacts):
            break
        await asyncio.sleep(0.1)
    else:
        raise AssertionError(artifacts[0].text)
    for answer in (*traces, *artifacts):
        assert answer.status_code == 200
        assert not [leak for leak in list_leaks(value) if leak in answer.text]
    assert await find_leaks(system, resources, value) == []
    assert not [line for line in system.lines if any(leak in line for leak in list_leaks(value))]  # type: ignore[attr-defined]
    # The search finds what is there.
    await acme.http.patch(f"/agents/{agent_id}", json={"description": value})
    assert await find_leaks(system, resources, value) == ["agents"]


STREAMS = """
import os
TOKEN = os.environ["TOKEN"]

def handle(p, context):
    context.progress(0.5, "asks with " + TOKEN)
    context.emit({"sent": [TOKEN]})
    yield "first " + TOKEN
    print(f"\\r50% {TOKEN}", end="")
    print(f"\\r99% {TOKEN}")
    yield {TOKEN: 1}
    return TOKEN
"""


async def test_streams_and_progress_hold_no_secret(acme: TenantClient, system: System, resources: Resources) -> None:
    value = generate_value()
    await create_secret(acme, "TOKEN", value)
    agent_id = await acme.deploy_agent(STREAMS, MANIFEST)
    ended = await acme.run_agent(agent_id)
    assert (ended["status"], ended["output_data"]) == ("completed", "***"), ended
    events = (await acme.http.get(f"/executions/{ended['id']}/events")).text
    assert '"asks with ***"' in events
    assert '"first ***"' in events
    assert '{"sent":["***"]}' in events
    assert await find_leaks(system, resources, value) == []


async def test_only_declared_secrets_of_the_own_tenant_and_agent_are_there(
    acme: TenantClient, other_tenant: TenantClient
) -> None:
    await create_secret(acme, "TOKEN", "value-of-acme")
    await create_secret(acme, "UNDECLARED", "value-undeclared")
    await create_secret(other_tenant, "TOKEN", "value-of-the-other")
    names = {"names": ["TOKEN", "UNDECLARED", "PADDOCK_SECRET_KEY"]}
    undeclared = await acme.deploy_agent(SHOW)
    assert (await acme.run_agent(undeclared, names))["output_data"] == dict.fromkeys(names["names"])
    length = "import os\ndef handle(p): return os.environ['TOKEN'][-5:]\n"
    manifest = DEFAULT_MANIFEST + "secrets: [TOKEN]\n"
    mine, theirs = await acme.deploy_agent(length, manifest), await other_tenant.deploy_agent(length, manifest)
    assert (await acme.run_agent(mine))["output_data"] == "-acme"
    assert (await other_tenant.run_agent(theirs))["output_data"] == "other"
    # Now for another agent alone.
    assert (await acme.http.patch("/secrets/TOKEN", json={"agents": [undeclared]})).status_code == 200
    refused = await acme.http.post(f"/agents/{mine}/execute", json={})
    assert (refused.status_code, refused.json()["error"]) == (409, "secret_unavailable")
    assert "may not have the secret TOKEN" in refused.json()["detail"]


async def test_build_has_no_secret_and_reports_it(acme: TenantClient, system: System, resources: Resources) -> None:
    value = generate_value()
    agent = await acme.create_agent()
    # Read at import as most programs do, and printed: the build has something else in its place.
    source = "import os\nprint('read', os.environ['TOKEN'])\ndef handle(p): return 1\n"
    version = await acme.build_version(agent["id"], pack_archive({"agent.py": source}, MANIFEST))
    assert version["status"] == "ready", version["build_log"]
    assert "there is no secret TOKEN. Add it under /secrets." in version["build_log"]
    refused = await acme.http.post(f"/agents/{agent['id']}/execute", json={})
    assert (refused.status_code, refused.json()["error"]) == (409, "secret_unavailable")
    assert "there is no secret TOKEN" in refused.json()["detail"]
    await create_secret(acme, "TOKEN", value)
    version = await acme.build_version(agent["id"], pack_archive({"agent.py": source}, MANIFEST))
    assert "read not-available-while-building" in version["build_log"]
    assert (await acme.run_agent(agent["id"]))["status"] == "completed"
    strict = "import json, os\nSETTINGS = json.loads(os.environ['TOKEN'])\ndef handle(p): return 1\n"
    version = await acme.build_version(agent["id"], pack_archive({"agent.py": strict}, MANIFEST))
    assert version["status"] == "failed"
    assert "No secrets are available while a version is built: TOKEN" in version["error_message"]
    assert await find_leaks(system, resources, value) == []


async def test_variables_are_overridden_without_a_new_version(acme: TenantClient) -> None:
    manifest = DEFAULT_MANIFEST + "env: {LEVEL: info, PORT: 8080, RATIO: 1.10, EMPTY: ''}\n"
    agent_id = await acme.deploy_agent(SHOW, manifest)
    names = {"names": ["LEVEL", "PORT", "RATIO", "EMPTY", "MORE"]}
    plain = {"LEVEL": "info", "PORT": "8080", "RATIO": "1.10", "EMPTY": "", "MORE": None}
    first = await acme.run_agent(agent_id, names)
    assert first["output_data"] == plain
    patched = await acme.http.patch(f"/agents/{agent_id}", json={"env": {"LEVEL": "debug", "MORE": "yes"}})
    assert patched.json()["env"] == {"LEVEL": "debug", "MORE": "yes"}
    second = await acme.run_agent(agent_id, names)
    assert second["output_data"] == {**plain, "LEVEL": "debug", "MORE": "yes"}
    assert second["env"] == {"LEVEL": "debug", "MORE": "yes"}
    assert (await acme.http.patch(f"/agents/{agent_id}", json={"env": None})).json()["env"] is None
    assert (await acme.run_agent(agent_id, names))["output_data"] == plain
    # As it was: with the variables of its start.
    again = (await acme.http.post(f"/executions/{second['id']}/retry")).json()
    assert (await acme.wait_for_end(again["id"]))["output_data"] == second["output_data"]


async def test_plans_and_schedules_name_a_missing_secret(acme: TenantClient) -> None:
    secret = await create_secret(acme, "TOKEN", "a-long-value")
    agent_id = await acme.deploy_agent(SHOW, MANIFEST)
    steps = [{"id": "show", "agent": agent_id, "inputs": {"names": ["TOKEN", "LOG_LEVEL"]}}]
    await acme.http.patch(f"/agents/{agent_id}", json={"env": {"LOG_LEVEL": "debug"}})
    workflow = (await acme.http.post("/workflows", json={"name": "shows", "steps": steps})).json()
    ended = await acme.wait_for_end(
        (await acme.http.post(f"/workflows/{workflow['id']}/execute", json={})).json()["id"]
    )
    assert ended["results"]["show"] == {"TOKEN": "***", "LOG_LEVEL": "debug"}
    refused = await acme.http.delete(f"/secrets/{secret['id']}")
    assert refused.status_code == 409
    assert "version v1 of" in refused.json()["detail"]
    assert (await acme.http.get("/secrets/TOKEN")).json()["needed_by"][0]["agent_id"] == agent_id
    assert (await acme.http.delete(f"/secrets/{secret['id']}?force=true")).status_code == 204
    refused = await acme.http.post(f"/workflows/{workflow['id']}/execute", json={})
    assert (refused.status_code, refused.json()["error"]) == (409, "secret_unavailable")
    assert "steps[0].agent" in refused.json()["detail"]
    body = {"name": "hourly", "cron_expression": "0 * * * *", "agent_id": agent_id}
    schedule = (await acme.http.post("/scheduler/schedules", json=body)).json()
    started = await acme.http.post(f"/scheduler/schedules/{schedule['id']}/run")
    assert (started.status_code, started.json()["error"]) == (409, "secret_unavailable")


async def test_a_secret_that_is_gone_meanwhile_fails_the_attempt(acme: TenantClient) -> None:
    await create_secret(acme, "TOKEN", "a-long-value")
    agent = await acme.create_agent()
    await acme.http.patch(f"/agents/{agent['id']}", json={"max_concurrency": 1})
    source = "import time\ndef handle(p):\n    time.sleep(p.get('sleep', 0))\n"
    version = await acme.build_version(agent["id"], pack_archive({"agent.py": source}, MANIFEST))
    assert version["status"] == "ready"
    first = await acme.start_execution(agent["id"], {"sleep": 3})
    waiting = await acme.start_execution(agent["id"])
    assert (await acme.http.delete("/secrets/TOKEN?force=true")).status_code == 204
    ended = await acme.wait_for_end(waiting["id"])
    assert ended["error_type"] == "secret_unavailable"
    assert "there is no secret TOKEN" in ended["error_message"]
    await acme.wait_for_end(first["id"])


async def test_a_rotated_secret_is_used_at_once_and_leaves_no_warm_slot(acme: TenantClient) -> None:
    await create_secret(acme, "TOKEN", "value-number-0")
    source = (
        "import os\nAT_IMPORT = os.environ['TOKEN']\ndef handle(p): return [AT_IMPORT[-1], os.environ['TOKEN'][-1]]\n"
    )
    agent_id = await acme.deploy_agent(source, MANIFEST)
    for number in range(4):
        assert (await acme.http.patch("/secrets/TOKEN", json={"value": f"value-number-{number}"})).status_code == 200
        for _ in range(3):
            assert (await acme.run_agent(agent_id))["output_data"] == [str(number)] * 2


@pytest.mark.parametrize(
    ("env", "field", "message"),
    [
        ({"PATH": "/x"}, "env.PATH", "is reserved"),
        ({"PADDOCK_WORK": "/x"}, "env.PADDOCK_WORK", "is reserved"),
        ({"Http_Proxy": "x"}, "env.Http_Proxy", "is reserved"),
        ({"1A": "x"}, "env.1A", "letters A to Z"),
        ({"A": "a\0b"}, "env.A", "U+0000"),
        ({"A": "x", "PORT": 8080}, "env.PORT", "Expected `str`"),
        ({"A": "x" * 32769}, "env.A", "at most 32768"),
        ({f"A{number}": "x" * 1000 for number in range(80)}, "env", "in all"),
        ({f"A{number}": "" for number in range(257)}, "env", "at most 256"),
        ({"TOKEN": "x"}, "env.TOKEN", "is a secret of v1"),
    ],
)
async def test_variables_that_are_refused(shared_tenant: TenantClient, env: Any, field: str, message: str) -> None:
    listed = (await shared_tenant.http.get("/agents?limit=1000")).json()["items"]
    agent_id = next((agent["id"] for agent in listed if agent["name"] == "with-token"), None)
    if agent_id is None:
        agent_id = (await shared_tenant.create_agent("with-token"))["id"]
        await shared_tenant.build_version(agent_id, pack_archive({"agent.py": SHOW}, MANIFEST))
    answer = await shared_tenant.http.patch(f"/agents/{agent_id}", json={"env": env})
    assert answer.status_code == 422, answer.text
    error = answer.json()["errors"][0]
    assert error["field"] == field
    assert message in error["message"]
    model = await shared_tenant.http.post("/agents", json={"name": "m", "model": "smollm2", "env": {"A": "b"}})
    assert model.json()["errors"][0]["field"] == "env"
