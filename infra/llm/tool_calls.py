"""Read the tool calls of chat completions, which every server numbers, names and splits in its own way."""

import json
import re
from collections.abc import Generator, Iterable, Sequence
from typing import Any, Final

import msgspec

from domain.llms import ModelCall, ToolCallDelta
from infra.llm import model_errors
from infra.llm.answer_builder import AnswerBuilder

# An answer with more calls is a fault of the server. The caller may have a lower limit of its own.
MAX_TOOL_CALLS: Final = 1000
_STRUCTURE_CHARACTERS: Final = re.compile(r'["\\{}\[\]]')


class _StartedCall:
    """Track a call that has begun, with the server's own id and name."""

    def __init__(self, index: int, id_: str | None, name: str) -> None:
        self.index, self.id, self.name = index, id_, name
        self.length = 0  # of its arguments
        self.is_whole = False  # its arguments are a complete JSON object
        self._depth = 0
        self._is_text = self._is_escaped = False

    def add_arguments(self, arguments: str) -> None:
        """Follow the brackets of the arguments piece by piece: decoding all of them each time would take too long."""
        self.length += len(arguments)
        if self._is_escaped and arguments:
            self._is_escaped, start = False, 1
        else:
            start = 0
        for match in _STRUCTURE_CHARACTERS.finditer(arguments, start):
            mark, at = match[0], match.start()
            if at < start:
                continue  # behind a backslash
            if mark == "\\":
                start = at + 2
                self._is_escaped = start > len(arguments)
            elif mark == '"':
                self._is_text = not self._is_text
            elif not self._is_text:
                self._depth += 1 if mark in "{[" else -1
                self.is_whole = self._depth == 0


class ToolCallReader:
    """Reads pieces of tool calls into an answer.

    A known id continues its call, an unknown id begins another call. Without an id the number decides, then the order.
    A name after arguments that are a complete JSON object begins another call. A complete call that is sent twice under
    one id counts once.
    """

    def __init__(self, answer: AnswerBuilder, ask: ModelCall) -> None:
        self._answer, self._ask = answer, ask
        self._begun: list[_StartedCall] = []
        self._by_number: dict[int, _StartedCall] = {}
        # Ids and arguments that came before their call's name, by number.
        self._early: dict[int | None, tuple[str | None, str]] = {}

    @property
    def is_empty(self) -> bool:
        """Tell whether no call has come."""
        return not self._begun

    def read_calls(self, calls: Any) -> Iterable[ToolCallDelta]:
        """Read the calls of one event or message: a list, or a single one."""
        if isinstance(calls, dict):
            calls = [calls] if {"function", "name", "id"} & calls.keys() else list(calls.values())
        for call in calls if isinstance(calls, list) else ():
            if isinstance(call, dict):
                yield from self._read_call(call)

    def _read_call(self, call: dict[str, Any]) -> Iterable[ToolCallDelta]:
        function = call["function"] if isinstance(call.get("function"), dict) else call
        number, id_, name = (
            _parse_index(call.get("index")),
            _parse_name(call.get("id")),
            _parse_name(function.get("name")),
        )
        arguments = _encode_arguments(function.get("arguments", function.get("parameters", function.get("input"))))
        begun = self._find_call(number, id_, name, arguments)
        if begun is None:
            if number in self._early:
                early_id, early_arguments = self._early.pop(number)
                id_, arguments = id_ or early_id, early_arguments + arguments
            if name is None:
                self._early[number] = (id_, arguments)
                return
            begun = yield from self._begin_call(number, id_, name)
        begun.id = begun.id or id_
        if isinstance(extra := call.get("extra_content"), dict):
            self._answer.keep_call_fields(begun.index, extra_content=extra)
        yield from self._add_arguments(begun, arguments)

    def _begin_call(
        self, number: int | None, id_: str | None, name: str
    ) -> Generator[ToolCallDelta, None, _StartedCall]:
        if len(self._begun) >= MAX_TOOL_CALLS:
            raise model_errors.build_malformed_error(self._ask.target, f"it has more than {MAX_TOOL_CALLS} tool calls.")
        part = self._answer.begin_call(id_, name)
        begun = _StartedCall(part.index, id_, name)
        self._begun.append(begun)
        self._by_number[part.index if number is None else number] = begun
        yield part
        return begun

    def _find_call(self, number: int | None, id_: str | None, name: str | None, arguments: str) -> _StartedCall | None:
        """Return the call that a piece continues, or None if it begins another call."""
        at_number = self._by_number.get(number) if number is not None else None
        next_in_order = at_number if number is not None else (self._begun[-1] if self._begun else None)
        if id_ is None:
            return None if next_in_order is None or self._is_new_call(next_in_order, name) else next_in_order
        same = [begun for begun in self._begun if begun.id == id_]
        if not same:
            # A late id belongs to the call that had none. An id that is new in each piece belongs to no call.
            is_late = next_in_order is not None and (
                name is None or (next_in_order.id is None and not self._is_new_call(next_in_order, name))
            )
            return next_in_order if is_late else None
        begun = at_number if at_number in same else same[-1]
        if self._is_repeated(begun, name, arguments):
            return begun
        if number is not None and at_number is None:
            return None  # several calls of one id, distinguished by number
        return None if name is not None and begun.is_whole and arguments.lstrip().startswith("{") else begun

    def _is_new_call(self, begun: _StartedCall, name: str | None) -> bool:
        """Tell whether a name begins a new call instead of continuing `begun`."""
        return name is not None and (begun.is_whole or name != begun.name)

    def _is_repeated(self, begun: _StartedCall, name: str | None, arguments: str) -> bool:
        """Tell whether a piece repeats a complete call."""
        if name not in (None, begun.name) or not begun.is_whole:
            return False
        bare = arguments.strip()
        return bare in ("", "{}") if begun.length == 0 else self._has_same_arguments(begun, bare)

    def _has_same_arguments(self, begun: _StartedCall, bare: str) -> bool:
        return len(bare) <= begun.length < len(bare) + 64 and self._answer.get_arguments(begun.index).strip() == bare

    def _add_arguments(self, begun: _StartedCall, arguments: str) -> Sequence[ToolCallDelta]:
        bare = arguments.strip()
        if begun.is_whole and (not bare or bare == "{}" or self._has_same_arguments(begun, bare)):
            return ()
        if begun.length == 0 and bare in ("{}", "null"):
            # Some servers send `{}` first and the arguments later. If none follow, the arguments are `{}`.
            begun.is_whole = bare == "{}"
            return ()
        begun.add_arguments(arguments)
        return self._answer.add_arguments(begun.index, arguments)


def _parse_index(value: Any) -> int | None:
    if isinstance(value, str) and value.isdecimal() and len(value) < 6:
        return int(value)
    if isinstance(value, float) and value.is_integer():
        return int(value)
    return value if isinstance(value, int) and not isinstance(value, bool) else None


def _parse_name(value: Any) -> str | None:
    """Return a name or an id: text, or a number as text."""
    if isinstance(value, int | float) and not isinstance(value, bool):
        value = str(value)
    return value.strip() or None if isinstance(value, str) else None


def _encode_arguments(value: Any) -> str:
    if isinstance(value, str):
        return value
    if value is None:
        return ""
    try:
        return msgspec.json.encode(value).decode()
    except (msgspec.MsgspecError, ValueError, RecursionError, UnicodeEncodeError):
        return json.dumps(value)
