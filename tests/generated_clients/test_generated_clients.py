"""Client generators accept the whole OpenAPI document, and their clients create, list and run agents."""

import asyncio
import json
import os
from pathlib import Path

import httpx
import pytest

from tests.support.clients import TenantClient

TOOLS_FOLDER = Path(__file__).parents[2] / ".clients"
AGENT_SOURCE = "def handle(payload):\n    return {'hello': payload['name']}\n"

PYTHON_CLIENT = """
import io
import sys
from made import AuthenticatedClient
from made.api.agents import create_agent, list_agents
from made.api.executions import execute_agent, get_execution
from made.api.files import list_uploaded_files, upload_file
from made.api.secrets import create_secret
from made.models import ExecutionStart, ExecutionStartFilesType0, ExecutionStartPayloadType0, NewAgent, NewSecret
from made.models import UploadFileBody
from made.types import File

url, key, agent_id = sys.argv[1:]
client = AuthenticatedClient(base_url=url, token=key, timeout=60)
made = create_agent.sync(client=client, body=NewAgent(name="by-a-generated-client"))
assert made.name == "by-a-generated-client", made
assert made.id in [agent.id for agent in list_agents.sync(client=client, limit=10).items]
secret = create_secret.sync(client=client, body=NewSecret(name="TOKEN", value="value of the token"))
assert secret.name == "TOKEN", secret
file = upload_file.sync(client=client, body=UploadFileBody(file=File(io.BytesIO(b"a,b"), "data.csv", "text/csv")))
assert file.id in [uploaded.id for uploaded in list_uploaded_files.sync(client=client).items]
payload, files = ExecutionStartPayloadType0(), ExecutionStartFilesType0()
payload["name"], files["data.csv"] = "Ada", file.id
start = ExecutionStart(payload=payload, files=files, state="ada")
run = execute_agent.sync(agent_id, client=client, body=start, prefer="wait=60")
found = get_execution.sync(run.id, client=client, prefer="wait=60")
assert found.status.value == "completed", found
assert found.result == {"hello": "Ada"}, found.result
refused = create_agent.sync(client=client, body=NewAgent(name="by-a-generated-client"))
assert refused.error == "conflict", refused
print("works")
"""
GENERATOR_CLIENT = """
import sys
import made
from made.models import ExecutionStart, NewAgent

url, key, agent_id = sys.argv[1:]
with made.ApiClient(made.Configuration(host=url, api_key={"ApiKey": key})) as client:
    agents, executions = made.AgentsApi(client), made.ExecutionsApi(client)
    new = agents.create_agent(NewAgent(name="by-a-generated-client"))
    assert new.name == "by-a-generated-client", new
    assert new.id in [agent.id for agent in agents.list_agents(limit=10).items]
    secret = made.SecretsApi(client).create_secret(made.NewSecret(name="TOKEN", value="value of the token"))
    assert secret.name == "TOKEN", secret
    file = made.FilesApi(client).upload_file(("data.csv", b"a,b"))
    start = ExecutionStart(payload={"name": "Ada"}, files={"data.csv": file.id}, state="ada")
    run = executions.execute_agent(agent_id, start, prefer="wait=60")
    found = executions.get_execution(run.id, prefer="wait=60")
    assert found.status == "completed", found
    assert found.result == {"hello": "Ada"}, found.result
    try:
        agents.create_agent(NewAgent(name="by-a-generated-client"))
    except made.ApiException as error:
        assert error.status == 409, error
        assert error.data.error == "conflict", error.data
    else:
        raise AssertionError("made twice")
print("works")
"""
TYPESCRIPT_CLIENT = """
import createClient from "openapi-fetch";
import type { components, paths } from "./schema.js";

const [url, key, agent_id] = process.argv.slice(2) as [string, string, string];
const client = createClient<paths>({ baseUrl: url, headers: { "X-API-Key": key } });

function check(holds: boolean, told: unknown): asserts holds {
  if (!holds) throw new Error(JSON.stringify(told));
}

const made = await client.POST("/api/v1/agents", { body: { name: "by-a-generated-client" } });
check(made.data?.name === "by-a-generated-client", made.error);
const listed = await client.GET("/api/v1/agents", { params: { query: { limit: 10 } } });
check(listed.data!.items.some((agent) => agent.id === made.data!.id), listed);
const secret = await client.POST("/api/v1/secrets", { body: { name: "TOKEN", value: "value of the token" } });
check(secret.data?.name === "TOKEN", secret.error);
const body: components["schemas"]["ExecutionStart"] = { payload: { name: "Ada" }, state: "ada" };
const run = await client.POST("/api/v1/agents/{agent_id}/execute", {
  params: { path: { agent_id }, header: { Prefer: "wait=60" } }, body });
const found = await client.GET("/api/v1/executions/{execution_id}", {
  params: { path: { execution_id: run.data!.id }, header: { Prefer: "wait=60" } } });
check(found.data?.status === "completed", found);
check(JSON.stringify(found.data!.result) === '{"hello":"Ada"}', found.data);
const refused = await client.POST("/api/v1/agents", { body: { name: "by-a-generated-client" } });
check(refused.error?.error === "conflict", refused);
console.log("works");
"""

