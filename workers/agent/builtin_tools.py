"""Run the tools that are built in: files of the workspace, Python in the sandbox, HTTP, and the artifact search."""

import base64
import codecs
import re
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, Final

import msgspec

from domain import artifacts
from domain.builds import DEFAULT_MEMORY_MB
from domain.llms import ToolFailed
from domain.ports import OutputStream, SandboxProgram
from domain.shared.pages import Page
from domain.workspaces import check_path
from infra.sandbox import toolkit
from infra.tools.http_request import send_http_request
from workers.agent.schema import MAX_SHOWN_CHARACTERS, ToolDependencies, ToolResult
from workers.agent.workspaces import RunWorkspace

TOOLKIT_PATH: Final = Path(toolkit.__file__).parent
PYTHON_TIMEOUT_SECONDS: Final = 30.0
# Encodings of text. Python knows others: some encode no text, and some take minutes for a file (punycode).
_TEXT_ENCODINGS: Final = re.compile(
    r"ascii|utf-(8|16|32)(-[bl]e|-sig)?|iso8859-\d+|cp\d+|gb\w+|hz|big5\w*|euc_\w+|iso2022_\w+|shift_jis\w*|koi8-\w|mac-\w+"
)


class BuiltinTools:
    """Run the built-in tools of one run."""

    def __init__(self, dependencies: ToolDependencies, tenant_id: str, workspace: RunWorkspace) -> None:
        self._dependencies, self._tenant_id, self._workspace = dependencies, tenant_id, workspace
        self._handlers: dict[str, Callable[[dict[str, Any]], Awaitable[ToolResult]]] = {
            "filesystem_read": self._read_file,
            "filesystem_write": self._write_file,
            "filesystem_list": self._list_files,
            "python": self._run_python,
            "http_request": self._request_http,
            "search_artifacts": self._search_artifacts,
        }

    async def call_tool(self, name: str, args: dict[str, Any]) -> ToolResult:
        """Call the tool of that name. Errors: `ToolFailed`, and others of `DomainError`."""
        return await self._handlers[name](args)

    async def _read_file(self, args: dict[str, Any]) -> ToolResult:
        data, encoding = await self._workspace.read_file(args["path"]), args.get("encoding", "utf-8")
        text = _decode_text(data, encoding)
        truncated = {"truncated": True} if len(text) > MAX_SHOWN_CHARACTERS else {}
        return ToolResult(result={"content": text[:MAX_SHOWN_CHARACTERS], "size": len(data), **truncated})

    async def _write_file(self, args: dict[str, Any]) -> ToolResult:
        data = args["content"].encode("utf-8", "replace")
        if args.get("append"):
            paths, path = {file.path for file in await self._workspace.list_files()}, check_path(args["path"])
            data = (await self._workspace.read_file(path) if path in paths else b"") + data
        commit = await self._workspace.write_files({args["path"]: data})
        return ToolResult(result={"path": check_path(args["path"]), "size": len(data)}, commit=commit)

    async def _list_files(self, args: dict[str, Any]) -> ToolResult:
        folder = args.get("path", ".")
        prefix = "" if folder in (".", "", "./") else check_path(folder) + "/"
        files = [file for file in await self._workspace.list_files() if file.path.startswith(prefix)]
        if prefix and not files:
            raise ToolFailed(f"there is no folder {folder!r} in the workspace.")
        return ToolResult(result={"files": [{"path": file.path, "size": file.size_bytes} for file in files]})

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
            # The program may have written anything.
            answer = msgspec.json.decode(outcome.output, type=_PythonAnswer)
            changed = {path: base64.b64decode(data, validate=True) for path, data in answer.files.items()}
        except (msgspec.MsgspecError, ValueError, RecursionError) as error:
            raise ToolFailed("the result of the program cannot be read.") from error
        commit = await self._workspace.write_files(changed) if changed else None
        texts = {"stdout": answer.stdout, "stderr": answer.stderr, "value": answer.value, "error": answer.error}
        result: dict[str, Any] = {name: text for name, text in texts.items() if text}
        if changed:
            result["files_written"] = sorted(changed)
        if answer.left_out:
            result["files_too_large"] = answer.left_out[:100]
        return ToolResult(result=result or {"stdout": ""}, commit=commit)

    async def _request_http(self, args: dict[str, Any]) -> ToolResult:
        return ToolResult(result=await send_http_request(self._dependencies.outbound, args))

    async def _search_artifacts(self, args: dict[str, Any]) -> ToolResult:
        names = ("model_name", "status", "tag", "semantic_bucket")
        artifact_filter = artifacts.ArtifactFilter(
            search=args.get("query"), **{name: args[name] for name in names if name in args}
        )
        checked_filter = artifacts.normalize_filter(artifact_filter, self._tenant_id)
        page = Page(limit=args.get("limit", 10), offset=0)
        listing = await self._dependencies.store.run(
            self._tenant_id, lambda tx: tx.artifacts.list_page(checked_filter, page), retry=True
        )
        return ToolResult(result={"artifacts": msgspec.to_builtins(listing.items), "total": listing.total})


class _PythonAnswer(msgspec.Struct, kw_only=True):
    """Hold what the `python` tool returns from inside the fence."""

    stdout: str = ""
    stderr: str = ""
    value: str | None = None
    error: str | None = None
    files: dict[str, str] = {}
    left_out: list[str] = []


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
