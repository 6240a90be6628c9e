"""Tool calls: which tools a run has, as a model sees them, and one call of one of them."""

import asyncio
import base64
import codecs
import re
from collections.abc import Awaitable, Callable, Collection
from importlib import import_module
from pathlib import Path
from typing import Any, Final

import msgspec
import structlog

from domain import provider_keys, tools
from domain.artifacts import service as artifacts
from domain.builds import DEFAULT_MEMORY_MB
from domain.executions import ExecutionMode
from domain.llms import ToolFailed, ToolSpec
from domain.ports import Blobs, OutputStream, Sandbox, SandboxProgram, Store
from domain.shared.errors import OUTAGE_CODES, DomainError
from domain.shared.pages import Page
from domain.shared.wire_names import assign_wire_names
from domain.tools import McpServerTool, Tool
from domain.workspaces import check_path
from infra.credentials import Keyring
from infra.http import Outbound
from infra.polling import retry_through_outage
from infra.sandbox import toolkit
from infra.tools.custom import call_custom_tool
from infra.tools.http_request import send_http_request
from workers.agent.arguments import read_arguments
from workers.agent.arguments import validate_arguments as arguments_fit
from workers.agent.workspaces import CommitFiles, RunWorkspace

_log = structlog.get_logger("paddock.tools")

TOOLKIT_PATH: Final = Path(toolkit.__file__).parent
PYTHON_TIMEOUT_SECONDS: Final = 30.0
# What a model is shown of a text file, and of any result, in characters.
MAX_SHOWN_CHARACTERS: Final = 64 * 1024
MAX_BOUND_TOOLS: Final = 128
# Encodings of texts. Python knows others, of which some are no text and some take minutes for a file (punycode).
_TEXT_ENCODINGS: Final = re.compile(
    r"ascii|utf-(8|16|32)(-[bl]e|-sig)?|iso8859-\d+|cp\d+|gb\w+|hz|big5\w*|euc_\w+|iso2022_\w+|shift_jis\w*|koi8-\w|mac-\w+"
)


class BoundTool(msgspec.Struct, frozen=True, kw_only=True):
    """A tool of a run under the name by which its model calls it. `remote` is an MCP server's own name for it."""

    spec: ToolSpec
    tool: Tool
    remote_name: str | None = None

    @property
    def has_effects(self) -> bool:
        """Whether a call changes anything that outlives a repetition of it."""
        return self.tool.effects


class ToolResult(msgspec.Struct, frozen=True, kw_only=True):
    """A finished call: its result, and what is to be written together with it."""

    result: dict[str, Any]
    commit: CommitFiles | None = None


class ToolDependencies(msgspec.Struct, frozen=True, kw_only=True):
    """What tools work with, in one worker process."""

    store: Store
    blobs: Blobs
    sandbox: Sandbox
    outbound: Outbound
    keyring: Keyring
    # How many sandboxes of tools there may be at the same time.
    sandbox_slots: asyncio.Semaphore


