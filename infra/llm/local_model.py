"""Reach the local model: through the broker of `paddock up`, which starts it on demand, or at a URL.

Errors are `domain.llms.ModelError` of kind `unavailable`, as the next call may succeed.
"""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from typing import Any, Final

import msgspec

from domain.llms import ChatMessage, ModelCall, ModelError
from domain.shared.secrets import Secret

_START_SECONDS: Final = 90.0
# llama.cpp compiles schemas to grammars, which takes minutes for thousands of values.
MAX_SCHEMA_VALUES: Final = 400
# An answer that begins with this can only go on with tool calls (see infra/embedded/smollm2.jinja).
_TOOL_CALL_PREFIX: Final = "<tool_call>["


class LocalServer(msgspec.Struct, frozen=True, kw_only=True):
    """Hold the address of the model server and the key that it requires."""

    base_url: str
    api_key: Secret | None


class _ServerReply(msgspec.Struct, frozen=True):
    """Hold the broker's answer (see `infra.embedded.model`): an address, or an error."""

    url: str = ""
    key: str = ""
    error: str = ""


class LocalModelClient:
    """Reach the model at `url`, else through the broker at `door` (`host:port:secret`), which starts it."""

    def __init__(self, door: str | None, url: str | None, key: Secret | None = None) -> None:
        self._door, self._url, self._key = door, url, key

    @contextlib.asynccontextmanager
    async def acquire_server(self) -> AsyncIterator[LocalServer]:
        """Keep the model server running while the context is open, and yield its address. Errors: `ModelError`."""
        if self._url:
            yield LocalServer(base_url=self._url.rstrip("/"), api_key=self._key)
            return
        if not self._door:
            raise ModelError(
                "unavailable", "The local model is not configured: run `paddock up`, or set PADDOCK_LOCAL_MODEL_URL."
            )
        host, port, word = self._door.split(":")
        try:
            reader, writer = await asyncio.open_connection(host, int(port))
        except OSError as error:
            problem = f"`paddock up`, which starts the local model, cannot be reached: {error.strerror}."
            raise ModelError("unavailable", problem) from None
        try:
            yield await _request_server(reader, writer, word)
        finally:
            # The closed connection tells the broker that this call is over.
            writer.close()


async def _request_server(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, word: str) -> LocalServer:
    try:
        writer.write(f"{word}\n".encode())
        async with asyncio.timeout(_START_SECONDS):
            reply = msgspec.json.decode(await reader.readline(), type=_ServerReply)
    except TimeoutError:
        raise ModelError("unavailable", f"The local model did not start within {_START_SECONDS:g} seconds.") from None
    except (OSError, ValueError):
        problem = "`paddock up` hung up instead of starting the local model."
        raise ModelError("unavailable", problem) from None
    if reply.error:
        raise ModelError("unavailable", reply.error[0].upper() + reply.error[1:])
    return LocalServer(base_url=reply.url, api_key=Secret(reply.key))


def prepare_local_request(ask: ModelCall, served: LocalServer) -> ModelCall:
    """Return the call with the server's key. If a tool call is required, the beginning of the answer is given.

    llama.cpp allows text before a required call, and a model this small never ends its text.
    Errors: `ModelError` for a JSON Schema that would keep the shared server busy for minutes.
    """
    schemas = {f"tools[{number}]": tool.parameters for number, tool in enumerate(ask.tools)}
    for where, schema in {"The schema of the answer": ask.options.schema or {}, **schemas}.items():
        if _count_schema_values(schema) > MAX_SCHEMA_VALUES:
            problem = f"{where} is too large for the local model: it may have at most {MAX_SCHEMA_VALUES} values."
            raise ModelError("refused", problem)
    ask = msgspec.structs.replace(ask, target=msgspec.structs.replace(ask.target, api_key=served.api_key))
    if (allowed := ask.options.allowed_tools) is not None:
        # llama.cpp takes no names: it is shown the tools that may be called.
        ask = msgspec.structs.replace(
            ask,
            tools=tuple(tool for tool in ask.tools if tool.name in allowed),
            options=msgspec.structs.replace(ask.options, allowed_tools=None),
        )
    if ask.options.tool_choice != "required" or not ask.tools:
        return ask
    return msgspec.structs.replace(
        ask, messages=(*ask.messages, ChatMessage(role="assistant", content=_TOOL_CALL_PREFIX))
    )


def _count_schema_values(schema: Any) -> int:
    """Count the values of a schema at all depths. Counting stops once there are too many."""
    count, open_values = 0, [schema]
    while open_values and count <= MAX_SCHEMA_VALUES:
        value = open_values.pop()
        count += 1
        if isinstance(value, dict):
            open_values.extend(value.values())
        elif isinstance(value, list):
            open_values.extend(value)
    return count
