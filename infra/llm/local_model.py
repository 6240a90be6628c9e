"""The model on this host, as workers reach it: through the door of `paddock up`, or at a URL of its own.

Errors are `domain.llms.messages.ModelError`, kind `unavailable`, as the next call may well find it there.
"""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from typing import Any, Final

import msgspec

from domain.llms import ChatMessage, ModelCall, ModelError
from domain.shared.secrets import Secret

_START_SECONDS: Final = 90.0
# Schemas become grammars: one of thousands of parts takes minutes to compile.
MAX_SCHEMA_VALUES: Final = 400
# An answer that begins like this can only go on as calls of tools (see infra/embedded/smollm2.jinja).
_TOOL_CALL_PREFIX: Final = "<tool_call>["


class LocalServer(msgspec.Struct, frozen=True, kw_only=True):
    """Where the model is, and the key that it wants."""

    base_url: str
    api_key: Secret | None


class _ServerReply(msgspec.Struct, frozen=True):
    """What the door says (see `infra.embedded.model.ModelServerAddress`)."""

    url: str = ""
    key: str = ""
    error: str = ""


class LocalModelClient:
    """The model behind `door` (`host:port:word`), started when it is needed, or at `url`, which goes first."""

    def __init__(self, door: str | None, url: str | None, key: Secret | None = None) -> None:
        self._door, self._url, self._key = door, url, key

    @contextlib.asynccontextmanager
    async def acquire_server(self) -> AsyncIterator[LocalServer]:
        """The model, there for as long as this is held. Errors: `ModelError`."""
        if self._url:
            yield LocalServer(base_url=self._url.rstrip("/"), api_key=self._key)
            return
        if not self._door:
            raise ModelError(
                "unavailable", "The local model is not there: `paddock up` has it; else set PADDOCK_LOCAL_MODEL_URL."
            )
        host, port, word = self._door.split(":")
        try:
            reader, writer = await asyncio.open_connection(host, int(port))
        except OSError as error:
            raise ModelError("unavailable", f"The local model cannot be asked for: {error.strerror}.") from None
        try:
            yield await _request_server(reader, writer, word)
        finally:
            # Hanging up is how the door learns that this call is over.
            writer.close()


async def _request_server(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, word: str) -> LocalServer:
    try:
        writer.write(f"{word}\n".encode())
        async with asyncio.timeout(_START_SECONDS):
            told = msgspec.json.decode(await reader.readline(), type=_ServerReply)
    except TimeoutError:
        raise ModelError("unavailable", f"The local model did not start within {_START_SECONDS:g} seconds.") from None
    except (OSError, ValueError):
        raise ModelError("unavailable", "The local model cannot be asked for: `paddock up` hung up.") from None
    if told.error:
        raise ModelError("unavailable", told.error[0].upper() + told.error[1:])
    return LocalServer(base_url=told.url, api_key=Secret(told.key))


def prepare_local_request(ask: ModelCall, served: LocalServer) -> ModelCall:
    """The same call, with the server's key. Where a tool must be called, the answer is begun for the model.

    llama.cpp lets text come before a call, even where one is required, and so small a model never ends its text.
    Errors: `ModelError` for a JSON Schema that would keep the server, which all share, busy for minutes.
    """
    schemas = {f"tools[{number}]": tool.parameters for number, tool in enumerate(ask.tools)}
    for where, schema in {"The schema of the answer": ask.options.schema or {}, **schemas}.items():
        if _count_schema_values(schema) > MAX_SCHEMA_VALUES:
            told = f"{where} has more than the {MAX_SCHEMA_VALUES} parts that the local model takes of a JSON Schema."
            raise ModelError("refused", told)
    ask = msgspec.structs.replace(ask, target=msgspec.structs.replace(ask.target, api_key=served.api_key))
    if ask.options.tool_choice != "required" or not ask.tools:
        return ask
    return msgspec.structs.replace(
        ask, messages=(*ask.messages, ChatMessage(role="assistant", content=_TOOL_CALL_PREFIX))
    )


def _count_schema_values(schema: Any) -> int:
    """How many values a schema holds, however deep; counting ends once they are too many."""
    count, open_values = 0, [schema]
    while open_values and count <= MAX_SCHEMA_VALUES:
        value = open_values.pop()
        count += 1
        if isinstance(value, dict):
            open_values.extend(value.values())
        elif isinstance(value, list):
            open_values.extend(value)
    return count