class Toolbox:
    """The tools of one run."""

    def __init__(self, shop: ToolDependencies, tenant_id: str, workspace: RunWorkspace, mode: ExecutionMode) -> None:
        self._dependencies, self._tenant_id, self._workspace, self._mode = shop, tenant_id, workspace, mode

    async def bind_tools(
        self, names: list[str], warn: Callable[[str], None], reserved: Collection[str] = ()
    ) -> dict[str, BoundTool]:
        """The tools of that name, by the name under which a model calls them, which is none of `reserved`.

        Those that are gone, switched off, not allowed in this mode or not to be reached are left out with a warning.
        """
        found: dict[tuple[str, str | None], BoundTool] = {}
        for tool in await retry_through_outage(lambda: self._list_named_tools(names, warn)):
            if self._mode == "sandbox" and not tool.fenced:
                warn(f"The tool {tool.name!r} works outside of the sandbox and is left out in this mode.")
                continue
            try:
                several = (
                    await self._bind_remote_tools(tool, warn) if tool.tool_type == "mcp" else [_bind_local_tool(tool)]
                )
            except ToolFailed as error:
                warn(f"The tools of {tool.name!r} cannot be had: {error}")
                continue
            for one in several:
                found.setdefault((one.tool.id, one.remote_name), one)
        tools = list(found.values())
        if len(tools) > MAX_BOUND_TOOLS:
            others = ", ".join(repr(one.spec.name) for one in tools[MAX_BOUND_TOOLS : MAX_BOUND_TOOLS + 20])
            warn(f"There are {len(tools)} tools, and {MAX_BOUND_TOOLS} at most can be had; left out are {others}.")
            tools = tools[:MAX_BOUND_TOOLS]
        wanted = [(one.spec.name, f"{one.tool.slug}/{one.remote_name or ''}") for one in tools]
        return {
            name: msgspec.structs.replace(one, spec=msgspec.structs.replace(one.spec, name=name))
            for name, one in zip(assign_wire_names(wanted, reserved), tools, strict=True)
        }

    async def call_tool(self, bound: BoundTool, arguments: str) -> ToolResult:
        """Call a tool with arguments as a model wrote them. Errors: `ToolFailed`."""
        args = read_arguments(arguments)
        await arguments_fit(bound.spec.parameters, args, self._tenant_id)
        tool = bound.tool
        if self._mode == "sandbox" and not tool.fenced:
            raise ToolFailed("this tool works outside of the sandbox.")
        try:
            if tool.tool_type == "builtin":
                return await _BUILTIN_TOOLS[tool.name](self, args)
            secrets = await self._open_secrets(tool)
            if tool.tool_type == "mcp":
                mcp, name = await _load_mcp(), bound.remote_name or bound.spec.name
                return ToolResult(
                    result=await mcp.call_mcp(self._dependencies.outbound, tool.configuration, secrets, name, args)
                )
            return ToolResult(
                result=await call_custom_tool(self._dependencies.outbound, tool.configuration, args, secrets)
            )
        except DomainError as error:
            if error.code in OUTAGE_CODES:
                raise
            raise ToolFailed(error.detail) from error
        except (msgspec.MsgspecError, ValueError, OverflowError, RecursionError) as error:
            # Of numbers that no JSON here holds, texts that are none: a stranger's answer must not end the run.
            _log.warning("a tool's answer cannot be read", tool=tool.name, error=type(error).__name__)
            raise ToolFailed(f"the tool's answer cannot be read ({type(error).__name__}).") from error

    async def _list_named_tools(self, names: list[str], warn: Callable[[str], None]) -> list[Tool]:
        async with self._dependencies.store.tenant_transaction(self._tenant_id) as tx:
            try:
                return await tools.resolve_tools(tx, names)
            except DomainError as error:
                if error.code != "invalid_field":
                    raise
                bad = {one.field for one in error.errors}
                for one in error.errors:
                    warn(f"A tool is left out: {one.message}")
                rest = [name for number, name in enumerate(names) if f"tools[{number}]" not in bad]
                return await tools.resolve_tools(tx, rest)

    async def _bind_remote_tools(self, tool: Tool, warn: Callable[[str], None]) -> list[BoundTool]:
        only = tool.tool_name if isinstance(tool, McpServerTool) else None
        problems: list[tuple[str, str]] = []
        secrets = await self._open_secrets(tool)
        mcp = await _load_mcp()
        specs = await mcp.list_tools(
            self._dependencies.outbound, tool.configuration, secrets, lambda *problem: problems.append(problem)
        )
        chosen = [spec for spec in specs if only in (None, spec.name)]
        for name, message in problems:
            if only is None or name == repr(only):
                warn(f"The tool {name} of {tool.name!r} {message}")
        if only is not None and not chosen:
            raise ToolFailed(f"the server has no tool {only!r}.")
        return [
            BoundTool(
                spec=msgspec.structs.replace(spec, name=f"{tool.slug}_{spec.name}"), tool=tool, remote_name=spec.name
            )
            for spec in chosen
        ]

    async def _open_secrets(self, tool: Tool) -> dict[str, str]:
        named = tool.secrets
        if not named:
            return {}

        async def known() -> dict[str, bytes]:
            async with self._dependencies.store.tenant_transaction(self._tenant_id) as tx:
                return {header: await provider_keys.get_sealed_key(tx, slug) for header, slug in named.items()}

        try:
            sealed = await retry_through_outage(known)
        except DomainError as error:
            if error.code in OUTAGE_CODES:
                raise
            raise ToolFailed(error.detail) from error
        try:
            return {header: self._dependencies.keyring.open(key).decode() for header, key in sealed.items()}
        except ValueError as error:
            raise ToolFailed("a key of this tool cannot be read with PADDOCK_ENCRYPTION_KEYS any more.") from error

    # what is built in

    async def _read_file(self, args: dict[str, Any]) -> ToolResult:
        data, encoding = await self._workspace.read_file(args["path"]), args.get("encoding", "utf-8")
        text = _decode_text(data, encoding)
        cut = {"truncated": True} if len(text) > MAX_SHOWN_CHARACTERS else {}
        return ToolResult(result={"content": text[:MAX_SHOWN_CHARACTERS], "size": len(data), **cut})

    async def _write_file(self, args: dict[str, Any]) -> ToolResult:
        data = args["content"].encode("utf-8", "replace")
        if args.get("append"):
            known = {file.path for file in await self._workspace.list_files()}
            path = check_path(args["path"])
            data = (await self._workspace.read_file(path) if path in known else b"") + data
        commit = await self._workspace.write_files({args["path"]: data})
        return ToolResult(result={"path": check_path(args["path"]), "size": len(data)}, commit=commit)

    async def _list_files(self, args: dict[str, Any]) -> ToolResult:
        wanted = args.get("path", ".")
        prefix = "" if wanted in (".", "", "./") else check_path(wanted) + "/"
        found = [file for file in await self._workspace.list_files() if file.path.startswith(prefix)]
        if prefix and not found:
            raise ToolFailed(f"there is no folder {wanted!r} in the workspace.")
        return ToolResult(result={"files": [{"path": file.path, "size": file.size_bytes} for file in found]})

    async def _run_python(self, args: dict[str, Any]) -> ToolResult:
        files = {
            path: base64.b64encode(data).decode() for path, data in (await self._workspace.read_all_files()).items()
        }
        program = SandboxProgram(
            code=TOOLKIT_PATH,
            environment=None,
            entrypoint="python_tool:run",
            timeout=float(args.get("timeout", PYTHON_TIMEOUT_SECONDS)),
            memory_mb=DEFAULT_MEMORY_MB,
        )
        payload = msgspec.json.encode({"code": args["code"], "files": files})
        async with self._dependencies.sandbox_slots:
            outcome = await self._dependencies.sandbox.run_program(program, payload, _ignore_output)
        if outcome.output is None:
            raise ToolFailed((outcome.error_message or outcome.error_type or "").replace("The agent", "The program"))
        try:
            # The program may have made anything of it.
            answer = msgspec.json.decode(outcome.output, type=_PythonAnswer)
            changed = {path: base64.b64decode(data, validate=True) for path, data in answer.files.items()}
        except (msgspec.MsgspecError, ValueError, RecursionError) as error:
            raise ToolFailed("what the program left behind cannot be read.") from error
        commit = await self._workspace.write_files(changed) if changed else None
        told = {"stdout": answer.stdout, "stderr": answer.stderr, "value": answer.value, "error": answer.error}
        result: dict[str, Any] = {name: text for name, text in told.items() if text}
        if changed:
            result["files_written"] = sorted(changed)
        if answer.left_out:
            result["files_too_large"] = answer.left_out[:100]
        return ToolResult(result=result or {"stdout": ""}, commit=commit)

    async def _request_http(self, args: dict[str, Any]) -> ToolResult:
        return ToolResult(result=await send_http_request(self._dependencies.outbound, args))

    async def _search_artifacts(self, args: dict[str, Any]) -> ToolResult:
        wanted = artifacts.ArtifactFilter(
            search=args.get("query"),
            **{name: args[name] for name in ("model_name", "status", "tag", "semantic_bucket") if name in args},
        )
        narrowed = artifacts.normalize_filter(wanted, self._tenant_id)

        async def known() -> Any:
            async with self._dependencies.store.tenant_transaction(self._tenant_id) as tx:
                return await tx.artifacts.list_page(narrowed, Page(limit=args.get("limit", 10), offset=0))

        found = await retry_through_outage(known)
        return ToolResult(result={"artifacts": msgspec.to_builtins(found.items), "total": found.total})


