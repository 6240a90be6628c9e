"""Test requests that frameworks send to the gateway: one tool by name, and fields that do not change the answer."""

import json

from tests.support.case_inputs import find_case_folder
from tests.support.clients import TenantClient

# Sends each set of fields in its own request.
FIELD_PROBE_SOURCE = """
import json, os, urllib.error, urllib.request

HELLO = [{"role": "user", "content": "Say hi."}]


def ask(fields):
    body = json.dumps({"model": "smollm2", "messages": HELLO, "max_tokens": 4, **fields}).encode()
    address = os.environ["OPENAI_BASE_URL"] + "/chat/completions"
    request = urllib.request.Request(address, body, {"Content-Type": "application/json"})
    try:
        with urllib.request.urlopen(request, timeout=200) as answer:
            return [answer.status, ""]
    except urllib.error.HTTPError as error:
        return [error.code, json.load(error)["error"]["message"]]


def handle(payload):
    return [ask(fields) for fields in payload["all"]]
"""


async def test_tool_choice_by_name_calls_a_tool(acme: TenantClient) -> None:
    """Ask the local model for one tool, one of two, and any."""
    created = await acme.create_agent()
    data = (find_case_folder("22-gateway-one-tool-by-name") / "probe.tar.gz").read_bytes()
    version = await acme.build_version(created["id"], data)
    assert version["status"] == "ready", version["build_log"]
    ended = await acme.run_agent(created["id"], {}, timeout=300)
    assert ended["status"] == "completed", ended
    # The call may be cut off at 60 tokens, but it is a tool call.
    for tool_choice, (status, finish) in ended["output_data"].items():
        assert status == 200, (tool_choice, finish)
        assert finish in ("tool_calls", "length"), (tool_choice, finish)


async def test_harmless_fields_are_accepted_and_others_refused(acme: TenantClient) -> None:
    fields = json.loads((find_case_folder("23-gateway-requests-of-frameworks") / "fields.json").read_text())
    parts = [{"type": "text", "text": "Say hi.", "cache_control": {"type": "ephemeral"}}]
    tool_without_type = {"type": "function", "function": {"name": "a", "parameters": {"properties": {}}}}
    accepted = [
        *({name: value} for name, value in fields.items()),
        fields,
        {"tools": [tool_without_type], "tool_choice": {"type": "auto"}},
        {"messages": [{"role": "user", "content": parts}]},
    ]
    refused = [{"logprobs": True}, {"n": 2}, {"reasoning_effort": "low"}]
    image = {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}]}
    agent_id = await acme.deploy_agent(
        FIELD_PROBE_SOURCE, "name: probe\nentrypoint: agent:handle\nmodels: [smollm2]\ntimeout: 300\n"
    )
    ended = await acme.run_agent(agent_id, {"all": [*accepted, *refused, image]}, timeout=300)
    assert ended["status"] == "completed", ended
    answers = ended["output_data"]
    assert answers[: len(accepted)] == [[200, ""]] * len(accepted)
    for fields_sent, (status, message) in zip([*refused, {"image_url": 1}], answers[len(accepted) :], strict=True):
        assert (status, next(iter(fields_sent)) in message) == (400, True), (fields_sent, message)
