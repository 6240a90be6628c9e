"""Read what an expression says, before it is run: its words, what it uses, and what it may not hold.

CEL's own parser has the last word on the grammar. The words are read here too, since it tells neither which steps an
expression uses, nor whether loops stand within loops.
"""

import re
from collections.abc import Sequence
from typing import Any, Final

import msgspec

MAX_EXPRESSION_LENGTH: Final = 1_000
MAX_BRACKET_DEPTH: Final = 32
MAX_PATTERN_LENGTH: Final = 200
SCOPE_NAMES: Final = ("inputs", "steps", "item", "index")
LOOP_MACROS: Final = frozenset({"all", "exists", "exists_one", "filter", "map"})
FUNCTION_NAMES: Final = frozenset(
    {"bytes", "double", "duration", "dyn", "has", "int", "size", "string", "timestamp", "type", "uint"}
)
METHOD_NAMES: Final = frozenset(
    {"contains", "endsWith", "getDate", "getDayOfMonth", "getDayOfWeek", "getDayOfYear", "getFullYear", "getHours"}
    | {"getMilliseconds", "getMinutes", "getMonth", "getSeconds", "matches", "size", "startsWith"}
)
# Names of types, as in `type(item) == string`.
TYPE_NAMES: Final = frozenset({"bool", "double", "int", "list", "map", "null_type", "string", "uint"})
_KEYWORD_TOKENS: Final = frozenset({"true", "false", "null", "in"})
_TOKEN_PATTERN: Final = re.compile(
    r"""(?P<space>[ \t\r\n\f]+)
    |(?P<text>[rR]?(?:"(?:[^"\\\r\n]|\\.)*"|'(?:[^'\\\r\n]|\\.)*'))
    |(?P<number>0x[0-9a-fA-F]+[uU]?|(?:[0-9]+\.[0-9]+|\.[0-9]+|[0-9]+)(?:[eE][+-]?[0-9]+)?[uU]?)
    |(?P<name>[^\W\d]\w*)
    |(?P<sign>&&|\|\||==|!=|<=|>=|[-+*/%<>!?:.,()\[\]{}])""",
    re.VERBOSE,
)
_BRACKET_PAIRS: Final = {")": "(", "]": "[", "}": "{"}

ValuePath = tuple[str | int, ...]