class _PythonAnswer(msgspec.Struct, kw_only=True):
    """What the `python` tool answers from inside the fence."""

    stdout: str = ""
    stderr: str = ""
    value: str | None = None
    error: str | None = None
    files: dict[str, str] = {}
    left_out: list[str] = []


_BUILTIN_TOOLS: Final[dict[str, Callable[[Toolbox, dict[str, Any]], Awaitable[ToolResult]]]] = {
    "filesystem_read": Toolbox._read_file,
    "filesystem_write": Toolbox._write_file,
    "filesystem_list": Toolbox._list_files,
    "python": Toolbox._run_python,
    "http_request": Toolbox._request_http,
    "search_artifacts": Toolbox._search_artifacts,
}


async def _load_mcp() -> Any:
    """The client of MCP servers, imported when it is first needed: a second or more, in which leases go on."""
    return await asyncio.to_thread(import_module, "infra.tools.mcp")


def _bind_local_tool(tool: Tool) -> BoundTool:
    spec = ToolSpec(name=tool.slug, description=tool.description or tool.name, parameters=tool.parameters)
    return BoundTool(spec=spec, tool=tool)


def _decode_text(data: bytes, encoding: str) -> str:
    try:
        name = codecs.lookup(encoding).name
    except (LookupError, ValueError):
        name = ""
    if _TEXT_ENCODINGS.fullmatch(name) is None:
        raise ToolFailed(f"there is no text encoding {encoding!r}.")
    try:
        return data.decode(name)
    except UnicodeError as error:
        at = f" (byte {error.start})" if isinstance(error, UnicodeDecodeError) else ""
        raise ToolFailed(f"the file is not {encoding} text{at}.") from error


def _ignore_output(_: OutputStream, __: bytes) -> None:
    return None
