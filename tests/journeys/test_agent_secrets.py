"""Secrets and variables of uploaded agents: given to the runs that may have them, and found nowhere afterwards."""

import secrets
from typing import Any

from tests.support.clients import TenantClient

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
    if p.get("fail"):
        raise ValueError(f"refused {token}")
    return {"token": token, token: [token], "length": len(token), "level": os.environ.get("LOG_LEVEL")}
"""
MANIFEST = "name: leaky\nentrypoint: agent:handle\nsecrets: [TOKEN]\nenv: {LOG_LEVEL: info, RETRIES: 3}\n"


def generate_value() -> str:
    return f"tok/{secrets.token_urlsafe(24)}+'\"{secrets.token_hex(4)}"


async def create_secret(tenant: TenantClient, name: str, value: str, **more: Any) -> dict[str, Any]:
    answer = await tenant.http.post("/secrets", json={"name": name, "value": value, **more})
    assert answer.status_code == 201, answer.text
    assert value not in answer.text
    return dict(answer.json())


async def test_a_secret_reaches_its_run_and_nothing_else(acme: TenantClient) -> None:
    value = generate_value()
    await create_secret(acme, "TOKEN", value)
    agent_id = await acme.deploy_agent(LEAKY, MANIFEST)
    ended = await acme.run_agent(agent_id)
    assert ended["status"] == "completed", ended
    assert ended["output_data"] == {"token": "***", "***": ["***"], "length": len(value), "level": "info"}
    messages = [entry["message"] for entry in await acme.list_events(ended["id"])]
    assert "plain ***" in messages
    assert "***" in messages
