"""An agent that declares hosts: built, narrowed by its tenant's policy, run, and its connections on record."""

from typing import Any

from tests.support.clients import TenantClient

SOURCE = """
import socket
def handle(p):
    try:
        with socket.create_connection(("nowhere.invalid", 443), 10) as s:
            s.recv(1)
    except OSError as error:
        return type(error).__name__
"""
MANIFEST = "name: caller\nentrypoint: agent:handle\negress: [nowhere.invalid, '*.cloud.example:8443']\n"


async def _set_policy(tenant: TenantClient, words: Any) -> Any:
    answer = await tenant.http.patch("/tenant", json={"egress": words})
    assert answer.status_code == 200, answer.text
    return answer.json()["egress"]


async def test_a_policy_is_checked_when_a_version_is_activated_and_started(acme: TenantClient) -> None:
    assert (await acme.http.get("/tenant")).json()["egress"] == "declared"
    agent_id = await acme.deploy_agent(SOURCE, MANIFEST)
    version = (await acme.http.get(f"/agents/{agent_id}/versions")).json()["items"][0]
    assert version["egress"] == ["nowhere.invalid", "*.cloud.example:8443"]
    ended = await acme.run_agent(agent_id, {})
    assert ended["output_data"] == "ConnectionResetError", ended
    events = (await acme.http.get(f"/execution-logs/{ended['id']}")).json()["items"]
    assert [event for event in events if event["metadata"]["type"] == "egress"]

    assert await _set_policy(acme, ["NoWhere.invalid:443"]) == ["nowhere.invalid:443"]
    refused = await acme.http.post("/executions", json={"agent_id": agent_id, "payload": {}})
    assert refused.status_code == 409, refused.text
    assert refused.json()["error"] == "egress_not_allowed"
    for host in ("nowhere.invalid:80", "*.cloud.example:8443", "the tenant's egress policy"):
        assert host in refused.json()["detail"]
    assert "nowhere.invalid:443" not in refused.json()["detail"]
    again = await acme.http.post(f"/agents/{agent_id}/versions/v1/activate")
    assert (again.status_code, again.json()["error"]) == (409, "egress_not_allowed")
    step = {"name": "uses-it", "steps": [{"id": "a", "agent": agent_id, "prompt": "go"}]}
    workflow = (await acme.http.post("/workflows", json=step)).json()
    planned = await acme.http.post("/executions", json={"workflow_id": workflow["id"], "payload": {}})
    assert (planned.status_code, planned.json()["error"]) == (409, "egress_not_allowed"), planned.text
    retried = await acme.http.post(f"/executions/{ended['id']}/retry")
    assert (retried.status_code, retried.json()["error"]) == (409, "egress_not_allowed")

    other_id = await acme.deploy_agent(SOURCE, MANIFEST)
    built = (await acme.http.get(f"/agents/{other_id}/versions")).json()["items"][0]
    assert (built["status"], "*.cloud.example:8443" in built["build_log"]) == ("ready", True)
    assert await _set_policy(acme, ["nowhere.invalid", "*.cloud.example:8443"])
    assert (await acme.run_agent(agent_id, {}))["output_data"] == "ConnectionResetError"
    assert await _set_policy(acme, []) == "off"
    assert (await acme.http.post("/executions", json={"agent_id": agent_id, "payload": {}})).status_code == 409
    assert await _set_policy(acme, None) == "declared"


async def test_bad_policies_name_the_entry(acme: TenantClient) -> None:
    for words, problem in (
        (["https://api.github.com"], "without a scheme"),
        (["10.0.0.1"], "is a private address"),
        ("some", "must be"),
        ([f"h{number}.example" for number in range(1000)], "at most 64"),
    ):
        answer = await acme.http.patch("/tenant", json={"egress": words})
        assert answer.status_code == 422, answer.text
        assert answer.json()["errors"][0]["field"] == "egress"
        assert problem in answer.text or isinstance(words, str), answer.text
    assert (await acme.http.get("/tenant")).json()["egress"] == "declared"