class BadExpression(Exception):
    """Report an expression or template that cannot be read or has no answer. `place` is where below the value."""

    def __init__(self, message: str, place: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.path = place


class ExpressionReferences(msgspec.Struct, frozen=True):
    """Name what an expression uses: ids of steps, which of `inputs`, `steps`, `item` and `index`, which inputs."""

    steps: frozenset[str] = frozenset()
    names: frozenset[str] = frozenset()
    inputs: frozenset[str] = frozenset()

    def __or__(self, other: "ExpressionReferences") -> "ExpressionReferences":
        return ExpressionReferences(self.steps | other.steps, self.names | other.names, self.inputs | other.inputs)


class ExpressionToken(msgspec.Struct, frozen=True):
    """Describe one word: `kind` is text, number, name or sign; `position` counts characters from 0."""

    kind: str
    text: str
    position: int

    @property
    def ends_value(self) -> bool:
        """Whether a `.` or `[` after it takes a part of a value."""
        return self.text in (")", "]", "}") if self.kind == "sign" else self.text != "in"


class LoopMacro(msgspec.Struct, frozen=True):
    """Locate a macro: the words of the value before it run from `start` to `dot`, `end` is its closing bracket."""

    kind: str
    start: int
    dot: int
    end: int
    variable: str
    bodies: tuple[tuple[int, int], ...]


def quote_source(source: str) -> str:
    """Return an expression as errors name it: on one line, in backticks, at most 100 characters."""
    text = " ".join(source.split())
    return f"`{text if len(text) <= 100 else text[:99] + '…'}`"


def read_token(source: str, at: int) -> ExpressionToken | None:
    """Return the word at `at`, None for space. Errors: BadExpression for a character that no word begins with."""
    match = _TOKEN_PATTERN.match(source, at)
    if match is None:
        instead = " Values are compared with `==`." if source[at] == "=" else ""
        raise BadExpression(f"{source[at]!r} is not part of expressions.{instead}")
    if match.lastgroup == "space":
        return None
    return ExpressionToken(str(match.lastgroup), match[0], at)


def read_tokens(source: str) -> list[ExpressionToken]:
    """Return the words of an expression. Errors: BadExpression."""
    if not source.strip():
        raise BadExpression("An expression is missing.")
    if len(source) > MAX_EXPRESSION_LENGTH:
        raise BadExpression(f"An expression has at most {MAX_EXPRESSION_LENGTH} characters, not {len(source)}.")
    tokens: list[ExpressionToken] = []
    at = 0
    while at < len(source):
        word = read_token(source, at)
        if word is None:
            match = _TOKEN_PATTERN.match(source, at)
            at = match.end() if match is not None else len(source)
            continue
        before = tokens[-1] if tokens else None
        if before is not None and before.position + len(before.text) == at:
            if word.kind == "text" and before.kind == "text":
                raise BadExpression("Text in three quotes is not part of expressions.")
            if word.kind == "text" and re.fullmatch("[bBrR]{1,2}", before.text):
                raise BadExpression(f"`{before.text}` before a quote is not part of expressions.")
            if word.text == before.text == "/":
                raise BadExpression("Comments are not part of expressions.")
        tokens.append(word)
        at += len(word.text)
    return tokens


def quote_members(source: str, tokens: Sequence[ExpressionToken]) -> str:
    """Return an expression in which names that CEL has no letters for are in quotes: `steps["研究"]`."""
    parts: list[str] = []
    at = 0
    for index, word in enumerate(tokens):
        if word.kind == "name" and not word.text.isascii() and is_member(tokens, index):
            parts += [source[at : tokens[index - 1].position], f'["{word.text}"]']
            at = word.position + len(word.text)
    return "".join([*parts, source[at:]])


def match_brackets(tokens: Sequence[ExpressionToken]) -> dict[int, int]:
    """Map each bracket to the one it belongs to. Errors: BadExpression when they do not match or go too deep."""
    opened: list[int] = []
    matched: dict[int, int] = {}
    for index, word in enumerate(tokens):
        if word.kind != "sign":
            continue
        if word.text in _BRACKET_PAIRS.values():
            opened.append(index)
            if len(opened) > MAX_BRACKET_DEPTH:
                raise BadExpression(f"Brackets are nested deeper than {MAX_BRACKET_DEPTH}.")
        elif word.text in _BRACKET_PAIRS:
            if not opened or tokens[opened[-1]].text != _BRACKET_PAIRS[word.text]:
                raise BadExpression(f"`{word.text}` at character {word.position + 1} closes nothing.")
            begin = opened.pop()
            matched[begin], matched[index] = index, begin
    if opened:
        word = tokens[opened[-1]]
        raise BadExpression(f"`{word.text}` at character {word.position + 1} is not closed.")
    return matched


def unquote_text(text: str) -> str | None:
    """Return what a quoted text says; None when it has escapes."""
    raw = text[0] in "rR"
    inner = text[2:-1] if raw else text[1:-1]
    return inner if raw or "\\" not in inner else None


def is_member(tokens: Sequence[ExpressionToken], index: int) -> bool:
    """Tell whether a name comes after a dot."""
    return index > 0 and tokens[index - 1].text == "." and tokens[index - 1].kind == "sign"


def is_called(tokens: Sequence[ExpressionToken], index: int) -> bool:
    """Tell whether a name comes before a round bracket, and is not the `in` of `x in (a + b)`."""
    return index + 1 < len(tokens) and tokens[index + 1].text == "(" and tokens[index].text != "in"


def read_path(tokens: Sequence[ExpressionToken], index: int) -> tuple[ValuePath, int]:
    """Return the longest path from the name at `index`, and the index after it: `steps["a"].outputs[2]`."""
    keys: list[str | int] = [tokens[index].text]
    at = index + 1
    while at + 1 < len(tokens):
        if tokens[at].text == "." and tokens[at + 1].kind == "name" and not is_called(tokens, at + 1):
            keys.append(tokens[at + 1].text)
            at += 2
        elif tokens[at].text == "[" and at + 2 < len(tokens) and tokens[at + 2].text == "]":
            word = tokens[at + 1]
            key = unquote_text(word.text) if word.kind == "text" else None
            if key is None and word.kind == "number" and re.fullmatch(r"0|[1-9][0-9]{0,8}", word.text):
                keys.append(int(word.text))
            elif key is not None:
                keys.append(key)
            else:
                break
            at += 3
        else:
            break
    return tuple(keys), at


def find_loops(tokens: Sequence[ExpressionToken], matched: dict[int, int]) -> list[LoopMacro]:
    """Return the macros in the order in which they are named. Errors: BadExpression for one within another."""
    loops: list[LoopMacro] = []
    for index, word in enumerate(tokens):
        if (
            word.kind != "name"
            or word.text not in LOOP_MACROS
            or not is_called(tokens, index)
            or not is_member(tokens, index)
        ):
            continue
        if loops and index < loops[-1].end:
            raise BadExpression(f"`{word.text}` stands within `{loops[-1].kind}`; loops cannot be nested.")
        begin, end = index + 1, matched[index + 1]
        commas, depth = [], 0
        for at in range(begin + 1, end):
            if tokens[at].kind != "sign":
                continue
            depth += (tokens[at].text in _BRACKET_PAIRS.values()) - (tokens[at].text in _BRACKET_PAIRS)
            if tokens[at].text == "," and depth == 0:
                commas.append(at)
        bodies = tuple((at + 1, after) for at, after in zip(commas, [*commas[1:], end], strict=False))
        most = 2 if word.text == "map" else 1
        name = tokens[begin + 1]
        if name.kind != "name" or not commas or commas[0] != begin + 2 or not 1 <= len(bodies) <= most:
            raise BadExpression(f"`{word.text}` is written as `list.{word.text}(x, …)`.")
        if name.text in {*SCOPE_NAMES, *TYPE_NAMES, *_KEYWORD_TOKENS} or name.text.startswith("__"):
            raise BadExpression(f"`{name.text}` cannot be the variable of `{word.text}`; choose another name.")
        loops.append(
            LoopMacro(word.text, _find_receiver_start(tokens, matched, index - 2), index - 1, end, name.text, bodies)
        )
    return loops


def _find_receiver_start(tokens: Sequence[ExpressionToken], matched: dict[int, int], at: int) -> int:
    """Return the index where the value that ends at `at` begins."""
    while at >= 0:
        word = tokens[at]
        if word.kind == "sign":
            begin = matched.get(at, at)
            before = tokens[begin - 1] if begin > 0 else None
            if before is None or word.text not in ("]", ")"):
                return begin
            if word.text == "]" and before.ends_value:
                at = begin - 1
                continue
            if word.text == "]" or before.kind != "name" or before.text == "in":
                return begin
            at = begin - 1
        if not is_member(tokens, at):
            return at
        at -= 2
    raise BadExpression("An expression cannot begin with a dot.")


def find_references(
    tokens: Sequence[ExpressionToken], matched: dict[int, int], loops: Sequence[LoopMacro]
) -> ExpressionReferences:
    """Return what the words use. Errors: BadExpression naming what may not be there."""
    references = ExpressionReferences()
    for index, word in enumerate(tokens):
        after = tokens[index + 1].text if index + 1 < len(tokens) else ""
        if word.kind == "text":
            _check_text(tokens, index)
        elif word.text == ".":
            if index == 0 or not tokens[index - 1].ends_value:
                raise BadExpression(f"`.{after}` needs a value before the dot.")
        elif word.kind == "name" and word.text != "in":
            _check_name(word.text, after)
            if is_called(tokens, index):
                _check_call(tokens, matched, index)
            elif not is_member(tokens, index):
                references |= _read_reference(tokens, index, loops)
    return references


def _check_text(tokens: Sequence[ExpressionToken], index: int) -> None:
    """Check that a text which selects a part of a value may do so. Errors: BadExpression."""
    key = unquote_text(tokens[index].text) if is_index(tokens, index) else None
    if key is not None and key.startswith("__") and key.endswith("__"):
        raise BadExpression(f"`{key}` cannot be reached: names with `__` around them are not part of values.")


def _check_name(name: str, after: str) -> None:
    """Check that a name, of anything, may be written before the word `after`. Errors: BadExpression."""
    if name.startswith("__"):
        raise BadExpression(f"`{name}` cannot be reached: no name in an expression begins with `__`.")
    if after == "{":
        raise BadExpression(f"`{name}{{…}}` is not part of expressions.")


def _read_reference(tokens: Sequence[ExpressionToken], index: int, loops: Sequence[LoopMacro]) -> ExpressionReferences:
    """Return what the name at which a value begins uses. Errors: BadExpression for an unknown one."""
    name = tokens[index].text
    if name not in SCOPE_NAMES:
        if name in _KEYWORD_TOKENS or name in TYPE_NAMES or _is_loop_variable(loops, index, name):
            return ExpressionReferences()
        raise BadExpression(f"There is no `{name}`; there are {', '.join(SCOPE_NAMES)}.")
    steps = [_read_step_name(tokens, index)] if name == "steps" else []
    inputs = read_path(tokens, index)[0][1:2] if name == "inputs" else ()
    return ExpressionReferences(
        frozenset(steps), frozenset({name}), frozenset(key for key in inputs if isinstance(key, str))
    )


def _is_loop_variable(loops: Sequence[LoopMacro], index: int, name: str) -> bool:
    """Tell whether the name at `index` declares the variable of a loop, or stands for it in its bodies."""
    return any(
        index == loop.bodies[0][0] - 2
        or (name == loop.variable and any(begin <= index < end for begin, end in loop.bodies))
        for loop in loops
    )


def is_index(tokens: Sequence[ExpressionToken], index: int) -> bool:
    """Tell whether a word is all that stands between square brackets after a value."""
    return (
        1 < index < len(tokens) - 1
        and tokens[index - 1].text == "["
        and tokens[index + 1].text == "]"
        and tokens[index - 2].ends_value
    )


def _read_step_name(tokens: Sequence[ExpressionToken], index: int) -> str:
    keys, _ = read_path(tokens, index)
    if len(keys) < 2 or not isinstance(keys[1], str):
        raise BadExpression('`steps` must be followed by the id of a step, as `steps.id` or `steps["id"]`.')
    return keys[1]


def _check_call(tokens: Sequence[ExpressionToken], matched: dict[int, int], index: int) -> None:
    word, method = tokens[index], is_member(tokens, index)
    known_names = METHOD_NAMES | LOOP_MACROS if method else FUNCTION_NAMES
    if word.text not in known_names:
        dot, listed = ("." if method else "", ", ".join(sorted(known_names)))
        raise BadExpression(f"There is no function `{dot}{word.text}()`; there are {listed}.")
    if method and word.text == "matches":
        # A pattern is compiled each time: one that is not written down, or that counts, could cost anything.
        pattern = tokens[index + 2]
        if matched[index + 1] != index + 3 or pattern.kind != "text":
            raise BadExpression("`matches` takes one pattern, written in quotes.")
        if len(pattern.text) > MAX_PATTERN_LENGTH:
            raise BadExpression(f"A pattern of `matches` has at most {MAX_PATTERN_LENGTH} characters.")
        if "{" in pattern.text or "\\x" in pattern.text or "\\u" in pattern.text or re.search(r"\\[0-7]", pattern.text):
            raise BadExpression("A pattern of `matches` cannot hold `{` or escapes by number.")


def explain_parse_error(text: str) -> str:
    """Return a sentence from what CEL's parser says: `ERROR: <input>:1:4: Syntax error: … expecting {…}`."""
    match = re.search(r"ERROR: <input>:(\d+):(\d+): (?:Syntax error: )?([^\n]*)", text)
    if match is None:
        return "It cannot be read."
    line, column, problem = match[1], int(match[2]), match[3].split(" expecting ")[0][:200]
    if "<EOF>" in problem or problem.startswith("Incomplete"):
        return "It ends too early."
    where = f"character {column}" if line == "1" else f"line {line}, character {column}"
    return f"It cannot be read at {where}: {problem}."


def describe_kind(value: Any) -> str:
    """Return what a JSON value is, in words."""
    if value is None:
        return "null"
    for kind, description in ((bool, "true or false"), (str, "text"), (list, "a list"), (dict, "an object")):
        if isinstance(value, kind):
            return description
    return "a number" if isinstance(value, int | float) else type(value).__name__