pytestmark = pytest.mark.skipif(
    not (TOOLS_FOLDER / ".ready").exists(),
    reason="the generators are not installed: run `make test`, or `make .clients/.ready`",
)


async def _run_command(*command: str | Path, cwd: Path) -> str:
    path = f"{TOOLS_FOLDER / 'bin'}:{os.environ['PATH']}"
    process = await asyncio.create_subprocess_exec(
        *map(str, command),
        cwd=cwd,
        env={**os.environ, "PATH": path, "PYTHONPATH": str(cwd), "JAVA_OPTS": "-Xmx512m"},
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    output, _ = await process.communicate()
    assert process.returncode == 0, output.decode(errors="replace")[-4000:]
    return output.decode(errors="replace")


@pytest.fixture
async def document(system, tmp_path: Path) -> Path:
    async with httpx.AsyncClient() as client:
        (tmp_path / "openapi.json").write_bytes((await client.get(f"{system.url}/openapi.json")).content)
    return tmp_path / "openapi.json"


@pytest.fixture
async def arguments(system, acme: TenantClient) -> tuple[str, str, str]:
    return system.url, await acme.create_key(), await acme.deploy_agent(AGENT_SOURCE)


async def test_openapi_python_client_works(document: Path, arguments: tuple[str, str, str]) -> None:
    folder = document.parent
    output = await _run_command(
        *(TOOLS_FOLDER / "bin/openapi-python-client", "generate", "--path", document, "--meta", "none"),
        *("--output-path", folder / "made", "--fail-on-warning"),
        cwd=folder,
    )
    assert "Warning" not in output
    (folder / "call.py").write_text(PYTHON_CLIENT)
    assert "works" in await _run_command(TOOLS_FOLDER / "bin/python", "call.py", *arguments, cwd=folder)
    # Every route has a module.
    openapi = json.loads(document.read_text())
    routes = sum(len(item) for item in openapi["paths"].values())
    assert len([file for file in (folder / "made/api").rglob("*.py") if file.name != "__init__.py"]) == routes


async def test_openapi_generator_client_works(document: Path, arguments: tuple[str, str, str]) -> None:
    folder = document.parent
    await _run_command(
        *(TOOLS_FOLDER / "bin/openapi-generator-cli", "generate", "-i", document, "-g", "python", "-o", folder),
        *("--package-name", "made", "--global-property", "apis,models,supportingFiles"),
        cwd=folder,
    )
    (folder / "call.py").write_text(GENERATOR_CLIENT)
    assert "works" in await _run_command(TOOLS_FOLDER / "bin/python", "call.py", *arguments, cwd=folder)


async def test_openapi_typescript_client_works(document: Path, arguments: tuple[str, str, str]) -> None:
    folder = document.parent
    (folder / "node_modules").symlink_to(TOOLS_FOLDER / "node_modules")
    (folder / "package.json").write_text('{"type": "module"}')
    bin_folder = folder / "node_modules/.bin"
    # Without the option, a field of a body that has a default would have to be sent.
    await _run_command(
        *(bin_folder / "openapi-typescript", document, "-o", "schema.d.ts", "--default-non-nullable", "false"),
        cwd=folder,
    )
    (folder / "call.ts").write_text(TYPESCRIPT_CLIENT)
    strict = ("--strict", "--target", "es2022", "--module", "nodenext", "--moduleResolution", "nodenext")
    await _run_command(bin_folder / "tsc", *strict, "--types", "node", "call.ts", cwd=folder)
    assert "works" in await _run_command(TOOLS_FOLDER / "bin/node", "call.js", *arguments, cwd=folder)
