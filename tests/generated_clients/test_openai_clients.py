"""LangChain and the `llm` command line use agents as models of OpenAI, with a base URL and a key and nothing else."""

import asyncio
import json
import os
from pathlib import Path
from typing import Any

from scripts.system import System
from tests.support.clients import TenantClient
from tests.support.fake_provider import FakeProvider, build_call
from tests.support.model_agents import create_model, create_model_agent, generate_name

CLIENTS_FOLDER = Path(__file__).parents[2] / ".clients" / "bin"
LANGCHAIN_PROGRAM = '''
import asyncio, json, sys
from langchain_core.tools import tool
from langchain_openai import ChatOpenAI
import pydantic

class Person(pydantic.BaseModel):
    """A person."""
    name: str
    age: int

@tool
def add(a: int, b: int) -> int:
    """Add two numbers."""
    return a + b

async def stream_text(model):
    return "".join([chunk.text async for chunk in model.astream("Go")])

url, key, agent = sys.argv[1:]
model = ChatOpenAI(base_url=url, api_key=key, model=agent, temperature=0.5, max_retries=0)
answers = {"whole": model.invoke("Go").text}
answers["streamed"] = "".join(chunk.text for chunk in model.stream("Go"))
answers["async"] = asyncio.run(stream_text(model))
answers["calls"] = [call["args"] for call in model.bind_tools([add]).invoke("2 + 40").tool_calls]
answers["structured"] = model.with_structured_output(Person).invoke("Who?").model_dump()
responses = ChatOpenAI(base_url=url, api_key=key, model=agent, use_responses_api=True, max_retries=0)
answers["responses"] = responses.invoke("Go").text
answers["usage"] = model.invoke("Go").usage_metadata["total_tokens"] > 0
print(json.dumps(answers))
'''


async def run_client(*command: str, **environment: str) -> str:
    """Return what a program of the clients' environment prints."""
    process = await asyncio.create_subprocess_exec(
        *command,
        env={**os.environ, **environment},
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    output, _ = await asyncio.wait_for(process.communicate(), 120)
    assert process.returncode == 0, output.decode()
    return output.decode()


async def create_agent(acme: TenantClient, provider: FakeProvider) -> tuple[str, str]:
    """Return the names of an agent and of its model."""
    model = await create_model(acme, provider, generate_name())
    return str((await create_model_agent(acme, model))["name"]), model


async def test_langchain_uses_an_agent_as_its_model(
    acme: TenantClient, system: System, provider: FakeProvider, tmp_path: Path
) -> None:
    agent, model = await create_agent(acme, provider)
    for text in ("One", "Two", "Three"):
        provider.queue_text(f"{text} and more.", to=model)
    provider.queue_text("", calls=[build_call("add", {"a": 2, "b": 40})], to=model)
    provider.queue_text('{"name": "Ada", "age": 36}', to=model)
    provider.queue_text("Four.", to=model)
    program = tmp_path / "program.py"
    program.write_text(LANGCHAIN_PROGRAM)
    key = await acme.create_key(scopes=["run:agents"])
    printed = await run_client(str(CLIENTS_FOLDER / "python"), str(program), f"{system.url}/v1", key, agent)
    answers: dict[str, Any] = json.loads(printed.splitlines()[-1])
    assert answers == {
        "whole": "One and more.",
        "streamed": "Two and more.",
        "async": "Three and more.",
        "calls": [{"a": 2, "b": 40}],
        "structured": {"name": "Ada", "age": 36},
        "responses": "Four.",
        "usage": True,
    }


async def test_the_llm_command_line_uses_an_agent_as_its_model(
    acme: TenantClient, system: System, provider: FakeProvider, tmp_path: Path
) -> None:
    agent, model = await create_agent(acme, provider)
    key = await acme.create_key(scopes=["run:agents"])
    (tmp_path / "keys.json").write_text(json.dumps({"paddock": key}))
    registration = {"model_id": "ours", "model_name": agent, "api_base": f"{system.url}/v1", "api_key_name": "paddock"}
    (tmp_path / "extra-openai-models.yaml").write_text(json.dumps([registration]))
    for number, options in enumerate((["Go"], ["--no-stream", "Go"], ["--continue", "Again"])):
        provider.queue_text(f"Answer {number}.", to=model)
        command = [str(CLIENTS_FOLDER / "llm"), "-m", "ours", *options]
        assert (await run_client(*command, LLM_USER_PATH=str(tmp_path))).strip() == f"Answer {number}."
    # The command keeps the conversation itself and sends all of it.
    assert [message["content"] for message in provider.requests[-1].messages] == ["Go", "Answer 1.", "Again"]
