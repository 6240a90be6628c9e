"""The gateway as frameworks ask it: one tool by its name, and fields that change nothing about an answer."""

import json

from tests.support.case_inputs import find_case_folder
from tests.support.clients import TenantClient

# The same fields one at a time, together, and what would change the answer.
FIELDS = """
import json, os, urllib.error, urllib.request

HELLO = [{"role": "user", "content": "Say hi."}]


def ask(fields):
    told = json.dumps({"model": "smollm2", "messages": HELLO, "max_tokens": 4, **fields}).encode()
    address = os.environ["OPENAI_BASE_URL"] + "/chat/completions"
    request = urllib.request.Request(address, told, {"Content-Type": "application/json"})
    try:
        with urllib.request.urlopen(request, timeout=200) as answer:
            return [answer.status, ""]
    except urllib.error.HTTPError as error:
        return [error.code, json.load(error)["error"]["message"]]


def handle(payload):
    return [ask(fields) for fields in payload["all"]]
"""


async def test_one_tool_by_its_name(acme: TenantClient) -> None:
    """On the local model: one tool, one of two, and any."""
    made = await acme.create_agent()
    data = (find_case_folder("22-gateway-one-tool-by-name") / "probe.tar.gz").read_bytes()
    version = await acme.build_version(made["id"], data)
    assert version["status"] == "ready", version["build_log"]
    ended = await acme.run_agent(made["id"], {}, timeout=300)
    assert ended["status"] == "completed", ended
    # Such a call may be cut at its 60 tokens; it is one in any case.
    for asked, (status, finish) in ended["output_data"].items():
        assert status == 200, (asked, finish)
        assert finish in ("tool_calls", "length"), (asked, finish)


async def test_fields_that_change_nothing(acme: TenantClient) -> None:
    fields = json.loads((find_case_folder("23-gateway-requests-of-frameworks") / "fields.json").read_text())
    parts = [{"type": "text", "text": "Say hi.", "cache_control": {"type": "ephemeral"}}]
    bare = {"type": "function", "function": {"name": "a", "parameters": {"properties": {}}}}
    taken = [
        *({name: value} for name, value in fields.items()),
        fields,
        {"tools": [bare], "tool_choice": {"type": "auto"}},
        {"messages": [{"role": "user", "content": parts}]},
    ]
    refused = [{"logprobs": True}, {"n": 2}, {"reasoning_effort": "low"}]
    image = {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}]}
    agent_id = await acme.deploy_agent(
        FIELDS, "name: probe\nentrypoint: agent:handle\nmodels: [smollm2]\ntimeout: 300\n"
    )
    ended = await acme.run_agent(agent_id, {"all": [*taken, *refused, image]}, timeout=300)
    assert ended["status"] == "completed", ended
    answers = ended["output_data"]
    assert answers[: len(taken)] == [[200, ""]] * len(taken)
    for asked, (status, told) in zip([*refused, {"image_url": 1}], answers[len(taken) :], strict=True):
        assert (status, next(iter(asked)) in told) == (400, True), (asked, told)
